"""Experiments that try to break what the service promises, on loopback, with services of their own.

    python -m benchmarks.chaos [--only NAME]... [--short] [--set NAME=VALUE]... [--json FILE [--show]] [--keep FOLDER]

Prints one table: what was done, what came of it, what was promised, and whether it held; exit code 1 where it did not.
With --json the file keeps the results of earlier runs of other experiments, and the table has them all. `--short` takes
minutes and makes sure of the experiments more than of the service; `--set kills=5` changes one size.
"""

import argparse
import inspect
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.chaos.catalogue import EXPERIMENTS, Experiment
from benchmarks.chaos.lab import Lab
from benchmarks.chaos.results import Goal, Result, SkippedError, keep, read, table
from benchmarks.running import DATA


class OverdueError(KeyboardInterrupt):
    """An experiment took too long; like Ctrl-C it is caught by nothing on the way, also not by asyncio."""


def main(arguments: Sequence[str] | None = None, experiments: Sequence[Experiment] = EXPERIMENTS) -> int:
    names = [each.name for each in experiments]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--short", action="store_true", help="small sizes; speed and growth are not judged")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a size, as kills=5")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of data sets in BEIR's layout")
    parser.add_argument("--keep", type=Path, help="folder for stores and logs, kept for a look; default: one that goes")
    parser.add_argument("--limit-minutes", type=float, default=120, help="of one experiment, then it is broken off")
    parser.add_argument("--json", type=Path, help="file of results, to which these are added")
    parser.add_argument("--show", action="store_true", help="run nothing, print the table of --json")
    chosen = parser.parse_args(arguments)
    wanted = [each for each in experiments if not chosen.show and (not chosen.only or each.name in chosen.only)]
    given = dict(each.partition("=")[::2] for each in chosen.set)
    known = {name for each in wanted for name in sizes(each)}
    if unknown := given.keys() - known:
        parser.error(f"--set {min(unknown)}: no size of these experiments; there are {', '.join(sorted(known))}")
    signal.signal(signal.SIGTERM, _end)  # what was started is ended, as after Ctrl-C
    signal.signal(signal.SIGALRM, _break_off)
    results = {name: Result.of(each) for name, each in read(chosen.json).items()}
    for each in wanted:
        taken = sizes(each) | (each.short if chosen.short else {}) | _typed(each, given)
        start = time.perf_counter()
        result = results[each.name] = _run(each, taken, chosen)
        seconds = round(time.perf_counter() - start, 1)
        print(f"{each.name}: {seconds} s", file=sys.stderr, flush=True)
        if chosen.json:
            at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            keep(chosen.json, each.name, result, at=at, seconds=seconds, sizes=taken)
    print(table({name: results[name] for name in names if name in results}))
    return 0 if all(each.is_held for each in results.values()) else 1


def sizes(experiment: Experiment) -> dict[str, Any]:
    """Names and full values of what can be set."""
    parameters = inspect.signature(experiment.run).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def _typed(experiment: Experiment, given: dict[str, str]) -> dict[str, Any]:
    return {name: type(full)(given[name]) for name, full in sizes(experiment).items() if name in given}


def _run(experiment: Experiment, taken: dict[str, Any], chosen: argparse.Namespace) -> Result:
    """Its result, also where it breaks off or is skipped."""
    with tempfile.TemporaryDirectory(prefix="eoseek-chaos-") as temporary:
        directory = chosen.keep / experiment.name if chosen.keep else Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        signal.setitimer(signal.ITIMER_REAL, 60 * chosen.limit_minutes)
        try:
            result = experiment.run(Lab(directory.resolve(), chosen.data.resolve()), **taken)
        except SkippedError as error:
            return Result(done=str(error))
        except (Exception, OverdueError) as error:
            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            found = f"{type(error).__name__}: {lines[0]:.300}"
            return Result(done="broke off", goals=[Goal(found, "runs to its end", False)])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return result.in_short() if chosen.short else result


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _break_off(*_: object) -> None:
    raise OverdueError("took longer than --limit-minutes")


if __name__ == "__main__":
    sys.exit(main())
