"""Promises that tests prove: each suite is run as a line of the table, with more cases where it takes a number."""

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.chaos.results import Goal, Options, Result

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 7200


def reindex_killed(_: Options) -> Result:
    """kill -9 in the middle of a re-index under traffic."""
    return run_tests("kill -9 in the middle of a re-index under traffic", "tests/integration/test_reindex_crash.py")


def authorisation(_: Options) -> Result:
    """Every route with every role."""
    return run_tests("every route by every role", "tests/service/api/test_access.py", "tests/service/api/test_keys.py")


def any_call(options: Options) -> Result:
    """Random calls, drawn from the OpenAPI document."""
    cases = options.pick(400, 20)  # over 10,000 in all
    return run_tests(f"{cases} random calls of each route", "tests/service/api/test_any_call.py", cases=cases)


def filters(_: Options) -> Result:
    """Random filters, on the stores and on the oracle."""
    return run_tests("random filters, stores against the oracle", "tests/service/store/test_filter_agreement.py")


def disk_full(_: Options) -> Result:
    """Backups and restores that find no room."""
    return run_tests(
        "no room for a backup or a restore",
        *("tests/service/store/test_backup.py", "tests/eoseek/test_backup.py"),
        "-k",
        "full or space or room or disk",
    )


def run_tests(done: str, *arguments: str, cases: int | None = None) -> Result:
    """What pytest said of these tests, run by this interpreter in the repository; skipped ones prove nothing."""
    variables = {} if cases is None else {"EOSEEK_TEST_API_CASES": str(cases)}
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    closing = closing_line(finished.stdout)
    if finished.returncode:
        sys.stderr.write(finished.stdout[-3000:])
    return Result(
        done=done,
        goals=[Goal(closing, "all pass", finished.returncode == 0 and "passed" in closing)],
        figures={"pytest": list(arguments), "exit_code": finished.returncode},
    )


def closing_line(output: str) -> str:
    """pytest's count, without its rule."""
    lines = [line.strip("= ") for line in output.splitlines() if re.search(r"\d+ \w+.* in [\d.]+", line)]
    return lines[-1] if lines else "the tests did not run"
