"""Reading bodies: bounded while they stream in, strict JSON, and a deadline over the whole request.

`JsonRoute` reads and parses before FastAPI does, so that a route declares its body as a model and nothing else.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, cast

from fastapi import Request, Response
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Scope

from service.api.limits import check_count
from service.errors import (
    BodyTooLargeError,
    ClientGoneError,
    DeadlineExceededError,
    InvalidInputError,
    MalformedInputError,
    UnsupportedMediaTypeError,
)
from service.settings import ApiSettings
from service.wire import parse_json

NDJSON = "application/x-ndjson"
_JSON = "application/json"
TIMEOUT_HEADER = "X-Request-Timeout"
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def api_settings(request: Request) -> ApiSettings:
    """The limits of the app that got `request`."""
    return cast(ApiSettings, request.app.state.settings.api)


def media_type(request: Request) -> str:
    """The content type without its parameters; empty if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaTypeError(f"Content-Encoding {encoding[:40]!r}: send the body uncompressed (identity).")


def _check_json_type(request: Request, others: Iterable[str]) -> None:
    """Refuse what is not JSON; `others` are read by another route of the same path."""
    found = media_type(request)
    if found not in ("", _JSON):
        raise UnsupportedMediaTypeError(f"Content-Type {found[:80]!r}: send {' or '.join([_JSON, *others])}.")


def _check_query(request: Request, route: APIRoute) -> None:
    """Refuse query parameters that the route does not know: a misspelt one would be ignored."""
    if not request.query_params:
        return
    known = [parameter.alias for parameter in get_flat_dependant(route.dependant, skip_repeats=True).query_params]
    for name in request.query_params:
        if name not in known:
            raise InvalidInputError(
                f"{name[:80]}: unknown query parameter; this call takes {', '.join(known) or 'none'}."
            )


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        BodyTooLargeError: as soon as it is over `max_bytes`, whatever Content-Length says.
        ClientGoneError: the client hung up.
    """
    too_large = f"The body is over {max_bytes:,} bytes; send less at once"
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise BodyTooLargeError(f"{too_large} ({int(declared):,} declared).")
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise BodyTooLargeError(f"{too_large}.")
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise ClientGoneError("The client hung up before its body was complete.") from error
    return b"".join(chunks)


async def stream_body(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes in; each wait for more is bounded by `request_timeout_seconds`."""
    _check_encoding(request)
    chunks = request.stream()
    seconds = api_settings(request).request_timeout_seconds
    while True:
        try:
            async with asyncio.timeout(seconds):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except ClientDisconnect as error:
            raise ClientGoneError("The client hung up before its body was complete.") from error
        except TimeoutError as error:
            raise DeadlineExceededError(f"Nothing of the body came for {seconds:g} seconds.") from error
        yield chunk


class ParsedRequest(Request):
    """A request whose body has been read and parsed."""

    def __init__(self, request: Request, raw: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._raw, self._value = raw, value

    async def body(self) -> bytes:
        """The raw body."""
        return self._raw

    async def json(self) -> Any:
        """The parsed body."""
        return self._value


async def _parsed(request: Request, others: Iterable[str]) -> Request:
    _check_encoding(request)
    _check_json_type(request, others)
    raw = await read_body(request, max_bytes=api_settings(request).max_body_bytes)
    if not raw:
        raise MalformedInputError("The body is empty; a JSON object is expected.")
    # on the loop: 64 MiB take a third of a second, but usual bodies less than a thread's hand-over
    value = parse_json(raw) if len(raw) < 2**20 else await asyncio.to_thread(parse_json, raw)
    _check_num_documents(value, api_settings(request))
    return ParsedRequest(request, raw, value)


def _check_num_documents(body: Any, settings: ApiSettings) -> None:
    # counted here, before a model is built of each: 64 MiB may hold millions
    documents = body.get("documents") if isinstance(body, dict) else None
    if isinstance(documents, list):
        check_count(len(documents), settings.max_documents, field="documents", setting="EOSEEK_API__MAX_DOCUMENTS")


def _timeout_seconds(request: Request) -> float:
    longest = api_settings(request).request_timeout_seconds
    asked = request.headers.get(TIMEOUT_HEADER)
    if asked is None:
        return longest
    if not _SECONDS.fullmatch(asked) or float(asked) == 0:
        raise InvalidInputError(f"{TIMEOUT_HEADER}: {asked[:40]!r} is not a number of seconds above 0.")
    return min(float(asked), longest)


class JsonRoute(APIRoute):
    """A route with a strict JSON body (if it declares one) and a deadline.

    The deadline is in `request.state.deadline`, on `time.monotonic`: the batcher drops what nobody waits for.
    """

    def get_route_handler(self) -> Handler:
        """FastAPI's handler behind our reading."""
        handle = super().get_route_handler()
        others = (self.openapi_extra or {}).get("requestBody", {}).get("content", {})

        async def handle_in_time(request: Request) -> Response:
            if self.include_in_schema:  # a page is no call: its parameters are its own
                _check_query(request, self)
            seconds = _timeout_seconds(request)
            request.state.deadline = time.monotonic() + seconds
            try:
                async with asyncio.timeout(seconds) as timeout:
                    return await handle(await _parsed(request, others) if self.body_field else request)
            except TimeoutError as error:
                if not timeout.expired():
                    raise
                raise DeadlineExceededError(
                    f"No answer within {seconds:g} seconds; ask for less or wait longer."
                ) from error

        return handle_in_time


class StreamRoute(APIRoute):
    """A route that reads a stream or answers with one: it has no deadline as a whole."""

    def get_route_handler(self) -> Handler:
        """FastAPI's handler, behind the checks that `JsonRoute` makes too."""
        handle = super().get_route_handler()

        async def handle_checked(request: Request) -> Response:
            _check_query(request, self)
            _timeout_seconds(request)
            return await handle(request)

        return handle_checked


class NdjsonRoute(StreamRoute):
    """A route for `application/x-ndjson` only, which it reads itself."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """No match for other content types, so that the JSON route of the same path gets them."""
        match, child_scope = super().matches(scope)
        if match is Match.FULL and media_type(Request(scope)) != NDJSON:
            return Match.NONE, {}
        return match, child_scope
