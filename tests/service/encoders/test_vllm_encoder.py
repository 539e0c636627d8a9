"""The vLLM encoder around its engine, and what it says where vLLM is missing; test_conformance.py runs the real one."""

import sys

import numpy as np
import pytest

from service.encoders.vllm_encoder import VllmEncoder, load_encoder
from service.errors import ConfigurationError, EncoderError
from tests.checkpoints import write_tiny_checkpoint


def test_vllm_missing_is_said_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'eoseek\[vllm\]'"):
        load_encoder(str(write_tiny_checkpoint(tmp_path / "tiny")))


def test_vllm_has_no_int16_and_says_so(tmp_path):
    with pytest.raises(ConfigurationError, match="int16, which the vllm engine does not have"):
        load_encoder(str(write_tiny_checkpoint(tmp_path / "tiny")), dtype="int16")


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
