"""Our own decoder against transformers' code for the same checkpoint."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from service.encoders.checkpoint import is_plain, load_checkpoint
from service.encoders.decoder import Decoder, read_decoder
from service.encoders.packed import Prefix, enable_packing, packed_forward
from service.encoders.plain import DECODER_FAMILIES
from service.encoders.probes import encode_probes
from service.encoders.torch_loading import load_encoder
from service.errors import ConfigurationError
from tests.checkpoints import tiny_model, write_tiny_checkpoint
from tests.service.encoders.test_torch_encoder import LENGTHS, random_ids

CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
}


def write_plain_checkpoint(path: Path, family: str = "llama", **changes: Any) -> Path:
    """A checkpoint with the vectors of transformers' own code recorded."""
    model = tiny_model(family, **CHANGES[family] | changes)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or "bias" in key:  # else ones and zeros, which hide what is forgotten
                torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    write_tiny_checkpoint(path, family, model=model)
    encoder = load_encoder(str(path), dtype="float32", device="cpu")
    edit(path / "eoseek.json", probes=encode_probes(encoder, load_checkpoint(str(path)).contract))
    return path


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_decoder_families_are_all_here() -> None:
    assert CHANGES.keys() == DECODER_FAMILIES


@pytest.mark.parametrize("family", CHANGES)
def test_decoder_states_equal_those_of_transformers(tmp_path: Path, family: str) -> None:
    path = write_plain_checkpoint(tmp_path, family, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert is_plain(path)
    model = tiny_model(family)  # for its class
    model = type(model).from_pretrained(path).eval()
    assert enable_packing(model)
    texts = random_ids(LENGTHS)
    with torch.inference_mode():
        expected = packed_forward(model, texts)
        states = packed_forward(read_decoder(path, dtype=torch.float32), texts)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


def test_decoder_continues_from_a_prefix(tmp_path: Path) -> None:
    decoder = read_decoder(write_plain_checkpoint(tmp_path), dtype=torch.float32)
    (text,) = random_ids([40])
    with torch.inference_mode():
        prefix = Prefix(17)
        whole = packed_forward(decoder, [text], keep={0: prefix})
        rest = packed_forward(decoder, [text[17:]], prefixes=[prefix])
    torch.testing.assert_close(rest, whole[17:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", CHANGES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoder_on_a_decoder_gives_the_vectors_of_transformers(tmp_path: Path, family: str, dtype: str) -> None:
    path = write_plain_checkpoint(tmp_path, family)
    encoder = load_encoder(str(path), dtype=dtype, device="cpu", prefix_cache_tokens=256)
    assert isinstance(encoder._model, Decoder)
    edit(path / "eoseek.json", probes={})
    other = load_encoder(str(path), dtype=dtype, device="cpu")
    assert not isinstance(other._model, Decoder)
    texts = random_ids(LENGTHS)
    cosines = (encoder.encode(texts) * other.encode(texts)).sum(axis=1)
    assert cosines.min() > (0.99999 if dtype == "float32" else 0.999)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gemma"},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_parameters": None, "rope_theta": None},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None},
        {"sliding_window": 8},
        {"quantization_config": {"quant_method": "awq"}},
        {"auto_map": {"AutoModel": "code.Model"}},
        {"num_key_value_heads": None},
        {"num_hidden_layers": "2"},
        {"rms_norm_eps": None},
        {"rms_norm_eps": "1e-6"},
        {"rope_parameters": []},
        {"rope_parameters": "default"},
        {"rope_parameters": {"rope_type": ["default"], "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": "1e4"}},
        {"rope_theta": 5.0},  # beside another in rope_parameters
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"sliding_window": 8, "use_sliding_window": False},  # llama and mistral have no such switch
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"is_causal": False},
    ],
    ids=str,
)
def test_checkpoint_that_asks_for_more_is_not_plain(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_plain_checkpoint(tmp_path)
    assert is_plain(path)
    edit(path / "config.json", **changes)
    assert not is_plain(path)


def test_checkpoint_without_recorded_vectors_or_with_another_pooling_is_not_plain(tmp_path: Path) -> None:
    path = write_plain_checkpoint(tmp_path)
    card = json.loads((path / "eoseek.json").read_text())
    edit(path / "eoseek.json", probes={})
    assert not is_plain(path)
    edit(path / "eoseek.json", probes=card["probes"])
    edit(path / "1_Pooling" / "config.json", pooling_mode_lasttoken=False, pooling_mode_mean_tokens=True)
    assert not is_plain(path)


def test_qwen2_window_that_is_not_used_is_plain(tmp_path: Path) -> None:
    path = write_plain_checkpoint(tmp_path, "qwen2")
    edit(path / "config.json", sliding_window=8, use_sliding_window=False)
    assert is_plain(path)
    decoder = read_decoder(path, dtype=torch.float32)
    assert decoder.config.sliding_window is None  # else it would not be fused


FAULTS = ["embed_tokens.weight", "layers.1.mlp.up_proj.weight", "layers.0.self_attn.k_proj.bias", "norm.weight"]


@pytest.mark.parametrize("fault", ["missing", "shape"])
@pytest.mark.parametrize("name", FAULTS)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_plain_checkpoint(tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensor = tensors.pop(name)
    if fault == "shape":
        tensors[name] = tensor[:8].contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"weights (are missing or of another shape|cannot be loaded)"):
        load_encoder(str(path), dtype="float32", device="cpu")
    assert f"{name} is " in caplog.text


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_weights_that_the_config_does_not_ask_for_are_left_to_transformers(tmp_path: Path, family: str) -> None:
    path = write_plain_checkpoint(tmp_path, family, **({"attention_bias": False} if family == "llama" else {}))
    tensors = load_file(path / "model.safetensors")
    extra = "layers.0.self_attn.o_proj.bias" if family != "qwen3" else "layers.0.self_attn.q_proj.bias"
    save_file(tensors | {extra: torch.ones(32)}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{extra} is .* expected no such weight"):
        read_decoder(path, dtype=torch.float32)
    load_encoder(str(path), dtype="float32", device="cpu")


def test_decoder_reads_shards_and_the_names_of_a_language_model(tmp_path: Path) -> None:
    path = write_plain_checkpoint(tmp_path)
    expected = read_decoder(path, dtype=torch.float32).state_dict()
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = {f"model.{name}": tensors[name] for name in part} | (
            {"lm_head.weight": torch.ones(2)} if number == 1 else {}
        )
        save_file(shard, path / f"model-0000{number}-of-00002.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(read_decoder(path, dtype=torch.float32).state_dict(), expected, rtol=0, atol=0)
    save_file({"norm.weight": torch.ones(32)}, path / "old.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"norm\.weight is there twice"):
        read_decoder(path, dtype=torch.float32)


def test_weights_of_another_part_are_read_by_transformers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_plain_checkpoint(tmp_path)
    tensors = load_file(path / "model.safetensors")
    save_file(tensors | {"adapter.weight": torch.zeros(2)}, path / "model.safetensors", metadata={"format": "pt"})
    encoder = load_encoder(str(path), dtype="float32", device="cpu")
    assert not isinstance(encoder._model, Decoder)
    assert "adapter.weight" in caplog.text


def test_decoder_of_another_config_is_refused_by_the_probes(tmp_path: Path) -> None:
    path = write_plain_checkpoint(tmp_path)
    edit(path / "config.json", rms_norm_eps=100.0)
    with pytest.raises(ConfigurationError, match="recorded when it was exported"):
        load_encoder(str(path), dtype="float32", device="cpu")


def test_worker_of_a_plain_checkpoint_does_without_transformers(tmp_path: Path) -> None:
    path = write_plain_checkpoint(tmp_path)
    code = (
        "import sys; from service.encoders.torch_loading import load_encoder; "
        f"vectors = load_encoder({str(path)!r}, device='cpu').encode([[5, 6, 2], [7, 2]]); "
        "print(vectors.shape, 'transformers' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert finished.stdout.split("\n")[0] == "(2, 32) False", finished.stderr


def test_decoder_in_float64_for_delicate_texts_is_finite(tmp_path: Path) -> None:
    encoder = load_encoder(str(write_plain_checkpoint(tmp_path)), dtype="float32", device="cpu")
    assert np.isfinite(encoder.encode([[2], [5, 2], [5, 6, 2]])).all()
