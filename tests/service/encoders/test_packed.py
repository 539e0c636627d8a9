import pytest
import torch
from torch import nn

from service.encoders.packed import Packing, Prefix, packed_attention


def attend(
    lengths: list[int],
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    is_padded: bool = False,
    multiple: int = 1,
) -> torch.Tensor:
    """Packed attention of random states; two key heads under four query heads."""
    q, k, v = states(sum(lengths))
    output, _ = packed_attention(
        nn.Module(),
        q,
        k,
        v,
        None,
        packing=Packing.of(lengths, is_padded=is_padded, multiple=multiple),
        is_causal=causal,
        sliding_window=window,
        softcap=softcap,
    )
    return output[0]


def states(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(1, heads, num_tokens, 8, generator=generator) for heads in (4, 2, 2))  # type: ignore[return-value]


def by_definition(lengths: list[int], *, causal: bool, window: int | None, softcap: float | None) -> torch.Tensor:
    """softmax(q k / sqrt(D)) v, token by token in Python."""
    q, k, v = states(sum(lengths))
    output = torch.empty(sum(lengths), 4, 8)
    start = 0
    for length in lengths:
        for i in range(length):
            seen = [j for j in range(length) if (not causal or j <= i) and (window is None or abs(i - j) < window)]
            for head in range(4):
                keys = k[0, head // 2, [start + j for j in seen]]
                scores = keys @ q[0, head, start + i] / 8**0.5
                if softcap is not None:
                    scores = torch.tanh(scores / softcap) * softcap
                output[start + i, head] = scores.softmax(0) @ v[0, head // 2, [start + j for j in seen]]
        start += length
    return output


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [[5], [5, 5, 5], [1, 3, 7], [2, 30, 31, 5]])
def test_packed_attention_equals_its_definition(
    lengths: list[int], causal: bool, window: int | None, softcap: float | None, is_padded: bool
) -> None:
    expected = by_definition(lengths, causal=causal, window=window, softcap=softcap)
    torch.testing.assert_close(
        attend(lengths, causal=causal, window=window, softcap=softcap, is_padded=is_padded),
        expected,
        atol=1e-5,
        rtol=1e-5,
    )


def test_packing_groups_similar_lengths_and_parts_others() -> None:
    groups = Packing.of([3, 10, 19, 100, 110, 300], is_padded=True).groups
    assert [group.lengths for group in groups] == [[3, 10, 19], [100, 110], [300]]


def test_packing_on_a_processor_groups_equal_lengths_only() -> None:
    assert [group.lengths for group in Packing.of([3, 10, 10, 11]).groups] == [[3], [10, 10], [11]]


def test_packing_rounds_lengths_up_with_their_prefix() -> None:
    prefix = Prefix(30)
    packing = Packing.of([2, 9, 32, 40, 3, 5, 20], prefixes=[None] * 4 + [prefix] * 3, is_padded=False, multiple=32)
    assert [(each.lengths, each.width) for each in packing.groups] == [
        ([2, 9, 32], 32), ([40], 64), ([3, 5, 20], 34)
    ]  # fmt: skip
    assert packing.groups[1].slots_NL is None  # what follows in the row pads it


@pytest.mark.parametrize("lengths", [[5], [5, 5, 5], [8, 8], [1, 3, 7], [2, 30, 31, 5]])
def test_packed_attention_of_rounded_lengths_equals_its_definition(lengths: list[int]) -> None:
    expected = by_definition(lengths, causal=True, window=None, softcap=None)
    torch.testing.assert_close(attend(lengths, causal=True, multiple=8), expected, atol=1e-5, rtol=1e-5)


def test_packing_positions_restart_with_each_sequence() -> None:
    assert Packing.of([2, 3], position_offset=2).position_ids_1T.tolist() == [[2, 3, 2, 3, 4]]
