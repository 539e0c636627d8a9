"""Makes a standby equal to its live collection and keeps it so, encoding the stored texts by the standby's checkpoint.

It compares states and replays no calls: whatever order writes land in, their documents are looked at afterwards, and
looking once more does no harm. So a crash needs no log: the next run compares both collections by their content hashes,
and encodes only what is missing. Price: that run reads both from end to end.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from service.errors import EoseekError, InvalidInputError, ReindexConflictError
from service.ingest.pipeline import Failure, IncomingDocument, IngestPipeline, split_hash
from service.store.base import Document, Filter, Store

_PAGE = 32  # documents between two looks at pause and throttle
_MAX_CHANGES = 200_000  # ids in memory; beyond it all is compared again
_MAX_FAILURES = 10_000
_MAX_WAIT_SECONDS = 30.0
_RETRIED_STATUSES = (429, 503)

Phase = Literal["copy", "trim", "follow"]


@dataclass(kw_only=True)
class Counts:
    """Documents that were dealt with, by what became of them."""

    encoded: int = 0
    unchanged: int = 0
    removed: int = 0


@dataclass(kw_only=True)
class _Work:
    """What is known to be left besides the first comparison."""

    changes: dict[str, None] = field(default_factory=dict)  # ids, oldest first
    filters: list[Filter] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changes or self.filters)


class StandbyFollower:
    """One standby; `run` works until it is cancelled."""

    def __init__(
        self,
        store: Store,
        copier: IngestPipeline,
        *,
        live: str,
        standby: str,
        is_equal: bool,
        truncate: bool,
        share: float,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Nothing is read before `run`.

        Args:
            store: both collections', past the guard.
            copier: encodes by the standby's checkpoint and writes past the guard.
            live: physical name of the collection that is copied.
            standby: physical name of the one that is written.
            is_equal: the two need no first comparison.
            truncate: cut what is too long for the standby's checkpoint, also where its sender did not allow it.
            share: of the time that copying may take, 0 to 1; it pauses for the rest.
            sleep: waits between attempts.
        """
        self.live, self.standby = live, standby
        self.truncate, self.share = truncate, share
        self.phase: Phase = "follow" if is_equal else "copy"
        self.num_examined = 0
        self.counts = Counts()
        self.failed: dict[str, str] = {}  # why, by id
        self.last_error = ""
        self._store = store
        self._copier = copier
        self._sleep = sleep
        self._cursor: str | None = None
        self._work = _Work()
        self._num_compared = 0  # by the step that is under way
        self._has_work = asyncio.Event()
        self._is_settled = asyncio.Event()
        self._may_run = asyncio.Event()
        self._may_run.set()
        self._is_hurried = False
        self._rouse = asyncio.Event()

    @property
    def num_behind(self) -> int:
        """Documents that may differ, as far as it is known; a deletion by filter counts as one."""
        return len(self._work.changes) + len(self._work.filters) + self._num_compared

    def changed(self, document_ids: Sequence[str]) -> None:
        """See `guard.Follower`."""
        self._work.changes |= dict.fromkeys(document_ids)
        self._notice_work()

    def matched(self, filter: Filter) -> None:
        """See `guard.Follower`."""
        self._work.filters.append(filter)
        self._notice_work()

    def pause(self) -> None:
        """Stop after the page that is under way; changes are noted all the same."""
        self._may_run.clear()

    def resume(self) -> None:
        """Go on, and try again what failed."""
        self.changed(list(self.failed))
        self._may_run.set()
        self._rouse.set()

    def hurry(self, *, on: bool) -> None:
        """Work without pauses while somebody waits for the end."""
        self._is_hurried = on
        self._rouse.set()

    async def settled(self) -> None:
        """Return when nothing is left to do. Raises ReindexConflictError where a document cannot be copied."""
        await self._is_settled.wait()
        if self.failed:
            document_id, why = next(iter(self.failed.items()))
            raise ReindexConflictError(
                f"{len(self.failed):,} documents cannot be encoded by the other checkpoint, the first is "
                f"{document_id[:80]!r}: {why}. Correct or delete them, or resume with truncate: true"
            )

    async def run(self) -> None:
        """Copy and follow. Raises EoseekError for what no repetition heals; what may heal is tried again for ever."""
        seconds = 1.0
        while True:
            await self._may_run.wait()
            if len(self._work.changes) > _MAX_CHANGES:
                self._work, self.phase, self._cursor, self.num_examined = _Work(), "copy", None, 0
            if self.phase == "follow" and not self._work:
                self._has_work.clear()
                self._is_settled.set()
                await self._has_work.wait()
                continue
            started = time.monotonic()
            try:
                await self._step()
            except EoseekError as error:
                if error.status not in _RETRIED_STATUSES:
                    raise
                self.last_error = error.detail
                await self._sleep(seconds)
                seconds = min(2 * seconds, _MAX_WAIT_SECONDS)
                continue
            self.last_error, seconds = "", 1.0
            await self._rest(time.monotonic() - started)

    def _notice_work(self) -> None:
        self._is_settled.clear()
        self._has_work.set()

    async def _rest(self, worked_seconds: float) -> None:
        """Leave the rest of the time to others, unless the share changes or somebody waits."""
        seconds = worked_seconds * (1 / self.share - 1)
        if seconds > 0 and not self._is_hurried:
            self._rouse.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._rouse.wait()

    async def _step(self) -> None:
        """One page of work."""
        match self.phase:
            case "copy":
                points, following = await self._store.scroll(self.live, after=self._cursor, batch_size=_PAGE)
                await self._copy([(point.document, point.content_hash or "") for point in points])
                self.num_examined += len(points)
                self._turn_page(following, then="trim")
            case "trim":  # what a run before copied, and was deleted since
                points, following = await self._store.scroll(self.standby, after=self._cursor, batch_size=256)
                ids = [point.document.id for point in points]
                present = await self._store.content_hashes(self.live, ids)
                await self._remove([each for each in ids if each not in present])
                self._turn_page(following, then="follow")
            case "follow":
                await self._follow()

    def _turn_page(self, following: str | None, *, then: Phase) -> None:
        self._cursor = following
        if following is None:
            self.phase = then

    async def _follow(self) -> None:
        work = self._work
        if work.filters:  # those in the standby that match now; others were written since, and are noted
            after: str | None = None
            while True:
                points, after = await self._store.scroll(self.standby, after=after, filter=work.filters[0])
                work.changes |= dict.fromkeys(point.document.id for point in points)
                if after is None:
                    break
            del work.filters[0]
        ids = list(islice(work.changes, _PAGE))
        for each in ids:  # taken out first: what changes while it is compared comes back
            del work.changes[each]
        self._num_compared = len(ids)
        try:
            await self._compare(ids)
        except BaseException:
            work.changes |= dict.fromkeys(ids)
            raise
        finally:
            self._num_compared = 0

    async def _compare(self, ids: Sequence[str]) -> None:
        # hashes before documents: of one that changes in between, the standby gets the older hash, so that the change,
        # which is told only after it landed, is seen as one
        hashes = await self._store.content_hashes(self.live, ids)
        documents = await self._store.get(self.live, ids)
        there = [(each, hashes[each.id]) for each in documents if each is not None and each.id in hashes]
        await self._copy(there)
        await self._remove(list(set(ids) - {document.id for document, _ in there}))

    async def _copy(self, stored: Iterable[tuple[Document, str]]) -> None:
        """Encode those that the standby lacks or has otherwise."""
        groups: dict[bool, list[IncomingDocument]] = {False: [], True: []}
        for document, stored_hash in stored:
            content_hash, is_cut = split_hash(stored_hash)
            size = len(document.title) + len(document.text)
            groups[self.truncate or is_cut].append(
                IncomingDocument(document=document, content_hash=content_hash, num_bytes=size)
            )
        for truncate, group in groups.items():
            if not group:
                continue
            report = await self._copier.ingest(self.standby, _stream(group), truncate=truncate)
            self.counts.encoded += report.indexed
            self.counts.unchanged += report.unchanged
            for each in group:
                self.failed.pop(each.document.id, None)
            self.failed |= {failure.id or "": failure.detail for failure in report.failed}
        if len(self.failed) > _MAX_FAILURES:
            raise InvalidInputError(
                f"more than {_MAX_FAILURES:,} documents are too long for the other checkpoint; resume with "
                "truncate: true, or abort"
            )

    async def _remove(self, ids: Sequence[str]) -> None:
        for each in ids:
            self.failed.pop(each, None)
        if ids:
            self.counts.removed += await self._store.delete(self.standby, ids)


async def _stream(documents: Iterable[IncomingDocument]) -> AsyncIterator[IncomingDocument | Failure]:
    """As a stream, one that is refused fails alone, and overload is waited out."""
    for each in documents:
        yield each
