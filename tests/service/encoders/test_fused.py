"""The fused layers against transformers' own forward, and each kernel against torch."""

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import service.encoders.fused as fused_module
from service.encoders import torch_encoder, torch_loading
from service.encoders.decoder import read_decoder
from service.encoders.fused import MIN_ROWS, FusedDecoder, has_integer_products, load_kernels
from service.encoders.packed import Packing, Prefix, enable_packing, keep_norms_in_float32, packed_forward
from service.encoders.torch_encoder import TorchEncoder
from service.encoders.torch_loading import load_encoder
from service.errors import ConfigurationError
from tests.checkpoints import tiny_model, write_tiny_checkpoint
from tests.service.encoders.test_decoder import write_plain_checkpoint
from tests.service.encoders.test_torch_encoder import LENGTHS, random_ids

CHANGES = {
    "llama": {},
    "llama with biases": {"attention_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
}
has_products = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
pytestmark = pytest.mark.skipif(load_kernels() is None, reason="no C compiler when the package was installed")
has_bfloat16 = pytest.mark.skipif(not has_products, reason="this processor has no products in bfloat16")
# oneDNN's other kernels were not looked at
has_amx = pytest.mark.skipif(not torch.cpu.get_capabilities().get("amx_bf16"), reason="this processor has no AMX")
has_integers = pytest.mark.skipif(not has_integer_products(), reason="this processor has no AVX2")
INTEGERS = pytest.param("int16", marks=has_integers)
each_format = pytest.mark.parametrize("number_format", [pytest.param("bfloat16", marks=has_bfloat16), INTEGERS])
# wider processors were not looked at
has_avx2_alone = pytest.mark.skipif(
    not has_integer_products() or torch.cpu.get_capabilities().get("avx512_f", False),
    reason="this processor has no AVX2, or AVX-512 beside it",
)
each_exact_format = pytest.mark.parametrize(
    "number_format", [pytest.param("bfloat16", marks=has_amx), pytest.param("int16", marks=has_avx2_alone)]
)
HEAD_SIZES = {"bfloat16": 8, "int16": 16}  # attention in integers takes multiples of 16
FORMATS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
each_width = pytest.mark.parametrize("width", FORMATS)
ROUNDING = {"bfloat16": 2**-8, "float32": 1e-6}


@pytest.fixture(autouse=True)
def seed() -> None:
    """The largest of many errors of rounding has a long tail."""
    torch.manual_seed(0)


def model_of(name: str, number_format: str) -> Any:
    model = tiny_model(name.partition(" ")[0], head_dim=HEAD_SIZES[number_format], **CHANGES[name])
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or "bias" in key:  # else ones and zeros, which hide what is forgotten
                torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    if number_format == "bfloat16":
        model = keep_norms_in_float32(model.to(torch.bfloat16))
    assert enable_packing(model)
    return model


def write_checkpoint_for(path: Path, number_format: str, family: str = "qwen3") -> str:
    model = tiny_model(family, head_dim=HEAD_SIZES[number_format])
    return str(write_tiny_checkpoint(path, family, model=model))


def fused_of(model: Any) -> FusedDecoder:
    fused = FusedDecoder.of(model, in_integers=model.dtype == torch.float32)
    assert fused is not None
    return fused


def encoder_of(model: Any) -> TorchEncoder:
    in_integers = model.dtype == torch.float32
    return TorchEncoder(model, pooling="last_token", dimension=32, row_tokens=100, in_integers=in_integers)


def states(fused: FusedDecoder, token_ids: list[list[int]], **options: Any) -> Tensor:
    with torch.inference_mode():
        return fused(token_ids, **options)


@has_bfloat16
@pytest.mark.parametrize("name", CHANGES)
def test_fused_states_are_as_near_to_float32_as_the_packed_forward(name: str) -> None:
    model, token_ids = model_of(name, "bfloat16"), random_ids(LENGTHS)
    ends = torch.tensor(LENGTHS).cumsum(0) - 1
    with torch.inference_mode():
        exact = packed_forward(model, token_ids, is_widened=True)[ends]
        packed = packed_forward(model, token_ids)[ends]
    got = states(fused_of(model), token_ids)
    assert got.dtype == torch.float32
    distance = (got - exact).norm(dim=1) / exact.norm(dim=1)
    assert distance.mean() <= 1.2 * ((packed - exact).norm(dim=1) / exact.norm(dim=1)).mean()


@has_integers
@pytest.mark.parametrize("name", CHANGES)
def test_fused_states_in_integers_are_close_to_float32(name: str) -> None:
    model, token_ids = model_of(name, "int16"), random_ids(LENGTHS)
    with torch.inference_mode():
        exact = packed_forward(model, token_ids)[torch.tensor(LENGTHS).cumsum(0) - 1]
    got = states(fused_of(model), token_ids)
    assert got.dtype == torch.float32
    assert ((got - exact).norm(dim=1) / exact.norm(dim=1)).max() < 0.01


@each_exact_format
def test_fused_states_are_the_same_bits_whatever_is_in_the_row(number_format: str) -> None:
    fused, token_ids = fused_of(model_of("llama", number_format)), random_ids(LENGTHS)
    together = states(fused, token_ids)
    for ids, state in zip(token_ids, together, strict=True):
        assert torch.equal(states(fused, [ids])[0], state)


@each_exact_format
def test_fused_states_behind_a_kept_prefix_are_the_same_bits(number_format: str) -> None:
    fused, opening = fused_of(model_of("qwen3", number_format)), random_ids([30])[0]
    texts = [opening + ids for ids in random_ids([9, 20, 20, 3], seed=1)]
    whole = states(fused, texts)
    prefix = Prefix(len(opening))
    assert torch.equal(states(fused, texts[:1], keep={0: prefix}), whole[:1])
    rests = [text[len(opening) :] for text in texts]
    assert torch.equal(states(fused, rests, prefixes=[prefix] * 4), whole)
    assert sum(map(len, rests)) > MIN_ROWS > len(rests[0])
    assert torch.equal(states(fused, rests[:1], prefixes=[prefix]), whole[:1])


@each_exact_format
def test_encoder_gives_the_same_bits_with_a_prefix_cache_and_without(tmp_path: Path, number_format: str) -> None:
    path = write_checkpoint_for(tmp_path, number_format)
    without = load_encoder(path, dtype=number_format, device="cpu")
    with_cache = load_encoder(path, dtype=number_format, device="cpu", prefix_cache_tokens=512)
    assert without.dtype == with_cache.dtype == number_format
    openings = random_ids([9, 25, 40], seed=2)
    # so many that those whose states are kept fill more than a row
    texts = [openings[index % 3] + ids for index, ids in enumerate(random_ids([5, 7, 20, 33, 60] * 12, seed=3))]
    expected = without.encode(texts)
    for size in (60, 8, 1):
        parts = [with_cache.encode(texts[start : start + size]) for start in range(0, 60, size)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert with_cache.take_prefix_figures().hits > 100


@has_bfloat16
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


@has_integers
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma", {}),
        ("mistral", {}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"intermediate_size": 40}),
        ("llama", {"dtype": torch.bfloat16}),
    ],
    ids=["another family", "sliding window", "another gate", "not a multiple of 16", "bfloat16"],
)
def test_fused_in_integers_takes_only_what_it_calculates_rightly(family: str, changes: dict[str, Any]) -> None:
    others = {"head_dim": 16} | {name: value for name, value in changes.items() if name != "dtype"}
    model = tiny_model(family, **others).to(changes.get("dtype", torch.float32))
    assert FusedDecoder.of(model, in_integers=True) is None


