"""Clients of the service on httpx: `Client` for threads, `AsyncClient` for asyncio; the same calls, answers and errors.

Each is a thin shell: `eoseek.calls` says what is sent and when it is sent again, `eoseek.ingest` how a stream of
documents is cut into requests. Price: the list of methods stands here twice, a line of work each.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, Unpack, cast

import httpx

from eoseek import calls
from eoseek.answers import EmbedAnswer, EoseekClientError, Hit, IngestAnswer, Json, LineFailure, SearchAnswer
from eoseek.calls import DEFAULT_URL, Call, EmbedOptions, OnWait, ReindexOptions, SearchOptions, Service
from eoseek.ingest import (
    Counts,
    DocumentFailure,
    IngestOptions,
    IngestReport,
    Stream,
    StreamOptions,
    drive,
    drive_async,
    numbered,
    numbered_async,
)
from eoseek.lines import Document

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "Client",
    "Counts",
    "Document",
    "DocumentFailure",
    "EmbedAnswer",
    "EoseekClientError",
    "Hit",
    "IngestAnswer",
    "IngestReport",
    "LineFailure",
    "SearchAnswer",
]
_CONNECT_SECONDS = 10.0
_COPY_SECONDS = 3600.0  # what the service may take to copy its store, before it sends the first byte of a backup
_BLOCK_BYTES = 2**20

_T = TypeVar("_T")


class Client:
    """Calls of one service; safe to share between threads."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        retry_seconds: float = 30.0,
        timeout_seconds: float = 300.0,
        transport: httpx.BaseTransport | None = None,
        on_wait: OnWait | None = None,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens no connection yet.

        Args:
            url: where the service listens, without a path.
            api_key: sent with every call; None where the service asks for none.
            retry_seconds: how long after the first failure of a call another attempt may begin; 0 never retries.
            timeout_seconds: limit of one attempt; longer than the service's own, so that its error is seen.
            transport: replaces the network, for tests.
            on_wait: told of each pause before it: seconds, and the error that another attempt may heal.
            sleep: replaces the pauses between attempts, for tests.
            clock: replaces the clock of `retry_seconds`, for tests.
        Raises:
            EoseekClientError: `url` is not an http address, or `api_key` cannot stand in a header.
        """
        self._service = Service(url, api_key=api_key, retry_seconds=retry_seconds, on_wait=on_wait, clock=clock)
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        timeout = httpx.Timeout(timeout_seconds, connect=_CONNECT_SECONDS)
        self._http = httpx.Client(
            base_url=self.url, headers=self._service.headers, timeout=timeout, transport=transport
        )

    @property
    def url(self) -> str:
        """Where the service listens."""
        return self._service.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; calls under way in other threads fail soon, waiting ones at once."""
        self._service.is_closed = True
        self._closed.set()
        self._http.close()

    def info(self) -> Json:
        """What is served: checkpoint, dimension, limits."""
        return self._run(calls.info())

    def search(self, query: str, **options: Unpack[SearchOptions]) -> list[Hit]:
        """The documents nearest to one query, best first; options as in `SearchOptions`."""
        return self.search_batch([query], **options).results[0]

    def search_batch(self, queries: Sequence[str], **options: Unpack[SearchOptions]) -> SearchAnswer:
        """The documents nearest to each of one or more queries, best first; options as in `SearchOptions`."""
        return self._run(calls.search(queries, **options))

    def embed(self, inputs: Sequence[str], **options: Unpack[EmbedOptions]) -> EmbedAnswer:
        """Embeddings of shape (len(inputs), dimensions); options as in `EmbedOptions`."""
        return self._run(calls.embed(inputs, **options))

    def ingest(self, ndjson: bytes, *, collection: str | None = None, truncate: bool = False) -> IngestAnswer:
        """Indexes documents given as one JSON object a line; repeating the call changes nothing."""
        return self._run(calls.ingest(ndjson, collection=collection, truncate=truncate))

    def ingest_stream(
        self,
        documents: Iterable[Document],
        *,
        on_progress: Callable[[Counts], object] | None = None,
        **options: Unpack[StreamOptions],
    ) -> IngestReport:
        """Indexes any number of documents in bounded memory, a few requests under way; of equal ids the last one wins.

        Args:
            documents: each a mapping, or its JSON on a line; a file of lines will do. Only what is sent next is read.
            on_progress: called with the counts so far whenever the service has confirmed more.
            options: as in `IngestOptions`.
        Returns:
            Counts, and the failures by position: refused documents do not keep the others out.
        Raises:
            EoseekClientError: the service refused a whole request or stayed away; what it had confirmed is stored,
                and the requests under way end by themselves, or with the client.
            ValueError: an option is out of its range, or `documents` is one document.
        """
        chosen = IngestOptions(**options)
        stream = Stream(chosen, on_progress)
        send = partial(self.ingest, collection=chosen.collection, truncate=chosen.truncate)
        drive(stream.run, numbered(documents), send)
        return stream.report()

    def get_document(self, document_id: str, *, collection: str | None = None) -> Json:
        """One stored document. Raises EoseekClientError with status 404 when there is none."""
        return self._run(calls.get_document(document_id, collection=collection))

    def delete_document(self, document_id: str, *, collection: str | None = None) -> None:
        """Removes one document."""
        self._run(calls.delete_document(document_id, collection=collection))

    def list_collections(self) -> list[Json]:
        """All collections."""
        return self._run(calls.list_collections())

    def create_collection(self, name: str) -> Json:
        """Creates a collection for the served checkpoint, or returns the existing one."""
        return self._run(calls.create_collection(name))

    def describe_collection(self, name: str) -> Json:
        """One collection: its documents, fingerprint, dimension."""
        return self._run(calls.describe_collection(name))

    def drop_collection(self, name: str) -> None:
        """Removes a collection with all its documents."""
        self._run(calls.drop_collection(name))

    def reindex(self, name: str, action: str = "start", **options: Unpack[ReindexOptions]) -> Json:
        """One step of a re-index; returns how it stands.

        Args:
            name: the collection.
            action: "start", "pause", "resume", "compare", "switch" or "abort", then "rollback" or "drop".
            options: as in `ReindexOptions`.
        Raises:
            EoseekClientError: with status 409, it is not at this step; nothing was done.
        """
        return self._run(calls.reindex(name, action, **options))

    def describe_reindex(self, name: str) -> Json:
        """How far a re-index is. Raises EoseekClientError with status 404 when there is none."""
        return self._run(calls.describe_reindex(name))

    @contextmanager
    def backup(self) -> Iterator[Iterator[bytes]]:
        """The blocks of a backup of all collections. Raises EoseekClientError, also where it breaks off; no retries."""
        try:
            timeout = httpx.Timeout(_COPY_SECONDS, connect=_CONNECT_SECONDS)
            with self._http.stream("POST", "/backup", timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise calls.problem(response)
                yield response.iter_bytes(_BLOCK_BYTES)
        except httpx.TransportError as error:
            raise self._service.unreachable(error) from error

    def _run(self, call: Call[_T]) -> _T:
        attempts = self._service.attempts(call)
        outcome: httpx.Response | Exception | None = None
        while True:
            try:
                pause = attempts.send(outcome)
            except StopIteration as end:
                return cast(_T, end.value)
            if pause is None:
                try:
                    outcome = self._http.request(call.method, call.path, **call.arguments)
                except Exception as error:  # the attempts say what it means
                    outcome = error
            else:
                self._sleep(pause)


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited; safe to share between the tasks of one event loop."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        retry_seconds: float = 30.0,
        timeout_seconds: float = 300.0,
        transport: httpx.AsyncBaseTransport | None = None,
        on_wait: OnWait | None = None,
        sleep: Callable[[float], Awaitable[object]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """As `Client`."""
        self._service = Service(url, api_key=api_key, retry_seconds=retry_seconds, on_wait=on_wait, clock=clock)
        self._closed = asyncio.Event()
        self._sleep = sleep or self._wait
        timeout = httpx.Timeout(timeout_seconds, connect=_CONNECT_SECONDS)
        self._http = httpx.AsyncClient(
            base_url=self.url, headers=self._service.headers, timeout=timeout, transport=transport
        )

    @property
    def url(self) -> str:
        """Where the service listens."""
        return self._service.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; calls under way in other tasks fail soon, waiting ones at once."""
        self._service.is_closed = True
        self._closed.set()
        await self._http.aclose()

    async def info(self) -> Json:
        """As `Client.info`."""
        return await self._run(calls.info())

    async def search(self, query: str, **options: Unpack[SearchOptions]) -> list[Hit]:
        """As `Client.search`."""
        return (await self.search_batch([query], **options)).results[0]

    async def search_batch(self, queries: Sequence[str], **options: Unpack[SearchOptions]) -> SearchAnswer:
        """As `Client.search_batch`."""
        return await self._run(calls.search(queries, **options))

    async def embed(self, inputs: Sequence[str], **options: Unpack[EmbedOptions]) -> EmbedAnswer:
        """As `Client.embed`."""
        return await self._run(calls.embed(inputs, **options))

    async def ingest(self, ndjson: bytes, *, collection: str | None = None, truncate: bool = False) -> IngestAnswer:
        """As `Client.ingest`."""
        return await self._run(calls.ingest(ndjson, collection=collection, truncate=truncate))

    async def ingest_stream(
        self,
        documents: AsyncIterable[Document] | Iterable[Document],
        *,
        on_progress: Callable[[Counts], object] | None = None,
        **options: Unpack[StreamOptions],
    ) -> IngestReport:
        """As `Client.ingest_stream`; `documents` may be an async iterable. After an error nothing is under way."""
        chosen = IngestOptions(**options)
        stream = Stream(chosen, on_progress)
        send = partial(self.ingest, collection=chosen.collection, truncate=chosen.truncate)
        await drive_async(stream.run, numbered_async(documents), send)
        return stream.report()

    async def get_document(self, document_id: str, *, collection: str | None = None) -> Json:
        """As `Client.get_document`."""
        return await self._run(calls.get_document(document_id, collection=collection))

    async def delete_document(self, document_id: str, *, collection: str | None = None) -> None:
        """As `Client.delete_document`."""
        await self._run(calls.delete_document(document_id, collection=collection))

    async def list_collections(self) -> list[Json]:
        """As `Client.list_collections`."""
        return await self._run(calls.list_collections())

    async def create_collection(self, name: str) -> Json:
        """As `Client.create_collection`."""
        return await self._run(calls.create_collection(name))

    async def describe_collection(self, name: str) -> Json:
        """As `Client.describe_collection`."""
        return await self._run(calls.describe_collection(name))

    async def drop_collection(self, name: str) -> None:
        """As `Client.drop_collection`."""
        await self._run(calls.drop_collection(name))

    async def reindex(self, name: str, action: str = "start", **options: Unpack[ReindexOptions]) -> Json:
        """As `Client.reindex`."""
        return await self._run(calls.reindex(name, action, **options))

    async def describe_reindex(self, name: str) -> Json:
        """As `Client.describe_reindex`."""
        return await self._run(calls.describe_reindex(name))

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[AsyncIterator[bytes]]:
        """As `Client.backup`."""
        try:
            timeout = httpx.Timeout(_COPY_SECONDS, connect=_CONNECT_SECONDS)
            async with self._http.stream("POST", "/backup", timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    raise calls.problem(response)
                yield response.aiter_bytes(_BLOCK_BYTES)
        except httpx.TransportError as error:
            raise self._service.unreachable(error) from error

    async def _run(self, call: Call[_T]) -> _T:
        attempts = self._service.attempts(call)
        outcome: httpx.Response | Exception | None = None
        while True:
            try:
                pause = attempts.send(outcome)
            except StopIteration as end:
                return cast(_T, end.value)
            if pause is None:
                try:
                    outcome = await self._http.request(call.method, call.path, **call.arguments)
                except Exception as error:  # the attempts say what it means
                    outcome = error
            else:
                await self._sleep(pause)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()
