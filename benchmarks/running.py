"""A real service in a child process, and the texts that the measurements send to it."""

import functools
import gzip
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

_reading = threading.Lock()  # Python 3.11 raises SystemError where two threads parse programs at once


@dataclass(frozen=True)
class Service:
    """A running service: where it listens and its process."""

    url: str
    process: "subprocess.Popen[bytes]"

    def is_ready(self) -> bool:
        """Whether /health/ready says so."""
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def worker(self) -> psutil.Process:
        """The encoder worker: the descendant that has loaded a model, so the largest."""
        return max(self.family()[1:], key=lambda child: child.memory_info().rss)

    def family(self) -> list[psutil.Process]:
        """Its processes, the service's own first."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]


@contextmanager
def running_service(store: Path | None = None, **settings: str) -> Iterator[Service]:
    """`eoseek serve` on a free port, ready; `settings` as in `start_service`. Without `store` it has one for itself."""
    with tempfile.TemporaryDirectory() as directory:
        service = start_service(free_port(), store or Path(directory) / "store", **settings)
        try:
            wait_until_ready(service)
            yield service
        finally:
            stop(service)


def start_service(
    port: int, store: Path, *, log: Path = Path(os.devnull), prefix: Sequence[str] = (), **settings: str
) -> Service:
    """`eoseek serve` on this port and store, not waited for; `settings` as `encoder__dtype="float32"`.

    Nothing else is set: keys or limits from this environment would change what is measured, or refuse it. The cache of
    queries is off, since what is measured is their encoding. What it says on stderr is appended to `log`; `prefix`
    stands before its command.
    """
    settings = {"batching__cache_bytes": "0"} | settings
    variables = {f"EOSEEK_{key.upper()}": value for key, value in settings.items()}
    variables |= {"EOSEEK_API__PORT": str(port), "EOSEEK_STORE__PATH": str(store)}
    command = [*prefix, sys.executable, "-m", "eoseek", "serve"]
    with log.open("ab") as stderr:
        process = subprocess.Popen(command, env=plain_environment() | variables, stderr=stderr)
    return Service(f"http://127.0.0.1:{port}", process)


def plain_environment() -> dict[str, str]:
    """This environment without settings of the service."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("EOSEEK_")}


def stop(service: Service) -> None:
    """Ends a service in order."""
    service.process.send_signal(signal.SIGTERM)
    service.process.wait(timeout=60)


def processor_seconds(processes: Sequence[psutil.Process]) -> float:
    """Of user and system, until now."""
    return sum(times.user + times.system for times in (each.cpu_times() for each in processes))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, below those that the system gives to clients.

    One of these that polls for a service which is away could be given the service's own port, and meet itself.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def wait_until_ready(service: Service, limit_seconds: float = 600) -> float:
    """Seconds until /health/ready answers 200."""
    start = time.perf_counter()
    while not service.is_ready():
        if time.perf_counter() - start > limit_seconds or service.process.poll() is not None:
            raise RuntimeError(f"the service was not ready after {time.perf_counter() - start:.0f} s")
        time.sleep(0.05)
    return time.perf_counter() - start


def real_texts() -> list[str]:
    """Abstracts of SciFact where the data is at hand, else docstrings of the standard library."""
    with _reading:
        return _read_texts()


@functools.cache
def _read_texts() -> list[str]:
    corpus = DATA / "scifact" / "corpus.jsonl.gz"
    if corpus.exists():
        with gzip.open(corpus, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return [f"{row['title']}. {row['text']}" for row in rows]
    from eoseek.demo import standard_library_documents

    return [document.text for document in sorted(standard_library_documents(), key=lambda each: each.id)]


def texts_of_lengths(num_words: list[int], seed: int) -> list[str]:
    """Real running text, cut to these numbers of words."""
    generator = random.Random(seed)
    stock = real_texts()
    texts = []
    for wanted in num_words:
        found: list[str] = []
        while len(found) < wanted:
            found += generator.choice(stock).split()
        texts.append(" ".join(found[:wanted]))
    return texts


def write_json(path: Path | None, result: object) -> None:
    """Keep a result where a file was asked for."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
