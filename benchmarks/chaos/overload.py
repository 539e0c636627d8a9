"""Ten times what the service can do, whether or not it answers."""

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field

import httpx

from benchmarks.chaos.lab import Instance, Lab
from benchmarks.chaos.results import Result, at_least, at_most, holds, percentile, zero
from benchmarks.running import texts_of_lengths

_MIN_GOODPUT, _MAX_MEMORY_GROWTH, _MAX_REJECTION_SECONDS = 0.9, 0.15, 0.05
_JSON = {"Content-Type": "application/json"}


@dataclass
class _Answers:
    """What came back: texts embedded, and seconds by status."""

    num_texts: int = 0
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def add(self, status: int, seconds: float, num_texts: int) -> None:
        self.seconds.setdefault(status, []).append(seconds)
        self.num_texts += num_texts if status == 200 else 0

    def counts(self) -> dict[int, int]:
        return {status: len(seconds) for status, seconds in sorted(self.seconds.items())}


class _Load:
    """Requests of some documents each, as bytes made beforehand."""

    def __init__(self, client: httpx.AsyncClient, texts: int, words: int) -> None:
        self._client, self._texts, self._words = client, texts, words
        stock = texts_of_lengths([words] * (16 * texts), seed=4)
        batches = [stock[start : start + texts] for start in range(0, len(stock), texts)]
        self._bodies = [json.dumps({"inputs": each, "kind": "document"}).encode() for each in batches]
        self._num_sent = 0

    async def send(self, answers: _Answers) -> None:
        self._num_sent += 1
        body = self._bodies[self._num_sent % len(self._bodies)]
        start = time.perf_counter()
        try:
            status = (await self._client.post("/embed", content=body, headers=_JSON)).status_code
        except httpx.HTTPError:
            status = 0
        answers.add(status, time.perf_counter() - start, self._texts)

    async def closed(self, seconds: float, num_clients: int = 32) -> tuple[float, _Answers]:
        """Requests a second of clients that each wait for their answer, so many that batches are full."""
        answers, start = _Answers(), time.perf_counter()

        async def run() -> None:
            while time.perf_counter() - start < seconds:
                await self.send(answers)

        await asyncio.gather(*(run() for _ in range(num_clients)))
        return answers.counts().get(200, 0) / (time.perf_counter() - start), answers

    async def open(self, seconds: float, per_second: float) -> _Answers:
        """Requests that come at this pace whether or not others were answered; what waits in the end is let go."""
        answers, start, tasks = _Answers(), time.perf_counter(), set[asyncio.Task[None]]()
        number = 0
        while (now := time.perf_counter() - start) < seconds:
            while number <= now * per_second:
                task = asyncio.create_task(self.send(answers))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
            await asyncio.sleep(min(0.02, 1 / per_second))
        found = _Answers(answers.num_texts, {status: list(each) for status, each in answers.seconds.items()})
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return found


class _Memory:
    """The most resident memory of a service's processes, looked at twice a second in a thread."""

    def __init__(self, instance: Instance) -> None:
        self.most: dict[int, int] = {}
        self._instance = instance
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.5):
            found = self._instance.resident()
            if sum(found.values()) > sum(self.most.values()):
                self.most = found


def overload(
    lab: Lab,
    *,
    seconds: float = 300.0,
    times: float = 10.0,
    peak_seconds: float = 30.0,
    texts: int = 8,
    words: int = 60,
    queue_tokens: int = 262_144,
    deadline_seconds: float = 120.0,
    checkpoint: str = "default",
) -> Result:
    """Open-loop load far beyond capacity: what is answered is as much as before, and what is refused is refused soon.

    `queue_tokens` and `deadline_seconds` are the service's settings; the full sizes are its defaults.
    """
    settings = {
        "batching__max_queue_tokens": str(queue_tokens),
        "api__request_timeout_seconds": str(deadline_seconds),
    }
    with lab.instance("overload", checkpoint, **settings) as instance:
        peak, steady, answers, most = asyncio.run(
            _overload(instance, peak_seconds=peak_seconds, seconds=seconds, times=times, texts=texts, words=words)
        )
        is_ready = instance.service.is_ready()
    goodput = answers.num_texts / texts / seconds / peak
    rejected = answers.seconds.get(429, [])
    growth = sum(most.values()) / sum(steady.values()) - 1
    counts = answers.counts()
    return Result(
        done=f"{times:g} times {peak:.2f} requests/s of {texts} documents for {seconds:g} s, {checkpoint}; answers by "
        f"status {counts}",
        goals=[
            at_least(goodput, _MIN_GOODPUT, "share of the peak's goodput", needs_calm=True),
            at_most(growth, _MAX_MEMORY_GROWTH, "growth of memory"),
            at_most(1000 * percentile(rejected, 0.99), 1000 * _MAX_REJECTION_SECONDS, "p99 of 429", " ms"),
            at_least(len(rejected), 1, "requests rejected"),
            zero(sum(n for status, n in counts.items() if status not in (200, 429, 503)), "other answers"),
            holds("ready" if is_ready else "not ready", "ready after", is_ready),
        ],
        figures={"steady_bytes": list(steady.values()), "most_bytes": list(most.values()), "answers": counts},
    )


async def _overload(
    instance: Instance, *, peak_seconds: float, seconds: float, times: float, texts: int, words: int
) -> tuple[float, dict[int, int], _Answers, dict[int, int]]:
    """Peak, steady memory, the answers under overload, the most memory."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=instance.url, timeout=150, limits=limits) as client:
        load = _Load(client, texts, words)
        await load.closed(peak_seconds / 3)  # warm
        with _Memory(instance) as steady:
            peak, _ = await load.closed(peak_seconds)
        assert peak, "nothing was answered before the overload"
        with _Memory(instance) as overloaded:
            answers = await load.open(seconds, times * peak)
    return peak, steady.most, answers, overloaded.most
