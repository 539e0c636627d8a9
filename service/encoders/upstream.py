"""One upstream of the remote encoder: OpenAI's embeddings call, and what can be wrong with its answer.

Token ids go up complete and vectors come back as base64, so that neither side tokenizes or prints a number. An upstream
says how many tokens it took: if they are not those that were sent, it cuts texts or tokenizes them again.
"""

import asyncio
import base64
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import httpx
import numpy as np
from pydantic_core import from_json, to_json

from service import __version__
from service.encoders.base import Embeddings, TokenIds
from service.errors import ConfigurationError

Kind = Literal["away", "busy", "refused", "wrong"]

_CONNECT_SECONDS = 5.0
# under the five seconds after which uvicorn as it comes, so vLLM, hangs up on an idle connection
_KEEP_IDLE_SECONDS = 4.0
_MAX_WORDS = 300
_MAX_OTHER_BYTES = 2**20
_NUMBER_BYTES = 32  # of a float as JSON, where an upstream knows no base64
_LARGE_BODY_BYTES = 2**20
_MAX_RETRY_SECONDS = 60.0
_REFUSALS = frozenset({400, 413, 422})
_PASSING = frozenset({408, 425})
_CURES = {
    401: "it wants another key; set EOSEEK_ENCODER__API_KEY",
    403: "it does not let this key in; set EOSEEK_ENCODER__API_KEY",
    404: "it knows no such path or model; see EOSEEK_ENCODER__URLS and EOSEEK_ENCODER__URL_MODEL",
}


class UpstreamFault(Exception):
    """Why an upstream gave no embeddings.

    Attributes:
        kind: `away`: not reached, too slow or failing, which time may heal; `busy`: it asks to come back later;
            `refused`: these texts, by no fault of its own; `wrong`: what it answers must not be served.
        cause: completes "upstream 0 ..."; for callers, so without addresses and without what the upstream said.
        words: what it said, for the log.
        retry_after_seconds: of a busy one.
    """

    def __init__(self, kind: Kind, cause: str, *, words: str = "", retry_after_seconds: float = 1.0) -> None:
        super().__init__(cause)
        self.kind: Kind = kind
        self.cause = cause
        self.words = words
        self.retry_after_seconds = retry_after_seconds


class Upstream:
    """A server behind one address, over connections that are kept."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None,
        api_key: str | None,
        timeout_seconds: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Opens no connection yet.

        Args:
            base_url: with its `/v1`, as OpenAI's clients take it.
            model: name to send; None asks for the only one that there is.
            api_key: sent as bearer.
            timeout_seconds: limit of one call, from the first byte out to the last byte in.
            transport: replaces the network, for tests.
        Raises:
            ConfigurationError: `base_url` is no address.
        """
        self._asked_model = model
        self._model = model or ""
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        headers = {"accept-encoding": "identity", "user-agent": f"eoseek/{__version__}"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        try:
            address = httpx.URL(base_url)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"{base_url} in EOSEEK_ENCODER__URLS is no address: {error}") from error
        self._http = httpx.AsyncClient(
            base_url=address,
            headers=headers,
            timeout=httpx.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds)),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEP_IDLE_SECONDS),
            follow_redirects=False,  # the key would go along
            transport=transport,
        )

    async def describe(self) -> int | None:
        """Learn the model's name, where none was given, and how many tokens a text may have; None if it does not say.

        Raises:
            UpstreamFault: no answer, or no single model.
        """
        try:
            listed = _models(await self._request("GET", "/models", None, _MAX_OTHER_BYTES))
        except UpstreamFault as fault:
            if self._asked_model is None or fault.kind != "wrong":
                raise
            return None  # not all upstreams have this call, and the name is known
        if self._asked_model is None:
            if len(listed) != 1:
                raise UpstreamFault("wrong", f"lists {len(listed)} models; name one in EOSEEK_ENCODER__URL_MODEL")
            (self._model,) = listed
        return listed.get(self._model)

    async def embed(self, token_ids: Sequence[TokenIds], *, dimension: int) -> Embeddings:
        """Embeddings of complete token ids: shape (len(token_ids), dimension), float32, in input order, of any length.

        Raises:
            UpstreamFault: no answer, or one that is not of this shape.
        """
        content = to_json(
            {"input": [list(ids) for ids in token_ids], "model": self._model, "encoding_format": "base64"}
        )
        max_bytes = 4096 + len(token_ids) * (256 + _NUMBER_BYTES * dimension)
        body = await self._request("POST", "/embeddings", content, max_bytes)
        expected = {"num_texts": len(token_ids), "num_tokens": sum(map(len, token_ids)), "dimension": dimension}
        if len(body) < _LARGE_BODY_BYTES:
            return read_embeddings(body, **expected)
        return await asyncio.to_thread(read_embeddings, body, **expected)

    async def close(self) -> None:
        """Close the connections; calls under way fail."""
        await self._http.aclose()

    async def _request(self, method: str, path: str, content: bytes | None, max_bytes: int) -> bytes:
        headers = {} if content is None else {"content-type": "application/json"}
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                self._http.stream(method, path, content=content, headers=headers) as response,
            ):
                body = await _read(response, max_bytes if response.status_code == 200 else _MAX_OTHER_BYTES)
        except httpx.ConnectTimeout as error:
            raise UpstreamFault("away", "cannot be reached in time") from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise UpstreamFault("away", f"gave no answer within {self._timeout_seconds:g} s") from error
        except httpx.ConnectError as error:
            raise UpstreamFault("away", "cannot be reached", words=self._cleaned(str(error))) from error
        except httpx.HTTPError as error:
            raise UpstreamFault("away", "broke off the connection", words=self._cleaned(str(error))) from error
        if response.status_code != 200:
            raise self._fault(response, body)
        return body

    def _fault(self, response: httpx.Response, body: bytes) -> UpstreamFault:
        """What a status other than 200 means."""
        status = response.status_code
        cause = f"answered {status}"
        words = self._cleaned(_message(body))
        if status == 429:
            seconds = _retry_seconds(response.headers.get("retry-after", ""))
            return UpstreamFault("busy", "is overloaded", words=words, retry_after_seconds=seconds)
        if status in _REFUSALS:
            return UpstreamFault("refused", cause, words=words)
        if 300 <= status < 400:
            return UpstreamFault("wrong", f"{cause}, a redirect, which is not followed; name its final address")
        if status < 500 and status not in _PASSING:
            return UpstreamFault("wrong", f"{cause}: {_CURES[status]}" if status in _CURES else cause, words=words)
        return UpstreamFault("away", cause, words=words)

    def _cleaned(self, words: str) -> str:
        """One short printable line without the key."""
        if self._api_key:
            words = words.replace(self._api_key, "***")
        return "".join(each if each.isprintable() else " " for each in words[:_MAX_WORDS])