@each_format
def test_fused_leaves_layers_that_are_more_than_a_product(number_format: str) -> None:
    class Adapted(torch.nn.Linear):
        """As an adapter or a quantized layer is."""

    model = model_of("llama", number_format)
    model.layers[1].mlp.down_proj = Adapted(48, 32, bias=False).to(model.dtype)
    assert FusedDecoder.of(model, in_integers=number_format == "int16") is None
    model.layers[1].mlp.down_proj = torch.nn.Module()  # as of weights that another library packed
    assert FusedDecoder.of(model, in_integers=number_format == "int16") is None


@has_bfloat16
def test_encoder_without_kernels_gives_the_same_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_tiny_checkpoint(tmp_path))
    with_kernels = load_encoder(path, dtype="bfloat16", device="cpu")
    monkeypatch.setattr(fused_module, "load_kernels", lambda: None)
    without = load_encoder(path, dtype="bfloat16", device="cpu")
    assert with_kernels._fused is not None
    assert without._fused is None
    token_ids = random_ids(LENGTHS)
    assert (with_kernels.encode(token_ids) * without.encode(token_ids)).sum(axis=1).min() > 0.99


@each_format
def test_encoder_leaves_fused_layers_that_change_its_vectors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number_format: str
) -> None:
    encoder = encoder_of(model_of("llama", number_format))
    assert encoder.dtype == number_format
    expected = packed_forward
    monkeypatch.setattr(FusedDecoder, "_rotate", lambda *_: None)
    token_ids = random_ids([9, 20, 30])
    encoder.check(token_ids)
    assert "the fused layers change its vectors" in caplog.text
    assert encoder._fused is None
    assert encoder.dtype == str(encoder._model.dtype).removeprefix("torch.")
    assert encoder._forward is expected


