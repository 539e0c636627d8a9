"""All of a client that is no I/O: requests, the reading of answers, and when another attempt is worth its wait.

`Service.attempts` is a generator that asks its driver for an attempt or a pause, so that the sync and the async client
differ in how they do these two and in nothing else. It waits where waiting helps: 429 and 503 are tried again as
`Retry-After` says (a deadline that passed only for ingestion, where nobody waits), a lost connection with growing
pauses. A service that was never reached is reported at once, since it is most likely not running.
"""

import itertools
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from eoseek.answers import EmbedAnswer, EoseekClientError, Hit, IngestAnswer, Json, LineFailure, SearchAnswer

DEFAULT_URL = "http://127.0.0.1:8080"
_RETRIED_STATUSES = frozenset({429, 503})
_TOO_SLOW = "deadline_exceeded"  # took as long as an answer may; the next attempt most likely will
_MAX_PAUSE_SECONDS = 10.0

_T = TypeVar("_T")
# None wants an attempt, whose outcome is sent in; a number wants a pause of so many seconds
Attempts = Generator[float | None, httpx.Response | Exception | None, _T]
# told before each pause: its seconds, and the error that another attempt may heal
OnWait = Callable[[float, EoseekClientError], object]


class SearchOptions(TypedDict, total=False):
    """How to search.

    Attributes:
        collection: None means the service's default.
        instruction: the task in a sentence; None means the checkpoint's default, "" none.
        top_k: number of results; 10.
        filter: Qdrant's JSON filter.
        with_text: whether hits carry their document's text; they do.
        truncate: whether queries over the model's length are cut rather than refused.
    """

    collection: str | None
    instruction: str | None
    top_k: int
    filter: Json | None
    with_text: bool
    truncate: bool


class EmbedOptions(TypedDict, total=False):
    """How to embed.

    Attributes:
        kind: "query", unless it is "document".
        instruction: as in a search; it goes on queries only.
        dimensions: length of each embedding; None means all of them.
        truncate: whether inputs over the model's length are cut rather than refused.
    """

    kind: Literal["query", "document"]
    instruction: str | None
    dimensions: int | None
    truncate: bool


class ReindexOptions(TypedDict, total=False):
    """What a step of a re-index takes.

    Attributes:
        checkpoint: "start": a directory or hub name, as the service reads it; None means the configured one.
        share: "start", "resume": part of the time that encoding may take, up to 1; 0.5.
        truncate: "start", "resume": whether documents too long for the new checkpoint are cut.
        queries: "compare", "switch": what to measure the overlap on; None means recent searches.
    """

    checkpoint: str | None
    share: float | None
    truncate: bool | None
    queries: Sequence[str] | None


@dataclass(frozen=True, kw_only=True)
class Call(Generic[_T]):
    """One request; `arguments` are those of httpx, `read` takes the JSON of the answer, None where it is empty.

    `is_patient` tries again also where the service ran into its own deadline, for work that nobody waits for.
    """

    method: str
    path: str
    read: Callable[[Any], _T]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    is_patient: bool = False


def info() -> Call[Json]:
    """`GET /info`."""
    return Call(method="GET", path="/info", read=dict)


def search(
    queries: Sequence[str],
    *,
    collection: str | None = None,
    instruction: str | None = None,
    top_k: int = 10,
    filter: Json | None = None,
    with_text: bool = True,
    truncate: bool = False,
) -> Call[SearchAnswer]:
    """`POST /search`."""
    body: Json = {"query": list(queries), "top_k": top_k, "with_text": with_text, "truncate": truncate}
    body |= _given(collection=collection, instruction=instruction, filter=filter)
    return Call(method="POST", path="/search", read=_search_answer, arguments={"json": body})


def embed(
    inputs: Sequence[str],
    *,
    kind: Literal["query", "document"] = "query",
    instruction: str | None = None,
    dimensions: int | None = None,
    truncate: bool = False,
) -> Call[EmbedAnswer]:
    """`POST /embed`."""
    body: Json = {"inputs": list(inputs), "kind": kind, "truncate": truncate}
    body |= _given(instruction=instruction, dimensions=dimensions)
    return Call(method="POST", path="/embed", read=_embed_answer, arguments={"json": body})


def ingest(ndjson: bytes, *, collection: str | None, truncate: bool) -> Call[IngestAnswer]:
    """`POST /documents`."""
    arguments = {
        "content": ndjson,
        "params": _given(collection=collection, truncate="true" if truncate else None),
        "headers": {"Content-Type": "application/x-ndjson"},
    }
    return Call(method="POST", path="/documents", read=_ingest_answer, arguments=arguments, is_patient=True)


def get_document(document_id: str, *, collection: str | None) -> Call[Json]:
    """`GET /documents/{document_id}`."""
    arguments = {"params": _given(collection=collection)}
    return Call(method="GET", path=f"/documents/{_segment(document_id)}", read=dict, arguments=arguments)


def delete_document(document_id: str, *, collection: str | None) -> Call[None]:
    """`DELETE /documents/{document_id}`."""
    arguments = {"params": _given(collection=collection)}
    return Call(method="DELETE", path=f"/documents/{_segment(document_id)}", read=_nothing, arguments=arguments)


def list_collections() -> Call[list[Json]]:
    """`GET /collections`."""
    return Call(method="GET", path="/collections", read=lambda answer: list(answer["collections"]))


