"""Bulk loading through HTTP: documents in, acknowledged batches out, in bounded memory.

A few batches are under way at once; the watermark is the last line up to which every batch was acknowledged. It is all
that a resumed run needs: what was sent beyond it is sent again, and the service skips what it holds unchanged.
`IngestRun` decides what is sent when and does no I/O; `drive` and `drive_async` do what it asks for, the one in
threads, the other in tasks.
"""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypedDict

from eoseek.answers import IngestAnswer
from eoseek.lines import MAX_LINE_BYTES, Document, Line, UnreadableError

if TYPE_CHECKING:
    from eoseek.client import Client

_MAX_BATCH_BYTES = 8 * 2**20
_NOTHING = IngestAnswer(indexed=0, unchanged=0, failed=[], num_truncated=0)


@dataclass(kw_only=True)
class Counts:
    """What became of the documents read so far: indexed + unchanged + failed is read; truncated ones were cut."""

    read: int = 0
    indexed: int = 0
    unchanged: int = 0
    failed: int = 0
    truncated: int = 0

    def add(self, other: "Counts") -> None:
        """Adds another count to this one."""
        self.read += other.read
        self.indexed += other.indexed
        self.unchanged += other.unchanged
        self.failed += other.failed
        self.truncated += other.truncated


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """How documents travel: `batch_size` of them in a request, `concurrency` requests at once.

    Without a collection they go to the service's default one.
    """

    collection: str | None = None
    batch_size: int = 32
    concurrency: int = 4
    truncate: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a number below 1."""
        for name in ("batch_size", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")


class StreamOptions(TypedDict, total=False):
    """The fields of `IngestOptions` as arguments."""

    collection: str | None
    batch_size: int
    concurrency: int
    truncate: bool


@dataclass(frozen=True, kw_only=True)
class DocumentFailure:
    """A document that was not indexed; `position` counts from 0 within what was given."""

    position: int
    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What became of all documents; the failures are in their order."""

    counts: Counts
    failures: list[DocumentFailure]


@dataclass(frozen=True, kw_only=True)
class Watermark:
    """All lines up to `line` are dealt with; `document_id` is the last of them that was stored."""

    line: int = 0
    position: int = 0
    document_id: str | None = None
    counts: Counts = field(default_factory=Counts)


@dataclass
class Batch:
    """Documents of one request, and the lines before its end that are none."""

    documents: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # id -> line number and JSON
    refused: list[DocumentFailure] = field(default_factory=list)
    num_bytes: int = 0
    line: int = 0
    position: int = 0

    def __len__(self) -> int:
        return len(self.documents) + len(self.refused)

    def failures(self, answer: IngestAnswer) -> list[DocumentFailure]:
        """What was not indexed, in order."""
        sent = [number for number, _ in self.documents.values()]
        theirs = [
            DocumentFailure(position=sent[each.line - 1] - 1, code=each.code, detail=each.detail)
            for each in answer.failed
        ]
        return sorted([*self.refused, *theirs], key=lambda failure: failure.position)


