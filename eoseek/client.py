"""A small synchronous client of the service, on httpx.

It waits where waiting helps: 429 and 503 are retried by their `Retry-After`, a lost connection with growing pauses, up
to `retry_seconds` in all. A service that was never reached is reported at once, since it is most likely not running.
"""

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx

DEFAULT_URL = "http://127.0.0.1:8080"
_RETRIED_STATUSES = frozenset({429, 503})
_MAX_PAUSE_SECONDS = 10.0
_CONNECT_SECONDS = 10.0
_COPY_SECONDS = 3600.0  # what the service may take to copy its store, before it sends the first byte of a backup

Json = dict[str, Any]
_T = TypeVar("_T")


class EoseekClientError(Exception):
    """An answer that is not a result, or none at all.

    Attributes:
        status: HTTP status; None when the service gave no answer.
        code: the problem document's stable code; `unreachable` when there was no answer.
        detail: one line for the user.
    """

    def __init__(self, status: int | None, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A found document; the score is the cosine, higher is better."""

    id: str
    score: float
    title: str = ""
    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LineFailure:
    """A document that was not indexed; `line` counts from 1 within the request."""

    line: int
    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class IngestAnswer:
    """What became of the documents of one request; those counted as indexed are durable."""

    indexed: int
    unchanged: int
    failed: list[LineFailure]
    num_truncated: int


@dataclass(frozen=True, kw_only=True)
class SearchAnswer:
    """Hits for each query, best first, and the indices of the queries that were cut."""

    results: list[list[Hit]]
    truncated: list[int]


@dataclass(frozen=True, kw_only=True)
class EmbedAnswer:
    """Unit-length embeddings in input order, and the indices of the inputs that were cut."""

    embeddings: list[list[float]]
    truncated: list[int]


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
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """Opens no connection yet.

        Args:
            url: where the service listens, without a path.
            api_key: sent with every call; None where the service asks for none.
            retry_seconds: most time spent waiting between the attempts of one call; 0 never retries.
            timeout_seconds: limit of one attempt; longer than the service's own, so that its error is seen.
            transport: replaces the network, for tests.
            sleep: replaces the pauses between attempts, for tests.
        Raises:
            EoseekClientError: `url` is not an http address, or `api_key` cannot stand in a header.
        """
        self.url = url.rstrip("/")
        self._retry_seconds = retry_seconds
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._was_reached = False
        if not self.url.startswith(("http://", "https://")):
            raise EoseekClientError(None, "configuration", f"{url!r} is not a url such as {DEFAULT_URL}")
        if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise EoseekClientError(None, "configuration", "the API key has a character that no key has (not shown)")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            timeout = httpx.Timeout(timeout_seconds, connect=_CONNECT_SECONDS)
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, transport=transport)
        except (httpx.InvalidURL, ValueError) as error:
            raise EoseekClientError(None, "configuration", f"{url!r} is not a url: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; calls under way in other threads fail soon, waiting ones at once."""
        self._closed.set()
        self._http.close()

    def info(self) -> Json:
        """What is served: checkpoint, dimension, limits."""
        return self._json("GET", "/info")

    def search(self, query: str, **options: Any) -> list[Hit]:
        """The documents nearest to one query; options as in `search_batch`."""
        return self.search_batch([query], **options).results[0]

    def search_batch(
        self,
        queries: Sequence[str],
        *,
        collection: str | None = None,
        instruction: str | None = None,
        top_k: int = 10,
        filter: Json | None = None,
        with_text: bool = True,
        truncate: bool = False,
    ) -> SearchAnswer:
        """The documents nearest to each query, best first.

        Args:
            queries: one or more texts.
            collection: None means the service's default.
            instruction: the task in a sentence; None means the checkpoint's default, "" none.
            top_k: number of results.
            filter: Qdrant's JSON filter.
            with_text: whether hits carry their document's text.
            truncate: whether queries over the model's length are cut rather than refused.
        """
        body: Json = {"query": list(queries), "top_k": top_k, "with_text": with_text, "truncate": truncate}
        body |= _given(collection=collection, instruction=instruction, filter=filter)
        return self._read(_search_answer, "POST", "/search", json=body)

    def embed(
        self,
        inputs: Sequence[str],
        *,
        kind: Literal["query", "document"] = "query",
        instruction: str | None = None,
        dimensions: int | None = None,
        truncate: bool = False,
    ) -> EmbedAnswer:
        """Embeddings of shape (len(inputs), dimensions); the instruction goes on queries only."""
        body: Json = {"inputs": list(inputs), "kind": kind, "truncate": truncate}
        body |= _given(instruction=instruction, dimensions=dimensions)
        return self._read(_embed_answer, "POST", "/embed", json=body)

    def ingest(self, ndjson: bytes, *, collection: str | None = None, truncate: bool = False) -> IngestAnswer:
        """Indexes documents given as one JSON object a line; repeating the call changes nothing."""
        params = _given(collection=collection, truncate="true" if truncate else None)
        headers = {"Content-Type": "application/x-ndjson"}
        return self._read(_ingest_answer, "POST", "/documents", content=ndjson, params=params, headers=headers)

    def get_document(self, document_id: str, *, collection: str | None = None) -> Json:
        """One stored document. Raises EoseekClientError with status 404 when there is none."""
        return self._json("GET", f"/documents/{_segment(document_id)}", params=_given(collection=collection))

    def delete_document(self, document_id: str, *, collection: str | None = None) -> None:
        """Removes one document."""
        self._request("DELETE", f"/documents/{_segment(document_id)}", params=_given(collection=collection))

    def list_collections(self) -> list[Json]:
        """All collections."""
        return self._read(lambda answer: list(answer["collections"]), "GET", "/collections")

    def create_collection(self, name: str) -> Json:
        """Creates a collection for the served checkpoint, or returns the existing one."""
        return self._json("PUT", f"/collections/{_segment(name)}")

    def describe_collection(self, name: str) -> Json:
        """One collection: its documents, fingerprint, dimension."""
        return self._json("GET", f"/collections/{_segment(name)}")

    def drop_collection(self, name: str) -> None:
        """Removes a collection with all its documents."""
        self._request("DELETE", f"/collections/{_segment(name)}")

    @contextmanager
    def backup(self) -> Iterator[Iterator[bytes]]:
        """The blocks of a backup of all collections. Raises EoseekClientError, also where it breaks off; no retries."""
        try:
            timeout = httpx.Timeout(_COPY_SECONDS, connect=_CONNECT_SECONDS)
            with self._http.stream("POST", "/backup", timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise _problem(response)
                yield response.iter_bytes(2**20)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _json(self, method: str, path: str, **arguments: Any) -> Json:
        return self._read(dict, method, path, **arguments)

    def _read(self, read: Callable[[Any], _T], method: str, path: str, **arguments: Any) -> _T:
        """The answer as `read` takes it; what it cannot take is no answer of this service."""
        response = self._request(method, path, **arguments)
        try:
            return read(response.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"{self.url}{path} answered {response.status_code} with something else: is this an EOSeek service?"
            raise EoseekClientError(response.status_code, "not_eoseek", detail) from error

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        waited_seconds = 0.0
        for attempt in range(1000):
            response, failure = self._attempt(method, path, **arguments)
            if response is not None and response.is_success:
                return response
            pause = _pause_seconds(attempt, response)
            may_heal = self._was_reached if response is None else response.status_code in _RETRIED_STATUSES
            if self._closed.is_set() or not may_heal or waited_seconds + pause > self._retry_seconds:
                raise self._unreachable(failure) if response is None else _problem(response)
            self._sleep(pause)
            waited_seconds += pause
        raise AssertionError("pauses grow, so the budget ends first")

    def _attempt(self, method: str, path: str, **arguments: Any) -> tuple[httpx.Response | None, Exception | None]:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            return None, error
        except RuntimeError as error:  # httpx's word for a client that was closed
            if not self._closed.is_set():
                raise
            return None, error
        except ValueError as error:  # a lone surrogate, NaN
            raise EoseekClientError(None, "invalid_input", f"this cannot be sent: {error}") from error
        self._was_reached = True
        return response, None

    def _unreachable(self, failure: Exception | None) -> EoseekClientError:
        reason = str(failure) or type(failure).__name__
        detail = f"no answer from {self.url} ({reason}); start the service with `eoseek serve` or name it with --url"
        return EoseekClientError(None, "unreachable", detail)


def _given(**values: Any) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _segment(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")  # which the service refuses by name


def _search_answer(answer: Json) -> SearchAnswer:
    results = [[Hit(**hit) for hit in hits] for hits in answer["results"]]
    return SearchAnswer(results=results, truncated=answer["truncated"])


def _embed_answer(answer: Json) -> EmbedAnswer:
    return EmbedAnswer(embeddings=answer["embeddings"], truncated=answer["truncated"])


def _ingest_answer(answer: Json) -> IngestAnswer:
    return IngestAnswer(
        indexed=answer["indexed"],
        unchanged=answer["unchanged"],
        failed=[LineFailure(line=each["line"], code=each["code"], detail=each["detail"]) for each in answer["failed"]],
        num_truncated=len(answer["truncated"]),
    )


def _pause_seconds(attempt: int, response: httpx.Response | None) -> float:
    """`Retry-After` where the service names it, else doubling pauses; jitter keeps clients from marching in step."""
    named = response.headers.get("Retry-After", "") if response is not None else ""
    pause = float(named) if named.isdecimal() else min(0.25 * 2.0 ** min(attempt, 10), _MAX_PAUSE_SECONDS)
    return max(0.05, pause) * random.uniform(1.0, 1.2)


def _problem(response: httpx.Response) -> EoseekClientError:
    try:
        problem = response.json()
        hint = " (EOSEEK_API_KEY or --api-key name the key)" if response.status_code == 401 else ""
        return EoseekClientError(response.status_code, problem["code"], problem["detail"] + hint)
    except (ValueError, KeyError, TypeError):
        detail = f"{response.request.url} answered {response.status_code} {response.reason_phrase}"
        return EoseekClientError(response.status_code, "not_eoseek", detail)
