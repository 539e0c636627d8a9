"""Bulk loading through HTTP: lines in, acknowledged batches out, in bounded memory.

A few batches are under way at once; the watermark is the last line up to which every batch was acknowledged. It is all
that a resumed run needs: what was sent beyond it is sent again, and the service skips what it holds unchanged.
"""

import gzip
import json
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from eoseek.client import Client

_MAX_LINE_BYTES = 64 * 2**20
_MAX_BATCH_BYTES = 8 * 2**20


class UnreadableError(Exception):
    """A file that cannot be read to its end; the message is one line."""


@dataclass(frozen=True)
class Line:
    """A line of a file: its number from 1, and how many bytes of the file were consumed with it."""

    number: int
    data: bytes
    position: int


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


@dataclass(frozen=True, kw_only=True)
class Watermark:
    """All lines up to `line` are dealt with; `document_id` is the last of them that was stored."""

    line: int = 0
    position: int = 0
    document_id: str | None = None
    counts: Counts = field(default_factory=Counts)


@dataclass
class _Batch:
    documents: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # id -> line number and JSON
    refused: list[tuple[int, str]] = field(default_factory=list)
    num_bytes: int = 0
    line: int = 0
    position: int = 0

    def __len__(self) -> int:
        return len(self.documents) + len(self.refused)


@dataclass
class _Outcome:
    batch: _Batch
    counts: Counts
    failures: list[tuple[int, str]]


def read_lines(path: Path | None, stdin: BinaryIO) -> Iterator[Line]:
    """Lines of a file, of a gzip file by its name, or of stdin for None.

    Raises:
        UnreadableError: the file is not there, is not gzip though named so, or is cut off.
    """
    number = 0
    try:
        with open(path, "rb") if path else nullcontext(stdin) as raw, _unpacked(raw, path) as lines:
            for number, data in enumerate(iter(partial(lines.readline, _MAX_LINE_BYTES), b""), start=1):
                rest = data
                while len(rest) == _MAX_LINE_BYTES and not rest.endswith(b"\n"):  # too long, but one line still
                    rest = lines.readline(_MAX_LINE_BYTES)
                yield Line(number, data, raw.tell() if path else 0)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableError(f"{path or 'stdin'}: cannot be read beyond line {number}: {reason}") from error


def _unpacked(raw: BinaryIO, path: Path | None) -> AbstractContextManager[BinaryIO | gzip.GzipFile]:
    return gzip.open(raw) if path and path.suffix == ".gz" else nullcontext(raw)


def ingest_lines(
    client: Client,
    lines: Iterable[Line],
    options: IngestOptions,
    *,
    on_failure: Callable[[int, str], None],
    on_progress: Callable[[Watermark], None],
    start: Watermark | None = None,
) -> Watermark:
    """Sends documents, one JSON object a line, and returns where it ended.

    A document whose id is still under way waits for the earlier one, so that the later line wins, as in a plain loop.

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
    run = _Run(client, options, on_failure, on_progress, start or Watermark())
    try:
        run.feed(islice(lines, run.watermark.line, None))
    except UnreadableError:
        raise
    except BaseException:
        client.close()  # calls that wait for another attempt end now
        raise
    return run.watermark


class _Run:
    """One pass over the lines: builds batches, keeps a window of them under way, moves the watermark."""

    def __init__(
        self,
        client: Client,
        options: IngestOptions,
        on_failure: Callable[[int, str], None],
        on_progress: Callable[[Watermark], None],
        watermark: Watermark,
    ) -> None:
        self.watermark = watermark
        self._client = client
        self._options = options
        self._on_failure = on_failure
        self._on_progress = on_progress
        self._window: deque[tuple[_Batch, Future[_Outcome]]] = deque()
        self._batch = _Batch()

    def feed(self, lines: Iterable[Line]) -> None:
        """Sends all lines and waits for the last acknowledgement."""
        try:
            for line in lines:
                self._add(line)
                if len(self._batch) >= self._options.batch_size or self._batch.num_bytes >= _MAX_BATCH_BYTES:
                    self._submit()
        except UnreadableError:
            self._drain()
            raise
        self._drain()

    def _add(self, line: Line) -> None:
        if line.data.strip():
            try:
                document_id, data = _checked(line)
            except ValueError as error:
                self._batch.refused.append((line.number, str(error)))
            else:
                if any(document_id in batch.documents for batch in [self._batch, *(b for b, _ in self._window)]):
                    self._drain()
                self._batch.documents[document_id] = (line.number, data)
                self._batch.num_bytes += len(data)
        self._batch.line, self._batch.position = line.number, line.position

    def _submit(self) -> None:
        batch, self._batch = self._batch, _Batch()
        while len(self._window) >= self._options.concurrency:
            self._acknowledge()
        self._window.append((batch, _in_background(partial(_send, self._client, batch, self._options))))

    def _drain(self) -> None:
        if self._batch.line:
            self._submit()
        while self._window:
            self._acknowledge()

    def _acknowledge(self) -> None:
        batch, future = self._window.popleft()
        outcome = future.result()
        for number, reason in outcome.failures:
            self._on_failure(number, reason)
        failed_lines = {number for number, _ in outcome.failures}
        stored = [document_id for document_id, (number, _) in batch.documents.items() if number not in failed_lines]
        outcome.counts.add(self.watermark.counts)
        self.watermark = Watermark(
            line=batch.line,
            position=batch.position,
            document_id=stored[-1] if stored else self.watermark.document_id,
            counts=outcome.counts,
        )
        self._on_progress(self.watermark)


def _checked(line: Line) -> tuple[str, bytes]:
    """Id and UTF-8 JSON of a line. Raises ValueError with the reason; the rest is checked by the service."""
    if len(line.data) >= _MAX_LINE_BYTES:
        raise ValueError(f"line is longer than {_MAX_LINE_BYTES} bytes")
    try:
        text = line.data.decode("utf-8-sig" if line.number == 1 else "utf-8").strip()
        document = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    document_id = document.get("id", document.get("_id"))
    if not isinstance(document_id, str):
        raise ValueError("needs `id` or `_id`, a string")
    return document_id, text.encode("utf-8")


def _in_background(work: Callable[[], _Outcome]) -> Future[_Outcome]:
    """Runs `work` in a daemon thread: after an interrupt nobody waits for an answer that may take minutes."""
    future: Future[_Outcome] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="ingest", daemon=True).start()
    return future


def _send(client: Client, batch: _Batch, options: IngestOptions) -> _Outcome:
    counts, failures = Counts(read=len(batch)), list(batch.refused)
    if batch.documents:
        sent = list(batch.documents.values())
        body = b"\n".join(data for _, data in sent) + b"\n"
        answer = client.ingest(body, collection=options.collection, truncate=options.truncate)
        counts.indexed, counts.unchanged, counts.truncated = answer.indexed, answer.unchanged, answer.num_truncated
        failures += [(sent[each.line - 1][0], f"{each.code}: {each.detail}") for each in answer.failed]
    counts.failed = len(failures)
    return _Outcome(batch, counts, sorted(failures))
