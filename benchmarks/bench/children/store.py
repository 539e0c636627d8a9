"""The embedded store alone, with random vectors: what a search costs, and what an upsert costs as it grows."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench.children import serve
from service.store.base import Document, Point, SearchOptions
from service.store.edge import EdgeStore

BATCH = 1000
SEED = 5
TEXT = "a text of the usual length " * 24  # about 131 tokens


class Store:
    """A store in its own folder, opened for one call at a time."""

    def __init__(self, *, path: str, threads: int, fingerprint: str, dimension: int) -> None:  # noqa: ARG002
        self._path = Path(path)
        self._fingerprint, self._dimension = fingerprint, dimension
        self._generator = np.random.default_rng(SEED)
        self.versions: dict[str, str] = {}

    def fill(self, *, count: int) -> int:
        """Store as many documents in the default collection; returns how many there are."""
        return asyncio.run(self._with_store(self._fill, count))

    def search(self, *, searches: int) -> list[float]:
        """Seconds of exact searches for ten, one after the other."""
        return asyncio.run(self._with_store(self._search, searches))

    def grow(self, *, sizes: list[int], batches: int) -> dict[str, float]:
        """Documents/s of the last batches before each size is reached, stored and on disk."""
        return asyncio.run(self._with_store(self._grow, sizes, batches))

    async def _with_store(self, work: Any, *arguments: Any) -> Any:
        store = EdgeStore(self._path)
        await store.start()
        try:
            await store.create_collection("default", fingerprint=self._fingerprint, dimension=self._dimension)
            return await work(store, *arguments)
        finally:
            await store.stop()

    async def _fill(self, store: EdgeStore, count: int) -> int:
        for start in range(await store.count("default"), count, BATCH):
            await self._upsert(store, start, min(BATCH, count - start))
        return await store.count("default")

    async def _search(self, store: EdgeStore, searches: int) -> list[float]:
        seconds = []
        for _ in range(searches):
            embeddings = self._embeddings(1)
            start = time.perf_counter()
            await store.search_batch("default", embeddings, SearchOptions(exact=True))
            seconds.append(time.perf_counter() - start)
        return seconds

    async def _grow(self, store: EdgeStore, sizes: list[int], batches: int) -> dict[str, float]:
        rates, stored = {}, 0
        for size in sizes:
            seconds = []
            while stored < size:
                count = min(BATCH, size - stored)
                seconds.append(await self._upsert(store, stored, count) / count)
                stored += count
            rates[str(size)] = 1 / float(np.median(seconds[-batches:]))
        return rates

    async def _upsert(self, store: EdgeStore, start: int, count: int) -> float:
        embeddings = self._embeddings(count)
        documents = [Document(id=f"random {number}", text=TEXT) for number in range(start, start + count)]
        points = [Point(document=each, embedding=row) for each, row in zip(documents, embeddings, strict=True)]
        begin = time.perf_counter()
        await store.upsert("default", points)
        return time.perf_counter() - begin

    def _embeddings(self, count: int) -> Any:
        rows = self._generator.standard_normal((count, self._dimension), dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    serve(Store)
