"""Texts that continue from kept states of their opening against the same texts calculated whole."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import service.encoders.packed as packed
from service.encoders.base import PrefixEncoder
from service.encoders.checkpoint import DEFAULT_NAME, load_checkpoint
from service.encoders.torch_encoder import TorchEncoder
from service.encoders.torch_loading import load_encoder
from service.errors import EncoderError
from service.paths import cache_dir
from tests.checkpoints import FAMILIES, tiny_model, write_tiny_checkpoint
from tests.service.encoders.test_torch_encoder import LENGTHS, random_ids, reference

DECODERS = [family for family, (*_, pooling) in FAMILIES.items() if pooling == "last_token"]
OTHERS = [family for family in FAMILIES if family not in DECODERS]
CACHE_TOKENS = 200


def encoder_of(model: Any, *, pooling: Any = "last_token", tokens: int = CACHE_TOKENS, row: int = 1000) -> TorchEncoder:
    return TorchEncoder(model, pooling=pooling, dimension=32, row_tokens=row, prefix_cache_tokens=tokens)


def instruction(length: int, seed: int) -> list[int]:
    return random_ids([length + 1], seed)[0][:-1]


# on both sides of the window of 8; the second is the first and goes on
FIRST, SHORT = instruction(20, 1), instruction(9, 2)
FURTHER = FIRST + instruction(10, 3)


def mixed_batch(seed: int) -> list[list[int]]:
    """Texts of three instructions, one of them another's opening, and of none; one text is an instruction."""
    texts = [
        before + ids
        for before, lengths in ((FIRST, [3, 2, 20, 21]), (FURTHER, [2, 12, 5, 30]), (SHORT, [4, 1, 9]), ([], LENGTHS))
        for ids in random_ids(lengths, seed)
    ]
    return [*texts[::2], [*FIRST], *texts[1::2]]


@pytest.mark.parametrize("family", DECODERS)
def test_encode_from_kept_openings_equals_the_family_s_own_attention(family: str) -> None:
    encoder = encoder_of(tiny_model(family))
    for seed in range(10, 13):
        texts = mixed_batch(seed)
        np.testing.assert_allclose(encoder.encode(texts), reference(family, texts), atol=1e-5)

    figures = encoder.take_prefix_figures()
    assert isinstance(encoder, PrefixEncoder)
    assert figures.hits > 20
    # the second is the first and goes on, so one serves both
    assert figures.held_tokens == len(FURTHER) + len(SHORT)


def test_encode_learned_positions_go_on_behind_the_opening() -> None:
    def opt() -> transformers.PreTrainedModel:
        torch.manual_seed(0)
        config = transformers.OPTConfig(
            vocab_size=259, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=128,
        )  # fmt: skip
        return transformers.OPTModel(config).eval()

    encoder, whole = encoder_of(opt()), encoder_of(opt(), tokens=0)
    for seed in (10, 11):
        texts = mixed_batch(seed)
        np.testing.assert_allclose(encoder.encode(texts), whole.encode(texts), atol=1e-5)
    assert encoder.take_prefix_figures().hits > 0


def test_encode_positions_off_by_one_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    of = packed.Packing.of

    def shifted(*args: Any, **options: Any) -> packed.Packing:
        packing = of(*args, **options)
        if any(options["prefixes"] or ()):
            packing.position_ids_1T.add_(1)
        return packing

    monkeypatch.setattr(packed.Packing, "of", shifted)
    texts = mixed_batch(10)
    difference = np.abs(encoder_of(tiny_model("llama")).encode(texts) - reference("llama", texts))

    assert difference.max() > 1e-3


def test_encode_a_mask_off_by_one_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = packed._mask

    def shifted(group: packed.Group, *args: Any) -> Any:
        made = mask(group, *args)
        return made.roll(1, dims=-1) if group.prefix else made

    monkeypatch.setattr(packed, "_mask", shifted)
    texts = mixed_batch(10)
    difference = np.abs(encoder_of(tiny_model("mistral")).encode(texts) - reference("mistral", texts))

    assert difference.max() > 1e-3


def test_encode_calculates_only_what_follows_the_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(tiny_model("llama"))
    rows: list[list[int]] = []
    forward = encoder._forward

    def recording(model, token_ids, **options):  # type: ignore[no-untyped-def]
        rows.append(sorted(map(len, token_ids)))
        return forward(model, token_ids, **options)

    monkeypatch.setattr(encoder, "_forward", recording)

    encoder.encode([FIRST + ids for ids in random_ids([4, 5, 6, 7])])
    encoder.encode([FIRST + ids for ids in random_ids([6, 6], seed=9)] + [SHORT])

    assert rows == [[25], [4, 6, 7], [6, 6, 9]]


def test_encode_in_small_rows_and_beyond_the_bound_stays_right() -> None:
    encoder = encoder_of(tiny_model("llama"), tokens=25, row=16)
    for seed in range(10, 13):
        texts = mixed_batch(seed)
        np.testing.assert_allclose(encoder.encode(texts), reference("llama", texts), atol=1e-5)

    figures = encoder.take_prefix_figures()
    assert figures.evictions > 0
    assert 0 < figures.held_tokens <= 25


def test_encode_out_of_memory_splits_the_row_and_keeps_the_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(tiny_model("llama"))
    forward = encoder._forward

    def limited(model, token_ids, **options):  # type: ignore[no-untyped-def]
        hidden = forward(model, token_ids, **options)
        if len(token_ids) > 1:
            raise torch.OutOfMemoryError("test")
        return hidden

    monkeypatch.setattr(encoder, "_forward", limited)
    for seed in (10, 11):
        texts = mixed_batch(seed)
        np.testing.assert_allclose(encoder.encode(texts), reference("llama", texts), atol=1e-5)
    assert encoder.take_prefix_figures().hits > 0


