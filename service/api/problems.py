"""One error body for every failure: RFC 9457 problem documents with a stable `code`.

`problem` is the only place that writes one. Routes declare theirs by `problems(...)`, so that OpenAPI is right.
"""

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.errors import AccessError, EoseekError, InvalidInputError
from service.wire import describe_errors

logger = logging.getLogger("eoseek.api")
MEDIA_TYPE = "application/problem+json"
_MAX_DETAIL_CHARS = 2000
_TITLES = {
    400: "Malformed request: not JSON, not UTF-8",
    401: "No key, or one that is not known",
    403: "The key may not do this, or not in this collection",
    404: "Unknown collection, document or path",
    409: "The collection belongs to another checkpoint, or its re-index is not at this step",
    413: "The body is over the limit",
    415: "Another content type or encoding is wanted",
    422: "A field is refused; `errors` lists each",
    429: "Overloaded, or the key's rate is spent; try again after `Retry-After` seconds",
    500: "A fault of the service",
    501: "Not implemented, or not by this store",
    503: "Not ready, or the deadline passed; try again after `Retry-After` seconds",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of a route for these statuses."""
    schema = {"$ref": "#/components/schemas/Problem"}
    described: dict[int | str, dict[str, Any]] = {
        status: {"description": _TITLES[status], "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses
    }
    for status in {401, 403} & set(statuses):
        described[status]["headers"] = {"WWW-Authenticate": {"description": "RFC 6750.", "schema": {"type": "string"}}}
    for status in {429, 503} & set(statuses):
        seconds = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
        described[status]["headers"] = {"Retry-After": seconds}
    return described


def problem(
    request_id: str, status: int, *, code: str, title: str, detail: str, extra: Mapping[str, Any] | None = None
) -> Response:
    """A problem document; `extra` adds members and overwrites none.

    `error` is for OpenAI's clients: it stands in each, since a base URL without `/v1` gets 404 from another place.
    """
    detail = detail[:_MAX_DETAIL_CHARS]
    body = {
        "type": f"urn:eoseek:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "instance": request_id,
        "error": {"message": detail, "type": code, "param": None, "code": code},
    }
    return Response(to_json({**(extra or {}), **body}), status, media_type=MEDIA_TYPE)


def respond(request_id: str, error: EoseekError) -> Response:
    """The problem document of `error`; 429 and 503 carry `Retry-After`, 401 and 403 `WWW-Authenticate`."""
    response = problem(
        request_id, error.status, code=error.code, title=error.title, detail=error.detail, extra=error.extra
    )
    if error.status in (429, 503):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds or 1)))
    if isinstance(error, AccessError):
        response.headers["WWW-Authenticate"] = error.challenge
    return response


def request_id(request: Request) -> str:
    """The id that the middleware gave this request."""
    return str(request.state.request_id)


async def _on_eoseek_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EoseekError)
    if error.status >= 500:
        fields = {"request_id": request_id(request), "code": error.code}
        logger.warning(
            "%s %s: %s: %s", request.method, request.url.path, error.code, error.detail, extra={"fields": fields}
        )
    return _respond(request, error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail, errors = describe_errors(error.errors())
    return _respond(request, InvalidInputError(detail, extra={"errors": errors}))


def _respond(request: Request, error: EoseekError) -> Response:
    request.state.error_code = error.code  # for the request's line in the log
    return respond(request_id(request), error)


def _allowed_methods(request: Request) -> list[str]:
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in routes for method in getattr(route, "methods", None) or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, path, headers = error.status_code, request.url.path[:200], {}
    detail = str(error.detail)
    if status == 404:
        detail = f"No such path: {path}; GET /docs lists them all."
    elif status == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
        detail = f"{request.method} {path}: this path answers {headers['Allow']}."
    title = HTTPStatus(status).phrase
    request.state.error_code = code = title.lower().replace(" ", "_")
    response = problem(request_id(request), status, code=code, title=title, detail=detail)
    response.headers.update(headers)
    return response


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document. Unhandled ones are the middleware's."""
    app.add_exception_handler(EoseekError, _on_eoseek_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
