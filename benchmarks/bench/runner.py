"""Takes turns: work by work, round by round, engine by engine, each round in another order.

An engine is started when its first turn comes, warmed up with texts that no round has, and stopped by a signal until
its next one. One that fails is left out from there on, with the reason.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench.engines import Child, EngineError, Offline, Process, Server, Spec
from benchmarks.bench.environments import OWN, InstallError, build, interpreter
from benchmarks.bench.load import RequestError, closed
from benchmarks.bench.workload import INSTRUCTION
from benchmarks.bench.works import CLIENTS, EMBEDDINGS, THEIRS, Bench, Measure, Result, Work, as_multiplied

FREE_BYTES = 4 * 2**30
LIMIT, LIMIT_SECONDS = "limit", 2.0
LIMITER = Spec(LIMIT, OWN)
REFERENCE_TEXTS = {"documents": 10, "queries": 8, "instructed": 8, "single queries": 4, "real": 2, "long": 1}
"""Of each round; a quick run has fewer."""
Outcome = dict[str, Any]


def take_turns(
    names: Sequence[str], num_rounds: int, measure: Callable[[str, int], Result], *, work: str = ""
) -> dict[str, Outcome]:
    """Each of `names` once a round, in an order that moves on by one a round.

    Returns:
        By name `{"rounds": [...], "medians": {...}}`, or `{"not run": reason}` for one that failed in any round.
    """
    rounds: dict[str, list[Result]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for number in range(num_rounds):
        start = number % max(1, len(names))
        for name in [*names[start:], *names[:start]]:
            if name in failed:
                continue
            try:
                rounds[name].append(measure(name, number))
                progress(f"{work}, round {number + 1}, {name}: {said(rounds[name][-1])}")
            except (EngineError, RequestError) as error:
                failed[name] = str(error)
                progress(f"{work}, round {number + 1}, {name}: not run: {error}")
    return {name: {"not run": failed[name]} if name in failed else summary(rounds[name]) for name in names}


def summary(rounds: list[Result]) -> Outcome:
    """Medians of numbers; of lists, put together, the median and the 99th percentile in ms; of cosines the lowest."""
    medians: dict[str, float] = {}
    for key, value in rounds[0].items():
        if isinstance(value, list):
            together = sorted(1000 * each for result in rounds for each in result[key])  # type: ignore[union-attr]
            medians[key.replace("latencies", "p50 ms")] = statistics.median(together)
            medians[key.replace("latencies", "p99 ms")] = together[min(len(together) - 1, int(0.99 * len(together)))]
        elif key == "lowest cosine":
            medians[key] = min(result[key] for result in rounds)  # type: ignore[type-var, assignment]
        else:
            medians[key] = statistics.median(result[key] for result in rounds)  # type: ignore[type-var, assignment]
    return {"rounds": rounds, "medians": medians}


def _limit(_bench: Bench, engine: Any, _number: int) -> Result:
    return {"GFLOP/s": engine.call("measure", seconds=LIMIT_SECONDS)}


class Runner:
    """Holds the engines that have been started."""

    def __init__(self, bench: Bench, *, threads: int, store: Path, number_format: str) -> None:
        self.bench = bench
        self.number_format = number_format
        self.versions: dict[str, dict[str, str]] = {}
        self.servers: dict[str, dict[str, float]] = {}
        self._threads, self._store = threads, store
        self._engines: dict[tuple[str, str], Any] = {}
        self._broken: dict[tuple[str, str], str] = {}
        self._missing: dict[str, str] = {}
        self.started = 0.0  # when all environments were there

    def prepare(self, specs: Sequence[Spec]) -> None:
        """Build the environments that are not there; engines of one that cannot be are not run."""
        for environment in dict.fromkeys(spec.environment for spec in (*specs, THEIRS)):
            try:
                build(environment)
            except InstallError as error:
                self._missing[environment] = str(error)
                progress(f"{environment}: {error}")
        self.started = time.perf_counter()

    def run(self, work: Work, specs: Sequence[Spec]) -> dict[str, Outcome]:
        """Results by engine; beside documents also the machine's `limit`, which so has its turn like an engine."""
        by_name = {spec.name: spec for spec in as_multiplied(work.specs, self.number_format) if spec in specs}
        if work.name == "documents":
            by_name = {LIMIT: LIMITER} | by_name

        def measure(name: str, number: int) -> Result:
            return self.turn(by_name[name], work.side, _limit if name == LIMIT else work.measure, number)

        return take_turns(list(by_name), self.bench.workload.num_rounds, measure, work=work.name)

    def turn(self, spec: Spec, side: str, measure: Measure, number: int) -> Result:
        """One measurement of one engine. Raises EngineError and RequestError."""
        engine = self.engine(spec, side)
        engine.resume()
        try:
            return measure(self.bench, engine, number)
        except (EngineError, RequestError):
            self._engines.pop((spec.name, side)).stop()  # the next work has a new one
            raise
        finally:
            engine.suspend()

    def engine(self, spec: Spec, side: str) -> Any:
        """Started and warm; it may be suspended. Raises EngineError, each time, once it could not be started."""
        key = (spec.name, side)
        if key in self._broken:
            raise EngineError(self._broken[key])
        if key not in self._engines:
            self._make_room()
            try:
                self._engines[key] = self._start(spec, side)
            except (EngineError, RequestError) as error:
                self._broken[key] = str(error)
                raise EngineError(str(error)) from error
        return self._engines[key]

    def _start(self, spec: Spec, side: str) -> Process:
        if spec.environment in self._missing:
            raise EngineError(self._missing[spec.environment])
        progress(f"starting {spec.name} ({side})")
        made: Child | Server
        path = self.bench.checkpoint.path
        if spec is LIMITER:
            python = interpreter(spec.environment)
            made = Child(LIMIT, "limit", python, self._threads, checkpoint=str(path), dtype=self.number_format)
        elif side == "offline":
            made = Offline(spec, path, self._threads)
        else:
            made = Server(spec, path, self._threads, self._store)
        try:
            made.start()
            self._warm_up(made)
        except BaseException:
            made.stop()
            raise
        return made

    def _warm_up(self, engine: Child | Server) -> None:
        texts = self.bench.workload.all("warm-up")
        if isinstance(engine, Offline):
            engine.encode(texts)
            engine.encode(texts[:2], kind="query", one_by_one=True)
            self.versions[engine.spec.name] = engine.versions
        if not isinstance(engine, Server):
            return
        self.servers[engine.spec.name] = {"start seconds": engine.start_seconds, "MiB when ready": engine.memory_mib()}
        closed(engine.port, EMBEDDINGS, [engine.body([text], kind="query") for text in texts], clients=CLIENTS)
        self.servers[engine.spec.name]["MiB when warm"] = engine.memory_mib()

    def _make_room(self) -> None:
        """End the engine that was started first, as long as there is no room for one more; it can start again."""
        while self._engines and psutil.virtual_memory().available < FREE_BYTES:
            key = next(iter(self._engines))
            progress(f"ending {key[0]} ({key[1]}): less than {FREE_BYTES >> 30} GiB of memory is free")
            self._engines.pop(key).stop()

    def refer(self) -> str | None:
        """Fill the reference; the reason when there is none.

        It is sentence-transformers in float32, one text at a time, for some texts of each set.
        """
        prompts = self.reference_prompts()
        try:
            engine = self.engine(THEIRS, "offline")
            engine.resume()
            progress(f"reference: {len(prompts)} texts, one at a time")
            rows = engine.encode(prompts, one_by_one=True).embeddings
            engine.suspend()
        except EngineError as error:
            return str(error)
        self.bench.reference.update(zip(prompts, rows, strict=True))
        return None

    def reference_prompts(self) -> list[str]:
        found = []
        for name, count in REFERENCE_TEXTS.items():
            kind = "query" if name in ("queries", "instructed", "single queries") else "document"
            for texts in self.bench.workload.sets.get(name, []):
                chosen = sorted(texts, key=len)[:1] if name == "long" else texts[: min(count, max(1, len(texts) // 4))]
                found += self.bench.prompts(chosen, kind, INSTRUCTION if name == "instructed" else "")
        return found

    def stop(self) -> None:
        for engine in self._engines.values():
            engine.stop()
        self._engines.clear()


def said(result: Result) -> str:
    """A result in a few words."""
    return ", ".join(f"{key} {value:.4g}" for key, value in result.items() if not isinstance(value, list)) or "done"


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
