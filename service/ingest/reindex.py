"""Re-indexing: a standby of another checkpoint is filled and kept equal while the old one serves, then they switch.

After the switch the old one is kept equal in turn, so that going back loses nothing, until it is dropped. What must
outlast the process (which checkpoints, which options) is one small file; how far it got is what the standby holds.
"""

import asyncio
import contextvars
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from service.encoders.checkpoint import Checkpoint
from service.errors import (
    ConfigurationError,
    EoseekError,
    InvalidInputError,
    NotFoundError,
    NotReadyError,
    ReindexConflictError,
    StoreError,
)
from service.ingest.follower import StandbyFollower
from service.ingest.guard import WriteGuard
from service.ingest.overlap import Overlap, Query, measure_overlap
from service.ingest.records import Record, Records
from service.ingest.reindex_state import Progress, Reindex
from service.ingest.served import ServedCheckpoint, ServedCheckpoints
from service.metrics import ReindexStage
from service.store.base import CollectionInfo, Store
from service.store.points import check_standby

log = logging.getLogger("eoseek.reindex")
_T = TypeVar("_T")
_MAX_BEHIND = 1000  # changed documents that a switch will wait for
_SWITCH_SECONDS = 30.0
_PAUSE_SECONDS = 1.0  # before a store that is away is asked again
_UNKNOWN = "unknown"  # no physical name: refuses every write of embeddings


