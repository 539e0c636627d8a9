from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.checkpoints import tiny_model
from training.config import TuningConfig
from training.gradient_cache import cached_step, plan_chunks
from training.loss import info_nce
from training.model import EmbeddingModel, apply_tuning

_GENERATOR = torch.Generator().manual_seed(3)
_TOKEN_IDS = [
    [*torch.randint(3, 259, (length,), generator=_GENERATOR).tolist(), 2] for length in (4, 9, 3, 17, 5, 30, 8, 2, 12)
]
_NUM_QUERIES = 4


def _loss(gathered: Tensor) -> Tensor:
    targets = torch.arange(_NUM_QUERIES)
    return info_nce(gathered[:_NUM_QUERIES], gathered[_NUM_QUERIES:], targets_B=targets, temperature=1.0)


def _model(method: Literal["lora", "full"], *, dropout: float = 0.0, checkpointing: bool = False) -> EmbeddingModel:
    backbone = tiny_model("llama")
    apply_tuning(backbone, TuningConfig(method=method, rank=4, dropout=dropout))
    if checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide the gradient of lora_A
            torch.nn.init.normal_(parameter, std=0.1)
    return EmbeddingModel(backbone, pooling="last_token").train()


def _plain(model: EmbeddingModel) -> tuple[float, dict[str, Tensor]]:
    loss = _loss(model(_TOKEN_IDS))
    loss.backward()
    return loss.item(), _gradients(model)


def _gradients(model: EmbeddingModel) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in model.tuned_parameters().items() if each.grad is not None}


def _assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in left.values())
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("chunk_tokens", "kept_tokens"), [(20, 0), (20, 40), (1000, 0), (1000, 1000), (1, 0)])
def test_cached_step_equals_plain_backward(method: str, chunk_tokens: int, kept_tokens: int) -> None:
    expected_loss, expected = _plain(_model(method))
    model = _model(method)
    loss = cached_step(_TOKEN_IDS, embed=model, loss=_loss, chunk_tokens=chunk_tokens, kept_tokens=kept_tokens)
    assert loss.item() == pytest.approx(expected_loss, abs=1e-5)
    _assert_close(_gradients(model), expected)


def test_cached_step_with_gradient_checkpointing_equals_plain_backward() -> None:
    _, expected = _plain(_model("lora"))
    model = _model("lora", checkpointing=True)
    cached_step(_TOKEN_IDS, embed=model, loss=_loss, chunk_tokens=20)
    _assert_close(_gradients(model), expected)


def test_cached_step_drops_the_same_in_both_forwards() -> None:
    kept, rerun = _model("lora", dropout=0.5), _model("lora", dropout=0.5)
    torch.manual_seed(5)
    first = cached_step(_TOKEN_IDS, embed=kept, loss=_loss, chunk_tokens=20, kept_tokens=1000)
    after_first = torch.get_rng_state()
    torch.manual_seed(5)
    second = cached_step(_TOKEN_IDS, embed=rerun, loss=_loss, chunk_tokens=20, kept_tokens=0)
    assert first.item() == second.item()
    _assert_close(_gradients(rerun), _gradients(kept))
    assert torch.equal(torch.get_rng_state(), after_first)


def test_plan_chunks_puts_similar_lengths_together_within_the_limit() -> None:
    chunks = plan_chunks([5, 50, 6, 49, 7], chunk_tokens=100)
    assert [chunk.indices for chunk in chunks] == [[0, 2, 4, 3], [1]]
    assert [chunk.num_tokens for chunk in chunks] == [67, 50]


def test_plan_chunks_long_text_has_a_chunk_of_its_own() -> None:
    assert [chunk.indices for chunk in plan_chunks([3, 500], chunk_tokens=100)] == [[0], [1]]


def test_plan_chunks_splits_until_there_are_enough() -> None:
    chunks = plan_chunks([1, 1, 1, 1], chunk_tokens=100, min_chunks=3)
    assert sorted(index for chunk in chunks for index in chunk.indices) == [0, 1, 2, 3]
    assert len(chunks) == 3
    assert len(plan_chunks([1], chunk_tokens=100, min_chunks=3)) == 1
