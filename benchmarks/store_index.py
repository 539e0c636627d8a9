"""The index of the embedded store beside its exact scan: speed, recall, the build and what it does to searches.

    python -m benchmarks.store_index [--documents 100000] [--quantization scalar] [--json FILE]

Vectors are of clusters of uneven sizes with a spectrum that falls off, as those of texts are; `--vectors FILE` takes
real ones (float32 rows in NumPy's format, of which the last ones are the queries). Searches are made through the store
as the service makes them, by one client that waits for each answer; throughout the build they are paced. A million
takes some 15 GB of disk for a while.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.running import write_json
from service.store.base import Document, Point, SearchOptions
from service.store.edge import EdgeStore

COLLECTION, DIMENSION = "bench", 576
QUERIES, BATCH = 1000, 1000
CLUSTERS = 2000
PACE_SECONDS = 0.05
TEXT = "a text of the usual length " * 24  # about 131 tokens
Rows = NDArray[np.float32]


@dataclass
class Searches:
    """Seconds and found ids of some searches; MiB of the store's process after them (PSS, so mapped files too)."""

    seconds: list[float] = field(default_factory=list)
    found: list[set[str]] = field(default_factory=list)
    mib: float = 0.0

    def ms(self, percent: float) -> float:
        return 1000 * float(np.percentile(self.seconds, percent))

    def recall(self, truth: "Searches") -> float:
        shared = sum(len(ours & theirs) for ours, theirs in zip(self.found, truth.found, strict=True))
        return shared / sum(map(len, truth.found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--quantization", default="none", choices=["none", "scalar"])
    parser.add_argument("--vectors", type=Path, help="real ones instead: more rows than --documents")
    parser.add_argument("--path", type=Path, help="directory for the store, on the disk to be measured")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = clustered(arguments.documents + QUERIES) if arguments.vectors is None else np.load(arguments.vectors)
    if arguments.path is not None:
        arguments.path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.path) as directory:
        result = asyncio.run(measure(Path(directory), rows, arguments.documents, arguments.quantization))
    write_json(arguments.json, result)
    print(table(result))
    return 0


def clustered(count: int, dimension: int = DIMENSION, seed: int = 5) -> Rows:
    """Unit rows; the last ones are of the same clusters as the first."""
    generator = np.random.default_rng(seed)
    spectrum = np.arange(1, dimension + 1, dtype=np.float32) ** -0.5
    centres = generator.standard_normal((CLUSTERS, dimension), dtype=np.float32) * spectrum
    weights = np.arange(1, CLUSTERS + 1) ** -0.7
    of = generator.choice(CLUSTERS, size=count, p=weights / weights.sum())
    rows = np.empty((count, dimension), np.float32)
    for start in range(0, count, 50_000):  # a million at once would take the memory thrice
        part = of[start : start + 50_000]
        rows[start : start + len(part)] = centres[part] + 0.8 * spectrum * generator.standard_normal(
            (len(part), dimension), dtype=np.float32
        )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


async def measure(path: Path, rows: Rows, num_documents: int, quantization: str) -> dict[str, Any]:
    queries = rows[num_documents : num_documents + QUERIES]
    store = await opened(path, rows.shape[1])
    await fill(store, rows[:num_documents])
    scanned = await search(store, queries, exact=True)
    await store.stop()

    ended: asyncio.Queue[tuple[str, float]] = asyncio.Queue()

    def tell(outcome: str | None, seconds: float) -> None:
        if outcome is not None:
            ended.put_nowait((outcome, seconds))

    store = await opened(path, rows.shape[1], index_threshold=1, quantization=quantization, on_build=tell)
    during = await search(store, queries, pace_seconds=PACE_SECONDS, until=lambda: not ended.empty())
    outcome, seconds = await ended.get()
    if outcome != "built":
        sys.exit(f"the index was not built: {outcome}; see the log above")
    indexed = await search(store, queries)
    rescanned = await search(store, queries[:100], exact=True)
    info = await store.describe_collection(COLLECTION)
    await store.stop()
    return {
        "documents": num_documents,
        "dimension": rows.shape[1],
        "quantization": quantization,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "build_seconds": seconds,
        "recall@10": indexed.recall(scanned),
        "exact_is_the_same": rescanned.found == scanned.found[:100],
        "bytes": info.size_bytes,
        "exact": figures(scanned),
        "during_build": figures(during),
        "indexed": figures(indexed),
        "exact_beside_index": figures(rescanned),
    }


async def opened(path: Path, dimension: int, **options: Any) -> EdgeStore:
    store = EdgeStore(path, **options)
    await store.start()
    await store.create_collection(COLLECTION, fingerprint="f" * 64, dimension=dimension)
    return store


async def fill(store: EdgeStore, rows: Rows) -> None:
    for start in range(0, len(rows), BATCH):
        part = enumerate(rows[start : start + BATCH], start)
        points = [Point(document=Document(id=str(number), text=TEXT), embedding=row) for number, row in part]
        await store.upsert(COLLECTION, points)


async def search(
    store: EdgeStore,
    queries: Rows,
    *,
    exact: bool = False,
    pace_seconds: float = 0.0,
    until: Callable[[], bool] | None = None,
) -> Searches:
    """Each query once, or all of them again and again `until`, one every `pace_seconds` at most."""
    searches, options = Searches(), SearchOptions(exact=exact, with_text=False)
    number = 0
    while number < len(queries) if until is None else not until():
        begin = time.perf_counter()
        (hits,) = await store.search_batch(COLLECTION, queries[[number % len(queries)]], options)
        searches.seconds.append(time.perf_counter() - begin)
        searches.found.append({hit.document.id for hit in hits})
        number += 1
        await asyncio.sleep(max(0.0, pace_seconds - searches.seconds[-1]))
    searches.mib = psutil.Process(store.pid).memory_full_info().pss / 2**20
    return searches


def figures(searches: Searches) -> dict[str, float]:
    quantiles = {f"p{percent}_ms": searches.ms(percent) for percent in (50, 99)}
    return {"searches": len(searches.seconds), **quantiles, "max_ms": searches.ms(100), "mib": searches.mib}


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [
        f"{result['documents']:,} x {result['dimension']}, quantization {result['quantization']}, {result['cores']} "
        f"cores, load {result['load']:.1f}: built in {result['build_seconds']:.0f} s, recall@10 "
        f"{result['recall@10']:.3f}, {result['bytes'] / 2**20:,.0f} MiB on disk",
        "",
        "| searches | p50, ms | p99, ms | longest, ms | number | store's memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows: Sequence[tuple[str, str]] = (
        ("exact, before", "exact"),
        ("throughout the build", "during_build"),
        ("indexed", "indexed"),
        ("exact, after", "exact_beside_index"),
    )
    for name, key in rows:
        each = result[key]
        times = " | ".join(f"{each[quantile]:.1f}" for quantile in ("p50_ms", "p99_ms", "max_ms"))
        lines.append(f"| {name} | {times} | {each['searches']:,} | {each['mib']:,.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
