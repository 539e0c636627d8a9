"""What an encoder's process holds under batches of mixed sizes, and what giving free memory back costs.

    python -m benchmarks.worker_memory [--layers 2] [--batches 3400] [--trim] [--checkpoint default]

Queries and documents are encoded beside each other, as in a worker; of the checkpoint's layers only so many, as each
leaves the same blocks to the allocator. With `--trim` free memory is given back after every twentieth of the batches,
which shows whether what is left rises. Then, with all layers: the first calls after a trim, beside others.
"""

import argparse
import ctypes
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
from tqdm import tqdm

from benchmarks.running import texts_of_lengths
from service.encoders import memory
from service.encoders.base import Embeddings
from service.encoders.checkpoint import load_checkpoint
from service.encoders.torch_encoder import CPU_ROW_TOKENS, TorchEncoder
from service.encoders.torch_loading import choose_dtype, load_encoder, load_model
from service.settings import EncoderSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=3400)
    parser.add_argument("--trim", action="store_true")
    arguments = parser.parse_args()
    memory._GIVE_BACK_SECONDS = 1e6  # only where it is measured
    memory.settle_memory()
    checkpoint = load_checkpoint(arguments.checkpoint)
    model = load_model(checkpoint, dtype=choose_dtype("auto", "cpu"), device="cpu", trust_remote_code=False)
    model.layers = model.layers[: arguments.layers]
    model.config.num_hidden_layers = arguments.layers
    encoder = TorchEncoder(
        model,
        pooling=checkpoint.pooling,
        dimension=checkpoint.dimension,
        row_tokens=CPU_ROW_TOKENS,
        prefix_cache_tokens=EncoderSettings().prefix_cache_tokens,
    )
    generator = random.Random(7)
    texts = texts_of_lengths([generator.choice((4, 8, 12, 30, 60, 120)) for _ in range(300)], seed=7)
    token_ids = checkpoint.contract.documents([("", text) for text in texts]).token_ids
    each = arguments.batches // 20
    for step in tqdm(range(20), unit_scale=each, unit=" batches"):
        batches = [_batches(token_ids, each, seed) for seed in (1000 + step, 2000 + step)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(_encode_all, (encoder.encode, encoder.encode_in_background), batches))
        line = f"{(step + 1) * each:,} batches each: {_own_mib():.1f} MiB"
        tqdm.write(line + (f", trimmed in {1000 * _trim():.1f} ms: {_own_mib():.1f} MiB" if arguments.trim else ""))
    del encoder, model
    _first_calls(arguments.checkpoint, token_ids)


def _batches(token_ids: list[list[int]], number: int, seed: int) -> list[list[list[int]]]:
    """Of one to eight texts, as one request or two of the soak's bring them."""
    generator = random.Random(seed)
    sizes = [generator.choice((1, 1, 3, 4)) + generator.choice((0, 0, 0, 0, 1, 3, 4)) for _ in range(number)]
    return [[generator.choice(token_ids) for _ in range(size)] for size in sizes]


def _encode_all(encode: Callable[[list[list[int]]], Embeddings], batches: list[list[list[int]]]) -> None:
    for batch in batches:
        encode(batch)


def _first_calls(checkpoint: str, token_ids: list[list[int]]) -> None:
    """A query and four documents: the first call after a trim, and the median of those that follow it."""
    encoder = load_encoder(checkpoint)
    longest = sorted(token_ids, key=len)
    for name, batch in (("a query", longest[50:51]), ("four documents", longest[-4:])):
        first, others = [], []
        for _ in range(5):
            _trim()
            first.append(_seconds(encoder, batch))
            others += [_seconds(encoder, batch) for _ in range(3)]
        print(
            f"{name}, {sum(map(len, batch))} tokens: {1000 * statistics.median(first):.0f} ms after a trim, "
            f"{1000 * statistics.median(others):.0f} ms otherwise, medians of 5 and 15"
        )


def _seconds(encoder: TorchEncoder, batch: list[list[int]]) -> float:
    begin = time.perf_counter()
    encoder.encode(batch)
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
