"""A thousand connections that say nothing, or half of something: the others are answered as before."""

import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil

from benchmarks.chaos.lab import TINY, Lab
from benchmarks.chaos.results import Result, at_most, percentile, zero

_MAX_RATIO, _NOISE_MS = 1.5, 20.0


def slow_connections(
    lab: Lab, *, connections: int = 1000, seconds: float = 30.0, descriptors: int = 1024, checkpoint: str = TINY
) -> Result:
    """Connections that say nothing, half a request, or a byte now and then, while others search.

    The service starts with a soft limit of `descriptors`, which many systems set by default.
    """
    limited = ("sh", "-c", f'ulimit -S -n {descriptors} && exec "$0" "$@"')
    with lab.instance("slow", checkpoint, limited) as instance, _own_descriptors(2 * connections + 500):
        with httpx.Client(base_url=instance.url, timeout=60) as http:
            document = {"documents": [{"id": "d", "text": "a text"}]}
            http.post("/documents", json=document).raise_for_status()
        _searches(instance.url, seconds / 3)  # warm
        before = _searches(instance.url, seconds)
        num_descriptors = psutil.Process(instance.pid).num_fds()
        with _Slow(instance.port, connections) as slow:
            during = _searches(instance.url, seconds)
            num_open = slow.num_open()
        after = _searches(instance.url, seconds / 3)
        num_left = psutil.Process(instance.pid).num_fds() - num_descriptors
    return Result(
        done=f"{connections} connections ({slow.kinds}; {num_open} still open in the end), {descriptors} descriptors "
        f"by ulimit, {seconds:g} s of searches",
        goals=[
            zero(slow.num_refused, "connections refused"),
            zero(
                during.num_failed + after.num_failed, f"of {len(during.seconds) + len(after.seconds)} searches failed"
            ),
            at_most(during.ms(0.5), _MAX_RATIO * before.ms(0.5), "p50 of searches", " ms"),
            at_most(during.ms(0.99), _MAX_RATIO * before.ms(0.99) + _NOISE_MS, "p99", " ms"),
            at_most(num_left, 9, "descriptors left", needs_calm=False),
        ],
        figures={
            "ms": {name: [each.ms(0.5), each.ms(0.99)] for name, each in (("before", before), ("during", during))}
        },
    )


@contextmanager
def _own_descriptors(wanted: int) -> Iterator[None]:
    """Lets this process open as many as it may; a service that runs already keeps its own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < more:
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass
class _Searches:
    seconds: list[float]
    num_failed: int

    def ms(self, share: float) -> float:
        return round(1000 * percentile(self.seconds, share), 1)


def _searches(url: str, seconds: float) -> _Searches:
    """Searches one after the other, every tenth on a new connection as a new client's."""
    found = _Searches([], 0)
    start = time.perf_counter()
    http = httpx.Client(base_url=url, timeout=10)
    while time.perf_counter() - start < seconds:
        if len(found.seconds) % 10 == 0:
            http.close()
            http = httpx.Client(base_url=url, timeout=10)
        began = time.perf_counter()
        try:
            found.num_failed += http.post("/search", json={"query": "a text"}).status_code != 200
        except httpx.HTTPError:
            found.num_failed += 1
        found.seconds.append(time.perf_counter() - began)
    http.close()
    return found


_HEAD = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
_BEGINNINGS = {
    "silent": b"",
    "half a head": _HEAD,
    "half a body": _HEAD + b'Content-Length: 1000\r\n\r\n{"inputs": ["a',
    "a stream": _HEAD.replace(b"/embed", b"/documents").replace(b"/json", b"/x-ndjson")
    + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"id"\r\n',
    "half closed": _HEAD,
}


class _Slow:
    """Connections that begin in five ways and then send a byte every two seconds, or nothing."""

    def __init__(self, port: int, num_connections: int) -> None:
        self._port, self._num = port, num_connections
        self._sockets: list[tuple[str, socket.socket]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._drip)
        self.kinds = ", ".join(_BEGINNINGS)
        self.num_refused = 0

    def __enter__(self) -> "_Slow":
        kinds = list(_BEGINNINGS.items())
        for number in range(self._num):
            kind, beginning = kinds[number % len(kinds)]
            try:
                connection = socket.create_connection(("127.0.0.1", self._port), timeout=10)
                self._sockets.append((kind, connection))
                connection.sendall(beginning)
                if kind == "half closed":
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                self.num_refused += 1
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        for _, connection in self._sockets:
            connection.close()

    def num_open(self) -> int:
        """How many the service has not ended."""
        return sum(_is_open(connection) for _, connection in self._sockets)

    def _drip(self) -> None:
        while not self._end.wait(2):
            for kind, connection in self._sockets:
                if kind in ("half a head", "half a body"):
                    try:
                        connection.sendall(b"x")
                    except OSError:  # the service ended it
                        continue


def _is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