@each_format
@pytest.mark.parametrize("pause_seconds", [60.0, 0.001])
def test_encoder_in_background_pauses_for_other_batches_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, number_format: str, pause_seconds: float
) -> None:
    monkeypatch.setattr(torch_encoder, "_MAX_PAUSE_SECONDS", pause_seconds)
    encoder, token_ids = encoder_of(model_of("llama", number_format)), random_ids([9, 20])
    began = threading.Event()
    let_pass = encoder._let_pass
    monkeypatch.setattr(encoder, "_let_pass", lambda: began.set() or let_pass())
    encoder._is_quiet.clear()  # as while `encode` runs
    with ThreadPoolExecutor(1) as beside:
        rows = beside.submit(encoder.encode_in_background, token_ids)
        assert began.wait(60)
        if pause_seconds > 1:
            with pytest.raises(TimeoutError):
                rows.result(0.3)
            expected = encoder.encode(token_ids)  # which is not held up, and lets the other go on at its end
        got = rows.result(60)
    if pause_seconds > 1:
        assert (got * expected).sum(axis=1).min() > 0.999
        assert encoder._is_quiet.is_set()


@each_format
def test_encoder_lets_the_background_go_on_after_a_batch_that_fails(
    monkeypatch: pytest.MonkeyPatch, number_format: str
) -> None:
    encoder = encoder_of(model_of("llama", number_format))

    def fail(*_: Any, **__: Any) -> None:
        assert not encoder._is_quiet.is_set()
        raise RuntimeError("no such row")

    monkeypatch.setattr(encoder, "_encode_row", fail)
    with pytest.raises(RuntimeError, match="no such row"):
        encoder.encode(random_ids([9]))
    assert encoder._is_quiet.is_set()


@each_format
@pytest.mark.parametrize("is_wrong", [False, True])
def test_encoder_on_a_decoder_leaves_fused_layers_that_change_its_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number_format: str, is_wrong: bool
) -> None:
    path = write_plain_checkpoint(tmp_path, "qwen3")  # whose heads are of 16 values
    decoder = read_decoder(path, dtype=FORMATS.get(number_format, torch.float32))
    encoder = encoder_of(decoder)
    assert encoder.dtype == number_format
    forwards = []
    monkeypatch.setattr(
        encoder, "_forward", lambda *args, **options: forwards.append(options) or packed_forward(*args, **options)
    )
    if is_wrong:
        monkeypatch.setattr(FusedDecoder, "_rotate", lambda *_: None)
    encoder.check(random_ids([2, 9, 20, 30]))
    assert (encoder._fused is None) is is_wrong
    assert encoder.dtype == (str(decoder.dtype).removeprefix("torch.") if is_wrong else number_format)
    # a text that is as short is calculated more widely than the others, in what is compared with each other
    forwards.clear()
    encoder.encode(random_ids([2]))
    assert [each["is_widened"] for each in forwards] == [is_wrong or number_format == "bfloat16"]


@each_format
def test_encoder_leaves_fused_layers_that_fail(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number_format: str
) -> None:
    encoder = encoder_of(model_of("llama", number_format))

    def fail(*_: Any) -> None:
        raise RuntimeError("no such product")

    monkeypatch.setattr(FusedDecoder, "_rotate", fail)
    token_ids = random_ids([9, 20, 30])
    encoder.check(token_ids)
    assert "fail (RuntimeError: no such product)" in caplog.text
    assert encoder.encode(token_ids).shape == (3, 32)


