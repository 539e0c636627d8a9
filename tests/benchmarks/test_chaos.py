"""The experiments of `benchmarks.chaos` in their short form, and the table, the file and the arithmetic of all."""

import csv
import gzip
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.chaos.__main__ import main
from benchmarks.chaos.catalogue import EXPERIMENTS, Experiment
from benchmarks.chaos.lab import Lab
from benchmarks.chaos.results import Goal, Result, SkippedError, at_least, at_most, percentile, zero
from benchmarks.chaos.soak import growth
from benchmarks.chaos.suites import closing_line, num_cases

SUITES = {"reindex-killed", "any-call", "filters", "authorisation"}  # those are tests anyway
SHORT = [each for each in EXPERIMENTS if each.name not in SUITES]
NUM_DOCUMENTS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in BEIR's layout whose queries are beginnings of its documents."""
    data = tmp_path_factory.mktemp("data")
    folder = data / "scifact"
    (folder / "qrels").mkdir(parents=True)
    texts = [f"document {number} on the subject {number * 7919 % 1000}" for number in range(NUM_DOCUMENTS)]
    for name, rows in (("corpus", texts), ("queries", [each[:24] for each in texts[:10]])):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(
                json.dumps({"_id": str(n), "title": "", "text": text}) + "\n" for n, text in enumerate(rows)
            )
    with open(folder / "qrels" / "test.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(
            [("query-id", "corpus-id", "score"), *((n, n, 1) for n in range(10))]
        )
    return data


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Result]]]:
    """Two experiments at once: most of their time is a service's start, which keeps one core busy."""
    wanted = {item.callspec.params["name"] for item in request.session.items if "short_form" in item.name}
    with ThreadPoolExecutor(2) as pool:
        yield {
            each.name: pool.submit(each.run, Lab(tmp_path_factory.mktemp(each.name), data), **each.short)
            for each in SHORT
            if each.name in wanted
        }


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("name", [each.name for each in SHORT])
def test_experiment_short_form_holds(results: dict[str, Future[Result]], name: str) -> None:
    try:
        result = results[name].result().in_short()
    except SkippedError as reason:
        pytest.skip(str(reason))
    assert [goal for goal in result.goals if goal.is_held is False] == [], result


def holds(_: Lab, *, times: int = 100) -> Result:
    return Result(done=f"{times} times nothing", goals=[zero(0, "faults")])


def fails(_: Lab) -> Result:
    return Result(done="much", goals=[zero(0, "faults"), zero(2, "documents lost")])


def breaks_off(_: Lab) -> Result:
    raise RuntimeError("it did\nnot start")


def is_skipped(_: Lab) -> Result:
    raise SkippedError("no data")


def is_slow(_: Lab) -> Result:
    return Result(done="little", goals=[at_most(9, 1, "p99", " s")])


def hangs(_: Lab) -> Result:
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


FAKES = [
    Experiment("holds", holds, {"times": 2}),
    Experiment("fails", fails),
    Experiment("breaks-off", breaks_off),
    Experiment("is-skipped", is_skipped),
    Experiment("is-slow", is_slow),
]


@pytest.mark.parametrize(
    ("name", "code"), [("holds", 0), ("fails", 1), ("breaks-off", 1), ("is-skipped", 0), ("is-slow", 1)]
)
def test_main_exit_code_is_1_where_a_goal_was_missed(name: str, code: int) -> None:
    assert main(["--only", name], FAKES) == code


def test_main_goes_on_after_a_failure_and_shows_a_line_a_goal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], FAKES) == 1
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| holds | 100 times nothing | 0 faults | 0 faults | held |",
        "| fails | much | 0 faults | 0 faults | held |",
        "|  |  | 2 documents lost | 0 documents lost | NOT HELD |",
        "| breaks-off | broke off | RuntimeError: it did | runs to its end | NOT HELD |",
        "| is-skipped | no data | | | skipped |",
        "| is-slow | little | p99 9 s | at most 1 s | NOT HELD |",
    ]


def test_main_short_takes_small_sizes_and_does_not_judge_speed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--short", "--only", "holds", "--only", "is-slow"], FAKES) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| holds | 2 times nothing | 0 faults | 0 faults | held |",
        "| is-slow | little | p99 9 s | at most 1 s | not judged |",
    ]


def test_main_set_changes_a_size_and_refuses_what_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--short", "--only", "holds", "--set", "times=7"], FAKES)
    assert "7 times nothing" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--only", "holds", "--set", "kills=7"], FAKES)


def test_main_breaks_off_what_catches_every_exception(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--limit-minutes", "0.002"], [Experiment("hangs", hangs)]) == 1
    assert "took longer than --limit-minutes" in capsys.readouterr().out


def test_main_adds_to_the_file_and_shows_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    main(["--only", "fails", "--json", str(file)], FAKES)
    main(["--only", "holds", "--short", "--json", str(file)], FAKES)
    found = json.loads(file.read_text())
    assert (found["fails"]["is_held"], found["holds"]["sizes"]) == (False, {"times": 2})
    capsys.readouterr()
    assert main(["--show", "--json", str(file)], FAKES) == 1
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["| holds", "| fails", "| "]


def test_goals_hold_at_their_limit_and_not_without_a_figure() -> None:
    assert at_most(10, 10, "p99", " s") == Goal("p99 10 s", "at most 10 s", True, needs_calm=True)
    assert not at_most(math.nan, 10, "p99").is_held
    assert at_least(0.9, 0.9, "share").is_held
    assert not at_least(math.nan, 0.9, "share").is_held


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert math.isnan(percentile([], 0.5))


def test_growth_is_that_of_the_line_after_the_warm_up() -> None:
    grown = growth([0, 10, 20, 30], [5, 100, 110, 120])
    assert (grown.start, grown.grown, grown.noise) == pytest.approx((100, 20, 0))
    assert grown.allowed == pytest.approx(2)


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


def test_num_cases_are_those_that_passed_in_all_tests() -> None:
    assert num_cases("    - 10 passing, 0 failing, and 3 invalid test cases\n    - 1 passing, 0 failing, and 0") == 11
