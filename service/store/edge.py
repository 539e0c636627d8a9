"""The embedded store: Qdrant Edge in a supervised child process, the default; no server to start.

This side checks input, so that nothing reaches a shard that it would keep half of, and merges upserts that wait for
the same collection into one call with one flush (group commit). A call whose child died is made once more after the
restart. A child that answers nothing for two minutes is restarted.
"""

import asyncio
import contextlib
import copy
import logging
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import EoseekError, NotFoundError, StoreError
from service.paths import writable_bytes
from service.store.backup import copy_directory
from service.store.base import CollectionInfo, Document, Embedding, Filter, Hit, Point, SearchOptions, Snapshot
from service.store.filters import stored_form
from service.store.index_builds import IndexBuilds, OnBuild
from service.store.points import (
    DOCUMENT_FIELDS,
    check_cursor,
    check_embeddings,
    check_fingerprint,
    check_name,
    check_points,
    check_standby,
    excluded_score,
    from_payload,
    stored_point,
    to_payload,
    unknown_collection,
)
from service.supervised import ChildDiedError, Supervised

log = logging.getLogger(__name__)

_START_SECONDS = 120.0  # opening replays the log of every shard
_MAX_MERGED_POINTS = 2048  # a merged upsert delays searches by some 60 ms
_MAX_MERGED_BYTES = 2**24  # it is carried to the child in one piece


