"""The checkpoints that one service runs: the configured one, and others while a collection belongs to them.

A collection is searched and written by the checkpoint of its fingerprint, so that a switch needs no restart.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from service.batching.batcher import Batcher
from service.batching.cache import SharedQueries
from service.encoders.base import AsyncEncoder
from service.encoders.checkpoint import Checkpoint
from service.errors import ConfigurationError
from service.ingest.pipeline import IngestPipeline


@dataclass(frozen=True, kw_only=True)
class ServedCheckpoint:
    """A checkpoint with what encodes and writes by it; `copier` writes what a re-index copies, past the guard."""

    checkpoint: Checkpoint
    encoder: AsyncEncoder
    batcher: Batcher
    queries: SharedQueries
    pipeline: IngestPipeline
    copier: IngestPipeline


Assemble = Callable[[Checkpoint, AsyncEncoder], ServedCheckpoint]
Load = Callable[[str], tuple[Checkpoint, AsyncEncoder]]


class ServedCheckpoints:
    """By fingerprint. The configured one is there from start to stop, the others from `open` to `keep_only`."""

    def __init__(self, main: ServedCheckpoint, *, assemble: Assemble, load: Load, drain_seconds: float) -> None:
        """Take the parts over.

        Args:
            main: the configured one, whose encoder is started and stopped by the caller.
            assemble: puts an encoder, not yet started, and what works by it together.
            load: reads a checkpoint by path or hub name; blocks, and raises ConfigurationError.
            drain_seconds: how long requests that are under way may take when a checkpoint is closed.
        """
        self.main = main
        self._assemble = assemble
        self._load = load
        self._drain_seconds = drain_seconds
        self._served = {main.checkpoint.fingerprint: main}
        self._closing: dict[str, AsyncExitStack] = {}
        self._opening = asyncio.Lock()

    async def start(self) -> None:
        """Let the configured one take requests."""
        await self.main.batcher.start()

    async def stop(self) -> None:
        """Drain and close all."""
        await asyncio.gather(self.main.batcher.stop(self._drain_seconds), self.keep_only([]))

    def find(self, fingerprint: str) -> ServedCheckpoint | None:
        """The one with this fingerprint, if it runs."""
        return self._served.get(fingerprint)

    def running(self) -> list[ServedCheckpoint]:
        """All of them, the configured one first."""
        return list(self._served.values())

    async def read(self, name_or_path: str) -> Checkpoint:
        """A checkpoint, not started. Raises ConfigurationError."""
        return (await asyncio.to_thread(self._load, name_or_path))[0]

    async def open(self, name_or_path: str, *, fingerprint: str) -> ServedCheckpoint:
        """Start a checkpoint's encoder, unless it runs. Raises ConfigurationError, also if it is another one by now."""
        async with self._opening:
            if found := self._served.get(fingerprint):
                return found
            checkpoint, encoder = await asyncio.to_thread(self._load, name_or_path)
            if checkpoint.fingerprint != fingerprint:
                raise ConfigurationError(
                    f"checkpoint {name_or_path} has changed: its fingerprint is {checkpoint.fingerprint}, the "
                    f"collection wants {fingerprint}; put the old one back"
                )
            async with AsyncExitStack() as stack:
                stack.push_async_callback(encoder.stop)
                await encoder.start()
                served = self._assemble(checkpoint, encoder)
                await served.batcher.start()
                stack.push_async_callback(served.batcher.stop, self._drain_seconds)
                self._closing[fingerprint] = stack.pop_all()
            self._served[fingerprint] = served
            return served

    async def keep_only(self, fingerprints: Iterable[str]) -> None:
        """Close all but these and the configured one, after what they were asked for."""
        async with self._opening:
            for fingerprint in self._closing.keys() - set(fingerprints):
                del self._served[fingerprint]
                await self._closing.pop(fingerprint).aclose()