def read_embeddings(body: bytes, *, num_texts: int, num_tokens: int, dimension: int) -> Embeddings:
    """The rows of OpenAI's answer by their index, as base64 or numbers; values are not looked at.

    Args:
        body: JSON.
        num_texts: how many were sent.
        num_tokens: how many they have together.
        dimension: of each row.
    Raises:
        UpstreamFault: `refused` if it took other tokens than were sent, `wrong` for everything else.
    """
    embeddings = np.empty((num_texts, dimension), dtype=np.float32)
    missing = set(range(num_texts))
    try:
        answer = from_json(body)
        used = answer["usage"]["prompt_tokens"]
        for each in answer["data"]:
            missing.remove(each["index"])
            embeddings[each["index"]] = _vector(each["embedding"], dimension)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise UpstreamFault(
            "wrong", "answers in another shape than OpenAI's embeddings call", words=f"{type(error).__name__}: {error}"
        ) from error
    if missing:
        raise UpstreamFault("wrong", f"gave {num_texts - len(missing)} embeddings for {num_texts} texts")
    if used != num_tokens:
        raise UpstreamFault(
            "refused", f"took {used!r:.20} tokens where {num_tokens} were sent: it cuts texts, or tokenizes them again"
        )
    return embeddings


def _vector(embedding: Any, dimension: int) -> Embeddings:
    if isinstance(embedding, str):
        vector = np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    else:
        with np.errstate(over="ignore"):  # infinite then, and treated so
            vector = np.asarray(embedding, dtype=np.float32)
    if vector.shape != (dimension,):
        raise UpstreamFault("wrong", f"gives {vector.size} dimensions, the checkpoint has {dimension}")
    return vector


def _models(body: bytes) -> dict[str, int | None]:
    """Names of OpenAI's list of models, each with the `max_model_len` that vLLM and EOSeek add."""
    try:
        listed = {each["id"]: each.get("max_model_len") for each in from_json(body)["data"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UpstreamFault("wrong", "answers in another shape than OpenAI's list of models") from error
    return {str(name): length if isinstance(length, int) else None for name, length in listed.items()}


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    chunks, size = [], 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > max_bytes:
            raise UpstreamFault("wrong", f"answers with more than {max_bytes:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _message(body: bytes) -> str:
    """What an error says, in the shapes of OpenAI, FastAPI and text-embeddings-inference; nothing of other bodies."""
    try:
        answer = json.loads(body)
        inner = answer.get("error", answer)
        message = inner.get("message", answer.get("detail")) if isinstance(inner, dict) else inner
    except (ValueError, AttributeError, RecursionError):
        return ""
    return message if isinstance(message, str) else ""


def _retry_seconds(header: str) -> float:
    try:
        seconds = float(header)
    except ValueError:  # absent, or a date
        return 1.0
    return min(max(seconds, 0.0), _MAX_RETRY_SECONDS) if math.isfinite(seconds) else 1.0
