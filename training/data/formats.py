"""Readers of training data: BEIR folders, `query/positive/negatives` and `query/pos/neg/prompt` lines, gz or plain.

Every line is checked as it is read, because a wrong line trains without a word: an error names file and line.
Examples are kept in memory as text (about 1 KB each); tokenizing happens batch by batch.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from training.errors import DataError
from training.evaluation import beir


class DocumentText(NamedTuple):
    """What of a document is embedded; equal texts are one document."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A query with its known positives and its hard negatives.

    Scores, where given, are a teacher's, in the order of the texts; `instruction` None means the set's.
    """

    query: str
    positives: tuple[DocumentText, ...]
    negatives: tuple[DocumentText, ...] = ()
    positive_scores: tuple[float, ...] | None = None
    negative_scores: tuple[float, ...] | None = None
    instruction: str | None = None
    source: str = ""


def read_examples(path: Path, *, split: str = "train") -> Iterator[Example]:
    """Examples of a file or BEIR folder, in order, checked.

    Args:
        path: a `.jsonl` or `.jsonl.gz` file, or a folder in BEIR's layout.
        split: which judgements of a BEIR folder.
    Raises:
        DataError: a line that is empty, not UTF-8, not JSON, of no known format, or whose positive is among its
            negatives; the message starts with `file:line`.
    """
    if path.is_dir():
        yield from _read_beir(path, split)
    else:
        for row, place in read_rows(path):
            yield _example(row, place)


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """(JSON object, `file:line`) of each line. Raises DataError as `read_examples`."""
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, start=1):
                place = f"{path}:{number}"
                yield _row(line, place), place
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def _row(line: bytes, place: str) -> dict[str, Any]:
    if not line.strip():
        raise DataError(f"{place}: the line is empty")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8: {error}") from error
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: not a JSON object")
    return row


def _example(row: dict[str, Any], place: str) -> Example:
    if "positive" in row:
        names = ("positive", "negatives", "positive_scores", "negative_scores", "instruction")
    elif "pos" in row:
        names = ("pos", "neg", "pos_scores", "neg_scores", "prompt")
    else:
        raise DataError(f"{place}: has neither `positive` nor `pos`; known are query/positive/negatives, query/pos/neg")
    positive, negative, positive_scores, negative_scores, instruction = names
    given = row[positive]
    positives = _documents(given if isinstance(given, list) else [given], positive, place)
    negatives = _documents(row.get(negative) or [], negative, place)
    if not positives:
        raise DataError(f"{place}: `{positive}` is empty")
    example = Example(
        query=_text(row.get("query"), "query", place),
        positives=positives,
        negatives=negatives,
        positive_scores=_scores(row.get(positive_scores), len(positives), positive_scores, place),
        negative_scores=_scores(row.get(negative_scores), len(negatives), negative_scores, place),
        instruction=_optional(row.get(instruction), instruction, place),
        source=_optional(row.get("source"), "source", place) or "",
    )
    return _checked(example, place)


def _checked(example: Example, place: str) -> Example:
    both = set(example.positives) & set(example.negatives)
    if both:
        raise DataError(f"{place}: a positive is among its own negatives: {next(iter(both)).text[:80]!r}")
    return example


def _documents(values: Any, name: str, place: str) -> tuple[DocumentText, ...]:
    if not isinstance(values, list):
        raise DataError(f"{place}: `{name}` must be a list")
    return tuple(read_document(value, name, place) for value in values)


def read_document(value: Any, name: str, place: str) -> DocumentText:
    """A text, or an object with `text` and perhaps `title`. Raises DataError, which begins with `place`."""
    title = ""
    if isinstance(value, dict):
        title = value.get("title") or ""
        value = value.get("text")
    return DocumentText(_text(title, f"{name}.title", place, may_be_empty=True), _text(value, name, place))


def _text(value: Any, name: str, place: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: `{name}` must be a string, not {type(value).__name__}")
    if not may_be_empty and not value.strip():
        raise DataError(f"{place}: `{name}` is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: `{name}` holds a lone surrogate, which is not text") from error
    return value


def _optional(value: Any, name: str, place: str) -> str | None:
    return None if value is None else _text(value, name, place, may_be_empty=True)


def _scores(values: Any, count: int, name: str, place: str) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count:
        raise DataError(f"{place}: `{name}` must be a list of {count} numbers, one for each text")
    try:
        scores = tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{place}: `{name}` holds something that is not a number") from error
    if not all(map(math.isfinite, scores)):
        raise DataError(f"{place}: `{name}` holds a number that is not finite")
    return scores


def _read_beir(folder: Path, split: str) -> Iterator[Example]:
    """One example for each judged query: grades from 1 on are positives, grade 0 and below judged negatives."""
    try:
        qrels = beir.read_qrels(folder, split)
        queries = beir.read_queries(folder)
        wanted = {document_id for grades in qrels.values() for document_id in grades}
        documents = {
            each.document_id: DocumentText(each.title, each.text)
            for each in beir.read_corpus(folder)
            if each.document_id in wanted
        }
    except (OSError, EOFError, ValueError) as error:
        raise DataError(str(error)) from error
    for query_id, grades in qrels.items():
        place = f"{folder}, query {query_id}"
        if query_id not in queries:
            raise DataError(f"{place}: judged, but not among the queries")
        positives = _known([each for each, grade in grades.items() if grade > 0], documents, place)
        if not positives:
            continue
        query = queries[query_id]
        negatives = _known([each for each, grade in grades.items() if grade <= 0], documents, place)
        yield _checked(
            Example(
                query=_text(query.text, "text", place),
                positives=positives,
                negatives=negatives,
                instruction=query.instruction,
            ),
            place,
        )


def _known(ids: Sequence[str], documents: dict[str, DocumentText], place: str) -> tuple[DocumentText, ...]:
    missing = [each for each in ids if each not in documents]
    if missing:
        raise DataError(f"{place}: document {missing[0]} is judged, but not in the corpus")
    # documents may share a text; dict keeps the first and the order
    return tuple(dict.fromkeys(documents[each] for each in ids))
