"""A re-index that is under way, and how far it got."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from service.ingest.follower import StandbyFollower
from service.ingest.overlap import Overlap, Query
from service.ingest.records import Record
from service.metrics import ReindexStage

_MAX_RECENT = 100


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A re-index as it stands; `num_remaining` counts documents that may still differ."""

    stage: ReindexStage
    source: str
    target: str
    num_documents: int
    num_remaining: int
    num_encoded: int
    num_unchanged: int
    num_removed: int
    num_failed: int
    failed: dict[str, str]
    share: float
    truncate: bool
    eta_seconds: float | None
    detail: str
    overlap: Overlap | None


@dataclass(kw_only=True)
class Reindex:
    """One that is not at its end, and its task."""

    name: str
    record: Record
    is_switched: bool = False
    follower: StandbyFollower | None = None
    task: asyncio.Task[None] | None = None
    failure: str = ""
    started: float = field(default_factory=time.monotonic)
    overlap: Overlap | None = None
    recent: deque[Query] = field(default_factory=lambda: deque(maxlen=_MAX_RECENT))

    @property
    def stage(self) -> ReindexStage:
        """Where it is; what stands in its way comes first."""
        if self.failure:
            return "failed"
        if self.record.is_paused:
            return "paused"
        if self.follower is None:
            return "loading"
        if self.is_switched:
            return "switched"
        return "ready" if self.follower.phase == "follow" else "copying"

    @property
    def fingerprints(self) -> tuple[str, str]:
        """Of the live collection and of its standby."""
        source, target = self.record.source or "", self.record.target or ""
        return (target, source) if self.is_switched else (source, target)

    def note(self, queries: Sequence[Query]) -> None:
        """Remember what was asked, in memory only."""
        self.recent.extend(queries[:_MAX_RECENT])

    def progress(self, num_documents: int) -> Progress:
        """As it stands, where the live collection has `num_documents`."""
        follower, record = self.follower, self.record
        counts = replace(follower.counts) if follower else None
        num_remaining = num_documents if follower is None else follower.num_behind
        if follower is not None and follower.phase == "copy":
            num_remaining += max(0, num_documents - follower.num_examined)
        return Progress(
            stage=self.stage,
            source=record.source or "",
            target=record.target or "",
            num_documents=num_documents,
            num_remaining=num_remaining,
            num_encoded=counts.encoded if counts else 0,
            num_unchanged=counts.unchanged if counts else 0,
            num_removed=counts.removed if counts else 0,
            num_failed=len(follower.failed) if follower else 0,
            failed=dict(list(follower.failed.items())[:10]) if follower else {},
            share=record.share,
            truncate=record.truncate,
            eta_seconds=self._eta_seconds(num_remaining),
            detail=self.failure or (follower.last_error if follower else ""),
            overlap=self.overlap,
        )

    def _eta_seconds(self, num_remaining: int) -> float | None:
        """From what was examined so far; None before that, and where nothing moves."""
        if self.follower is None or self.stage != "copying" or not self.follower.num_examined:
            return None
        return num_remaining * (time.monotonic() - self.started) / self.follower.num_examined
