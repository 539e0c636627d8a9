"""The fused layers against transformers' own forward, and each kernel against torch."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import service.encoders.fused as fused_module
from service.encoders.fused import MIN_ROWS, FusedDecoder, load_kernels
from service.encoders.packed import Prefix, enable_packing, keep_norms_in_float32, packed_forward
from service.encoders.torch_encoder import TorchEncoder
from service.encoders.torch_loading import load_encoder
from tests.checkpoints import tiny_model, write_tiny_checkpoint
from tests.service.encoders.test_torch_encoder import LENGTHS, random_ids

CHANGES = {
    "llama": {},
    "llama with biases": {"attention_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
}
has_products = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
pytestmark = [
    pytest.mark.skipif(load_kernels() is None, reason="no C compiler when the package was installed"),
    pytest.mark.skipif(not has_products, reason="this processor has no products in bfloat16"),
]

# oneDNN's other kernels were not looked at
has_amx = pytest.mark.skipif(not torch.cpu.get_capabilities().get("amx_bf16"), reason="this processor has no AMX")


def bfloat16_model(name: str) -> Any:
    model = tiny_model(name.partition(" ")[0], **CHANGES[name])
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or "bias" in key:  # else ones and zeros, which hide what is forgotten
                torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    model = keep_norms_in_float32(model.to(torch.bfloat16))
    assert enable_packing(model)
    return model


def fused_of(model: Any) -> FusedDecoder:
    fused = FusedDecoder.of(model)
    assert fused is not None
    return fused


def states(fused: FusedDecoder, token_ids: list[list[int]], **options: Any) -> Tensor:
    with torch.inference_mode():
        return fused(token_ids, **options)


@pytest.mark.parametrize("name", CHANGES)
def test_fused_states_are_as_near_to_float32_as_the_packed_forward(name: str) -> None:
    model, token_ids = bfloat16_model(name), random_ids(LENGTHS)
    ends = torch.tensor(LENGTHS).cumsum(0) - 1
    with torch.inference_mode():
        exact = packed_forward(model, token_ids, is_widened=True)[ends]
        packed = packed_forward(model, token_ids)[ends]
    got = states(fused_of(model), token_ids)
    assert got.dtype == torch.float32
    distance = (got - exact).norm(dim=1) / exact.norm(dim=1)
    assert distance.mean() <= 1.2 * ((packed - exact).norm(dim=1) / exact.norm(dim=1)).mean()


@has_amx
def test_fused_states_are_the_same_bits_whatever_is_in_the_row() -> None:
    fused, token_ids = fused_of(bfloat16_model("llama")), random_ids(LENGTHS)
    together = states(fused, token_ids)
    for ids, state in zip(token_ids, together, strict=True):
        assert torch.equal(states(fused, [ids])[0], state)


@has_amx
def test_fused_states_behind_a_kept_prefix_are_the_same_bits() -> None:
    fused, opening = fused_of(bfloat16_model("qwen3")), random_ids([30])[0]
    texts = [opening + ids for ids in random_ids([9, 20, 20, 3], seed=1)]
    whole = states(fused, texts)
    prefix = Prefix(len(opening))
    assert torch.equal(states(fused, texts[:1], keep={0: prefix}), whole[:1])
    rests = [text[len(opening) :] for text in texts]
    assert torch.equal(states(fused, rests, prefixes=[prefix] * 4), whole)
    assert sum(map(len, rests)) > MIN_ROWS > len(rests[0])
    assert torch.equal(states(fused, rests[:1], prefixes=[prefix]), whole[:1])


@has_amx
def test_encoder_gives_the_same_bits_with_a_prefix_cache_and_without(tmp_path: Path) -> None:
    path = str(write_tiny_checkpoint(tmp_path, "qwen3"))
    without = load_encoder(path, dtype="bfloat16", device="cpu")
    with_cache = load_encoder(path, dtype="bfloat16", device="cpu", prefix_cache_tokens=512)
    openings = random_ids([9, 25, 40], seed=2)
    # so many that those whose states are kept fill more than a row
    texts = [openings[index % 3] + ids for index, ids in enumerate(random_ids([5, 7, 20, 33, 60] * 12, seed=3))]
    expected = without.encode(texts)
    for size in (60, 8, 1):
        parts = [with_cache.encode(texts[start : start + size]) for start in range(0, 60, size)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert with_cache.take_prefix_figures().hits > 100


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("gemma", {}), ("mistral", {}), ("llama", {"hidden_act": "gelu"})],
    ids=["float32", "another family", "sliding window", "another gate"],
)
def test_fused_takes_only_what_it_calculates_rightly(family: str, changes: dict[str, Any]) -> None:
    model = tiny_model(family, **changes)
    if family != "llama" or changes:
        model = model.to(torch.bfloat16)
    assert FusedDecoder.of(model) is None


def test_fused_leaves_layers_that_are_more_than_a_product() -> None:
    class Adapted(torch.nn.Linear):
        """As an adapter or a quantized layer is."""

    model = bfloat16_model("llama")
    model.layers[1].mlp.down_proj = Adapted(48, 32, bias=False).bfloat16()
    assert FusedDecoder.of(model) is None


def test_encoder_without_kernels_gives_the_same_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_tiny_checkpoint(tmp_path))
    with_kernels = load_encoder(path, dtype="bfloat16", device="cpu")
    monkeypatch.setattr(fused_module, "load_kernels", lambda: None)
    without = load_encoder(path, dtype="bfloat16", device="cpu")
    assert with_kernels._fused is not None
    assert without._fused is None
    token_ids = random_ids(LENGTHS)
    assert (with_kernels.encode(token_ids) * without.encode(token_ids)).sum(axis=1).min() > 0.99


def test_encoder_leaves_fused_layers_that_change_its_vectors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = TorchEncoder(bfloat16_model("llama"), pooling="last_token", dimension=32, row_tokens=100)
    expected = packed_forward
    monkeypatch.setattr(FusedDecoder, "_rotate", lambda *_: None)
    token_ids = random_ids([9, 20, 30])
    encoder.check(token_ids)
    assert "the fused layers change its vectors" in caplog.text
    assert encoder._fused is None
    assert encoder._forward is expected


def test_encoder_leaves_fused_layers_that_fail(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = TorchEncoder(bfloat16_model("llama"), pooling="last_token", dimension=32, row_tokens=100)

    def fail(*_: Any) -> None:
        raise RuntimeError("no such product")

    monkeypatch.setattr(FusedDecoder, "_rotate", fail)
    token_ids = random_ids([9, 20, 30])
    encoder.check(token_ids)
    assert "fail (RuntimeError: no such product)" in caplog.text
    assert encoder.encode(token_ids).shape == (3, 32)


def address(array: Tensor) -> int:
    return array.data_ptr()


@pytest.mark.parametrize("rows", [1, 7, 300])  # 300 * 576 values are shared among threads
def test_add_norm_kernel_equals_torch(rows: int) -> None:
    stream, weight = torch.randn(rows, 576), torch.rand(576)
    change, out = torch.randn(rows, 576).bfloat16(), torch.empty(rows, 576, dtype=torch.bfloat16)
    summed = stream + change.float()
    expected = torch.nn.functional.rms_norm(summed, (576,), weight, 1e-5)
    arguments = (address(weight), 1e-5, address(out), rows, 576)
    kernels().eoseek_add_norm(address(stream), address(change), *arguments)
    assert torch.equal(stream, summed)
    torch.testing.assert_close(out.float(), expected, rtol=2**-8, atol=1e-6)
    kernels().eoseek_add_norm(address(stream), None, *arguments)
    assert torch.equal(stream, summed)
    torch.testing.assert_close(out.float(), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("is_normed", [False, True])
def test_rotate_kernel_equals_torch_and_leaves_the_values_behind(rows: int, is_normed: bool) -> None:
    x, weight = torch.randn(rows, 9, 64).bfloat16(), torch.rand(64) + 0.5
    angles = torch.rand(rows, 1, 32) * 6
    expected, heads = x.float().clone(), x.float()[:, :7]
    if is_normed:
        heads = torch.nn.functional.rms_norm(heads, (64,), weight, 1e-6)
    low, high = heads.split(32, dim=2)
    cosine, sine = angles.cos(), angles.sin()
    expected[:, :7] = torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=2)
    norm = address(weight) if is_normed else None
    kernels().eoseek_rotate(address(x), address(cosine), address(sine), norm, 1e-6, rows, 9 * 64, 7, 32)
    torch.testing.assert_close(x.float(), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 300])
def test_gate_kernel_equals_torch_also_for_extreme_gates(rows: int) -> None:
    x = (torch.randn(rows, 2 * 513) * 30).bfloat16()
    x[0, :6] = torch.tensor([0.0, -0.0, 300.0, -300.0, 1e-30, -88.5])
    out = torch.empty(rows, 513, dtype=torch.bfloat16)
    kernels().eoseek_gate(address(x), address(out), rows, 513)
    gate, up = x.float().split(513, dim=1)
    torch.testing.assert_close(out.float(), torch.nn.functional.silu(gate) * up, rtol=2**-8, atol=1e-30)


def test_kernels_hand_on_what_is_not_a_number() -> None:
    x = torch.full((1, 64), torch.nan, dtype=torch.bfloat16)
    out = torch.zeros(1, 32, dtype=torch.bfloat16)
    kernels().eoseek_gate(address(x), address(out), 1, 32)
    assert out.isnan().all()
    normed, stream, weight = torch.zeros(1, 64, dtype=torch.bfloat16), torch.zeros(1, 64), torch.ones(64)
    kernels().eoseek_add_norm(address(stream), address(x), address(weight), 1e-5, address(normed), 1, 64)
    assert normed.isnan().all()


def test_load_kernels_of_another_machine_warns_and_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "_kernels.so"
    broken.write_bytes(b"\x7fELF of something else")
    spec = type("Spec", (), {"origin": str(broken)})
    monkeypatch.setattr("importlib.util.find_spec", lambda _: spec)
    assert load_kernels.__wrapped__() is None
    assert "cannot be loaded" in caplog.text


def test_load_kernels_of_another_version_warns_and_does_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused_module, "_VERSION", 0)
    assert load_kernels.__wrapped__() is None
    assert "of another version" in caplog.text


def kernels() -> ctypes.CDLL:
    loaded = load_kernels()
    assert loaded is not None
    return loaded


def test_fused_vectors_of_a_whole_encoder_are_close_to_float32(tmp_path: Path) -> None:
    path = str(write_tiny_checkpoint(tmp_path, "qwen3"))
    token_ids = random_ids([5, 6, 17, 33, 64, 99])
    exact = load_encoder(path, dtype="float32", device="cpu").encode(token_ids)
    rounded = load_encoder(path, dtype="bfloat16", device="cpu")
    assert rounded._fused is not None
    assert (rounded.encode(token_ids) * exact).sum(axis=1).min() > 0.99
    np.testing.assert_array_equal(rounded.encode_in_background(token_ids), rounded.encode(token_ids))
