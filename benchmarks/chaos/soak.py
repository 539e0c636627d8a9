"""Half an hour of mixed load at a steady pace: nothing grows, and the end is as quick as the beginning."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.chaos.lab import Instance, Lab
from benchmarks.chaos.results import Result, at_most, percentile, zero
from benchmarks.running import texts_of_lengths
from service.settings import BatchingSettings

_MAX_SLOWER = 1.2
_MAPPED = "MiB of mapped files"
_LOG_MIB = 32.0  # the store's log is a mapped file whose pages come in as it is written, until another takes its place
_WARM_SHARE = 0.1  # left out of the slopes: caches fill and pools grow to their size


@dataclass
class _Seen:
    """Samples by name over the seconds, and each answer's moment and duration."""

    at: list[float] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    by_process: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    answers: list[tuple[float, float]] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


def soak(
    lab: Lab,
    *,
    minutes: float = 30.0,
    window_minutes: float = 5.0,
    per_second: float = 4.0,
    checkpoint: str = "default",
) -> Result:
    """Memory, descriptors, threads: what they grow by is within their noise; p99 of the last window as of the first."""
    cache_bytes = str(BatchingSettings().cache_bytes)  # as users have it, since it must not grow either
    with lab.instance("soak", checkpoint, batching__cache_bytes=cache_bytes) as instance:
        seen = asyncio.run(_run(instance, 60 * minutes, per_second, max(1, round(60 * window_minutes * per_second))))
    growths = {name: growth(seen.at, values) for name, values in seen.samples.items()}
    end = 60 * minutes
    warm = _WARM_SHARE * end
    first = [each for moment, each in seen.answers if warm <= moment < warm + 60 * window_minutes]
    last = [each for moment, each in seen.answers if moment >= end - 60 * window_minutes]
    windows = [
        [each for moment, each in seen.answers if begin <= moment < begin + 60 * window_minutes]
        for begin in np.arange(0, end, 60 * window_minutes)
    ]
    failed = {status: number for status, number in seen.statuses.items() if status != "200"}
    return Result(
        done=f"{sum(seen.statuses.values())} calls of five kinds, {per_second:g} a second for {minutes:g} minutes, "
        f"{checkpoint}",
        goals=[
            zero(sum(failed.values()), f"calls failed {failed or ''}".strip()),
            *(
                at_most(
                    each.grown,
                    each.allowed + (_LOG_MIB if name == _MAPPED else 0),
                    f"growth of {name} from {each.start:.0f}",
                )
                for name, each in growths.items()
            ),
            at_most(
                1000 * percentile(last, 0.99),
                _MAX_SLOWER * 1000 * percentile(first, 0.99),
                f"p99 of the last {window_minutes:g} minutes",
                " ms",
            ),
        ],
        figures={
            "growth": {name: vars(each) for name, each in growths.items()},
            "MiB_by_process": {
                name: vars(growth(*map(list, zip(*samples, strict=True))))
                for name, samples in seen.by_process.items()
                if samples[0][0] < warm < end / 2 < samples[-1][0]  # the others were started or ended meanwhile
            },
            "statuses": dict(seen.statuses),
            "p50_and_p99_ms": [
                [round(1000 * percentile(each, share)) for share in (0.5, 0.99)] if each else None for each in windows
            ],
        },
    )


@dataclass(frozen=True)
class Growth:
    """The fitted line's rise over the run, and twice the scatter around it; a fiftieth or one is noise."""

    start: float
    grown: float
    noise: float

    @property
    def allowed(self) -> float:
        return max(self.noise, self.start / 50, 1.0)


def growth(at: list[float], values: list[float]) -> Growth:
    moments, found = np.array(at), np.array(values)
    kept = moments >= _WARM_SHARE * moments[-1]
    slope, level = np.polyfit(moments[kept], found[kept], 1)
    scatter = float(np.std(found[kept] - (slope * moments[kept] + level)))
    begin, end = float(moments[kept][0]), float(moments[-1])
    return Growth(start=float(slope * begin + level), grown=float(slope * (end - begin)), noise=2 * scatter)


async def _run(instance: Instance, seconds: float, per_second: float, period: int) -> _Seen:
    """The same `period` calls over and over: windows of that length differ in the service, not in what was drawn."""
    seen = _Seen()
    calls = list(islice(_calls(), period))
    async with httpx.AsyncClient(base_url=instance.url, timeout=120) as client:
        start, tasks, number = time.perf_counter(), set[asyncio.Task[None]](), 0
        next_sample = 0.0
        while (now := time.perf_counter() - start) < seconds:
            if now >= next_sample:
                await asyncio.to_thread(_sample, instance, now, seen)
                next_sample += max(0.5, min(10.0, seconds / 60))
            if number <= now * per_second:
                task = asyncio.create_task(_call(client, calls[number % period], seen, start))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
    return seen


def _calls() -> Iterator[tuple[str, str, Any]]:
    """Searches, embeddings, writes, reads and deletes of a hundred documents, without an end."""
    generator = random.Random(7)
    texts = texts_of_lengths([generator.choice((4, 8, 12, 30, 60, 120)) for _ in range(300)], seed=7)

    def document() -> dict[str, Any]:
        return {"id": f"d{generator.randrange(100)}", "text": generator.choice(texts)}

    def documents() -> list[dict[str, Any]]:
        return list({each["id"]: each for each in (document() for _ in range(4))}.values())

    kinds = [
        lambda: ("POST", "/search", {"query": generator.choice(texts), "top_k": 5}),
        lambda: ("POST", "/search", {"query": generator.choice(texts), "top_k": 5}),
        lambda: ("POST", "/embed", {"inputs": [generator.choice(texts) for _ in range(3)], "kind": "document"}),
        lambda: ("POST", "/documents", {"documents": documents()}),
        lambda: ("GET", f"/documents/d{generator.randrange(100)}", None),
        lambda: ("DELETE", f"/documents/d{generator.randrange(100)}", None),
    ]
    while True:
        yield generator.choice(kinds)()


async def _call(client: httpx.AsyncClient, call: tuple[str, str, Any], seen: _Seen, start: float) -> None:
    method, path, body = call
    began = time.perf_counter()
    try:
        answer = await client.request(method, path, json=body)
        is_well = answer.is_success or (answer.status_code == 404 and method != "POST")  # deleted before
        seen.statuses["200" if is_well else str(answer.status_code)] += 1
    except httpx.HTTPError as error:
        seen.statuses[type(error).__name__] += 1
    seen.answers.append((began - start, time.perf_counter() - began))


def _sample(instance: Instance, now: float, seen: _Seen) -> None:
    own = mapped = descriptors = threads = 0.0
    for process in instance.processes():
        with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():  # gone since it was listed
            memory, command = process.memory_info(), " ".join(process.cmdline()[1:4])
            num_descriptors, num_threads = process.num_fds(), process.num_threads()
            mebibytes = (memory.rss - memory.shared) / 2**20
            seen.by_process.setdefault(f"{process.pid} {command}", []).append((now, mebibytes))
            own, mapped = own + mebibytes, mapped + memory.shared / 2**20
            descriptors, threads = descriptors + num_descriptors, threads + num_threads
    seen.at.append(now)
    values = {"MiB": own, _MAPPED: mapped, "descriptors": descriptors, "threads": threads}
    for name, value in values.items():
        seen.samples.setdefault(name, []).append(value)
