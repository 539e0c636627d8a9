"""Promises that tests prove: each suite is run as a line of the table, with more cases where it takes a number."""

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.chaos.lab import Lab
from benchmarks.chaos.results import Goal, Result, at_least
from benchmarks.running import plain_environment

_ROOT = Path(__file__).resolve().parents[2]
_NUM_CALLS = 13  # of the OpenAPI document with something to vary, among which random cases are spread
_NUM_FILTER_TESTS = 4


def reindex_killed(_: Lab) -> Result:
    """Searches and writes all the while, and a kill -9 in the middle."""
    return _run("kill -9 in the middle of a re-index under traffic", "tests/integration/test_reindex_crash.py")


def authorisation(_: Lab) -> Result:
    """Every route with every kind of key; a route that the table lacks fails."""
    return _run("every route by every role", "tests/service/api/test_access.py", "tests/service/api/test_keys.py")


def any_call(_: Lab, *, cases: int = 10_000) -> Result:
    """schemathesis on the OpenAPI document, all checks; the cases are in addition to those that it always makes."""
    tests = "tests/service/api/test_any_call.py"
    return _run("random calls of the OpenAPI document", tests, cases=cases, spread=_NUM_CALLS)


def filters(_: Lab, *, cases: int = 2000) -> Result:
    """hypothesis on filters: the stores against the oracle."""
    tests = "tests/service/store/test_filter_agreement.py"
    return _run("random filters, stores against the oracle", tests, cases=cases, spread=_NUM_FILTER_TESTS)


def _run(done: str, *tests: str, cases: int = 0, spread: int = 1) -> Result:
    """What pytest said of these tests, run by this interpreter in the repository; skipped ones prove nothing."""
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-show-statistics", *tests],
        cwd=_ROOT,
        env=plain_environment() | ({"EOSEEK_TEST_CASES": str(-(-cases // spread))} if cases else {}),
        capture_output=True,
        text=True,
    )
    closing = closing_line(finished.stdout)
    if finished.returncode:
        sys.stderr.write(finished.stdout[-3000:])
    goals = [Goal(closing, "all pass", finished.returncode == 0 and "passed" in closing)]
    if cases:
        goals.append(at_least(num_cases(finished.stdout), cases, "random cases"))
    return Result(done=done, goals=goals, figures={"pytest": list(tests), "exit_code": finished.returncode})


def closing_line(output: str) -> str:
    """pytest's count, without its rule."""
    lines = [line.strip("= ") for line in output.splitlines() if re.search(r"\d+ \w+.* in [\d.]+", line)]
    return lines[-1] if lines else "the tests did not run"


def num_cases(output: str) -> int:
    """The cases that hypothesis counts as passed."""
    return sum(int(each) for each in re.findall(r"- (\d+) passing, ", output))
