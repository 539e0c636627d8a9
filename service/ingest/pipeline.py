"""The way of a document: skip if unchanged, tokenize, encode in the document lane, write durably, count.

Reading goes on while a few batches are encoded and written; when those are full it stops, and with it the client's
sending. A request given as a list is checked whole before its first write.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from service.batching.batcher import Batcher
from service.encoders.base import Embeddings
from service.encoders.checkpoint import Checkpoint
from service.errors import EoseekError, InvalidInputError, OverloadedError, TextTooLongError
from service.metrics import Metrics
from service.settings import BatchingSettings
from service.store.base import Document, Point, Store
from service.store.points import public_name

_CHUNK_DOCUMENTS = 256
_CUT = "-cut-"
# on the wire: what is prepared at once, and what one write carries; a larger document goes alone
_CHUNK_BYTES = 2**20
# two at the encoder (one running, one prefetched), one being written, one spare
_BATCHES_IN_FLIGHT = 4
_MAX_FAILURES = 10_000


@dataclass(frozen=True, kw_only=True)
class IncomingDocument:
    """A document, the line it came from, counted from 1 (None outside a stream of lines), and its bytes on the wire.

    `content_hash` is the whole document's as another collection stores it; None: it is calculated.
    """

    document: Document
    line: int | None = None
    num_bytes: int = 0
    content_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A document that was not indexed, and why."""

    id: str | None
    line: int | None
    code: str
    detail: str


@dataclass(kw_only=True)
class IngestReport:
    """What became of each document: indexed + unchanged + failed is what came in. `truncated` holds ids."""

    indexed: int = 0
    unchanged: int = 0
    failed: list[Failure] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)

    def fail(self, failure: Failure) -> None:
        """Note a failure; ends the request when there are too many to keep in memory."""
        self.failed.append(failure)
        if len(self.failed) > _MAX_FAILURES:
            first = self.failed[0]
            raise InvalidInputError(
                f"More than {_MAX_FAILURES:,} documents failed; reading stopped at line {failure.line}. "
                f"The first, line {first.line}: {first.detail}. Correct them and send all again; the others are free."
            )


@dataclass(frozen=True, kw_only=True)
class _Changed:
    """A document to be encoded, what its hash will be, and its token ids."""

    incoming: IncomingDocument
    content_hash: str
    token_ids: Sequence[int]


_Batch = Sequence[_Changed]  # few enough for one forward and one write