def address(array: Tensor) -> int:
    return array.data_ptr()


@each_width
@pytest.mark.parametrize("rows", [1, 7, 300])  # 300 * 576 values are shared among threads
def test_add_norm_kernel_equals_torch(rows: int, width: str) -> None:
    dtype, rtol = FORMATS[width], ROUNDING[width]
    stream, weight = torch.randn(rows, 576), torch.rand(576)
    change, out = torch.randn(rows, 576).to(dtype), torch.empty(rows, 576, dtype=dtype)
    summed = stream + change.float()
    expected = torch.nn.functional.rms_norm(summed, (576,), weight, 1e-5)
    arguments = (address(weight), 1e-5, address(out), rows, 576, width == "float32")
    kernels().eoseek_add_norm(address(stream), address(change), *arguments)
    assert torch.equal(stream, summed)
    torch.testing.assert_close(out.float(), expected, rtol=rtol, atol=1e-6)
    kernels().eoseek_add_norm(address(stream), None, *arguments)
    assert torch.equal(stream, summed)
    torch.testing.assert_close(out.float(), expected, rtol=rtol, atol=1e-6)


@each_width
@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("is_normed", [False, True])
def test_rotate_kernel_equals_torch_and_leaves_the_values_behind(rows: int, is_normed: bool, width: str) -> None:
    x, weight = torch.randn(rows, 9, 64).to(FORMATS[width]), torch.rand(64) + 0.5
    angles = torch.rand(rows, 1, 32) * 6
    expected, heads = x.float().clone(), x.float()[:, :7]
    if is_normed:
        heads = torch.nn.functional.rms_norm(heads, (64,), weight, 1e-6)
    low, high = heads.split(32, dim=2)
    cosine, sine = angles.cos(), angles.sin()
    expected[:, :7] = torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=2)
    norm, is_whole = address(weight) if is_normed else None, width == "float32"
    kernels().eoseek_rotate(address(x), address(cosine), address(sine), norm, 1e-6, rows, 9 * 64, 7, 32, is_whole)
    torch.testing.assert_close(x.float(), expected, rtol=ROUNDING[width], atol=1e-5)


@each_width
@pytest.mark.parametrize("rows", [1, 300])
def test_gate_kernel_equals_torch_also_for_extreme_gates(rows: int, width: str) -> None:
    x = (torch.randn(rows, 2 * 513) * 30).to(FORMATS[width])
    x[0, :6] = torch.tensor([0.0, -0.0, 300.0, -300.0, 1e-30, -88.5])
    out = torch.empty(rows, 513, dtype=FORMATS[width])
    kernels().eoseek_gate(address(x), address(out), rows, 513, width == "float32")
    gate, up = x.float().split(513, dim=1)
    rtol = max(ROUNDING[width], 1e-5)  # the exponent of a far gate is rounded
    torch.testing.assert_close(out.float(), torch.nn.functional.silu(gate) * up, rtol=rtol, atol=1e-30)


@each_width
def test_kernels_hand_on_what_is_not_a_number(width: str) -> None:
    dtype, is_whole = FORMATS[width], width == "float32"
    x = torch.full((1, 64), torch.nan, dtype=dtype)
    out = torch.zeros(1, 32, dtype=dtype)
    kernels().eoseek_gate(address(x), address(out), 1, 32, is_whole)
    assert out.isnan().all()
    normed, stream, weight = torch.zeros(1, 64, dtype=dtype), torch.zeros(1, 64), torch.ones(64)
    kernels().eoseek_add_norm(address(stream), address(x), address(weight), 1e-5, address(normed), 1, 64, is_whole)
    assert normed.isnan().all()


def product_of(*sizes: tuple[int, int], has_bias: bool = False) -> tuple[fused_module._IntegerProduct, Tensor, Tensor]:
    """The product of layers of these (outputs, inputs), and their weights and biases together."""
    layers = [torch.nn.Linear(inputs, outputs, bias=has_bias) for outputs, inputs in sizes]
    biases = torch.cat([layer.bias for layer in layers]) if has_bias else torch.zeros(sum(size[0] for size in sizes))
    weights = torch.cat([layer.weight for layer in layers])
    return fused_module._IntegerProduct(kernels(), *layers), weights.detach(), biases.detach()


