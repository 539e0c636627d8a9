"""Mixed load for long: memory, descriptors and threads stay as they are, and so does the tail of the latencies."""

import threading
import time
from dataclasses import dataclass, field

import httpx
import psutil

from benchmarks.chaos.restarting import encoder, restarting_service
from benchmarks.chaos.results import Options, Result, at_most, percentile, slope, zero
from benchmarks.clients import Request, distinct_requests

NUM_THREADS = 4
NUM_DOCUMENTS = 500  # written over and over, so that the store does not have to grow
SHORT_SECONDS = 20.0
MAX_GROWTH = 0.05
MAX_RATIO = 1.2


@dataclass
class Observed:
    """What the load and the processes showed; times in seconds since the start."""

    start: float = field(default_factory=time.perf_counter)
    latencies: list[tuple[float, float]] = field(default_factory=list)  # when it began, how long it took
    num_failed: int = 0
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)  # when, bytes, descriptors, threads

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def tail(self, begin: float, end: float) -> float:
        """p99 of what began in between."""
        return percentile([seconds for at, seconds in self.latencies if begin <= at < end], 0.99)

    def growth(self, column: int, begin: float) -> float:
        """Of the fitted line from `begin` to the end, as a share of the mean."""
        kept = [sample for sample in self.samples if sample[0] >= begin]
        times, values = [each[0] for each in kept], [float(each[column]) for each in kept]
        return slope(times, values) * (times[-1] - times[0]) * len(values) / sum(values)


def soak(options: Options) -> Result:
    """The first sixth is left out of the slopes: arenas and caches fill in it."""
    duration = SHORT_SECONDS if options.is_short else 60 * options.minutes
    with restarting_service(options.directory / "service", **encoder(options)) as service:
        observed = Observed()
        threads = [
            threading.Thread(target=load, args=(service.url, observed, index, duration)) for index in range(NUM_THREADS)
        ]
        for each in threads:
            each.start()
        while observed.now() < duration:
            observed.samples.append((observed.now(), *footprint(service.service.process.pid)))
            time.sleep(min(1.0, duration / 100))
        for each in threads:
            each.join()
    sixth = duration / 6
    first, last = observed.tail(0, sixth), observed.tail(5 * sixth, duration)
    growths = {
        name: observed.growth(column, sixth) for column, name in enumerate(("memory", "descriptors", "threads"), 1)
    }
    return Result(
        done=f"{len(observed.latencies)} mixed requests in {duration:.0f} s",
        goals=[
            zero(observed.num_failed, "requests failed"),
            *(at_most(growth, MAX_GROWTH, f"growth of {name}") for name, growth in growths.items()),
            at_most(last / first, MAX_RATIO, "p99 of the last sixth over the first"),
        ],
        figures={"p99_first": first, "p99_last": last, "samples": observed.samples},
    )


def load(url: str, observed: Observed, index: int, duration: float) -> None:
    """One request after the other; every fifth writes documents."""
    asked, count = distinct_requests(60), index
    with httpx.Client(base_url=url, timeout=130) as client:
        while (begin := observed.now()) < duration:
            path, body = written(count) if count % 5 == 0 else asked[count % len(asked)]
            count += NUM_THREADS
            try:
                client.post(path, json=body).raise_for_status()
                observed.latencies.append((begin, observed.now() - begin))
            except httpx.HTTPError:
                observed.num_failed += 1


def written(count: int) -> Request:
    """Ten documents, other texts each time."""
    ids = range(count % NUM_DOCUMENTS, count % NUM_DOCUMENTS + 10)
    return "/documents", {"documents": [{"id": str(each), "text": f"document {each} at {count}"} for each in ids]}


def footprint(pid: int) -> tuple[int, int, int]:
    """Resident bytes, descriptors and threads of a process and its children."""
    service = psutil.Process(pid)
    processes = [service, *service.children(recursive=True)]
    return (
        sum(each.memory_info().rss for each in processes),
        sum(each.num_fds() for each in processes),
        sum(each.num_threads() for each in processes),
    )