class EdgeStore:
    """See `Store`. Of two points with one id in a call, or in calls made at once, the last one wins."""

    def __init__(
        self,
        path: Path,
        *,
        timeout_seconds: float = 30.0,
        hang_seconds: float = 120.0,
        index_threshold: int = 0,
        quantization: str = "none",
        on_event: Callable[[str], None] | None = None,
        on_build: OnBuild | None = None,
    ) -> None:
        """Nothing is opened before `start`.

        Args:
            path: directory of the store; one process at a time.
            timeout_seconds: limit of one call, the wait for a restart included.
            hang_seconds: a child that answers nothing for so long, and for `timeout_seconds`, is started again.
            index_threshold: documents outside an index that start the building of one; 0 builds none.
            quantization: "none" or "scalar", of indexes that are built from now on.
            on_event: see `Supervised`.
            on_build: see `IndexBuilds`.
        """
        self._timeout_seconds = timeout_seconds
        self._child = Supervised(
            "service.store.edge_shards:build",
            {"path": str(path)},
            name="embedded store",
            start_timeout_seconds=_START_SECONDS,
            hang_seconds=max(hang_seconds, timeout_seconds),
            failure=StoreError,
            on_event=on_event,
        )
        self._path = path
        self._snapshots = path / "snapshots"
        self._copying = asyncio.Lock()  # also while a shard's directory is exchanged
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._dimensions: dict[str, int] = {}  # what the child told; it alone knows which collections there are
        self._waiting: defaultdict[str, list[_Upsert]] = defaultdict(list)
        self._commits: dict[str, asyncio.Task[None]] = {}
        self._builds = IndexBuilds(
            path / "building",
            threshold=index_threshold,
            quantization=quantization,
            call=self._call,
            copy=partial(self._copy, purpose="index", num_copies=2),  # the built one lies beside what it is made of
            files=self._copying,
            pause=self._pause,
            on_build=on_build,
        )

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
        await asyncio.to_thread(shutil.rmtree, self._snapshots, ignore_errors=True)  # a crash left them
        await self._builds.start()

    async def stop(self) -> None:
        """Wait for the upserts under way, then close; a child that cannot is ended all the same."""
        await self._builds.stop()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await asyncio.gather(*self._commits.values(), return_exceptions=True)
                if self._child.is_ready:
                    await self._child.call("close")
        except (EoseekError, TimeoutError) as error:
            why = str(error) or f"no answer within {self._timeout_seconds:g} s"
            log.warning("the embedded store was not closed, its log is replayed at the next start: %s", why)
        finally:
            await self._child.stop()

    async def create_collection(self, name: str, *, fingerprint: str, dimension: int) -> CollectionInfo:
        """See `Store`."""
        check_name(name)
        # asked for a known one too: a call that was given up may have had its effect in the child
        info = CollectionInfo(**await self._write("create", name, fingerprint, dimension))
        self._dimensions[name] = info.dimension
        return check_fingerprint(info, fingerprint, dimension)

    async def list_collections(self) -> list[CollectionInfo]:
        """See `Store`."""
        return await self._describe_all(await self._call("names"))

    async def describe_collection(self, name: str) -> CollectionInfo:
        """See `Store`."""
        return CollectionInfo(**await self._call("describe", name))

    async def drop_collection(self, name: str) -> None:
        """See `Store`."""
        if name not in await self._call("names"):
            raise unknown_collection(name)
        self._dimensions.pop(name, None)
        with contextlib.suppress(NotFoundError):  # gone already if the child died after it
            await self._write("drop", name)

    async def create_standby(self, name: str, *, fingerprint: str, dimension: int) -> CollectionInfo:
        """See `Store`."""
        check_standby(await self.describe_collection(name), fingerprint)
        return CollectionInfo(**await self._write("create_standby", name, fingerprint, dimension))

    async def list_standbys(self) -> list[CollectionInfo]:
        """See `Store`."""
        return await self._describe_all(await self._call("standbys"))

    async def switch_collection(self, name: str, physical_name: str) -> None:
        """See `Store`."""
        try:
            await self._write("switch", name, physical_name)
        finally:
            self._dimensions.pop(name, None)

    async def drop_standby(self, name: str) -> None:
        """See `Store`."""
        await self._write("drop_standby", name)

    async def snapshot(self) -> Snapshot:
        """See `Store`. Searches go on meanwhile; writes wait while a collection is copied."""
        directory = self._snapshots / uuid.uuid4().hex
        infos = []
        try:
            for name in await self._call("names"):
                with contextlib.suppress(NotFoundError):  # dropped since
                    infos.append(await self._copy(name, directory))
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            raise
        return Snapshot(directory=directory, collections=infos)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """See `Store`. A caller that is cancelled does not undo its upsert."""
        upsert = _Upsert(check_points(points, await self._dimension(collection)))
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
        found = await self._call("retrieve", collection, list(document_ids), DOCUMENT_FIELDS)
        return [from_payload(found[each]) if each in found else None for each in document_ids]

    async def delete(self, collection: str, document_ids: Sequence[str]) -> int:
        """See `Store`. The number may be too small if the child died meanwhile."""
        num_deleted: int = await self._write("delete", collection, list(document_ids))
        return num_deleted

    async def delete_matching(self, collection: str, filter: Filter) -> int:
        """See `Store`. The number may be too small if the child died meanwhile."""
        num_deleted: int = await self._write("delete_matching", collection, stored_form(filter))
        return num_deleted

    async def count(self, collection: str, filter: Filter | None = None) -> int:
        """See `Store`."""
        num_matching: int = await self._call("count", collection, _stored(filter))
        return num_matching

    async def search_batch(self, collection: str, embeddings: Embedding, options: SearchOptions) -> list[list[Hit]]:
        """See `Store`; all queries share one pass over the vectors."""
        queries = check_embeddings(embeddings, await self._dimension(collection))
        excluded = None if options.score_threshold is None else excluded_score(options.score_threshold)
        plain = asdict(options) | {"filter": _stored(options.filter), "score_threshold": excluded}
        found = await self._call("search", collection, queries, plain)
        return [[Hit(document=from_payload(payload), score=score) for payload, score in hits] for hits in found]

    async def scroll(
        self, collection: str, *, after: str | None = None, batch_size: int = 256, filter: Filter | None = None
    ) -> tuple[list[Point], str | None]:
        """See `Store`; the order is that of the point ids."""
        found = await self._call("scroll", collection, check_cursor(after), batch_size, _stored(filter))
        payloads, embeddings, following = found
        pairs = zip(payloads, embeddings, strict=True)
        return [stored_point(payload, row) for payload, row in pairs], following

    async def _copy(
        self, name: str, directory: Path, *, purpose: str = "backup", num_copies: int = 1
    ) -> CollectionInfo:
        """Copy a collection's files to a directory of its physical name. Raises StoreError, also without the room."""
        async with self._copying:
            num_restarts = self._child.num_restarts
            with self._pause():
                try:
                    # answered after all that was sent before, so no write is under way then, and each was flushed
                    info = await self.describe_collection(name)
                    source = self._path / "collections" / info.physical_name
                    _check_room(self._path, num_copies * (info.size_bytes or 0), purpose)
                    await _to_its_end(copy_directory, source, directory / info.physical_name)
                except OSError as error:
                    raise StoreError(
                        f"The store cannot be copied for its {purpose}: {error.strerror}; make room."
                    ) from error
            if self._child.num_restarts != num_restarts or not self._child.is_ready:
                raise StoreError(f"The embedded store was restarted while it was copied; ask for the {purpose} again.")
            return info

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        """Writes wait inside; for whoever holds `_copying`."""
        self._may_write.clear()
        try:
            yield
        finally:
            self._may_write.set()

    async def _describe_all(self, names: Sequence[str]) -> list[CollectionInfo]:
        infos = []
        for name in names:
            try:
                infos.append(await self.describe_collection(name))
            except NotFoundError:  # dropped since
                pass
            except StoreError:  # damaged; its cause has been logged, and the others are there
                log.warning("collection %r cannot be described and is left out of the list", name)
        return infos

    async def _dimension(self, collection: str) -> int:
        if collection not in self._dimensions:
            self._dimensions[collection] = (await self.describe_collection(collection)).dimension
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
            payloads = [to_payload(point) for point in points]
            await self._write("upsert", collection, payloads, np.stack([point.embedding for point in points]))

    async def _write(self, method: str, *args: Any) -> Any:
        while not self._may_write.is_set():
            await self._may_write.wait()
        return await self._call(method, *args)

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            return await self._try(method, *args)
        except ChildDiedError:
            await self._child.wait_ready(self._timeout_seconds)
        try:
            return await self._try(method, *args)
        except ChildDiedError as error:
            raise StoreError(f"the embedded store died twice in {method}; see its log lines") from error

    async def _try(self, method: str, *args: Any) -> Any:
        self._builds.note(method, args)  # in one step with sending it: nothing may come between
        return await self._child.call(method, *args, timeout=self._timeout_seconds)


