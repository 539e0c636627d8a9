"""The work of `eoseek evaluate`: sets read, systems judged in turn, tables printed, files written."""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

from eoseek.evaluation import EvaluationPlan
from eoseek.terminal import note
from service.errors import ConfigurationError
from training.evaluation import beir
from training.evaluation.beir import JudgedSet
from training.evaluation.report import Evaluation, compare_files, comparison_lines, judge, table, write_files
from training.evaluation.runs import write_run


def judged_sets(folders: Sequence[Path], split: str | None, plan: EvaluationPlan) -> list[JudgedSet]:
    """The sets of these folders, of which the plan can judge each. Raises ConfigurationError."""
    if plan.uses_bm25:
        _require("bm25s", "Stemmer")
    with _readable_data():
        sets = [beir.read_set(folder, split) for folder in folders]
    if not plan.uses_own_instructions:
        sets = [each.without_instructions() for each in sets]
    plan.check(sets)
    return sets


def judge_all(plan: EvaluationPlan, sets: Sequence[JudgedSet], output: Path | None) -> list[Evaluation]:
    """Judges every system on every set; prints the table, of what is done also when something fails on the way."""
    with _readable_data():
        if output:
            output.mkdir(parents=True, exist_ok=True)
    results: list[Evaluation] = []
    try:
        with closing(plan.systems()) as systems:
            for system in systems:
                for each in sets:
                    results.append(judge(system.search(each), each, system=system.name))
                    note(results[-1].summary())
                    with _readable_data():
                        if output:
                            write_files(results[-1], output)
    finally:
        if results:
            print(table(results))
    return results


def write_results(results: Sequence[Evaluation], json_file: Path | None, run_file: Path | None) -> None:
    """Writes the files that were asked for. Raises ConfigurationError."""
    rows = [each.as_json() for each in results]
    with _readable_data():
        if run_file:
            write_run(results[0].found.run, run_file, tag="eoseek")
        if json_file:
            json_file.write_text(json.dumps(rows[0] if len(rows) == 1 else rows, indent=1) + "\n")


def compare(files: tuple[Path, Path], folders: Sequence[Path], split: str | None, json_file: Path | None) -> None:
    """Compares two runs of one set, or their values by query, and prints the verdict. Raises ConfigurationError."""
    _require("scipy")
    if len(folders) != 1:
        raise ConfigurationError(f"--compare judges by one --data, not by {len(folders)}")
    with _readable_data():
        qrels = beir.read_qrels(folders[0], beir.choose_split(folders[0], split))
        comparison = compare_files(*files, qrels, tell=note)
        if json_file:
            json_file.write_text(json.dumps(asdict(comparison), indent=1) + "\n")
    print(comparison_lines(comparison, (files[0].name, files[1].name)))


def _require(*modules: str) -> None:
    missing = [each for each in modules if importlib.util.find_spec(each) is None]
    if missing:
        raise ConfigurationError(f"{missing[0]} is not installed; this needs: pip install 'eoseek[train]'")


@contextmanager
def _readable_data() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError) as error:
        raise ConfigurationError(str(error)) from error
