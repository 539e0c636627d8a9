"""An encoder's process as the service uses it: what it holds, what giving that back costs, how large batches pay.

    python -m benchmarks.worker memory [--layers 2] [--batches 3400] [--trim]
    python -m benchmarks.worker trim
    python -m benchmarks.worker batches

`memory`: queries and documents are encoded beside each other; of the checkpoint's layers only so many, as each leaves
the same blocks to the allocator. With `--trim` free memory is given back after every twentieth of the batches, which
shows whether what is left rises. `trim`: the first calls after a trim, beside others. `batches`: tokens/s of 24 real
texts in the background by tokens a batch, in turn.
"""

import argparse
import ctypes
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
from tqdm import tqdm

from benchmarks.running import real_texts, texts_of_lengths
from service.encoders import memory
from service.encoders.base import Embeddings
from service.encoders.checkpoint import Checkpoint, load_checkpoint
from service.encoders.torch_encoder import CPU_ROW_TOKENS, TorchEncoder
from service.encoders.torch_loading import choose_dtype, choose_integers, load_encoder, load_served_model
from service.settings import EncoderSettings

Batch = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["memory", "trim", "batches"])
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=3400, help="of each of the two; at least 20")
    parser.add_argument("--trim", action="store_true")
    options = parser.parse_args()
    memory._GIVE_BACK_SECONDS = 1e6  # only where it is measured
    checkpoint = load_checkpoint(options.checkpoint)
    if options.work == "memory":
        held(checkpoint, options)
    elif options.work == "trim":
        first_calls(checkpoint)
    else:
        batch_sizes(checkpoint)


def held(checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    memory.settle_memory()
    model = load_served_model(checkpoint, dtype=choose_dtype("auto", "cpu"), device="cpu", trust_remote_code=False)
    model.layers = model.layers[: options.layers]
    model.config.num_hidden_layers = options.layers
    encoder = TorchEncoder(
        model,
        pooling=checkpoint.pooling,
        dimension=checkpoint.dimension,
        row_tokens=CPU_ROW_TOKENS,
        prefix_cache_tokens=EncoderSettings().prefix_cache_tokens,
        in_integers=choose_integers("auto", "cpu"),
    )
    token_ids = _soak_texts(checkpoint)
    each = options.batches // 20
    for step in tqdm(range(20), unit_scale=each, unit=" batches"):
        batches = [_mixed(token_ids, each, seed) for seed in (1000 + step, 2000 + step)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(_encode_all, (encoder.encode, encoder.encode_in_background), batches))
        line = f"{(step + 1) * each:,} batches each: {_own_mib():.1f} MiB"
        tqdm.write(line + (f", trimmed in {1000 * _trim():.1f} ms: {_own_mib():.1f} MiB" if options.trim else ""))


def first_calls(checkpoint: Checkpoint) -> None:
    """A query and four documents: the first call after a trim, and those that follow it."""
    encoder = load_encoder(str(checkpoint.path))
    by_length = sorted(_soak_texts(checkpoint), key=len)
    for name, batch in (("a query", by_length[50:51]), ("four documents", by_length[-4:])):
        first, others = [], []
        for _ in range(5):
            _trim()
            first.append(_seconds(encoder.encode, [batch]))
            others += [_seconds(encoder.encode, [batch]) for _ in range(3)]
        print(
            f"{name}, {sum(map(len, batch))} tokens: {1000 * statistics.median(first):.0f} ms after a trim, "
            f"{1000 * statistics.median(others):.0f} ms otherwise, medians of 5 and 15"
        )


def batch_sizes(checkpoint: Checkpoint, sizes: tuple[int, ...] = (437, 1024, 2048, 4096)) -> None:
    encoder = load_encoder(str(checkpoint.path))
    texts = checkpoint.contract.documents([("", text) for text in real_texts()[1000:1024]]).token_ids
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for start in tqdm(range(len(sizes))):
        for size in (*sizes[start:], *sizes[:start]):
            seconds[size].append(_seconds(encoder.encode_in_background, list(_cut(texts, size))))
    for size, taken in seconds.items():
        print(f"{size} tokens a batch: {sum(map(len, texts)) / statistics.median(taken):.0f} tokens/s")


def _cut(texts: Batch, size: int) -> Iterator[Batch]:
    """Batches in the texts' order, as the batcher fills them."""
    batch: Batch = []
    for ids in texts:
        if batch and sum(map(len, batch)) + len(ids) > size:
            yield batch
            batch = []
        batch.append(ids)
    yield batch


def _soak_texts(checkpoint: Checkpoint) -> Batch:
    generator = random.Random(7)
    texts = texts_of_lengths([generator.choice((4, 8, 12, 30, 60, 120)) for _ in range(300)], seed=7)
    return checkpoint.contract.documents([("", text) for text in texts]).token_ids


def _mixed(token_ids: Batch, number: int, seed: int) -> list[Batch]:
    """Batches of one to eight texts, as one request or two of the soak's bring them."""
    generator = random.Random(seed)
    sizes = [generator.choice((1, 1, 3, 4)) + generator.choice((0, 0, 0, 0, 1, 3, 4)) for _ in range(number)]
    return [[generator.choice(token_ids) for _ in range(size)] for size in sizes]


def _encode_all(encode: Callable[[Batch], Embeddings], batches: list[Batch]) -> None:
    for batch in batches:
        encode(batch)


def _seconds(encode: Callable[[Batch], Embeddings], batches: list[Batch]) -> float:
    begin = time.perf_counter()
    _encode_all(encode, batches)
    return time.perf_counter() - begin


def _trim() -> float:
    """Seconds that it took."""
    begin = time.perf_counter()
    ctypes.CDLL(None).malloc_trim(0)
    return time.perf_counter() - begin


def _own_mib() -> float:
    info = psutil.Process().memory_info()
    return float(info.rss - info.shared) / 2**20


if __name__ == "__main__":
    main()
