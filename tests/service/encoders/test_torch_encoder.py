"""The encoder contract on every family, against transformers' own forward of one text at a time."""

import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.encoders.packed import packed_forward
from service.encoders.torch_encoder import TorchEncoder, _even_rows
from service.encoders.torch_loading import choose_dtype, load_encoder
from service.errors import ConfigurationError, EncoderError
from tests.checkpoints import FAMILIES, tiny_model, write_tiny_checkpoint

# lengths on both sides of the window of 8, equal ones, and one alone in its group
LENGTHS = [3, 1, 20, 21, 40, 3, 70]


def random_ids(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [[*torch.randint(3, 259, (length - 1,), generator=generator).tolist(), 2] for length in lengths]


def reference(family: str, token_ids: list[list[int]]) -> NDArray[np.float32]:
    """Pooled here by hand, from the family's own eager attention, one text at a time."""
    model = tiny_model(family)
    model.set_attn_implementation("eager")
    rows = []
    for ids in token_ids:
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
        rows.append({"last_token": hidden[-1], "cls": hidden[0], "mean": hidden.mean(0)}[FAMILIES[family][3]])
    embeddings = torch.stack(rows)
    return (embeddings / embeddings.norm(dim=1, keepdim=True)).float().numpy()


def encoder_of(family: str, *, row_tokens: int = 1000, prefix_cache_tokens: int = 0) -> TorchEncoder:
    return TorchEncoder(
        tiny_model(family),
        pooling=FAMILIES[family][3],
        dimension=32,
        row_tokens=row_tokens,
        prefix_cache_tokens=prefix_cache_tokens,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_encode_any_family_equals_its_own_attention(family: str) -> None:
    token_ids = random_ids(LENGTHS)
    embeddings = encoder_of(family).encode(token_ids)
    np.testing.assert_allclose(embeddings, reference(family, token_ids), atol=2e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma3", "mistral", "phi", "bert"])
def test_encode_families_of_the_attention_interface_run_packed(family: str) -> None:
    assert encoder_of(family)._forward is packed_forward


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_encode_batch_mates_do_not_matter(family: str) -> None:
    token_ids = random_ids(LENGTHS)
    encoder = encoder_of(family)
    single = np.concatenate([encoder.encode([ids]) for ids in token_ids])
    np.testing.assert_allclose(encoder.encode(token_ids), single, atol=1e-6)


def test_encode_small_rows_keep_input_order() -> None:
    token_ids = random_ids(LENGTHS)
    np.testing.assert_allclose(
        encoder_of("llama", row_tokens=8).encode(token_ids), encoder_of("llama").encode(token_ids), atol=1e-6
    )


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("family", ["llama", "gemma3", "mpnet"])
def test_encode_rows_beside_each_other_give_the_same_in_input_order(family: str) -> None:
    token_ids = random_ids([20 + index % 50 for index in range(40)])
    encoder = encoder_of(family)
    threads: list[tuple[str, int]] = []
    forward = encoder._forward

    def observed(model, token_ids, **options):  # type: ignore[no-untyped-def]
        threads.append((threading.current_thread().name.rpartition("_")[0], torch.get_num_threads()))
        return forward(model, token_ids, **options)

    encoder._forward = observed
    embeddings = encoder.encode(token_ids)
    assert threads == [("row", 1)] * 3
    assert torch.get_num_threads() == 3
    single = np.concatenate([encoder.encode([ids]) for ids in token_ids])
    assert threads[3:] == [("", 3)] * 40  # a text alone has all threads for itself
    np.testing.assert_allclose(embeddings, single, atol=2e-6)


@pytest.mark.usefixtures("three_threads")
def test_encode_in_background_gives_the_same_beside_other_batches() -> None:
    encoder = encoder_of("llama", prefix_cache_tokens=512)
    shared = random_ids([40], seed=5)[0]
    batches = [
        [shared + ids for ids in random_ids([9, 20, 30], seed=each)] + random_ids([200, 300, 280], seed=each)
        for each in range(8)
    ]
    expected = [encoder_of("llama").encode(batch) for batch in batches]
    with ThreadPoolExecutor(2) as threads:
        in_background = threads.map(encoder.encode_in_background, batches)
        at_once = threads.map(encoder.encode, batches)
        for got, wanted in zip([*in_background, *at_once], 2 * expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.usefixtures("three_threads")
def test_encode_in_background_leaves_no_thread_that_shared_a_product() -> None:
    encoder = encoder_of("llama")
    before = set(threading.enumerate())
    encoder.encode_in_background(random_ids([8]))  # alone, on all threads
    encoder.encode_in_background(random_ids([100, 100]))  # one row, as there are not 128 tokens for each of two
    assert not set(threading.enumerate()) - before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux knows the priority of a thread")
def test_encode_in_background_runs_at_low_priority_and_leaves_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of("llama")
    niceness: dict[str, int] = {}
    encode_row = encoder._encode_row

    def spy(*args: Any, **options: Any) -> Any:
        name = threading.current_thread().name.partition("_")[0]
        niceness[name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return encode_row(*args, **options)

    monkeypatch.setattr(encoder, "_encode_row", spy)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    encoder.encode_in_background(random_ids([8]))
    encoder.encode(random_ids([8]))
    assert (niceness["background"], niceness["MainThread"]) == (min(before + 10, 19), before)


@pytest.mark.usefixtures("three_threads")
def test_encode_rows_beside_each_other_hand_on_what_went_wrong() -> None:
    encoder = encoder_of("llama")

    def never(model, token_ids, **options):  # type: ignore[no-untyped-def]
        raise MemoryError

    encoder._forward = never
    with pytest.raises(EncoderError, match="20 tokens does not fit"):
        encoder.encode(random_ids([20] * 60))
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(
    ("lengths", "num_beside"),
    [([], 1), ([255, 256], 1), ([256, 256], 2), ([300] * 30, 3), ([5000, 300, 300], 1), ([2000, 1500, 900], 2)],
)
def test_encode_runs_rows_beside_each_other_where_none_is_short_or_waited_for(lengths, num_beside) -> None:
    assert encoder_of("llama")._num_rows_beside(lengths) == num_beside


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    row_tokens=st.integers(1, 500),
    beside=st.integers(1, 4),
)
def test_even_rows_hold_each_text_once_in_rows_of_about_equal_size(lengths, row_tokens, beside) -> None:
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    rows = _even_rows(order, lengths, row_tokens, beside)
    assert [index for row in reversed(rows) for index in row] == order
    num_rows = math.ceil(sum(lengths) / (row_tokens * beside)) * beside
    assert max(sum(lengths[index] for index in row) for row in rows) <= sum(lengths) / num_rows + max(lengths)
    assert all(sum(lengths[index] for index in row) <= row_tokens or len(row) == 1 for row in rows)


@pytest.mark.parametrize("family", ["llama", "mpnet"])
def test_encode_out_of_memory_splits_the_row(family: str) -> None:
    encoder = encoder_of(family)
    whole = encoder.encode(random_ids(LENGTHS))
    forward = encoder._forward

    def limited(model, token_ids, **options):  # type: ignore[no-untyped-def]
        if len(token_ids) > 2:
            raise torch.OutOfMemoryError("test")
        return forward(model, token_ids, **options)

    encoder._forward = limited
    np.testing.assert_allclose(encoder.encode(random_ids(LENGTHS)), whole, atol=1e-6)


def test_encode_one_text_out_of_memory_says_its_length() -> None:
    encoder = encoder_of("llama")

    def never(model, token_ids, **options):  # type: ignore[no-untyped-def]
        raise MemoryError

    encoder._forward = never
    with pytest.raises(EncoderError, match="70 tokens"):
        encoder.encode(random_ids([70]))


def test_encode_nan_weights_are_refused() -> None:
    model = tiny_model("llama")
    torch.nn.init.constant_(model.get_parameter("norm.weight"), float("nan"))
    with pytest.raises(EncoderError, match="not finite"):
        TorchEncoder(model, pooling="last_token", dimension=32, row_tokens=100).encode(random_ids([4]))


@pytest.mark.parametrize("family", FAMILIES)
def test_encode_bfloat16_stays_near_float32(family: str, tmp_path: Path) -> None:
    token_ids = random_ids(LENGTHS)
    encoder = load_encoder(str(write_tiny_checkpoint(tmp_path / family, family)), dtype="bfloat16", device="cpu")
    # random weights of this size amplify rounding more than trained ones do
    assert (encoder.encode(token_ids) * reference(family, token_ids)).sum(axis=1).min() > 0.99


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_bf16"), reason="oneDNN's products in bfloat16")
def test_encode_bfloat16_gives_the_same_bits_alone_and_in_any_batch(tmp_path: Path) -> None:
    encoder = load_encoder(str(write_tiny_checkpoint(tmp_path, "llama")), dtype="bfloat16")
    token_ids = random_ids([5, 6, 17, 17, 18, 33, 40, 64, 65, 99], seed=3)
    together = encoder.encode(token_ids)
    others = encoder.encode([*random_ids([7, 80, 90], seed=4), *token_ids[::-1]])[3:][::-1]
    np.testing.assert_array_equal(others, together)
    np.testing.assert_array_equal(np.concatenate([encoder.encode([ids]) for ids in token_ids]), together)


def test_encode_bfloat16_very_short_texts_are_exact(tmp_path: Path) -> None:
    path = str(write_tiny_checkpoint(tmp_path / "llama"))
    exact, rounded = (load_encoder(path, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16"))
    # the same weights, rounded before
    with torch.no_grad():
        for one, other in zip(exact._model.parameters(), rounded._model.parameters(), strict=True):
            one.copy_(other)
    short, long = random_ids([2, 4]), random_ids([5, 30])
    np.testing.assert_allclose(rounded.encode(short), exact.encode(short), atol=2e-6)
    assert np.abs(rounded.encode(long) - exact.encode(long)).max() > 1e-4


def test_packed_forward_gradients_equal_padded() -> None:
    token_ids = random_ids([5, 9, 30])
    gradients = []
    for attention in ("packed", "alone"):
        model = tiny_model("llama")
        if attention == "packed":
            TorchEncoder(model, pooling="last_token", dimension=32, row_tokens=100)
            packed_forward(model, token_ids).pow(2).sum().backward()
        else:
            model.set_attn_implementation("eager")
            for ids in token_ids:
                model(input_ids=torch.tensor([ids])).last_hidden_state.pow(2).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for packed, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-3)


def test_check_wrong_packing_falls_back_to_padding(caplog: pytest.LogCaptureFixture) -> None:
    encoder = encoder_of("llama")

    def leaky(model, token_ids, **options):  # type: ignore[no-untyped-def]
        return packed_forward(model, [[i for ids in token_ids for i in ids]])

    import service.encoders.torch_encoder as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "packed_forward", leaky)
        encoder._forward = leaky
        encoder.check(random_ids([4, 9, 17]))
    assert "batches are padded" in caplog.text
    token_ids = random_ids(LENGTHS)
    np.testing.assert_allclose(encoder.encode(token_ids), reference("llama", token_ids), atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_load_encoder_any_family_from_disk_equals_the_model(family: str, tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / family, family)
    token_ids = random_ids(LENGTHS)
    embeddings = load_encoder(str(path), dtype="float32", device="cpu").encode(token_ids)
    np.testing.assert_allclose(embeddings, reference(family, token_ids), atol=2e-6)


def test_load_encoder_corrupt_weights_are_one_clear_error(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "tiny")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load_encoder(str(path), device="cpu")


def test_load_encoder_missing_weights_would_be_random_and_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = write_tiny_checkpoint(tmp_path / "tiny")
    weights = load_file(path / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"1 weights are missing.*layers\.1\.mlp\.up_proj"):
        load_encoder(str(path), device="cpu")


def test_load_encoder_weights_changed_since_the_start_are_refused(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "tiny")
    with pytest.raises(ConfigurationError, match=r"has changed.*the service started with abc"):
        load_encoder(str(path), device="cpu", fingerprint="abc")


def test_encode_memory_is_bounded_however_many_row_lengths(tmp_path: Path) -> None:
    # a process of its own, as the caches are those of a process
    program = """
import sys
import psutil
from service.encoders.torch_loading import load_encoder
encoder = load_encoder(sys.argv[1], dtype="bfloat16", threads=1)
used = []
for stop in (100, 350):
    for length in range(stop - 100, stop):
        encoder.encode([[*range(5, 5 + length % 200), 2]] * (length // 200 + 1))
    used.append(psutil.Process().memory_info().rss)
print((used[1] - used[0]) // 2**20)
"""
    path = write_tiny_checkpoint(tmp_path, "llama")
    command = [sys.executable, "-c", program, str(path)]
    environment = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    grown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert int(grown) < 100


def test_choose_dtype_auto_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert choose_dtype("auto", "cpu") is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert choose_dtype("auto", "cpu") is torch.float32
    assert choose_dtype("float32", "cuda") is torch.float32
