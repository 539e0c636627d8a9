"""What one of two processes runs in `test_processes`: a gradient, shared; started as a module."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints import tiny_model
from training.config import TuningConfig
from training.gradient_cache import add_gradients, cached_step
from training.loss import info_nce
from training.model import EmbeddingModel, apply_tuning
from training.trainer import split_gathered

_GENERATOR = torch.Generator().manual_seed(3)
_QUERIES, _DOCUMENTS = (
    [[*torch.randint(3, 259, (length,), generator=_GENERATOR).tolist(), 2] for length in lengths]
    for lengths in ((4, 9, 3, 17, 5), (30, 8, 2, 12, 7, 21, 6))
)


def gradient(query_counts: list[int], document_counts: list[int], process: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one batch that is shared as the counts say."""
    model = EmbeddingModel(tiny_model("llama"), pooling="last_token").train()
    apply_tuning(model.backbone, TuningConfig(method="full"))
    queries, documents = (
        texts[sum(counts[:process]) : sum(counts[: process + 1])]
        for texts, counts in ((_QUERIES, query_counts), (_DOCUMENTS, document_counts))
    )

    def loss(gathered: Tensor) -> Tensor:
        q, d = split_gathered(gathered, query_counts, document_counts)
        return info_nce(q, d, targets_B=torch.arange(len(q)), temperature=1.0)

    counts = [sum(pair) for pair in zip(query_counts, document_counts, strict=True)]
    value = cached_step(queries + documents, embed=model, loss=loss, chunk_tokens=20, kept_tokens=30, counts=counts)
    add_gradients(list(model.tuned_parameters().values()))
    return value, {name: each.grad for name, each in model.tuned_parameters().items() if each.grad is not None}


def _share_gradient(folder: Path) -> None:
    dist.init_process_group("gloo")
    value, gradients = gradient([3, 2], [4, 3], dist.get_rank())
    save_file(gradients | {"loss": value}, folder / f"{dist.get_rank()}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    _share_gradient(Path(sys.argv[1]))