class IngestRun:
    """One pass over the lines: builds batches, keeps a window of them under way, moves the watermark.

    `add` and `end` give what is to be done next, in order: a batch to be sent, or None where the answer to the oldest
    one under way must be awaited and given to `acknowledge`. A document whose id is still under way waits for the
    earlier one, so that the later one wins, as in a plain loop.
    """

    def __init__(
        self,
        options: IngestOptions,
        *,
        on_failure: Callable[[DocumentFailure], object],
        on_progress: Callable[[Watermark], object],
        start: Watermark | None = None,
    ) -> None:
        self.watermark = start or Watermark()
        self._options = options
        self._on_failure = on_failure
        self._on_progress = on_progress
        self._window: deque[Batch] = deque()
        self._batch = Batch()

    def add(self, line: Line) -> Iterator[Batch | None]:
        """Takes the next line."""
        if not isinstance(line.data, bytes | str) or line.data.strip():
            checked = _checked(line)
            if isinstance(checked, DocumentFailure):
                self._batch.refused.append(checked)
            else:
                document_id, data = checked
                if any(document_id in batch.documents for batch in (self._batch, *self._window)):
                    yield from self.end()
                self._batch.documents[document_id] = (line.number, data)
                self._batch.num_bytes += len(data)
        self._batch.line, self._batch.position = line.number, line.position
        if len(self._batch) >= self._options.batch_size or self._batch.num_bytes >= _MAX_BATCH_BYTES:
            yield from self._submit()

    def end(self) -> Iterator[Batch | None]:
        """Sends what is left; after it everything is acknowledged."""
        if self._batch.line:
            yield from self._submit()
        while self._window:
            yield None

    def _submit(self) -> Iterator[Batch | None]:
        batch, self._batch = self._batch, Batch()
        while len(self._window) >= self._options.concurrency:
            yield None
        self._window.append(batch)
        yield batch

    def acknowledge(self, answer: IngestAnswer) -> None:
        """Takes the answer to the oldest batch under way."""
        batch = self._window.popleft()
        failures = batch.failures(answer)
        for failure in failures:
            self._on_failure(failure)
        failed_lines = {failure.position + 1 for failure in failures}
        stored = [document_id for document_id, (number, _) in batch.documents.items() if number not in failed_lines]
        counts = Counts(
            read=len(batch),
            indexed=answer.indexed,
            unchanged=answer.unchanged,
            failed=len(failures),
            truncated=answer.num_truncated,
        )
        counts.add(self.watermark.counts)
        self.watermark = Watermark(
            line=batch.line,
            position=batch.position,
            document_id=stored[-1] if stored else self.watermark.document_id,
            counts=counts,
        )
        self._on_progress(self.watermark)


def drive(run: IngestRun, lines: Iterable[Line], send: Callable[[bytes], IngestAnswer]) -> None:
    """Sends all lines, each request in a thread of its own, and waits for the last acknowledgement.

    After an error nobody waits for the requests that are under way; they end with their client.
    """
    window: deque[Future[IngestAnswer]] = deque()
    for batch in chain(chain.from_iterable(map(run.add, lines)), run.end()):
        if batch is not None:
            window.append(_in_background(partial(send, _body(batch)) if batch.documents else lambda: _NOTHING))
        else:
            run.acknowledge(window.popleft().result())


async def drive_async(
    run: IngestRun, lines: AsyncIterable[Line], send: Callable[[bytes], Awaitable[IngestAnswer]]
) -> None:
    """Sends all lines, each request in a task of its own; after an error the requests under way are cancelled."""
    window: deque[asyncio.Task[IngestAnswer]] = deque()

    async def answer_to(batch: Batch) -> IngestAnswer:
        return await send(_body(batch)) if batch.documents else _NOTHING

    async def follow(steps: Iterator[Batch | None]) -> None:
        for batch in steps:
            if batch is not None:
                window.append(asyncio.create_task(answer_to(batch)))
            else:
                run.acknowledge(await window[0])
                window.popleft()

    try:
        async for line in lines:
            await follow(run.add(line))
        await follow(run.end())
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)


class Stream:
    """Documents on their way from a program: `run` is to be driven, then there is a report."""

    def __init__(self, options: IngestOptions, on_progress: Callable[[Counts], object] | None) -> None:
        self._failures: list[DocumentFailure] = []
        self.run = IngestRun(
            options,
            on_failure=self._failures.append,
            on_progress=lambda watermark: on_progress(watermark.counts) if on_progress else None,
        )

    def report(self) -> IngestReport:
        """What became of it all."""
        return IngestReport(counts=self.run.watermark.counts, failures=self._failures)


def numbered(documents: Iterable[Document]) -> Iterator[Line]:
    """The documents as lines. Raises ValueError for one document in the place of many."""
    if isinstance(documents, bytes | str | Mapping):
        raise ValueError(f"documents is one {type(documents).__name__}: give an iterable of documents, such as a list")
    return (Line(number, document) for number, document in enumerate(documents, start=1))