def create_collection(name: str) -> Call[Json]:
    """`PUT /collections/{name}`."""
    return Call(method="PUT", path=f"/collections/{_segment(name)}", read=dict)


def describe_collection(name: str) -> Call[Json]:
    """`GET /collections/{name}`."""
    return Call(method="GET", path=f"/collections/{_segment(name)}", read=dict)


def drop_collection(name: str) -> Call[None]:
    """`DELETE /collections/{name}`."""
    return Call(method="DELETE", path=f"/collections/{_segment(name)}", read=_nothing)


def reindex(name: str, action: str, **fields: Any) -> Call[Json]:
    """`POST /collections/{name}/reindex`."""
    body = {"action": action} | _given(**fields)
    return Call(method="POST", path=f"/collections/{_segment(name)}/reindex", read=dict, arguments={"json": body})


def describe_reindex(name: str) -> Call[Json]:
    """`GET /collections/{name}/reindex`."""
    return Call(method="GET", path=f"/collections/{_segment(name)}/reindex", read=dict)


class Service:
    """One service as a client knows it: its address, its key, whether it was ever reached."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        retry_seconds: float,
        on_wait: OnWait | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises EoseekClientError: `url` is not an http address, or `api_key` cannot stand in a header."""
        self.url = url.rstrip("/")
        self.is_closed = False
        self._retry_seconds = retry_seconds
        self._on_wait = on_wait
        self._clock = clock
        self._was_reached = False
        if not self.url.startswith(("http://", "https://")):
            raise EoseekClientError(None, "configuration", f"{url!r} is not a url such as {DEFAULT_URL}")
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise EoseekClientError(None, "configuration", f"{url!r} is not a url: {error}") from error
        if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise EoseekClientError(None, "configuration", "the API key has a character that no key has (not shown)")
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def attempts(self, call: Call[_T]) -> Attempts[_T]:
        """Makes one call, and returns its answer."""
        first_failed: float | None = None
        for attempt in itertools.count():
            response, failure = self._outcome((yield None))
            if response is not None and response.is_success:
                return self._answer(call, response)
            first_failed = self._clock() if first_failed is None else first_failed
            pause = _pause_seconds(attempt, response)
            error = self.unreachable(failure) if response is None else problem(response)
            ends = self._clock() - first_failed + pause
            if self.is_closed or not self._may_heal(call, error) or ends > self._retry_seconds:
                raise error
            if self._on_wait is not None:
                self._on_wait(pause, error)
            yield pause
        raise AssertionError("the attempts are endless")

    def _may_heal(self, call: Call[_T], error: EoseekClientError) -> bool:
        if error.status is None:
            return self._was_reached
        return error.status in _RETRIED_STATUSES and (call.is_patient or error.code != _TOO_SLOW)

    def _outcome(self, outcome: httpx.Response | Exception | None) -> tuple[httpx.Response | None, Exception | None]:
        if isinstance(outcome, httpx.Response):
            self._was_reached = True
            return outcome, None
        # a RuntimeError is httpx's word for a client that was closed
        if isinstance(outcome, httpx.TransportError) or (isinstance(outcome, RuntimeError) and self.is_closed):
            return None, outcome
        if isinstance(outcome, ValueError):  # a lone surrogate, NaN
            raise EoseekClientError(None, "invalid_input", f"this cannot be sent: {outcome}") from outcome
        assert outcome is not None, "an attempt has an outcome"
        raise outcome

    def _answer(self, call: Call[_T], response: httpx.Response) -> _T:
        """The answer as the call reads it; what it cannot read is no answer of this service."""
        try:
            return call.read(response.json() if response.content else None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"{self.url}{call.path} answered {response.status_code} with something else"
            raise EoseekClientError(
                response.status_code, "not_eoseek", f"{detail}: is this an EOSeek service?"
            ) from error

    def unreachable(self, failure: Exception | None) -> EoseekClientError:
        """The error for a service that gave no answer."""
        reason = str(failure) or type(failure).__name__
        detail = f"no answer from {self.url} ({reason}); start the service with `eoseek serve` or name it with --url"
        return EoseekClientError(None, "unreachable", detail)


def problem(response: httpx.Response) -> EoseekClientError:
    """The error that a read response tells of."""
    try:
        document = response.json()
        hint = " (EOSEEK_API_KEY or --api-key name the key)" if response.status_code == 401 else ""
        return EoseekClientError(response.status_code, document["code"], document["detail"] + hint)
    except (ValueError, KeyError, TypeError):
        detail = f"{response.request.url} answered {response.status_code} {response.reason_phrase}"
        return EoseekClientError(response.status_code, "not_eoseek", detail)


def _pause_seconds(attempt: int, response: httpx.Response | None) -> float:
    """`Retry-After` where the service names it, else doubling pauses; jitter keeps clients from marching in step."""
    named = response.headers.get("Retry-After", "") if response is not None else ""
    pause = float(named) if named.isdecimal() else min(0.25 * 2.0 ** min(attempt, 10), _MAX_PAUSE_SECONDS)
    return max(0.05, pause) * random.uniform(1.0, 1.2)


def _given(**values: Any) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _segment(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")  # which the service refuses by name


def _nothing(answer: object) -> None:
    """What is done needs no answer."""


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
