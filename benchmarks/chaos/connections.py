"""Many connections that send nothing, or half a request: the others are answered as before."""

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from benchmarks.chaos.restarting import encoder, restarting_service
from benchmarks.chaos.results import Options, Result, at_most, percentile, zero
from benchmarks.running import texts_of_lengths

HEAD = b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
SENT = (b"", HEAD, HEAD + b'\r\n{"inputs": "half of')  # nothing, half a head, half a body
MAX_RATIO = 2.0


def slow_connections(options: Options) -> Result:
    """p50 of single queries before and with a thousand of them open, which sent a part or nothing."""
    number, count = options.pick(1000, 200), options.pick(1000, 200)
    allow_descriptors(2 * number + 500)  # children inherit it
    with restarting_service(options.directory / "service", **encoder(options)) as service:
        latencies(service.url, count // 4)
        before, failed_before = latencies(service.url, count)
        with half_open(service.service.url, number) as opened:
            during, failed = latencies(service.url, count)
    ratio = percentile(during, 0.5) / percentile(before, 0.5)
    return Result(
        done=f"{len(opened)} connections that send nothing, half a head or half a body, beside {count} single queries",
        goals=[
            zero(number - len(opened), "connections refused"),
            zero(failed + failed_before, "queries failed"),
            at_most(ratio, MAX_RATIO, "p50 with them over p50 before"),
        ],
        figures={
            "p50_before": percentile(before, 0.5), "p50_during": percentile(during, 0.5),
            "p99_before": percentile(before, 0.99), "p99_during": percentile(during, 0.99),
        },
    )  # fmt: skip


def allow_descriptors(number: int) -> None:
    """Raises this process's own limit, and so that of what it starts, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (number if hard == resource.RLIM_INFINITY else min(hard, number), hard)
        )


@contextmanager
def half_open(url: str, number: int) -> Iterator[list[socket.socket]]:
    """The connections that could be made."""
    opened: list[socket.socket] = []
    try:
        for index in range(number):
            with contextlib.suppress(OSError):
                opened.append(socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80), timeout=10))
                opened[-1].sendall(SENT[index % len(SENT)])
        yield opened
    finally:
        for each in opened:
            each.close()


def latencies(url: str, count: int) -> tuple[list[float], int]:
    """Seconds of each single query on a connection of its own, and how many failed."""
    seconds, num_failed = [], 0
    for text in texts_of_lengths([8] * count, seed=7):
        start = time.perf_counter()
        try:
            httpx.post(f"{url}/embed", json={"inputs": text, "kind": "query"}, timeout=30).raise_for_status()
            seconds.append(time.perf_counter() - start)
        except httpx.HTTPError:
            num_failed += 1
    return seconds, num_failed