async def numbered_async(documents: AsyncIterable[Document] | Iterable[Document]) -> AsyncIterator[Line]:
    """As `numbered`, of either kind of iterable."""
    if not isinstance(documents, AsyncIterable):
        for line in numbered(documents):
            yield line
        return
    number = 0
    async for document in documents:
        number += 1
        yield Line(number, document)


def ingest_lines(
    client: "Client",
    lines: Iterable[Line],
    options: IngestOptions,
    *,
    on_failure: Callable[[int, str], None],
    on_progress: Callable[[Watermark], None],
    start: Watermark | None = None,
) -> Watermark:
    """Sends documents, one JSON object a line, and returns where it ended.

    Args:
        client: retries 429, 503 and lost connections itself.
        lines: BEIR (`_id`, `title`, `text`) or plain (`id`); blank lines are skipped.
        options: how documents travel.
        on_failure: called with line number and reason for each document that was not indexed, in order.
        on_progress: called whenever the watermark moves.
        start: the watermark of an interrupted run over the same lines.
    Raises:
        EoseekClientError: the service refused a whole request or stayed away. The watermark reported last holds, and
            the client is closed, as after an interrupt.
        UnreadableError: from `lines`; what was read before it has been sent.
    """
    unreadable: list[UnreadableError] = []

    def readable() -> Iterator[Line]:
        try:
            yield from lines
        except UnreadableError as error:
            unreadable.append(error)

    run = IngestRun(
        options,
        on_failure=lambda failure: on_failure(failure.position + 1, f"{failure.code}: {failure.detail}"),
        on_progress=on_progress,
        start=start,
    )
    send = partial(client.ingest, collection=options.collection, truncate=options.truncate)
    try:
        drive(run, islice(readable(), run.watermark.line, None), send)
    except BaseException:
        client.close()  # calls that wait for another attempt end now
        raise
    if unreadable:
        raise unreadable[0]
    return run.watermark


def _checked(line: Line) -> tuple[str, bytes] | DocumentFailure:
    """Id and UTF-8 JSON of a line, or why it is no document; the rest is checked by the service."""
    if isinstance(line.data, bytes | str) and len(line.data) >= MAX_LINE_BYTES:
        return _refused(line, "line_too_long", f"longer than {MAX_LINE_BYTES:,} bytes; split the document")
    try:
        document, data = _parsed(line.data, line.number) if isinstance(line.data, bytes | str) else _written(line.data)
    except UnicodeDecodeError as error:
        return _refused(line, "malformed_input", f"not UTF-8 at byte {error.start}")
    except (TypeError, ValueError, RecursionError) as error:
        return _refused(line, "malformed_input", f"not JSON: {error}")
    if not isinstance(document, Mapping):
        return _refused(line, "invalid_input", "not a JSON object")
    document_id = document.get("id", document.get("_id"))
    if not isinstance(document_id, str):
        return _refused(line, "invalid_input", "needs `id` or `_id`, a string")
    return document_id, data


def _parsed(data: bytes | str, number: int) -> tuple[Any, bytes]:
    text = data if isinstance(data, str) else data.decode("utf-8-sig" if number == 1 else "utf-8")
    text = text.strip()
    # JSON has line ends between its tokens only, and the request one document a line
    return json.loads(text), text.replace("\n", " ").encode("utf-8")


def _written(document: Any) -> tuple[Any, bytes]:
    fields = dict(document) if isinstance(document, Mapping) else document
    return fields, json.dumps(fields, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _refused(line: Line, code: str, detail: str) -> DocumentFailure:
    return DocumentFailure(position=line.number - 1, code=code, detail=detail)


def _body(batch: Batch) -> bytes:
    return b"\n".join(data for _, data in batch.documents.values()) + b"\n"


def _in_background(work: Callable[[], IngestAnswer]) -> Future[IngestAnswer]:
    """Runs `work` in a daemon thread: after an interrupt nobody waits for an answer that may take minutes."""
    future: Future[IngestAnswer] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="ingest", daemon=True).start()
    return future
