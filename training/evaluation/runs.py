"""Result files: TREC runs, which any evaluation program can judge again, and one JSON object a query with its metrics.

A line of a TREC run is `query_id Q0 document_id rank score tag`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.evaluation.metrics import Run, ranking


def write_run(run: Run, path: Path, *, tag: str) -> None:
    """Writes a run, best first, equal scores by document id; scores keep all their digits.

    Raises:
        ValueError: an id or the tag is empty or holds white space, which the format cannot carry.
    """
    with open(path, "w", encoding="utf-8") as file:
        for query_id, scores in run.items():
            for rank, document_id in enumerate(ranking(scores), start=1):
                fields = [_field(query_id), "Q0", _field(document_id), str(rank), repr(float(scores[document_id]))]
                file.write(" ".join([*fields, _field(tag)]) + "\n")


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """Reads a run; ranks are ignored, scores decide.

    Raises:
        ValueError: a malformed line, with its number.
    """
    run: dict[str, dict[str, float]] = {}
    for number, line in _lines(path):
        try:
            query_id, _, document_id, _, score, _ = line.split()
            run.setdefault(query_id, {})[document_id] = _number(score)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not `query_id Q0 document_id rank score tag`") from error
    return run


def write_values(values: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Writes each query's metrics: `{"query_id": ..., "ndcg@10": ...}` a line."""
    with open(path, "w", encoding="utf-8") as file:
        for query_id, metrics in values.items():
            file.write(json.dumps({"query_id": query_id, **metrics}, ensure_ascii=False) + "\n")


def read_values(path: Path, metric: str) -> dict[str, float]:
    """One metric of each query in a file that `write_values` wrote.

    Raises:
        ValueError: a malformed line or one without the metric, with its number.
    """
    values: dict[str, float] = {}
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            values[str(row["query_id"])] = _number(row[metric])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not a JSON object with `query_id` and `{metric}`") from error
    return values


def holds_values(path: Path) -> bool:
    """Whether a file holds metrics a query rather than a TREC run."""
    with open(path, "rb") as file:
        return file.read(1) == b"{"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    with open(path, encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 beyond line {number}: {error}") from error


def _number(given: str | float) -> float:
    value = float(given)
    if math.isnan(value):  # has no place in a ranking or in a mean
        raise ValueError("not a number")
    return value


def _field(text: str) -> str:
    if not text or len(text.split()) != 1 or text != text.strip():
        raise ValueError(f"{text!r} is empty or holds white space; TREC run files cannot carry it")
    return text
