"""The load generator: the same one for every server, of the standard library, since it shares the processors with them.

Bodies are made before and answers are read after the clock runs. Each client keeps one connection.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

LIMIT_SECONDS = 900


class RequestError(Exception):
    """A server answered something else than 200; says what."""


@dataclass(frozen=True)
class Loaded:
    """What came back, in the order of the bodies: seconds in all, of each request, and the answers."""

    seconds: float
    latencies: list[float]
    answers: list[bytes]


class Client:
    """One connection, kept open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_SECONDS)

    def post(self, path: str, body: bytes, content_type: str = "application/json") -> bytes:
        """Raises RequestError when the answer is not 200 or does not come."""
        try:
            self._connection.request("POST", path, body, {"Content-Type": content_type})
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise RequestError(f"POST {path}: {error!r}") from error
        if response.status != 200:
            raise RequestError(f"POST {path}: {response.status} {answer[:200].decode(errors='replace')}")
        return answer


def closed(port: int, path: str, bodies: Sequence[bytes], *, clients: int) -> Loaded:
    """As many clients, each with one request under way, until all bodies are answered."""
    latencies, answers = [0.0] * len(bodies), [b""] * len(bodies)
    numbers = count()

    def run(client: Client) -> None:
        while (index := next(numbers)) < len(bodies):
            begin = time.perf_counter()
            answers[index] = client.post(path, bodies[index])
            latencies[index] = time.perf_counter() - begin

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(run, [Client(port) for _ in range(clients)]))
    return Loaded(time.perf_counter() - start, latencies, answers)


def paced(
    port: int, path: str, bodies: Sequence[bytes], *, per_second: float, until: Callable[[], bool]
) -> list[float]:
    """Latencies of requests sent at fixed times, however long earlier ones take, counted from when each was due.

    Ends when `until` holds or the bodies are used up.
    """
    latencies: list[float] = []
    lock = threading.Lock()
    idle: list[Client] = []

    def send(due: float, body: bytes) -> None:
        with lock:
            client = idle.pop() if idle else Client(port)
        client.post(path, body)
        with lock:
            latencies.append(time.perf_counter() - due)
            idle.append(client)

    with ThreadPoolExecutor(64) as pool:
        sent = [pool.submit(send, due, body) for due, body in _due(bodies, per_second, until)]
    for each in sent:
        each.result()
    return latencies


def _due(bodies: Sequence[bytes], per_second: float, until: Callable[[], bool]) -> Iterator[tuple[float, bytes]]:
    start = time.perf_counter()
    for number, body in enumerate(bodies):
        due = start + number / per_second
        time.sleep(max(0.0, due - time.perf_counter()))
        if until():
            return
        yield due, body


def ndjson(documents: Sequence[tuple[str, str]]) -> bytes:
    """Lines of (id, text)."""
    return b"".join(json.dumps({"id": key, "text": text}).encode() + b"\n" for key, text in documents)
