"""Documents of a corpus's files, in order and by the service's own rules for a document.

Files are read forward only, since gzip cannot seek: whoever takes parts in ascending order unpacks a file once, and
lines before a part are passed over unparsed. Price: an actor that takes every tenth part reads the whole file.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

from eoseek.lines import UnreadableError, read_lines
from service.errors import ConfigurationError
from service.ingest.lines import parse_line
from service.ingest.pipeline import Failure
from service.settings import ApiSettings

_MAX_TEXT_CHARS: int = ApiSettings.model_fields["max_text_chars"].default
_PARQUET_BATCH = 1024


class BadDocumentError(ConfigurationError):
    """A document that the service would refuse; the detail starts with `file:line`."""


class CorpusDocument(NamedTuple):
    """A document and its line in its file, from 1; of Parquet its row."""

    line: int
    document_id: str
    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """Documents `start` to `stop` of one file, counted from 0 without blank lines; `number` is its place in all."""

    number: int
    path: str
    start: int
    stop: int

    @property
    def num_documents(self) -> int:
        """Documents of the part."""
        return self.stop - self.start


def raw_documents(path: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(line, JSON) of each document from the `start`-th on. Raises UnreadableError."""
    if path.suffix == ".parquet":
        return _parquet_rows(path, start)
    lines = read_lines(path, io.BytesIO())
    return islice(
        ((each.number, cast(bytes, each.data)) for each in lines if cast(bytes, each.data).strip()), start, None
    )


def parse_document(path: Path, line: int, raw: bytes) -> CorpusDocument:
    """The document of one line. Raises BadDocumentError."""
    parsed = parse_line(raw, line, max_text_chars=_MAX_TEXT_CHARS)
    if isinstance(parsed, Failure):
        raise BadDocumentError(f"{path}:{line}: {parsed.code}: {parsed.detail}")
    document = parsed.document
    return CorpusDocument(line, document.id, document.title, document.text)


class ForwardReader:
    """Parts of files; one that begins behind the last one read costs no second unpacking."""

    def __init__(self) -> None:
        self._path = ""
        self._position = 0
        self._rows: Iterator[tuple[int, bytes]] = iter(())

    def read(self, part: Part) -> list[CorpusDocument]:
        """The documents of a part.

        Raises:
            UnreadableError: the file is gone, damaged, or shorter than it was.
            BadDocumentError: as `parse_document`.
        """
        path = Path(part.path)
        if self._path != part.path or self._position > part.start:
            self._path, self._position, self._rows = part.path, part.start, raw_documents(path, part.start)
        skipped = part.start - self._position
        found = list(islice(self._rows, skipped, skipped + part.num_documents))
        self._position = part.stop
        if len(found) != part.num_documents:
            raise UnreadableError(f"{path}: has changed: it ends before document {part.stop:,}")
        return [parse_document(path, line, raw) for line, raw in found]


def _parquet_rows(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            groups = list(range(file.num_row_groups))
            while groups and number + file.metadata.row_group(groups[0]).num_rows <= start:
                number += file.metadata.row_group(groups.pop(0)).num_rows
            columns = _columns(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH, row_groups=groups, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    if number > start:
                        yield number, _as_json({name: value for name, value in row.items() if value is not None})
    except (OSError, ValueError, TypeError) as error:  # Arrow's own errors are of these
        raise UnreadableError(f"{path}: cannot be read beyond row {number}: {error}") from error


def _as_json(row: dict[str, object]) -> bytes:
    return json.dumps(row).encode()


def _columns(path: Path, names: list[str]) -> list[str]:
    identifier = "_id" if "_id" in names else "id"
    if not {identifier, "text"} <= set(names):
        raise UnreadableError(f"{path}: needs the columns `_id` or `id`, and `text`; it has {', '.join(names)}")
    return [identifier, "text", *(["title"] if "title" in names else [])]