class IngestPipeline:
    """Indexes documents into collections of one store with one checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        batcher: Batcher,
        store: Store,
        metrics: Metrics,
        settings: BatchingSettings,
        *,
        timeout_seconds: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take the parts over.

        Args:
            checkpoint: whose token contract applies.
            batcher: encodes.
            store: keeps the vectors.
            metrics: counts documents.
            settings: bounds of a batch.
            timeout_seconds: longest wait for one batch of a stream, overload included.
            sleep: waits out an overload.
        """
        self._checkpoint = checkpoint
        self._batcher = batcher
        self._store = store
        self._metrics = metrics
        self._settings = settings
        self._timeout_seconds = timeout_seconds
        self._sleep = sleep

    async def ingest(
        self,
        collection: str,
        documents: Sequence[IncomingDocument] | AsyncIterator[IncomingDocument | Failure],
        *,
        truncate: bool = False,
        deadline: float | None = None,
    ) -> IngestReport:
        """Index documents; when this returns, those counted as indexed are durable and visible.

        Args:
            collection: an existing collection of this checkpoint.
            documents: a list, checked whole before the first write; or a stream, where one that is refused fails alone
                and overload is waited out. No id twice.
            truncate: cut what is over the model's length; the report names it.
            deadline: on `time.monotonic`, for a list.
        Raises:
            TextTooLongError: in a list, without `truncate`.
            OverloadedError: for a list, or when a stream waited `timeout_seconds` for a place in the queue.
            EoseekError: of encoder or store; `extra` counts what was done before.
        """
        report = IngestReport()
        if isinstance(documents, Sequence):
            batches = self._prepare_list(collection, documents, report, truncate=truncate)
        else:
            batches = self._prepare_stream(collection, documents, report, truncate=truncate)
            deadline = None
        try:
            await self._write_all(collection, batches, report, deadline)
        except EoseekError as error:
            error.extra = error.extra | {"indexed": report.indexed, "unchanged": report.unchanged}
            raise
        finally:
            self._metrics.count_documents(failed=len(report.failed))
        return report

    async def _prepare_list(
        self, collection: str, documents: Sequence[IncomingDocument], report: IngestReport, *, truncate: bool
    ) -> AsyncGenerator[_Batch]:
        batches = await self._prepare(collection, documents, report, truncate=truncate)
        if report.failed:
            index_of = {each.document.id: index for index, each in enumerate(documents)}
            failure = report.failed[0]
            raise TextTooLongError(
                f"documents[{index_of[failure.id or '']}] (id {(failure.id or '')[:80]!r}) {failure.detail}; "
                f"nothing was written ({len(report.failed)} too long)"
            )
        for batch in batches:
            yield batch

    async def _prepare_stream(
        self,
        collection: str,
        documents: AsyncIterator[IncomingDocument | Failure],
        report: IngestReport,
        *,
        truncate: bool,
    ) -> AsyncGenerator[_Batch]:
        async with aclosing(_chunks(documents, report)) as chunks:
            async for chunk in chunks:
                for batch in await self._prepare(collection, chunk, report, truncate=truncate):
                    yield batch

    async def _prepare(
        self, collection: str, documents: Sequence[IncomingDocument], report: IngestReport, *, truncate: bool
    ) -> list[_Batch]:
        """Leave out what is unchanged or too long, and cut the rest into batches."""
        ids = [each.document.id for each in documents]
        hashes = await asyncio.to_thread(
            lambda: [each.content_hash or each.document.content_hash() for each in documents]
        )
        stored = await self._store.content_hashes(collection, ids)
        changed = [
            (each, content_hash)
            for each, content_hash in zip(documents, hashes, strict=True)
            if stored.get(each.document.id) not in self._unchanged(content_hash, truncate)
        ]
        num_unchanged = len(documents) - len(changed)
        self._metrics.count_documents(unchanged=num_unchanged)
        report.unchanged += num_unchanged
        started = time.monotonic()
        batches = await asyncio.to_thread(self._tokenize, changed, report, truncate)
        self._metrics.observe_stage("tokenize", time.monotonic() - started)
        return batches

    def _unchanged(self, content_hash: str, truncate: bool) -> tuple[str, ...]:
        """Stored hashes that leave nothing to do; a text cut at another length, or that may not be cut, is no such."""
        return (content_hash, self._cut_hash(content_hash)) if truncate else (content_hash,)

    def _cut_hash(self, content_hash: str) -> str:
        """The hash of a document of which only the leading tokens were encoded."""
        return f"{content_hash}{_CUT}{self._checkpoint.max_length}"

    def _tokenize(
        self, documents: Sequence[tuple[IncomingDocument, str]], report: IngestReport, truncate: bool
    ) -> list[_Batch]:
        texts = [(incoming.document.title, incoming.document.text) for incoming, _ in documents]
        tokenized = self._checkpoint.contract.documents(texts, truncate=True)
        cut = set(tokenized.truncated)
        self._metrics.count_truncated(len(cut) if truncate else 0)
        changed = []
        for index, ((incoming, content_hash), token_ids) in enumerate(zip(documents, tokenized.token_ids, strict=True)):
            if index not in cut:
                changed.append(_Changed(incoming=incoming, content_hash=content_hash, token_ids=token_ids))
            elif truncate:
                report.truncated.append(incoming.document.id)
                cut_hash = self._cut_hash(content_hash)
                changed.append(_Changed(incoming=incoming, content_hash=cut_hash, token_ids=token_ids))
            else:
                report.fail(self._too_long(incoming))
        return list(self._batches(changed))

    def _too_long(self, incoming: IncomingDocument) -> Failure:
        document = incoming.document
        try:
            self._checkpoint.contract.documents([(document.title, document.text)], truncate=False)
        except TextTooLongError as error:
            detail = (
                f"has {error.extra['num_tokens']:,} tokens, the limit is {error.extra['max_tokens']:,}; "
                "split it or set truncate: true"
            )
            return Failure(id=document.id, line=incoming.line, code=error.code, detail=detail)
        raise AssertionError("a text that was cut is not too long")

    def _batches(self, changed: Sequence[_Changed]) -> Iterator[_Batch]:
        """Runs of documents within the bounds of a batch; a longer one goes alone."""
        start = num_tokens = num_bytes = 0
        for index, each in enumerate(changed):
            num_tokens += len(each.token_ids)
            num_bytes += each.incoming.num_bytes
            is_full = index - start >= self._settings.max_batch_texts
            if index > start and (is_full or num_tokens > self._settings.max_batch_tokens or num_bytes > _CHUNK_BYTES):
                yield changed[start:index]
                start, num_tokens, num_bytes = index, len(each.token_ids), each.incoming.num_bytes
        if changed:
            yield changed[start:]

    async def _write_all(
        self, collection: str, batches: AsyncGenerator[_Batch], report: IngestReport, deadline: float | None
    ) -> None:
        slots = asyncio.Semaphore(_BATCHES_IN_FLIGHT)

        async def write(batch: _Batch) -> None:
            try:
                await self._write(collection, batch, report, deadline)
            finally:
                slots.release()

        try:
            async with aclosing(batches) as reading, asyncio.TaskGroup() as tasks:
                async for batch in reading:
                    await slots.acquire()
                    tasks.create_task(write(batch))
        except ExceptionGroup as group:
            # the first is the cause, the others are its company
            raise group.exceptions[0] from group

    async def _write(self, collection: str, batch: _Batch, report: IngestReport, deadline: float | None) -> None:
        embeddings = await self._encode(batch, deadline)
        points = [
            Point(
                document=each.incoming.document,
                embedding=embedding,
                content_hash=each.content_hash,
                num_bytes=each.incoming.num_bytes,
            )
            for each, embedding in zip(batch, embeddings, strict=True)
        ]
        started = time.monotonic()
        await self._store.upsert(collection, points)
        seconds = time.monotonic() - started
        self._metrics.observe_stage("flush", seconds, collection=public_name(collection))
        self._metrics.count_documents(indexed=len(points))
        report.indexed += len(points)

    async def _encode(self, batch: _Batch, deadline: float | None) -> Embeddings:
        token_ids = [each.token_ids for each in batch]
        until = deadline or time.monotonic() + self._timeout_seconds
        while True:
            try:
                return (await self._batcher.submit(token_ids, lane="document", deadline=until)).embeddings
            except OverloadedError as error:
                pause = error.retry_after_seconds or 1.0
                if deadline or time.monotonic() + pause > until:
                    raise
                await self._sleep(pause)


def split_hash(stored_hash: str) -> tuple[str, bool]:
    """The whole document's content hash, and whether only its leading tokens were encoded."""
    content_hash, cut, _ = stored_hash.partition(_CUT)
    return content_hash, bool(cut)


async def _chunks(
    documents: AsyncIterator[IncomingDocument | Failure], report: IngestReport
) -> AsyncGenerator[list[IncomingDocument]]:
    """Documents in chunks of bounded number and size; failures go to the report."""
    chunk: list[IncomingDocument] = []
    num_bytes = 0
    async for each in documents:
        if isinstance(each, Failure):
            report.fail(each)
            continue
        chunk.append(each)
        num_bytes += each.num_bytes
        if len(chunk) >= _CHUNK_DOCUMENTS or num_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk
