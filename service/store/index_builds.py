"""When and how the embedded store gets its indexes: on a copy, by a process of its own, while the store goes on.

A build is told of every write at the moment when it is sent. The store's child executes in order, so whatever it is
asked after that sees the write: the copy is made equal to the collection in what was written since, and the last of
that is one call with the exchange of the two. So there is no moment at which a write could be lost, and a build that
dies anywhere leaves what was there before. Price: a collection's room on disk twice over while it is built.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from service.errors import EoseekError, NotFoundError, StoreError
from service.store.base import CollectionInfo, Filter
from service.store.points import public_name

log = logging.getLogger(__name__)

Outcome = Literal["built", "given_up", "failed"]
OnBuild = Callable[[Outcome | None, float], None]

_CATCH_UP_POINTS = 256  # a call delays searches by about 10 ms
_MAX_ROUNDS = 5  # of catching up beside writes; then they wait
_LOOKS_PER_THRESHOLD = 10
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 60.0, 600.0  # after a build that failed
_UNDOING = frozenset({"drop", "drop_standby", "create_standby"})  # a collection, and maybe another takes its name


class IndexBuilds:
    """Builds what is due, one collection at a time, from `start` to `stop`."""

    def __init__(
        self,
        path: Path,
        *,
        threshold: int,
        quantization: str,
        call: Callable[..., Awaitable[Any]],
        copy: Callable[[str, Path], Awaitable[CollectionInfo]],
        files: asyncio.Lock,
        pause: Callable[[], AbstractContextManager[None]],
        on_build: OnBuild | None = None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            path: directory for copies, on the disk of the store; emptied by `start`.
            threshold: see `IndexFigures.is_due`; 0 builds none.
            quantization: "none" or "scalar", of the indexes to be built.
            call: a method of the store's child.
            copy: a collection into a directory, with all writes that were sent before.
            files: held while a collection's files are copied or exchanged.
            pause: writes wait inside.
            on_build: told of each build, with None, when it begins, and how and after how many seconds it ended.
        """
        self._path = path
        self._threshold = threshold
        self._quantization = quantization
        self._call = call
        self._copy = copy
        self._files = files
        self._pause = pause
        self._on_build = on_build or (lambda *_: None)
        self._build: _Build | None = None
        self._num_written = 0
        self._look = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Remove what a crash left, and build from now on."""
        await asyncio.to_thread(shutil.rmtree, self._path, ignore_errors=True)
        if self._threshold:
            self._look.set()
            self._task = asyncio.create_task(self._run(), name="index builds")

    async def stop(self) -> None:
        """Give up the build under way, if there is one."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def note(self, method: str, args: Sequence[Any]) -> None:
        """To be told of each call of the store's child, in one step with sending it."""
        if method in ("upsert", "delete"):
            self._num_written += len(args[1])
        if method == "delete_matching" or self._num_written * _LOOKS_PER_THRESHOLD >= self._threshold:
            self._num_written = 0
            self._look.set()
        if self._build is not None and args:
            self._build.note(method, args)

    async def _run(self) -> None:
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            await self._look.wait()
            self._look.clear()
            if await self._build_all():
                pause_seconds = _FIRST_PAUSE_SECONDS
            else:
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _MAX_PAUSE_SECONDS)
                self._look.set()

    async def _build_all(self) -> bool:
        """Build what is due; returns whether nothing failed."""
        failed: set[str] = set()
        try:
            while due := set(await self._call("unindexed", self._threshold)) - failed:
                physical = min(due)
                if not await self._observed(physical):
                    failed.add(physical)
        except EoseekError as error:
            log.warning("what wants an index is unknown, asked again later: %s", error)
            return False
        return not failed

    async def _observed(self, physical: str) -> bool:
        """Build one and tell of it; returns whether it did not fail."""
        begun = time.monotonic()
        outcome: Outcome = "given_up"  # also when it is stopped
        log.info("building the index of %s", physical)
        self._on_build(None, 0.0)
        try:
            await self._one(physical)
            outcome = "built"
            log.info("built the index of %s in %.0f s", physical, time.monotonic() - begun)
        except (_GivenUpError, NotFoundError):
            log.info("the index of %s is given up: a collection of its name was dropped or made meanwhile", physical)
        except (EoseekError, OSError) as error:
            outcome = "failed"
            log.warning(
                "the index of %s was not built, tried again later; searches scan meanwhile: %s", physical, error
            )
        except Exception:
            outcome = "failed"
            log.exception("the index of %s was not built, by a fault of ours; tried again later", physical)
        finally:
            self._on_build(outcome, time.monotonic() - begun)
        return outcome != "failed"

    async def _one(self, physical: str) -> None:
        directory = self._path / uuid.uuid4().hex
        self._build = build = _Build(public_name(physical))
        try:
            await self._copy(physical, directory)
            await build.run(directory / physical, self._quantization)
            async with self._files:
                await self._take_over(build, physical, directory / physical)
        finally:
            self._build = None
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _take_over(self, build: "_Build", physical: str, copied: Path) -> None:
        try:
            shard: str = await self._call_for(build, "adopt", physical, str(copied))
            for _ in range(_MAX_ROUNDS):
                await self._catch_up(build, physical, shard)
            with self._pause():
                await self._catch_up(build, physical, shard)
                # all of them: a write that is repeated after a crash does not wait
                await self._call_for(build, "exchange", physical, shard, *build.take(build.num_changes))
        except Exception:
            with contextlib.suppress(EoseekError):
                await self._call("abandon")
            raise

    async def _catch_up(self, build: "_Build", physical: str, shard: str) -> None:
        """In what was written up to now, but for as much as one call takes."""
        for _ in range(build.num_changes // _CATCH_UP_POINTS):
            await self._call_for(build, "catch_up", physical, shard, *build.take(_CATCH_UP_POINTS))

    async def _call_for(self, build: "_Build", method: str, *args: Any) -> Any:
        """A call for a build that goes on. What voids it after that is executed after that."""
        build.check()
        return await self._call(method, *args)


class _GivenUpError(Exception):
    """The collection is not there any more, or another one under its name."""


class _Build:
    """What has become of a collection since its index was begun, and the process that builds it."""

    def __init__(self, public: str) -> None:
        self._public = public
        self._changed: dict[str, None] = {}  # document ids in their order; of its standby too, which does no harm
        self._deleting: list[Filter] = []
        self._is_void = False
        self._process: asyncio.subprocess.Process | None = None

    @property
    def num_changes(self) -> int:
        return len(self._changed)

    def note(self, method: str, args: Sequence[Any]) -> None:
        name, *rest = args
        if not isinstance(name, str) or public_name(name) != self._public:
            return
        if method == "upsert":
            self._changed |= dict.fromkeys(payload["id"] for payload in rest[0])
        elif method == "delete":
            self._changed |= dict.fromkeys(rest[0])
        elif method == "delete_matching":
            self._deleting.append(rest[0])
        elif method in _UNDOING:
            self._is_void = True
            self.kill()

    def take(self, num_ids: int) -> tuple[list[str], list[Filter]]:
        """Document ids, the oldest ones, and all filters by which documents were deleted; they are then no more.

        Filters go first, ids after them, whatever came first: what the collection holds of an id decides.
        """
        taken = list(islice(self._changed, num_ids))
        for each in taken:
            del self._changed[each]
        filters, self._deleting = self._deleting, []
        return taken, filters

    def check(self) -> None:
        """Raise _GivenUpError if the collection was dropped."""
        if self._is_void:
            raise _GivenUpError

    async def run(self, directory: Path, quantization: str) -> None:
        """Build the index of the copy. Raises StoreError, or _GivenUpError."""
        self.check()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "service.store.edge_build", str(directory), quantization),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # Ctrl-C in a terminal reaches the service only
        )
        try:
            _, errors = await self._process.communicate()
        finally:
            self.kill()
            await self._process.wait()
        self.check()
        if self._process.returncode:
            lines = errors.decode("utf-8", "replace").strip().splitlines() or ["no message"]
            raise StoreError(f"its process ended with exit code {self._process.returncode}: {lines[-1]:.300}")

    def kill(self) -> None:
        """End the process that builds, if it runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
