"""Reading a set in BEIR's layout: `corpus.jsonl[.gz]`, `queries.jsonl[.gz]`, `qrels/<split>.tsv`.

A line that cannot be read fails with its file and number rather than being passed over.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query; `instruction` None means that the set names none."""

    query_id: str
    text: str
    instruction: str | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document of the corpus."""

    document_id: str
    text: str
    title: str = ""


def corpus_path(folder: Path) -> Path:
    """The corpus file of a set. Raises FileNotFoundError."""
    return _either(folder, "corpus.jsonl")


def read_corpus(folder: Path) -> Iterator[Document]:
    """Documents one at a time, in file order."""
    for row, place in _rows(corpus_path(folder)):
        yield Document(
            document_id=_string(row, "_id", place), text=_string(row, "text", place), title=row.get("title") or ""
        )


def read_queries(folder: Path) -> dict[str, Query]:
    """Queries by id, in file order."""
    queries = {}
    for row, place in _rows(_either(folder, "queries.jsonl")):
        query_id = _string(row, "_id", place)
        text = _string(row, "text", place)
        queries[query_id] = Query(query_id=query_id, text=text, instruction=row.get("instruction"))
    return queries


def read_qrels(folder: Path, split: str) -> dict[str, dict[str, int]]:
    """Judgements `{query_id: {document_id: grade}}` from `qrels/<split>.tsv`, with or without a header.

    Raises:
        FileNotFoundError: no such split.
        ValueError: a line that is not query id, document id and whole grade between tabs.
    """
    path = folder / "qrels" / f"{split}.tsv"
    qrels: dict[str, dict[str, int]] = {}
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.rstrip("\r\n").split("\t")
            if not line.strip() or (number == 1 and not fields[-1].lstrip("-").isdecimal()):
                continue
            try:
                query_id, document_id, grade = fields
                qrels.setdefault(query_id, {})[document_id] = int(grade)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not `query id, document id, grade` between tabs") from error
    return qrels


def _either(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} holds neither {name}.gz nor {name}")


def _open(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path}:{number}"
            if line.strip():
                yield _row(line, place), place


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place}: not a JSON object")
    return row


def _string(row: dict[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{place}: needs `{name}`, a string")
    return value
