"""A stream of bytes as documents, one JSON object a line, in bounded memory.

Bad lines become failures with their line number, the good ones go on. To name both lines of a repeated id, 16 bytes of
digest are kept for each document: about 150 bytes of memory a document.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from pydantic import ValidationError

from service.errors import InvalidInputError, MalformedInputError
from service.ingest.pipeline import Failure, IncomingDocument
from service.schemas import DocumentIn
from service.store.points import check_document
from service.wire import describe_errors, parse_json

_MAX_DETAIL_CHARS = 500


async def split_lines(chunks: AsyncIterator[bytes], *, max_line_bytes: int) -> AsyncIterator[bytes | None]:
    """The lines of `chunks` without their line ends; None for one of more than `max_line_bytes`."""
    pieces: list[bytes] = []
    size = 0
    async for chunk in chunks:
        for index, piece in enumerate(chunk.split(b"\n")):
            if index:
                yield b"".join(pieces) if size <= max_line_bytes else None
                pieces, size = [], 0
            size += len(piece)
            if size <= max_line_bytes:
                pieces.append(piece)
            else:
                pieces.clear()
    if size:
        yield b"".join(pieces) if size <= max_line_bytes else None


def parse_line(raw: bytes, line: int, *, max_text_chars: int) -> IncomingDocument | Failure:
    """The document of one line, or why it is none. BEIR's `_id` is taken for `id`."""
    value: Any = None
    try:
        value = parse_json(raw)
        if isinstance(value, dict) and "_id" in value and "id" not in value:
            value["id"] = value.pop("_id")
        document = DocumentIn.model_validate(value).to_document()
        check_document(document)
        chars = len(document.title) + len(document.text)
        if chars > max_text_chars:
            raise InvalidInputError(
                f"title and text have {chars:,} characters; the limit is {max_text_chars:,}. Split it."
            )
    except ValidationError as error:
        return _failure(value, line, InvalidInputError.code, describe_errors(error.errors())[0])
    except InvalidInputError as error:
        return _failure(value, line, error.code, error.detail)
    except MalformedInputError as error:
        # the reader counts lines within what it was given, which is this one
        return _failure(None, line, error.code, error.detail.replace("at line 1 column", "at column"))
    return IncomingDocument(document=document, line=line, num_bytes=len(raw))


def _failure(value: Any, line: int, code: str, detail: str) -> Failure:
    sent_id = value.get("id") if isinstance(value, dict) else None
    shown_id = sent_id[:512] if isinstance(sent_id, str) else None
    return Failure(id=shown_id, line=line, code=code, detail=detail[:_MAX_DETAIL_CHARS])


async def read_documents(
    chunks: AsyncIterator[bytes], *, max_line_bytes: int, max_text_chars: int
) -> AsyncIterator[IncomingDocument | Failure]:
    """Documents and failures in the order of their lines; blank lines are skipped, a repeated id fails."""
    line_of: dict[bytes, int] = {}
    line = 0
    async for raw in split_lines(chunks, max_line_bytes=max_line_bytes):
        line += 1
        if raw is None:
            detail = f"over {max_line_bytes:,} bytes; split the document"
            yield Failure(id=None, line=line, code="line_too_long", detail=detail)
            continue
        if not raw.strip():
            continue
        parse = partial(parse_line, raw, line, max_text_chars=max_text_chars)
        # as for whole bodies: on the loop only what takes no longer than a thread's hand-over
        parsed = parse() if len(raw) < 2**20 else await asyncio.to_thread(parse)
        if isinstance(parsed, IncomingDocument):
            first = line_of.setdefault(_digest(parsed.document.id), line)
            if first != line:
                detail = f"the id of line {first} again; that one is indexed, this one is not"
                parsed = Failure(id=parsed.document.id, line=line, code="duplicate_id", detail=detail)
        yield parsed


def _digest(document_id: str) -> bytes:
    return hashlib.blake2b(document_id.encode("utf-8"), digest_size=16).digest()
