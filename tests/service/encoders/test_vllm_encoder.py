"""The vLLM encoder: what it says where vLLM is missing; where it is there, the contract on the default checkpoint."""

import importlib.util
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from service.encoders.checkpoint import DEFAULT_NAME, Checkpoint, load_checkpoint
from service.encoders.torch_encoder import load_encoder as load_torch_encoder
from service.encoders.vllm_encoder import VllmEncoder, load_encoder
from service.errors import ConfigurationError, EncoderError
from service.paths import cache_dir
from tests.checkpoints import write_tiny_checkpoint

TEXTS = ["a", "merge two sorted lists", "naïve café, 检索, 🙂", "A longer text, said again and again. " * 200]


def test_vllm_missing_is_said_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'eoseek\[vllm\]'"):
        load_encoder(str(write_tiny_checkpoint(tmp_path / "tiny")))


def test_vllm_checkpoint_that_changed_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ConfigurationError, match="has changed"):
        load_encoder(str(write_tiny_checkpoint(tmp_path / "tiny")), fingerprint="f" * 64)


class FakeEngine:
    """Answers `embed` with given rows."""

    class _Answer:
        def __init__(self, embedding):
            self.outputs = self
            self.embedding = embedding

    def __init__(self, rows):
        self._rows = rows

    def embed(self, prompts, *, use_tqdm):
        self.prompts = prompts
        return [self._Answer(row) for row in self._rows]


def test_vllm_gets_token_ids_and_its_rows_become_unit_length():
    engine = FakeEngine([[3.0, 4.0], [0.0, 2.0]])
    encoded = VllmEncoder(engine, dimension=2, dtype="bfloat16").encode([(1, 2), (3,)])
    assert engine.prompts == [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3]}]
    np.testing.assert_allclose(encoded, [[0.6, 0.8], [0.0, 1.0]])
    assert encoded.dtype == np.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vllm_row_that_is_not_finite_is_an_error(value):
    with pytest.raises(EncoderError, match="not finite"):
        VllmEncoder(FakeEngine([[value, 1.0]]), dimension=2, dtype="bfloat16").encode([(1,)])


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here; CONTRIBUTING says how to run this beside it")
    if not (cache_dir() / "checkpoints" / DEFAULT_NAME).is_dir():
        pytest.skip("the default checkpoint is not pulled; `make model` fetches it")
    return load_checkpoint("default", max_length=2048)


@pytest.fixture(scope="module")
def encoder(checkpoint) -> Iterator[VllmEncoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield load_encoder(str(checkpoint.path), max_length=checkpoint.max_length)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # vLLM's own, of which there are many
def test_vllm_gives_the_vectors_of_torch_in_input_order(checkpoint, encoder):
    token_ids = checkpoint.contract.documents([("", text) for text in TEXTS], truncate=True).token_ids
    token_ids += checkpoint.contract.queries(TEXTS, instruction="Find it", truncate=True).token_ids
    expected = load_torch_encoder(str(checkpoint.path), dtype="float32", device="cpu").encode(token_ids)
    encoded = encoder.encode(token_ids)
    assert (encoded * expected).sum(axis=1).min() >= 0.995
    np.testing.assert_allclose(np.linalg.norm(encoded, axis=1), 1.0, atol=1e-5)
    assert encoder.encode([]).shape == (0, checkpoint.dimension)