def test_encode_states_that_are_no_numbers_are_not_kept() -> None:
    model = tiny_model("llama")
    encoder = encoder_of(model)
    texts = [FIRST + ids for ids in random_ids([4, 5, 6])]
    weight = model.get_parameter("norm.weight")
    before = weight.detach().clone()
    torch.nn.init.constant_(weight, float("nan"))
    with pytest.raises(EncoderError, match="not finite"):
        encoder.encode(texts)

    with torch.no_grad():
        weight.copy_(before)

    assert encoder.take_prefix_figures().held_tokens == 0
    np.testing.assert_allclose(encoder.encode(texts), reference("llama", texts), atol=1e-5)


@pytest.mark.parametrize("family", OTHERS)
def test_encode_families_that_see_what_follows_never_continue(family: str) -> None:
    encoder = encoder_of(tiny_model(family), pooling=FAMILIES[family][3])
    texts = [FIRST + ids for ids in random_ids([4, 5, 6])]
    for _ in range(3):
        np.testing.assert_allclose(encoder.encode(texts), reference(family, texts), atol=2e-6)

    assert encoder.take_prefix_figures().misses == 0


@pytest.mark.parametrize(
    ("family", "pooling", "tokens", "changes"),
    [
        ("llama", "last_token", 0, {}),
        ("llama", "mean", CACHE_TOKENS, {}),
        ("bert", "last_token", CACHE_TOKENS, {}),
        (
            "llama",
            "last_token",
            CACHE_TOKENS,
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        ),
    ],
    ids=["off", "mean", "bidirectional", "rotary by the row's longest text"],
)
def test_encode_what_cannot_continue_is_calculated_whole(
    family: str, pooling: str, tokens: int, changes: dict[str, Any]
) -> None:
    encoder = encoder_of(tiny_model(family, **changes), pooling=pooling, tokens=tokens)
    for _ in range(3):
        encoder.encode([FIRST + ids for ids in random_ids([4, 5, 6])])

    assert encoder.take_prefix_figures().misses == 0


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_encoder_checks_and_takes_every_decoder_family(family: str, dtype: str, tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / family, family)
    encoder = load_encoder(str(path), dtype=dtype, device="cpu", prefix_cache_tokens=CACHE_TOKENS)
    assert encoder.take_prefix_figures().held_tokens == 0  # nothing is left of the check

    texts = [FIRST + ids for ids in random_ids([4, 5, 16, 7, 6])]
    # random weights of this size amplify rounding more than trained ones do
    least = 0.99999 if dtype == "float32" else 0.99
    for _ in range(2):
        assert (encoder.encode(texts) * reference(family, texts)).sum(axis=1).min() > least
    assert encoder.take_prefix_figures().hits > 0


@pytest.mark.parametrize("is_raising", [False, True])
def test_check_a_family_that_cannot_continue_is_calculated_whole(
    is_raising: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(self: packed.Group, key: Any, value: Any, call: int) -> Any:
        if is_raising and self.prefix:
            raise IndexError("no such layer")
        k, v = after_prefix(self, key, value, call)
        return k, v if self.prefix is None else v.flip(2)

    after_prefix = packed.Group.after_prefix
    monkeypatch.setattr(packed.Group, "after_prefix", wrong)
    encoder = encoder_of(tiny_model("llama"))

    encoder.check(random_ids([4, 9, 17]))

    assert ("fails (IndexError" if is_raising else "changes its vectors") in caplog.text
    texts = mixed_batch(10)
    np.testing.assert_allclose(encoder.encode(texts), reference("llama", texts), atol=2e-6)


def test_check_uses_kept_states_and_forgets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    after_prefix = packed.Group.after_prefix
    monkeypatch.setattr(
        packed.Group,
        "after_prefix",
        lambda self, *args: (self.prefix and used.append(self.prefix.length)) or after_prefix(self, *args),
    )
    encoder = encoder_of(tiny_model("llama"))

    encoder.check(random_ids([4, 9, 17]))

    assert used
    assert encoder._prefixes is not None
    assert not encoder._prefixes._recent


@pytest.mark.integration
def test_default_checkpoint_in_bfloat16_continues_within_rounding() -> None:
    path = cache_dir() / "checkpoints" / DEFAULT_NAME
    if not path.is_dir():
        pytest.skip("the default checkpoint is not pulled; `make model` fetches it")
    contract = load_checkpoint(str(path)).contract
    words = ["merge", "two", "sorted", "lists", "HIV", "vaccine", "Zürich", "42", "how", "does"]
    queries = [" ".join(words[i : i + 1 + i % 7]) + f" {i}" for i in range(8)] + [
        " ".join(pair) for pair in itertools.islice(itertools.permutations(words, 2), 16)
    ]
    task = "Given a question about a programming language's standard library, retrieve what documents the answer"
    token_ids = contract.queries(queries, instruction=task).token_ids
    whole = load_encoder(str(path), dtype="bfloat16", device="cpu")
    continuing = load_encoder(str(path), dtype="bfloat16", device="cpu", prefix_cache_tokens=2048)

    continuing.encode(token_ids)
    embeddings = continuing.encode(token_ids)

    assert continuing.take_prefix_figures().hits > 40
    assert (embeddings * whole.encode(token_ids)).sum(axis=1).min() >= 0.9995