@has_integers
@pytest.mark.parametrize("rows", [1, 5, 6, 97, 300])  # less than a tile, a tile, more than stay near, many
@pytest.mark.parametrize("inputs", [16, 640, 656, 1536])  # of one block, all of it, and more
@pytest.mark.parametrize("has_bias", [False, True])
def test_integer_product_equals_torch_but_for_the_rounding(rows: int, inputs: int, has_bias: bool) -> None:
    product, weight, bias = product_of((48, inputs), (16, inputs), has_bias=has_bias)
    # rows and outputs of very different sizes: each has a scale of its own
    x = torch.randn(rows, inputs) * torch.logspace(-6, 6, rows)[:, None]
    expected = x.double() @ weight.double().T
    largest = x.abs().amax(1)[:, None] * weight.abs().amax(1)
    error = (product(x) - bias - expected).abs() / largest / inputs**0.5
    assert error.max() < 1e-3 + (1e-6 / largest).max() * has_bias


@has_integers
def test_integer_product_of_the_largest_values_does_not_overflow() -> None:
    layer = torch.nn.Linear(1280, 16, bias=False)
    torch.nn.init.constant_(layer.weight, -3.0)
    product = fused_module._IntegerProduct(kernels(), layer)
    torch.testing.assert_close(product(torch.full((6, 1280), 2.0)), torch.full((6, 16), -6.0 * 1280))


@has_integers
def test_integer_product_is_the_same_bits_for_any_rows_and_threads() -> None:
    product, _, _ = product_of((576, 1536))
    x = torch.randn(300, 1536)
    together, threads = product(x), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(product(x), together)
    finally:
        torch.set_num_threads(threads)
    for rows in (slice(0, 1), slice(7, 20), slice(90, 300)):
        assert torch.equal(product(x[rows]), together[rows])


@has_integers
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_integer_product_hands_on_what_is_not_a_number(value: float) -> None:
    product, _, _ = product_of((32, 64))
    x = torch.randn(8, 64)
    x[3, 5] = value
    got = product(x)
    assert not got[3].isfinite().any()
    assert got[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()


@has_integers
def test_integer_product_of_nothing_is_nothing() -> None:
    product, _, _ = product_of((32, 64))
    x = torch.zeros(2, 64)
    x[1] = 1e-42  # smaller than what has all its digits
    assert product(x).abs().max() < 1e-40
    layer = torch.nn.Linear(64, 32, bias=False)
    torch.nn.init.zeros_(layer.weight)
    assert torch.equal(fused_module._IntegerProduct(kernels(), layer)(torch.randn(3, 64)), torch.zeros(3, 32))


Shape = tuple[int, int, int]  # query heads, key heads, size of a head
SHAPES = [(heads, key_heads, size) for heads, key_heads in [(2, 2), (6, 2), (7, 1)] for size in (16, 64, 128, 256)]
# around the ends of tiles of 6 rows and of 16 columns, and of blocks of 128 keys
BORDERS = [1, 2, 5, 6, 15, 16, 17, 127, 128, 129, 300]


def random_states(num_tokens: int, shape: Shape) -> Tensor:
    """Queries, keys and values of a row, (T, (H + 2 key heads) D)."""
    heads, key_heads, size = shape
    return torch.randn(num_tokens, (heads + 2 * key_heads) * size)


def heads_of(qkv_TD: Tensor, shape: Shape) -> tuple[Tensor, ...]:
    """Queries, keys and values as views, (heads, T, D) each."""
    heads, key_heads, size = shape
    return qkv_TD.view(len(qkv_TD), -1, size).transpose(0, 1).split([heads, key_heads, key_heads])


def attend(
    qkv_TD: Tensor, lengths: list[int], shape: Shape, *, prefixes: list[Prefix | None] | None = None, scaling: float = 0
) -> Tensor:
    """Attention in integers, (T, H, D); a scaling of 0 is the usual one."""
    heads, _, size = shape
    packing = Packing.of(lengths, prefixes=prefixes, is_padded=False)
    layer: Any = SimpleNamespace(scaling=scaling or size**-0.5)
    attended_TD = fused_module._IntegerAttention(kernels(), packing, *shape)(qkv_TD, layer)
    return attended_TD.view(len(qkv_TD), heads, size)


def exact_attention(qkv_TD: Tensor, lengths: list[int], shape: Shape, *, scaling: float = 0) -> Tensor:
    """That of torch in float64, of one text after the other."""
    parts = []
    for text_TD in qkv_TD.double().split(lengths):
        q, k, v = (each.unsqueeze(0) for each in heads_of(text_TD, shape))
        parts.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling or None, enable_gqa=True))
    return torch.cat(parts, dim=2)[0].transpose(0, 1)


