"""What only ours is asked: `/search` beside its parts, cost of growth, start to ready."""

from pathlib import Path
from typing import Any

from benchmarks.bench.engines import Child, Server
from benchmarks.bench.environments import interpreter
from benchmarks.bench.runner import Outcome, Runner, progress, take_turns
from benchmarks.bench.works import ENCODER_ALONE, OURS, STORE_ALONE, WORKS, Bench, Result, encode_searches

SEARCHES = 200
GROWTH, GROWTH_QUICK = (1_000, 10_000, 100_000, 1_000_000), (1_000, 5_000)
GROWTH_BATCHES = 9  # of a thousand documents, before each size


def prepared_store(bench: Bench, path: Path, count: int, threads: int) -> None:
    """A store with random vectors of this checkpoint, for the service to be started on."""
    progress(f"storing {count} random vectors")
    _in_store(bench, path, threads, "fill", count=count)


def search_and_parts(runner: Runner, path: Path, count: int, threads: int) -> dict[str, Outcome]:
    """`/search`, and in turn what it is held against: those queries encoded and as many documents searched alone."""
    _in_store(runner.bench, path, threads, "fill", count=count)

    def measure(name: str, number: int) -> Result:
        if name == STORE_ALONE:
            return {"latencies": _in_store(runner.bench, path, threads, "search", searches=SEARCHES)}
        if name == ENCODER_ALONE:
            return runner.turn(OURS, "offline", encode_searches, number)
        return runner.turn(OURS, "http", WORKS["search"].measure, number)

    names = [OURS.name, ENCODER_ALONE, STORE_ALONE]
    return take_turns(names, runner.bench.workload.num_rounds, measure, work="search")


def growth(bench: Bench, path: Path, threads: int, *, is_quick: bool) -> dict[str, Outcome]:
    """Documents/s of the store by its size."""
    sizes = GROWTH_QUICK if is_quick else GROWTH
    progress(f"growth: random vectors up to {sizes[-1]:,}")
    return take_turns(
        [OURS.name],
        1,
        lambda *_: _in_store(bench, path, threads, "grow", sizes=list(sizes), batches=GROWTH_BATCHES),
        work="growth",
    )


def starts(bench: Bench, num_rounds: int, threads: int, store: Path) -> dict[str, Outcome]:
    """Starts of the service on weights and libraries that are in the page cache already."""

    def start(*_: Any) -> Result:
        server = Server(OURS, bench.checkpoint.path, threads, store)
        try:
            server.start()
            return {"start seconds": server.start_seconds, "MiB when ready": server.memory_mib()}
        finally:
            server.stop()

    start()
    return take_turns([OURS.name], num_rounds, start, work="start")


def _in_store(bench: Bench, path: Path, threads: int, name: str, **arguments: Any) -> Any:
    checkpoint = bench.checkpoint
    identity = {"path": str(path), "fingerprint": checkpoint.fingerprint, "dimension": checkpoint.dimension}
    child = Child(f"store {name}", "store", interpreter(OURS.environment), threads, **identity)
    try:
        child.start()
        return child.call(name, **arguments)
    finally:
        child.stop()
