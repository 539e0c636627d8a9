"""kill -9 of the encoder worker under mixed load, every answer compared with the one that its request got alone."""

import asyncio
from collections import Counter
from math import nan
from typing import Any

import httpx

from benchmarks.chaos.lab import Instance, Lab
from benchmarks.chaos.results import Result, at_least, at_most, zero
from benchmarks.clients import LIMIT_SECONDS, Request, distinct_requests, fill, kill_worker, run_client

_MAX_RECOVERY_SECONDS = 10.0
_MAX_WORK_SECONDS = 8.0  # between a recovery and the next kill, so that there are answers to compare


def worker_killed(lab: Lab, *, kills: int = 30, clients: int = 16, checkpoint: str = "default") -> Result:
    """No wrong answer, none missing, and ready again soon after each kill."""
    with lab.instance("worker", checkpoint, encoder__dtype="float32") as instance:
        counts, recoveries = asyncio.run(_measure(instance, kills, clients))
    return Result(
        done=f"{len(recoveries)} kill -9 under {clients} clients, {checkpoint}, float32; {counts['retried']} answers "
        "429 or 503 tried again",
        goals=[
            zero(counts["wrong"], f"wrong beside {counts['answered']} right answers"),
            zero(counts["lost"], "requests without an answer"),
            at_least(len(recoveries), kills, "kills"),
            at_most(max(recoveries, default=nan), _MAX_RECOVERY_SECONDS, "ready again within", " s"),
        ],
        figures={"recovery_seconds": [round(each, 2) for each in recoveries]},
    )


async def _measure(instance: Instance, kills: int, num_clients: int) -> tuple[Counter[str], list[float]]:
    limits = httpx.Limits(max_connections=num_clients + 10)
    async with httpx.AsyncClient(base_url=instance.url, timeout=LIMIT_SECONDS, limits=limits) as client:
        await fill(client)
        pool = distinct_requests(60)
        alone = []
        for path, body in pool:
            answer = await client.post(path, json=body)
            answer.raise_for_status()
            alone.append(answer.json())
        counts: Counter[str] = Counter()
        is_over = asyncio.Event()
        load = [
            asyncio.create_task(_run(client, list(zip(pool, alone, strict=True)), number, counts, is_over))
            for number in range(num_clients)
        ]
        try:
            recoveries = await asyncio.to_thread(
                kill_worker, instance.service, kills, max_work_seconds=_MAX_WORK_SECONDS
            )
        finally:
            is_over.set()
            await asyncio.gather(*load)
    return counts, recoveries


async def _run(
    client: httpx.AsyncClient,
    work: list[tuple[Request, Any]],
    number: int,
    counts: Counter[str],
    is_over: asyncio.Event,
) -> None:
    """One client: all requests in turn, from a place of its own, until the kills are over."""
    while not is_over.is_set():
        await run_client(client, [work[number % len(work)]], counts)
        number += 7  # no divisor of their number, so all come in turn