def prefix_of(qkv_TD: Tensor, length: int, shape: Shape) -> Prefix:
    """The states of the first tokens, as a forward keeps them."""
    _, key, value = (each[:, :length].contiguous() for each in heads_of(qkv_TD, shape))
    return Prefix(length, [(key, value)])


def assert_close_to_exact(got: Tensor, expected: Tensor) -> None:
    """But for the rounding, each token and head by itself."""
    assert ((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < 2e-3
    assert torch.nn.functional.cosine_similarity(got.double(), expected, dim=-1).min() > 0.9999


@has_integers
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integer_attention_equals_torch_but_for_the_rounding(shape: Shape) -> None:
    qkv = random_states(sum(BORDERS), shape)
    assert_close_to_exact(attend(qkv, BORDERS, shape), exact_attention(qkv, BORDERS, shape))


@has_integers
@pytest.mark.parametrize("shape", [(5, 1, 16), (48, 1, 16), (9, 3, 48)], ids=str)
def test_integer_attention_of_unusual_heads_equals_torch(shape: Shape) -> None:
    qkv = random_states(300, shape)
    assert_close_to_exact(attend(qkv, [300], shape), exact_attention(qkv, [300], shape))


@has_integers
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integer_attention_is_the_same_bits_whatever_is_beside_a_text(shape: Shape) -> None:
    qkv = random_states(sum(BORDERS), shape)
    together = attend(qkv, BORDERS, shape)
    for text, attended in zip(qkv.split(BORDERS), together.split(BORDERS), strict=True):
        assert torch.equal(attend(text, [len(text)], shape), attended)


@has_integers
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integer_attention_is_the_same_bits_for_one_thread_and_two(shape: Shape) -> None:
    qkv, threads = random_states(sum(BORDERS), shape), torch.get_num_threads()
    attended = []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            attended.append(attend(qkv, BORDERS, shape))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*attended)


@has_integers
@pytest.mark.parametrize("length", [1, 31, 64, 127, 128, 129])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integer_attention_behind_a_prefix_is_the_same_bits(length: int, shape: Shape) -> None:
    qkv = random_states(300, shape)
    whole, prefix = attend(qkv, [300], shape), prefix_of(qkv, length, shape)
    assert torch.equal(attend(qkv[length:], [300 - length], shape, prefixes=[prefix]), whole[length:])
    assert torch.equal(attend(qkv[length : length + 1], [1], shape, prefixes=[prefix]), whole[length : length + 1])


@has_integers
@pytest.mark.parametrize("length", [1, 31, 64, 127, 128, 129])
def test_integer_attention_behind_a_cut_of_a_prefix_is_the_same_bits(length: int) -> None:
    shape = (6, 2, 64)
    qkv = random_states(200, shape)
    cut = prefix_of(qkv, 150, shape).cut(length)
    assert cut.layers[0][0].stride(0) == 150 * 64  # from one head to the next, of the tokens cut away as well
    got = attend(qkv[length:], [200 - length], shape, prefixes=[cut])
    assert torch.equal(got, attend(qkv, [200], shape)[length:])


@has_integers
def test_integer_attention_of_texts_with_several_prefixes_and_none_is_the_same_bits() -> None:
    shape = (6, 2, 64)
    first, second, plain = (random_states(length, shape) for length in (150, 140, 20))
    other = torch.cat([first[:130], random_states(40, shape)])  # shares an opening with the first
    opening, second_opening = prefix_of(first, 130, shape), prefix_of(second, 9, shape)
    rests = [first[130:], other[130:], plain, second[9:]]
    prefixes = [opening, opening, None, second_opening]
    got = attend(torch.cat(rests), list(map(len, rests)), shape, prefixes=prefixes).split(list(map(len, rests)))
    for text, attended in zip((first, other, plain, second), got, strict=True):
        assert torch.equal(attended, attend(text, [len(text)], shape)[-len(attended) :])


NOT_NUMBERS = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])


