"""Lines of the files that are loaded: numbered, and bounded in length whatever a file holds."""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

MAX_LINE_BYTES = 64 * 2**20
# a document as it is sent: its fields, or its JSON on one line
Document = Mapping[str, Any] | bytes | str


class UnreadableError(Exception):
    """A file that cannot be read to its end; the message is one line."""


@dataclass(frozen=True)
class Line:
    """A document of a file or stream: its number from 1, and how many bytes of the file were consumed with it."""

    number: int
    data: Document
    position: int = 0


def read_lines(path: Path | None, stdin: BinaryIO) -> Iterator[Line]:
    """Lines of a file, of a gzip file by its name, or of stdin for None.

    Raises:
        UnreadableError: the file is not there, is not gzip though named so, or is cut off.
    """
    number = 0
    try:
        with open(path, "rb") if path else nullcontext(stdin) as raw, _unpacked(raw, path) as lines:
            for number, data in enumerate(iter(partial(lines.readline, MAX_LINE_BYTES), b""), start=1):
                rest = data
                while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):  # too long, but one line still
                    rest = lines.readline(MAX_LINE_BYTES)
                yield Line(number, data, raw.tell() if path else 0)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableError(f"{path or 'stdin'}: cannot be read beyond line {number}: {reason}") from error


def _unpacked(raw: BinaryIO, path: Path | None) -> AbstractContextManager[BinaryIO | gzip.GzipFile]:
    return gzip.open(raw) if path and path.suffix == ".gz" else nullcontext(raw)
