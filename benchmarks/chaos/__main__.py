"""Experiments that try to break what the service promises, on loopback, bounded in time and count.

    python -m benchmarks.chaos [--short] [--only NAME]... [--checkpoint default] [--minutes 30] [--json FILE]

Each starts services of its own and ends only what it started. Prints a line for each goal; exit code 1 if one was
missed. Without --checkpoint a small one with random weights encodes, so that the service and not the model is at work.
An experiment that breaks off has missed its goal; one whose data are not there is skipped, and says so.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.chaos import backups, connections, crashes, mixed_up, soak, suites
from benchmarks.chaos.results import Goal, Options, Result, Skipped, exit_code, positive, table
from benchmarks.running import DATA, write_json

Experiment = Callable[[Options], Result]
EXPERIMENTS: dict[str, Experiment] = {
    "service-killed": crashes.service_killed,
    "worker-killed": crashes.worker_killed,
    "slow-connections": connections.slow_connections,
    "mixed-up": mixed_up.mixed_up,
    "backup": backups.backup_under_load,
    "soak": soak.soak,
    "reindex-killed": suites.reindex_killed,
    "authorisation": suites.authorisation,
    "any-call": suites.any_call,
    "filters": suites.filters,
    "disk-full": suites.disk_full,
}


def main(arguments: Sequence[str] | None = None, experiments: Mapping[str, Experiment] = EXPERIMENTS) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", choices=list(experiments), help=", ".join(experiments)
    )
    parser.add_argument("--short", action="store_true", help="few and brief: whether it works, not how long it holds")
    parser.add_argument("--checkpoint", help="as EOSEEK_ENCODER__CHECKPOINT")
    parser.add_argument("--minutes", type=positive, default=30, help="of the soak")
    parser.add_argument("--data", type=Path, default=DATA / "scifact", help="a folder in BEIR's layout")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        options = Options(
            data=chosen.data,
            directory=Path(directory),
            is_short=chosen.short,
            checkpoint=chosen.checkpoint,
            minutes=chosen.minutes,
        )
        for name in chosen.only or experiments:
            own = options.directory / name
            own.mkdir()
            start = time.perf_counter()
            results[name] = run(experiments[name], replace(options, directory=own))
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            write_json(chosen.json, {each: result.as_json() for each, result in results.items()})
    print(table(results))
    return exit_code(results)


def run(experiment: Experiment, options: Options) -> Result:
    """Its result, also where it breaks off or is skipped."""
    try:
        return experiment(options)
    except Skipped as reason:
        return Result(done=str(reason), goals=[], is_skipped=True)
    except Exception as error:
        traceback.print_exc()
        said = str(error).strip().splitlines()
        return Result(
            done="broke off",
            goals=[Goal(f"{type(error).__name__}: {said[0] if said else ''}", "runs to its end", False)],
        )


if __name__ == "__main__":
    sys.exit(main())