def assert_spoiled_alone(spoil: Tensor, got: Tensor, sound: Tensor) -> None:
    """Nothing of the (T, H) results that are marked is a number, the others are the same bits as without."""
    assert not got[spoil].isfinite().any()
    assert torch.equal(got[~spoil], sound[~spoil])


@has_integers
@NOT_NUMBERS
@pytest.mark.parametrize("position", [0, 7, 140])
def test_integer_attention_of_a_query_that_is_no_number_spoils_its_row_alone(value: float, position: int) -> None:
    shape, lengths = (6, 2, 64), [300, 20]
    qkv = random_states(320, shape)
    sound = attend(qkv, lengths, shape)
    heads_of(qkv, shape)[0][4, position, 5] = value
    spoiled = torch.zeros(320, 6, dtype=torch.bool)
    spoiled[position, 4] = True
    assert_spoiled_alone(spoiled, attend(qkv, lengths, shape), sound)


@has_integers
@NOT_NUMBERS
@pytest.mark.parametrize("position", [0, 7, 127, 128, 140])
@pytest.mark.parametrize("kind", ["key", "value"])
def test_integer_attention_of_a_key_or_value_that_is_no_number_spoils_what_sees_it(
    value: float, position: int, kind: str
) -> None:
    shape, lengths = (6, 2, 64), [300, 20]
    qkv = random_states(320, shape)
    sound = attend(qkv, lengths, shape)
    heads_of(qkv, shape)[{"key": 1, "value": 2}[kind]][1, position, 5] = value
    spoiled = torch.zeros(320, 6, dtype=torch.bool)
    spoiled[position:300, 3:] = True  # the query heads of the second key head
    assert_spoiled_alone(spoiled, attend(qkv, lengths, shape), sound)


@has_integers
@NOT_NUMBERS
def test_integer_attention_of_a_prefix_that_is_no_number_spoils_all_behind_it(value: float) -> None:
    shape = (2, 1, 64)
    qkv = random_states(100, shape)
    heads_of(qkv, shape)[2][0, 30, 5] = value
    assert not attend(qkv[40:], [60], shape, prefixes=[prefix_of(qkv, 40, shape)]).isfinite().any()


SCORES = {
    "one far above": lambda scores: scores[5].fill_(1e4),
    "one far above, in another block": lambda scores: scores[200].fill_(1e4),
    "one far below": lambda scores: scores[5].fill_(-1e4),
    "all equal": lambda scores: scores.fill_(3.0),
    "all far below": lambda scores: scores.fill_(-1e4),
    "a block far below": lambda scores: scores[:128].fill_(-1e4),
    "two blocks far below": lambda scores: scores[128:].fill_(-1e4),
    "each far below the one before": lambda scores: scores.copy_(torch.arange(0, -300e2, -1e2)),
    "each far above the one before": lambda scores: scores.copy_(torch.arange(0, 300e2, 1e2)),
}


@has_integers
@pytest.mark.parametrize("name", SCORES)
def test_integer_attention_of_extreme_scores_stays_right(name: str) -> None:
    shape, scores = (3, 1, 64), torch.zeros(300)
    SCORES[name](scores)
    qkv = random_states(300, shape)
    query, key, _ = heads_of(qkv, shape)
    # a key's score is its first number
    query.zero_()[:, :, 0] = 1
    key.zero_()[:, :, 0] = scores
    assert_close_to_exact(attend(qkv, [300], shape, scaling=1), exact_attention(qkv, [300], shape, scaling=1))


@has_integers
@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, 1), (-1, -1, -1), (1, 1, -1)], ids=str)
@pytest.mark.parametrize("size", [16, 64, 256])
def test_integer_attention_of_the_largest_values_does_not_overflow(size: int, signs: tuple[int, int, int]) -> None:
    shape = (6, 2, size)
    qkv = torch.empty(300, 10 * size)
    for states, sign in zip(heads_of(qkv, shape), signs, strict=True):
        states.fill_(1e4 * sign)
    torch.testing.assert_close(attend(qkv, [300], shape), torch.full((300, 6, size), 1e4 * signs[2]))


