"""A service that is killed and started again on the same port and store."""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.chaos.checkpoint import write_random_checkpoint
from benchmarks.chaos.results import Options
from benchmarks.running import Service, free_port, start_service, stop, wait_until_ready


class Restarting:
    """One port, one store, one service at a time."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.store, self.log = directory / "store", directory / "service.log"
        self._settings, self._port = settings, free_port()
        self.service = self._start()

    @property
    def url(self) -> str:
        """The same after every restart."""
        return self.service.url

    def start(self) -> float:
        """Starts it again after `kill`; seconds until it is ready."""
        begin = time.perf_counter()
        self.service = self._start()
        self.wait_ready()
        return time.perf_counter() - begin

    def wait_ready(self) -> None:
        """Raises RuntimeError with the last lines of its log where it does not come up."""
        try:
            wait_until_ready(self.service)
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {' / '.join(self.log.read_text().splitlines()[-3:])}") from error

    def kill(self) -> int:
        """kill -9 of the service alone. Returns how many of its children were alive five seconds later."""
        children = psutil.Process(self.service.process.pid).children(recursive=True)
        self.service.process.kill()
        self.service.process.wait()
        _, alive = psutil.wait_procs(children, timeout=5)
        for child in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        return len(alive)

    def _start(self) -> Service:
        return start_service(self._port, self.store, log=self.log, **self._settings)


@contextmanager
def restarting_service(directory: Path, **settings: str) -> Iterator[Restarting]:
    """A ready service in this directory, which whoever uses it may kill and start again."""
    directory.mkdir(parents=True, exist_ok=True)
    restarting = Restarting(directory, **settings)
    try:
        restarting.wait_ready()
        yield restarting
    finally:
        if restarting.service.process.poll() is None:
            stop(restarting.service)


def encoder(options: Options) -> dict[str, str]:
    """Settings of the chosen checkpoint; float32 on one thread, where batch mates change next to nothing."""
    checkpoint = options.checkpoint or str(write_random_checkpoint(options.directory / "checkpoint"))
    return {"encoder__checkpoint": checkpoint, "encoder__dtype": "float32", "encoder__threads": "1"}
