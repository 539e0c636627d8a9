"""The queue of a service in simulated time: the service's own batcher, in front of an encoder that only takes time.

Nothing of the batching policy is written down a second time: `Batcher` runs as it is, on an event loop whose clock
jumps to what happens next. So a minute of traffic takes a second, and a change of the policy is in the prediction.
"""

import asyncio
import random
import selectors
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.batching.policy import Lane
from service.encoders.base import Embeddings, TokenIds
from service.errors import OverloadedError
from service.metrics import Metrics
from service.settings import BatchingSettings

_PREEMPTION_SECONDS = 0.005  # how long a query is slowed by documents that give way to it


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One request of one text."""

    seconds: float  # since the start
    num_tokens: int
    lane: Lane = "query"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a service was measured to take.

    `tokens` and `seconds` are points of the time of a batch, ascending; between them it is taken for linear, beyond the
    last as well. `ratios` are single measurements over that, which the simulation draws from; `overheads` is what a
    request spends outside the batcher, in seconds. `handling_seconds` is by how much a request makes the batch longer
    that runs while it comes, since the encoder's processors also parse, search and answer.
    """

    tokens: Sequence[float]
    seconds: Sequence[float]
    handling_seconds: float = 0.0
    ratios: Sequence[float] = (1.0,)
    overheads: Sequence[float] = (0.0,)

    def batch_seconds(self, num_tokens: int) -> float:
        """Time that a batch of so many tokens takes in the middle."""
        if len(self.tokens) > 1 and num_tokens > self.tokens[-1]:
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.tokens[-1] - self.tokens[-2])
            return self.seconds[-1] + max(slope, 0.0) * (num_tokens - self.tokens[-1])
        return float(np.interp(num_tokens, self.tokens, self.seconds))


@dataclass(kw_only=True)
class TimedEncoder:
    """An `AsyncBackgroundEncoder` as on a processor: batches one after the other, each for as long as the calibration
    says, and documents in what queries leave."""

    calibration: Calibration
    generator: random.Random
    num_arrived: int = 0  # requests until now
    dimension: int = 1
    dtype: str = "none"
    num_parallel: int = 1
    is_ready: bool = True
    has_background: bool = True
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to end."""

    async def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        seconds = self._drawn_seconds(token_ids)
        async with self._turn:
            while seconds > 0:  # what comes meanwhile makes it longer
                num_before = self.num_arrived
                await asyncio.sleep(seconds)
                seconds = (self.num_arrived - num_before) * self.calibration.handling_seconds
        return np.zeros((len(token_ids), 1), dtype=np.float32)

    async def encode_in_background(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        seconds = self._drawn_seconds(token_ids)
        while seconds > 0:
            num_before = self.num_arrived
            async with self._turn:
                await asyncio.sleep(min(seconds, _PREEMPTION_SECONDS))
            seconds -= _PREEMPTION_SECONDS
            seconds += (self.num_arrived - num_before) * self.calibration.handling_seconds
        return np.zeros((len(token_ids), 1), dtype=np.float32)

    def _drawn_seconds(self, token_ids: Sequence[TokenIds]) -> float:
        middle = self.calibration.batch_seconds(sum(map(len, token_ids)))
        return middle * self.generator.choice(self.calibration.ratios)


def poisson(*, per_second: float, seconds: float, seed: int) -> list[float]:
    """Times of arrival, as of many users who know nothing of each other; `per_second` on average."""
    generator = random.Random(seed)
    times, now = [], generator.expovariate(per_second)
    while now < seconds:
        times.append(now)
        now += generator.expovariate(per_second)
    return times


def simulate(
    arrivals: Sequence[Arrival], calibration: Calibration, *, settings: BatchingSettings | None = None, seed: int = 0
) -> list[float]:
    """Seconds that each arrival waits for its answer, in order; infinite for one that is refused (429)."""
    loop = _JumpingLoop()
    try:
        return loop.run_until_complete(_run(loop, arrivals, calibration, settings or BatchingSettings(), seed))
    finally:
        loop.close()


async def _run(
    loop: "_JumpingLoop",
    arrivals: Sequence[Arrival],
    calibration: Calibration,
    settings: BatchingSettings,
    seed: int,
) -> list[float]:
    generator = random.Random(seed)
    encoder = TimedEncoder(calibration=calibration, generator=generator)
    batcher = Batcher(encoder, settings, metrics=Metrics(CollectorRegistry()), clock=loop.time)
    await batcher.start()

    async def answer(arrival: Arrival, overhead: float) -> float:
        await asyncio.sleep(arrival.seconds - loop.time())
        encoder.num_arrived += 1
        try:
            await batcher.submit([range(arrival.num_tokens)], lane=arrival.lane)
        except OverloadedError:
            return float("inf")
        return loop.time() - arrival.seconds + overhead

    overheads = [generator.choice(calibration.overheads) for _ in arrivals]
    waits = await asyncio.gather(*map(answer, arrivals, overheads))
    await batcher.stop(drain_seconds=0)
    return waits


class _JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: where it would, its clock jumps to the time of the next callback."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        self._now += seconds


class _Jump(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    def __init__(self, loop: _JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everything waits and nothing is going to happen")
        self._loop.jump(max(timeout, 0.0))
        return super().select(0)