@has_integers
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_integer_attention_of_the_largest_scores_does_not_overflow(size: int, sign: int) -> None:
    shape = (6, 2, size)
    qkv = torch.full((300, 10 * size), 1e4)
    query, key, value = heads_of(qkv, shape)
    query.mul_(sign)
    key[:, 1::2] = value[:, 1::2] = -1e4
    expected = torch.full((300, 6, size), 1e4 * sign)  # of the keys with the query's sign
    expected[0] = 1e4  # which sees nothing else
    torch.testing.assert_close(attend(qkv, [300], shape), expected)


@has_integers
@pytest.mark.parametrize("kinds", [[0], [1], [2], [0, 1], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("position", [0, 130])
def test_integer_attention_of_a_zero_row_equals_torch(kinds: list[int], position: int) -> None:
    shape = (6, 2, 64)
    qkv = random_states(300, shape)
    for kind in kinds:
        heads_of(qkv, shape)[kind][:, position] = 0
    got, expected = attend(qkv, [300], shape), exact_attention(qkv, [300], shape)
    is_nothing = expected.norm(dim=2) == 0  # of a first value that is zero
    assert not got[is_nothing].any()
    assert_close_to_exact(got[~is_nothing], expected[~is_nothing])


@has_integers
def test_integer_attention_of_nothing_is_nothing() -> None:
    shape = (6, 2, 64)
    for value in (0.0, 1e-42):  # smaller than what has all its digits
        assert attend(torch.full((300, 640), value), [300], shape).abs().max() < 1e-40


@has_integers
@pytest.mark.parametrize(
    ("changes", "is_taken"),
    [
        ({"head_dim": 16}, True),
        ({"head_dim": 256}, True),
        ({"head_dim": 8}, False),
        ({"head_dim": 24}, False),
        ({"head_dim": 272}, False),
        ({"head_dim": 16, "hidden_size": 768, "num_attention_heads": 48, "num_key_value_heads": 1}, True),
        ({"head_dim": 16, "hidden_size": 784, "num_attention_heads": 49, "num_key_value_heads": 1}, False),
        ({"head_dim": 16, "hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 2}, False),
    ],
    ids=str,
)
def test_fused_in_integers_takes_heads_that_its_attention_can(changes: dict[str, Any], is_taken: bool) -> None:
    assert (FusedDecoder.of(tiny_model("llama", **changes), in_integers=True) is not None) == is_taken


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


@each_format
def test_fused_vectors_of_a_whole_encoder_are_close_to_float32(tmp_path: Path, number_format: str) -> None:
    path = write_checkpoint_for(tmp_path, number_format)
    token_ids = random_ids([5, 6, 17, 33, 64, 99])
    exact = load_encoder(path, dtype="float32", device="cpu").encode(token_ids)
    rounded = load_encoder(path, dtype=number_format, device="cpu")
    assert rounded.dtype == number_format
    lowest = {"bfloat16": 0.99, "int16": 0.9999}[number_format]
    assert (rounded.encode(token_ids) * exact).sum(axis=1).min() > lowest
    np.testing.assert_array_equal(rounded.encode_in_background(token_ids), rounded.encode(token_ids))


def test_auto_takes_integers_only_where_avx2_is_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint_for(tmp_path, "int16")

    def loaded(dtype: str = "auto", **capabilities: bool) -> str:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        return load_encoder(path, dtype=dtype, device="cpu").dtype

    assert loaded(avx2=True) == ("int16" if has_integer_products() else "float32")
    assert loaded("float32", avx2=True) == "float32"
    assert loaded(avx2=True, avx512_f=True) == "float32"
    assert loaded(avx2=True, avx512_f=True, avx512_bf16=True) == "bfloat16"
    monkeypatch.setattr(torch_loading, "has_integer_products", lambda: False)
    assert loaded(avx2=True) == "float32"
    with pytest.raises(ConfigurationError, match="int16, which needs a processor with AVX2"):
        loaded("int16")


@has_integers
def test_int16_of_a_family_that_is_not_fused_is_float32_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_encoder(str(write_tiny_checkpoint(tmp_path, "gemma")), dtype="int16", device="cpu").dtype == "float32"
    assert "no products in int16" in caplog.text
