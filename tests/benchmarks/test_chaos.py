"""The table of the experiments and its arithmetic; the experiments themselves are run by `make chaos`."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.chaos.__main__ import main
from benchmarks.chaos.mixed_up import names_both
from benchmarks.chaos.results import Goal, Options, Result, Skipped, at_least, at_most, percentile, slope, zero
from benchmarks.chaos.soak import Observed
from benchmarks.chaos.suites import closing_line


def holds(_: Options) -> Result:
    return Result(done="nothing", goals=[zero(0, "faults")])


def fails(_: Options) -> Result:
    return Result(done="much", goals=[zero(0, "faults"), zero(2, "documents lost")])


def breaks_off(_: Options) -> Result:
    raise RuntimeError("it did\nnot start")


def is_skipped(_: Options) -> Result:
    raise Skipped("no data")


EXPERIMENTS = {"holds": holds, "fails": fails, "breaks-off": breaks_off, "is-skipped": is_skipped}


@pytest.mark.parametrize(("name", "code"), [("holds", 0), ("fails", 1), ("breaks-off", 1), ("is-skipped", 0)])
def test_main_exit_code_is_1_where_a_goal_was_missed(name: str, code: int) -> None:
    assert main(["--only", name], EXPERIMENTS) == code


def test_main_goes_on_after_a_failure_and_shows_a_line_a_goal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], EXPERIMENTS) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "| holds | nothing | 0 faults | 0 faults | held |",
        "| fails | much | 0 faults | 0 faults | held |",
        "|  |  | 2 documents lost | 0 documents lost | NOT HELD |",
        "| breaks-off | broke off | RuntimeError: it did | runs to its end | NOT HELD |",
        "| is-skipped | no data | | | skipped |",
    ]


def test_main_writes_what_was_found(tmp_path: Path) -> None:
    main(["--only", "fails", "--json", str(tmp_path / "found.json")], EXPERIMENTS)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["fails"]["is_held"] is False
    assert [goal["is_held"] for goal in found["fails"]["goals"]] == [True, False]


def test_goals_hold_at_their_limit_and_not_without_a_figure() -> None:
    assert at_most(10, 10, "p99", " s") == Goal("p99 10 s", "at most 10 s", True)
    assert not at_most(math.nan, 10, "p99").is_held
    assert at_least(0.9, 0.9, "share").is_held
    assert not at_least(math.nan, 0.9, "share").is_held


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert math.isnan(percentile([], 0.5))


def test_slope_of_a_line_is_its_own_and_of_a_moment_none() -> None:
    assert slope([1, 2, 4], [5, 8, 14]) == pytest.approx(3)
    assert slope([0, 1, 2], [1, 3, 1]) == pytest.approx(0)
    assert slope([3], [7]) == 0


def test_soak_growth_is_that_of_the_line_after_the_warm_up() -> None:
    observed = Observed(samples=[(0, 5, 1, 1), (1, 100, 1, 1), (2, 110, 1, 1), (3, 120, 1, 1)])
    assert observed.growth(1, begin=1) == pytest.approx(20 / 110)
    assert observed.growth(2, begin=1) == 0


def test_refusal_must_name_both_fingerprints() -> None:
    both = ["a" * 64, "b" * 64]
    assert names_both(f"made by {'a' * 8}, not by {'b' * 64}", both)
    assert not names_both(f"made by {'a' * 64}", both)


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("..\n==== 2 passed in 0.1s ====\n", "2 passed in 0.1s"),
        ("F\n1 failed, 2 passed in 65.20s (0:01:05)\n", "1 failed, 2 passed in 65.20s (0:01:05)"),
        ("ImportError\n", "the tests did not run"),
    ],
)
def test_closing_line_is_pytest_s_count(output: str, line: str) -> None:
    assert closing_line(output) == line