class Reindexer:
    """All re-indexes of one service. Each call that changes one goes on to its end, whoever stops waiting for it."""

    def __init__(
        self,
        store: Store,
        guard: WriteGuard,
        served: ServedCheckpoints,
        *,
        path: Path | None,
        forget: Callable[[str], None],
    ) -> None:
        """Take the parts over.

        Args:
            store: past the guard.
            guard: of all other writes.
            served: loads and closes checkpoints.
            path: the file of the records; None keeps them in memory, as the store does.
            forget: called with a collection's name when another checkpoint serves it.
        """
        self._store = store
        self._guard = guard
        self._served = served
        self._forget = forget
        self._records = Records(path)
        self._running: dict[str, Reindex] = {}
        self._acting = asyncio.Lock()
        self._actions: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Go on with what a process before left: load what serves a collection, clear and continue re-indexes.

        Raises:
            ConfigurationError: the file of the records is damaged.
        """
        if not self._records.is_kept:
            return
        self._records.read()
        infos = {info.name: info for info in await self._store.list_collections()}
        for name in self._records:
            record = self._records[name]
            if name not in infos or infos[name].fingerprint not in {*record.checkpoints, record.source, record.target}:
                self._records.forget(name)
        for standby in await self._store.list_standbys():
            known = self._records.get(standby.name)
            if known is None or known.target is None:
                log.info("the standby of collection %r is left over and removed", standby.name)
                await self._store.drop_standby(standby.name)
        for name in self._records:
            record, live = self._records[name], infos[name].fingerprint
            try:
                if live in record.checkpoints:
                    await self._served.open(record.checkpoints[live], fingerprint=live)
            except ConfigurationError as error:
                log.error("collection %r stays closed, its checkpoint cannot be loaded: %s", name, error.detail)
            if record.target is not None:
                self._launch(Reindex(name=name, record=record, is_switched=live == record.target))

    async def stop(self) -> None:
        """End the tasks; the next start goes on."""
        await asyncio.gather(*self._actions, return_exceptions=True)
        for reindex in self._running.values():
            await self._halt(reindex)

    async def begin(self, name: str, *, checkpoint: str | None, truncate: bool, share: float) -> Progress:
        """Start a re-index of a collection.

        Args:
            name: the collection.
            checkpoint: path or hub name; None takes the configured one.
            truncate: cut what is too long for it.
            share: of the time that encoding may take.
        Raises:
            InvalidInputError: there is no such checkpoint, or it cannot be used.
            ReindexConflictError: one is under way.
            FingerprintMismatchError: the collection belongs to this checkpoint already.
        """
        await self._store.describe_collection(name)
        await self._store.list_standbys()  # 501 before anything else
        target = await self._read_checkpoint(checkpoint)
        return await self._to_the_end(self._begin(name, target, truncate=truncate, share=share))

    async def pause(self, name: str) -> Progress:
        """Stop encoding for now; what changes meanwhile is noted."""
        return await self._to_the_end(self._set_paused(name, is_paused=True))

    async def resume(self, name: str, *, share: float | None = None, truncate: bool | None = None) -> Progress:
        """Go on after a pause or a failure, with other options if they are given."""
        return await self._to_the_end(self._set_paused(name, is_paused=False, share=share, truncate=truncate))

    async def switch(self, name: str, queries: Sequence[Query] = ()) -> Progress:
        """Let the new collection serve; the old one is kept equal until it is dropped.

        Raises:
            ReindexConflictError: it is not ready, or too far behind.
            StoreError: it did not settle in time, or the store failed; `stage` tells what holds.
        """
        return await self._to_the_end(self._switch(name, "ready", queries))

    async def roll_back(self, name: str) -> Progress:
        """Let the old collection serve again; the new one is kept equal."""
        return await self._to_the_end(self._switch(name, "switched", ()))

    async def compare(self, name: str, queries: Sequence[Query] = ()) -> Progress:
        """Measure the overlap of old and new on these queries, or else on recent ones."""
        reindex = self._find(name)
        reindex.overlap = await self._overlap(reindex, queries or list(reindex.recent))
        return await self.describe(name)

    async def abort(self, name: str) -> None:
        """Give up before the switch: the new collection goes, the old one stays as it is."""
        await self._to_the_end(self._finish(name, is_switched=False, instead="drop the old one, or roll back first"))

    async def drop(self, name: str) -> None:
        """End after the switch: the old collection goes."""
        await self._to_the_end(self._finish(name, is_switched=True, instead="abort, or switch first"))

    async def drop_collection(self, name: str) -> None:
        """Drop a collection with its re-index, if it has one."""
        await self._to_the_end(self._drop_collection(name))

    async def describe(self, name: str) -> Progress:
        """How far it is. Raises NotFoundError where there is none."""
        reindex = self._find(name)
        return reindex.progress((await self._store.describe_collection(name)).num_documents)

    def note_query(self, name: str, queries: Sequence[Query]) -> None:
        """Remember what was asked of a collection that is re-indexed, in memory only."""
        if name in self._running:
            self._running[name].note(queries)

    def levels(self) -> tuple[Counter[ReindexStage], int]:
        """Re-indexes by stage, and the changed documents that their standbys lack."""
        stages = Counter(each.stage for each in self._running.values())
        return stages, sum(each.follower.num_behind for each in self._running.values() if each.follower)

    def serving(self) -> list[ServedCheckpoint]:
        """The checkpoints without which a collection would not answer: all but those of standbys alone."""
        standbys = {each.fingerprints[1] for each in self._running.values()}
        live = {each.fingerprints[0] for each in self._running.values()}
        return [
            each
            for each in self._served.running()
            if each is self._served.main or each.checkpoint.fingerprint not in standbys - live
        ]

    async def _begin(self, name: str, target: Checkpoint, *, truncate: bool, share: float) -> Progress:
        if name in self._running:
            raise ReindexConflictError(
                f"collection {name!r} is being re-indexed ({self._running[name].stage}); abort or drop that first"
            )
        live = await self._store.describe_collection(name)
        check_standby(live, target.fingerprint)
        previous = self._records.get(name)
        checkpoints = (previous.checkpoints if previous else {}) | {target.fingerprint: str(target.path)}
        if source := self._served.find(live.fingerprint):
            checkpoints[live.fingerprint] = str(source.checkpoint.path)
        record = Record(
            checkpoints=checkpoints,
            source=live.fingerprint,
            target=target.fingerprint,
            truncate=truncate,
            share=share,
        )
        await self._records.save(name, record)
        self._launch(Reindex(name=name, record=record))
        return await self.describe(name)

    async def _set_paused(
        self, name: str, *, is_paused: bool, share: float | None = None, truncate: bool | None = None
    ) -> Progress:
        reindex = self._find(name)
        given = {"share": share, "truncate": truncate, "is_paused": is_paused}
        reindex.record = reindex.record.model_copy(update={k: v for k, v in given.items() if v is not None})
        await self._records.save(name, reindex.record)
        if reindex.failure and not is_paused:
            await self._halt(reindex)
            reindex.failure = ""
            self._launch(reindex)
        elif follower := reindex.follower:
            follower.share, follower.truncate = reindex.record.share, reindex.record.truncate
            follower.pause() if is_paused else follower.resume()
        return await self.describe(name)

    async def _switch(self, name: str, wanted: ReindexStage, queries: Sequence[Query]) -> Progress:
        reindex = self._find(name)
        follower = reindex.follower
        if reindex.stage != wanted or follower is None:
            raise ReindexConflictError(
                f"the re-index of {name!r} is {reindex.stage} and would have to be {wanted}; {reindex.failure}".rstrip(
                    "; "
                )
            )
        if follower.num_behind > _MAX_BEHIND:
            raise ReindexConflictError(
                f"the other collection is {follower.num_behind:,} documents behind; try again below {_MAX_BEHIND:,}, "
                "or resume with share: 1"
            )
        if queries or reindex.recent:
            reindex.overlap = await self._overlap(reindex, queries or list(reindex.recent))
        follower.hurry(on=True)
        try:
            async with AsyncExitStack() as door:
                async with asyncio.timeout(_SWITCH_SECONDS):
                    await follower.settled()
                    await door.enter_async_context(self._guard.closed(name))
                    await follower.settled()  # the last writes
                await self._exchange(reindex, follower)
        except TimeoutError:
            raise StoreError(
                f"the standby did not catch up within {_SWITCH_SECONDS:g} s ({follower.last_error or 'many writes'}); "
                "nothing was switched, try again"
            ) from None
        finally:
            follower.hurry(on=False)
        return await self.describe(name)

    async def _exchange(self, reindex: Reindex, follower: StandbyFollower) -> None:
        """The two are equal and the door is closed. Whatever fails here, the store is asked what holds."""
        await self._halt(reindex)
        self._guard.follow(reindex.name, None, live=_UNKNOWN)
        try:
            await self._store.switch_collection(reindex.name, follower.standby)
        finally:
            self._forget(reindex.name)
            try:
                live = await self._locate(reindex)
                served = self._served.find(reindex.fingerprints[1])
                # followed before the door opens, else what is written meanwhile would be missed
                following = await self._follow(reindex, live, served, is_equal=True) if served else None
                self._launch(reindex, following)
            except EoseekError:
                self._launch(reindex)  # which asks again; until then the door lets no embedding through

    async def _finish(self, name: str, *, is_switched: bool, instead: str) -> None:
        reindex = self._find(name)
        if reindex.is_switched != is_switched:
            raise ReindexConflictError(f"the re-index of {name!r} is {reindex.stage}: {instead}")
        live = await self._store.describe_collection(name)
        # the record first: a standby without one is cleared at the next start
        await self._records.save(name, _after(reindex.record, live, self._served.main.checkpoint))
        await self._end(reindex, live=live.physical_name)
        await self._store.drop_standby(name)
        await self._close_unused()

    async def _drop_collection(self, name: str) -> None:
        self._forget(name)
        await self._records.save(name, None)
        if reindex := self._running.get(name):
            await self._end(reindex, live=None)
        self._guard.follow(name, None, live=None)
        await self._store.drop_collection(name)
        self._forget(name)
        await self._close_unused()

    async def _end(self, reindex: Reindex, *, live: str | None) -> None:
        await self._halt(reindex)
        self._guard.follow(reindex.name, None, live=live)
        del self._running[reindex.name]

    async def _close_unused(self) -> None:
        await self._served.keep_only(self._records.fingerprints())

    def _launch(self, reindex: Reindex, follower: StandbyFollower | None = None) -> None:
        """Go on with a follower, or with a new one that compares all."""
        self._running[reindex.name] = reindex
        reindex.follower = follower
        # an empty context: no request's id, deadline or trace is this task's
        reindex.task = asyncio.create_task(
            self._run(reindex), name=f"reindex {reindex.name}", context=contextvars.Context()
        )

    async def _halt(self, reindex: Reindex) -> None:
        if reindex.task is not None:
            reindex.task.cancel()
            await asyncio.gather(reindex.task, return_exceptions=True)
            reindex.task = None

    async def _run(self, reindex: Reindex) -> None:
        try:
            while reindex.follower is None:
                try:
                    live = await self._locate(reindex)
                    served = await self._open_standby(reindex)
                    reindex.follower = await self._follow(reindex, live, served, is_equal=False)
                except NotReadyError as error:
                    log.warning("the re-index of %r waits: %s", reindex.name, error.detail)
                    await asyncio.sleep(_PAUSE_SECONDS)
            await reindex.follower.run()
        except EoseekError as error:
            reindex.failure = error.detail
        except Exception as error:
            log.exception("the re-index of %r failed", reindex.name)
            reindex.failure = f"a fault of the service ({type(error).__name__}); its log has more"
        if reindex.failure:
            log.warning("the re-index of %r stopped: %s", reindex.name, reindex.failure)

    async def _locate(self, reindex: Reindex) -> CollectionInfo:
        """Which of the two serves: the store alone knows."""
        live = await self._store.describe_collection(reindex.name)
        reindex.is_switched = live.fingerprint == reindex.record.target
        self._guard.follow(reindex.name, None, live=live.physical_name)
        return live

    async def _open_standby(self, reindex: Reindex) -> ServedCheckpoint:
        _, fingerprint = reindex.fingerprints
        if fingerprint not in reindex.record.checkpoints:
            raise ConfigurationError(
                f"no checkpoint is known for {fingerprint}, so the old collection is no longer kept equal and there is "
                "no way back; drop it"
            )
        return await self._served.open(reindex.record.checkpoints[fingerprint], fingerprint=fingerprint)

    async def _follow(
        self, reindex: Reindex, live: CollectionInfo, served: ServedCheckpoint, *, is_equal: bool
    ) -> StandbyFollower:
        """A follower that is told of all writes from now on."""
        name, checkpoint = reindex.name, served.checkpoint
        standby = await self._store.create_standby(
            name, fingerprint=checkpoint.fingerprint, dimension=checkpoint.dimension
        )
        record = reindex.record  # only now: a pause or other options may have come meanwhile
        follower = StandbyFollower(
            self._store,
            served.copier,
            live=live.physical_name,
            standby=standby.physical_name,
            is_equal=is_equal,
            truncate=record.truncate,
            share=record.share,
        )
        if record.is_paused:
            follower.pause()
        self._guard.follow(name, follower, live=live.physical_name)
        return follower

    async def _overlap(self, reindex: Reindex, queries: Sequence[Query]) -> Overlap:
        if not queries:
            raise InvalidInputError("queries: none are given and none were asked since the re-index began; send some")
        if reindex.stage not in ("ready", "switched"):
            raise ReindexConflictError(f"the re-index of {reindex.name!r} is {reindex.stage}; compare when it is ready")
        pair = [self._find_served(fingerprint) for fingerprint in reindex.fingerprints]
        return await measure_overlap(self._store, reindex.name, pair, queries)

    def _find_served(self, fingerprint: str) -> ServedCheckpoint:
        served = self._served.find(fingerprint)
        if served is None:
            raise ReindexConflictError(f"checkpoint {fingerprint} does not run here, so there is nothing to compare")
        return served

    def _find(self, name: str) -> Reindex:
        if name not in self._running:
            raise NotFoundError(f"collection {name!r} is not being re-indexed; start with action: start")
        return self._running[name]

    async def _read_checkpoint(self, name_or_path: str | None) -> Checkpoint:
        if name_or_path is None:
            return self._served.main.checkpoint
        try:
            return await self._served.read(name_or_path)
        except ConfigurationError as error:
            raise InvalidInputError(f"checkpoint: {error.detail}") from error

    async def _to_the_end(self, action: Coroutine[Any, Any, _T]) -> _T:
        """One action after the other, each to its end: a client that hangs up halves nothing."""

        async def act() -> _T:
            async with self._acting:
                return await action

        task = asyncio.create_task(act(), context=contextvars.Context())
        self._actions.add(task)
        task.add_done_callback(self._actions.discard)
        return await asyncio.shield(task)


def _after(record: Record, live: CollectionInfo, main: Checkpoint) -> Record | None:
    """What is left to know at the end: which checkpoint serves the collection, if it is not the configured one."""
    path = record.checkpoints.get(live.fingerprint)
    return Record(checkpoints={live.fingerprint: path}) if path and live.fingerprint != main.fingerprint else None