def _check_room(path: Path, num_bytes: int, purpose: str) -> None:
    """Raises StoreError where a copy of so many bytes would fill the disk, on which the store itself needs a rest."""
    writable = writable_bytes(path)
    if num_bytes > writable:
        raise StoreError(
            f"The store cannot be copied for its {purpose}: that takes {num_bytes:,} bytes, and {max(0, writable):,} "
            "may be written to its disk; make room."
        )


async def _to_its_end(function: Callable[..., None], *args: Any) -> None:
    """Run in a thread, and outlast it also when cancelled."""
    working = asyncio.create_task(asyncio.to_thread(function, *args))
    try:
        await asyncio.shield(working)
    finally:
        await asyncio.wait({working})


def _stored(filter: Filter | None) -> Filter | None:
    return None if filter is None else stored_form(filter)


class _Upsert:
    """One caller's points and the future it waits for."""

    def __init__(self, points: dict[str, Point]) -> None:
        self.points = points
        self.num_bytes = sum(point.num_bytes for point in points.values())
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


def _take(waiting: list[_Upsert]) -> list[_Upsert]:
    """Remove from the front: one upsert, and more while they fit in one merged call."""
    num_points, num_bytes, num_taken = len(waiting[0].points), waiting[0].num_bytes, 1
    for upsert in waiting[1:]:
        num_points += len(upsert.points)
        num_bytes += upsert.num_bytes
        if num_points > _MAX_MERGED_POINTS or num_bytes > _MAX_MERGED_BYTES:
            break
        num_taken += 1
    taken = waiting[:num_taken]
    del waiting[:num_taken]
    return taken


def _finish(upserts: list[_Upsert], error: Exception | None = None) -> None:
    """Tell each caller; of an error each gets a copy, to which it may add."""
    for upsert in upserts:
        if upsert.done.done():  # its caller has gone
            continue
        if error is None:
            upsert.done.set_result(None)
        else:
            own = copy.copy(error)
            own.__cause__ = error
            upsert.done.set_exception(own)
