"""Reading a set in BEIR's layout: `corpus.jsonl[.gz]`, `queries.jsonl[.gz]`, `qrels/<split>.tsv`.

A line that cannot be read fails with its file and number rather than being passed over.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from training.errors import DataError

# trec_eval has an array of as many places as the highest grade, and corrupts memory beyond an int
_MAX_GRADE = 10_000


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


@dataclass(frozen=True, kw_only=True)
class JudgedSet:
    """Queries and judgements of one split; the corpus stays on disk."""

    name: str
    folder: Path
    split: str
    queries: dict[str, Query]
    qrels: dict[str, dict[str, int]]

    @property
    def judged(self) -> list[Query]:
        """The judged queries that have a text, in the order of the judgements."""
        return [self.queries[query_id] for query_id in self.qrels if query_id in self.queries]

    def without_instructions(self) -> "JudgedSet":
        """The same set whose queries bring no instruction of their own."""
        queries = {query_id: replace(query, instruction=None) for query_id, query in self.queries.items()}
        return replace(self, queries=queries)


def read_set(folder: Path, split: str | None = None) -> JudgedSet:
    """A set without its corpus, which must be there.

    Args:
        folder: names the set.
        split: None takes `test`, or the only one there is.
    Raises:
        FileNotFoundError: a file is missing.
        DataError: a malformed line, a split that is not there, one without judgements, or whose queries have no text.
    """
    corpus_path(folder)
    split = choose_split(folder, split)
    qrels = read_qrels(folder, split)
    if not qrels:
        raise DataError(f"{folder / 'qrels' / split}.tsv: judges no query")
    queries = read_queries(folder)
    if not queries.keys() & qrels.keys():
        raise DataError(f"{folder}: none of the {len(qrels):,} judged queries of {split} is among the queries")
    name = folder.resolve().name
    return JudgedSet(name=name, folder=folder, split=split, queries=queries, qrels=qrels)


def choose_split(folder: Path, split: str | None) -> str:
    """The split that is meant. Raises DataError, with the splits there are."""
    there = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    if split in there:
        return split
    if split is None and ("test" in there or len(there) == 1):
        return "test" if "test" in there else there[0]
    missing = "no split `test`" if split is None else f"no split {split!r}"
    raise DataError(f"{folder / 'qrels'}: {missing}; there is {', '.join(there) or 'none'}")


def read_document_ids(folder: Path) -> list[str]:
    """Ids of the corpus, in file order. Raises DataError for an id that comes twice, or if there is none."""
    ids: dict[str, None] = {}
    for row, place in _rows(corpus_path(folder)):
        document_id = _string(row, "_id", place)
        if document_id in ids:
            raise DataError(f"{place}: document {document_id!r} was there before")
        ids[document_id] = None
    if not ids:
        raise DataError(f"{corpus_path(folder)}: holds no document")
    return list(ids)


def corpus_path(folder: Path) -> Path:
    """The corpus file of a set. Raises FileNotFoundError."""
    return _either(folder, "corpus.jsonl")


def read_corpus(folder: Path) -> Iterator[Document]:
    """Documents one at a time, in file order."""
    for row, place in _rows(corpus_path(folder)):
        yield Document(
            document_id=_string(row, "_id", place),
            text=_string(row, "text", place),
            title=_optional_string(row, "title", place) or "",
        )


def read_queries(folder: Path) -> dict[str, Query]:
    """Queries by id, in file order."""
    queries = {}
    for row, place in _rows(_either(folder, "queries.jsonl")):
        query_id = _string(row, "_id", place)
        text = _string(row, "text", place)
        queries[query_id] = Query(query_id=query_id, text=text, instruction=_optional_string(row, "instruction", place))
    return queries


def read_qrels(folder: Path, split: str) -> dict[str, dict[str, int]]:
    """Judgements `{query_id: {document_id: grade}}` from `qrels/<split>.tsv`, with or without a header.

    Raises:
        FileNotFoundError: no such split.
        DataError: a line that is not query id, document id and whole grade between tabs.
    """
    path = folder / "qrels" / f"{split}.tsv"
    qrels: dict[str, dict[str, int]] = {}
    number = 0
    with _open(path) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                fields = line.rstrip("\r\n").split("\t")
                if not line.strip() or (number == 1 and not fields[-1].lstrip("-").isdecimal()):
                    continue
                query_id, document_id, grade = _judgement(fields, f"{path}:{number}")
                qrels.setdefault(query_id, {})[document_id] = grade
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read beyond line {number}: {error}") from error
    return qrels


def _judgement(fields: list[str], place: str) -> tuple[str, str, int]:
    try:
        query_id, document_id, text = fields
        grade = int(text)
    except ValueError as error:
        raise DataError(f"{place}: not `query id, document id, grade` between tabs") from error
    if abs(grade) > _MAX_GRADE:
        raise DataError(f"{place}: grade {text[:20]} is beyond {_MAX_GRADE:,}, the highest that can be judged by")
    return query_id, document_id, grade


def _either(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} holds neither {name}.gz nor {name}")


def _open(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    number = 0
    with _open(path) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                place = f"{path}:{number}"
                if line.strip():
                    yield _row(line, place), place
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise DataError(f"{path}: cannot be read beyond line {number}: {error}") from error


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: not a JSON object")
    return row


def _string(row: dict[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"{place}: needs `{name}`, a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: `{name}` holds a lone surrogate, which is not text") from error
    return value


def _optional_string(row: dict[str, Any], name: str, place: str) -> str | None:
    return None if row.get(name) is None else _string(row, name, place)
