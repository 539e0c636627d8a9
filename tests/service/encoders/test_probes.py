import base64
import json
from pathlib import Path

import numpy as np
import pytest

from service.encoders.card import read_card
from service.encoders.checkpoint import load_checkpoint
from service.encoders.probes import PROBES, check_probes, decode_probes, encode_probes
from service.encoders.torch_loading import load_encoder
from service.errors import ConfigurationError
from tests.checkpoints import write_tiny_checkpoint
from tests.fakes import FakeEncoder


def record(path: Path, probes: dict[str, str]) -> None:
    card = json.loads((path / "eoseek.json").read_text())
    (path / "eoseek.json").write_text(json.dumps(card | {"probes": probes}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint with its own vectors recorded."""
    path = write_tiny_checkpoint(tmp_path / "tiny")
    encoder = load_encoder(str(path), dtype="float32", device="cpu")
    record(path, encode_probes(encoder, load_checkpoint(str(path)).contract))
    return path


def test_probes_survive_the_card(path: Path) -> None:
    vectors = decode_probes(read_card(path).probes)
    assert list(vectors) == list(PROBES)
    assert all(np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5) for vector in vectors.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpoint_that_embeds_as_recorded_loads(path: Path, dtype: str) -> None:
    load_encoder(str(path), dtype=dtype, device="cpu")


def test_checkpoint_that_embeds_otherwise_is_refused_with_the_cosine(path: Path) -> None:
    recorded = dict(read_card(path).probes)
    opposite = -decode_probes(recorded)["a"]
    record(path, recorded | {"a": base64.b64encode(opposite.tobytes()).decode()})
    with pytest.raises(ConfigurationError, match=r"embeds 'a' with cosine -1\.000 .* exported"):
        load_encoder(str(path), dtype="float32", device="cpu")


def test_checkpoint_that_lost_its_pooling_is_refused(path: Path) -> None:
    pooling = path / "1_Pooling" / "config.json"
    modes = json.loads(pooling.read_text()) | {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}
    pooling.write_text(json.dumps(modes))
    with pytest.raises(ConfigurationError, match="weights, tokenizer or pooling are not those of the export"):
        load_encoder(str(path), dtype="float32", device="cpu")


def test_probes_that_a_lower_limit_cuts_are_left_out(path: Path) -> None:
    load_encoder(str(path), dtype="float32", device="cpu", max_length=16)


def test_probes_of_another_dimension_are_refused(path: Path) -> None:
    contract = load_checkpoint(str(path)).contract
    with pytest.raises(ConfigurationError, match="not of 8 dimensions"):
        check_probes(FakeEncoder(dimension=8), contract, read_card(path).probes)
