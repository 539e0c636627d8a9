"""The embedded store: Qdrant Edge in a supervised child process, the default; no server to start.

This side checks input, so that nothing reaches a shard that it would keep half of, and merges upserts that wait for
the same collection into one call with one flush (group commit). A call whose child died is made once more after the
restart.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import NotFoundError, StoreError
from service.store.base import CollectionInfo, Document, Embedding, Filter, Hit, Point, SearchOptions
from service.store.filters import stored_form
from service.store.points import (
    check_cursor,
    check_embeddings,
    check_fingerprint,
    check_name,
    check_points,
    from_payload,
    to_payload,
    unknown_collection,
)
from service.supervised import ChildDiedError, Supervised

_START_SECONDS = 120.0  # opening replays the log of every shard
_MAX_MERGED_POINTS = 2048  # a merged upsert delays searches by some 60 ms
_DOCUMENT_FIELDS = ["id", "title", "text", "metadata"]


class EdgeStore:
    """See `Store`. Of two points with one id in a call, or in calls made at once, the last one wins."""

    def __init__(
        self, path: Path, *, timeout_seconds: float = 30.0, on_event: Callable[[str], None] | None = None
    ) -> None:
        """Nothing is opened before `start`.

        Args:
            path: directory of the store; one process at a time.
            timeout_seconds: limit of one call, the wait for a restart included.
            on_event: see `Supervised`.
        """
        self._timeout_seconds = timeout_seconds
        self._child = Supervised(
            "service.store.edge_shards:build",
            {"path": str(path)},
            name="embedded store",
            start_timeout_seconds=_START_SECONDS,
            failure=StoreError,
            on_event=on_event,
        )
        self._dimensions: dict[str, int] = {}
        self._creating = asyncio.Lock()
        self._waiting: defaultdict[str, list[_Upsert]] = defaultdict(list)
        self._commits: dict[str, asyncio.Task[None]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether the child is up."""
        return self._child.is_ready

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return self._child.pid

    async def start(self) -> None:
        """See `Store`."""
        await self._child.start()
        for info in await self.list_collections():
            self._dimensions[info.name] = info.dimension

    async def stop(self) -> None:
        """Wait for the upserts under way, then close."""
        await asyncio.gather(*self._commits.values(), return_exceptions=True)
        if self._child.is_ready:
            await self._call("close")
        await self._child.stop()

    async def create_collection(self, name: str, *, fingerprint: str, dimension: int) -> CollectionInfo:
        """See `Store`."""
        async with self._creating:
            if check_name(name) in self._dimensions:
                return check_fingerprint(await self.describe_collection(name), fingerprint, dimension)
            info = CollectionInfo(**await self._call("create", name, fingerprint, dimension))
            self._dimensions[name] = dimension
            return info

    async def list_collections(self) -> list[CollectionInfo]:
        """See `Store`."""
        infos = []
        for name in await self._call("names"):
            with contextlib.suppress(NotFoundError):  # dropped since
                infos.append(await self.describe_collection(name))
        return infos

    async def describe_collection(self, name: str) -> CollectionInfo:
        """See `Store`."""
        return CollectionInfo(**await self._call("describe", name))

    async def drop_collection(self, name: str) -> None:
        """See `Store`."""
        async with self._creating:
            self._dimension(name)
            with contextlib.suppress(NotFoundError):  # gone already if the child died after it
                await self._call("drop", name)
            del self._dimensions[name]

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """See `Store`. A caller that is cancelled does not undo its upsert."""
        upsert = _Upsert(check_points(points, self._dimension(collection)))
        self._waiting[collection].append(upsert)
        if collection not in self._commits:
            self._commits[collection] = asyncio.create_task(self._commit(collection), name=f"commit {collection}")
        await upsert.done

    async def content_hashes(self, collection: str, document_ids: Sequence[str]) -> dict[str, str]:
        """See `Store`."""
        found = await self._call("retrieve", collection, list(document_ids), ["content_hash"])
        return {document_id: payload["content_hash"] for document_id, payload in found.items()}

    async def get(self, collection: str, document_ids: Sequence[str]) -> list[Document | None]:
        """See `Store`."""
        found = await self._call("retrieve", collection, list(document_ids), _DOCUMENT_FIELDS)
        return [from_payload(found[each]) if each in found else None for each in document_ids]

    async def delete(self, collection: str, document_ids: Sequence[str]) -> int:
        """See `Store`. The number may be too small if the child died meanwhile."""
        num_deleted: int = await self._call("delete", collection, list(document_ids))
        return num_deleted

    async def delete_matching(self, collection: str, filter: Filter) -> int:
        """See `Store`. The number may be too small if the child died meanwhile."""
        num_deleted: int = await self._call("delete_matching", collection, stored_form(filter))
        return num_deleted

    async def count(self, collection: str, filter: Filter | None = None) -> int:
        """See `Store`."""
        num_matching: int = await self._call("count", collection, _stored(filter))
        return num_matching

    async def search(self, collection: str, embedding: Embedding, options: SearchOptions) -> list[Hit]:
        """See `Store`."""
        return (await self.search_batch(collection, np.asarray(embedding)[None], options))[0]

    async def search_batch(self, collection: str, embeddings: Embedding, options: SearchOptions) -> list[list[Hit]]:
        """See `Store`; all queries share one pass over the vectors."""
        queries = check_embeddings(embeddings, self._dimension(collection))
        plain = asdict(options) | {"filter": _stored(options.filter)}
        found = await self._call("search", collection, queries, plain)
        return [[Hit(document=from_payload(payload), score=score) for payload, score in hits] for hits in found]

    async def scroll(
        self, collection: str, *, after: str | None = None, batch_size: int = 256, filter: Filter | None = None
    ) -> tuple[list[Point], str | None]:
        """See `Store`; the order is that of the point ids."""
        found = await self._call("scroll", collection, check_cursor(after), batch_size, _stored(filter))
        payloads, embeddings, following = found
        pairs = zip(payloads, embeddings, strict=True)
        return [Point(document=from_payload(payload), embedding=row) for payload, row in pairs], following

    def _dimension(self, collection: str) -> int:
        if collection not in self._dimensions:
            raise unknown_collection(collection)
        return self._dimensions[collection]

    async def _commit(self, collection: str) -> None:
        """Store what waits for this collection, as much at a time as came in during the flush before."""
        waiting = self._waiting[collection]
        try:
            while waiting:
                taken = _take(waiting)
                merged = {key: point for upsert in taken for key, point in upsert.points.items()}
                try:
                    await self._put(collection, list(merged.values()))
                except Exception as error:
                    _finish(taken, error)
                else:
                    _finish(taken)
        finally:
            del self._commits[collection], self._waiting[collection]

    async def _put(self, collection: str, points: Sequence[Point]) -> None:
        if points:
            payloads = [to_payload(point.document) for point in points]
            await self._call("upsert", collection, payloads, np.stack([point.embedding for point in points]))

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            return await self._child.call(method, *args, timeout=self._timeout_seconds)
        except ChildDiedError:
            await self._child.wait_ready(self._timeout_seconds)
        try:
            return await self._child.call(method, *args, timeout=self._timeout_seconds)
        except ChildDiedError as error:
            raise StoreError(f"the embedded store died twice in {method}; see its log lines") from error


def _stored(filter: Filter | None) -> Filter | None:
    return None if filter is None else stored_form(filter)


class _Upsert:
    """One caller's points and the future it waits for."""

    def __init__(self, points: dict[str, Point]) -> None:
        self.points = points
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


def _take(waiting: list[_Upsert]) -> list[_Upsert]:
    """Remove from the front: one upsert, and more while they fit in one merged call."""
    num_points, num_taken = len(waiting[0].points), 1
    for upsert in waiting[1:]:
        num_points += len(upsert.points)
        if num_points > _MAX_MERGED_POINTS:
            break
        num_taken += 1
    taken = waiting[:num_taken]
    del waiting[:num_taken]
    return taken


def _finish(upserts: list[_Upsert], error: Exception | None = None) -> None:
    for upsert in upserts:
        if upsert.done.done():  # its caller has gone
            continue
        if error is None:
            upsert.done.set_result(None)
        else:
            upsert.done.set_exception(error)
