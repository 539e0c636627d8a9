"""Who may call what: one table from route to role, and the door that holds it before a body is read.

A route that the table lacks wants the role admin. Without any key everybody may do everything, except pages of other
sites in somebody's browser, which reach a service on loopback as well as its user does.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.keys import Keyring
from service.api.problems import respond
from service.errors import EoseekError, ForbiddenError
from service.settings import ApiSettings, Role

# `open`: without a key; `operations`: without one unless the setting `open_operations` is off
Access = Literal["open", "operations"] | Role
ACCESS: Mapping[tuple[str, str], Access] = {
    ("GET", "/"): "open",
    ("GET", "/web/{file}"): "open",
    ("GET", "/docs"): "open",
    ("GET", "/docs/{file}"): "open",
    ("GET", "/openapi.json"): "open",
    ("GET", "/health/live"): "operations",
    ("GET", "/health/ready"): "operations",
    ("GET", "/metrics"): "operations",
    ("GET", "/info"): "read",
    ("POST", "/embed"): "read",
    ("POST", "/search"): "read",
    ("POST", "/v1/embeddings"): "read",
    ("GET", "/v1/models"): "read",
    ("GET", "/documents/{document_id}"): "read",
    ("GET", "/collections"): "read",
    ("GET", "/collections/{name}"): "read",
    ("GET", "/collections/{name}/reindex"): "read",
    ("POST", "/documents"): "write",
    ("POST", "/documents/delete"): "write",
    ("DELETE", "/documents/{document_id}"): "write",
    ("PUT", "/collections/{name}"): "write",
    ("DELETE", "/collections/{name}"): "admin",
    ("POST", "/backup"): "admin",
    ("POST", "/collections/{name}/reindex"): "admin",
}


@dataclass(frozen=True)
class Caller:
    """Who sent a request: the collections that the key is for, None for all of them, as where no key is asked for."""

    collections: frozenset[str] | None = None

    def may_use(self, collection: str) -> bool:
        """Whether the key is for this collection."""
        return self.collections is None or collection in self.collections

    def check(self, collection: str) -> str:
        """`collection`. Raises ForbiddenError, whether it exists or not, if the key is not for it."""
        if not self.may_use(collection):
            raise ForbiddenError(
                f"This key is not for collection {collection!r:.80}; name one that it is for, or use another key.",
                challenge='error="insufficient_scope"',
            )
        return collection

    def check_all(self, what: str) -> None:
        """Raise ForbiddenError unless the key is for all collections, of each of which `what` tells."""
        if self.collections is not None:
            raise ForbiddenError(
                f"{what} of every collection: use a key that is for all of them.",
                challenge='error="insufficient_scope"',
            )


async def caller_of(request: Request) -> Caller:
    """Who sent `request`."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller


CallerDep = Annotated[Caller, Depends(caller_of)]


class AccessMiddleware:
    """Refuses before the application reads anything; needs a request id in the scope."""

    def __init__(self, app: ASGIApp, *, settings: ApiSettings, keyring: Keyring) -> None:
        self._app = app
        self._settings = settings
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            try:
                scope["state"]["caller"] = self._admit(scope)
            except EoseekError as error:
                scope["state"]["error_code"] = error.code  # for the request's line in the log
                await respond(scope["state"]["request_id"], error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Caller | None:
        """The caller; None where no route will ask for one."""
        route = _route(scope)
        if route is None:  # 404 or 405
            return None
        scope["route"] = route  # metrics name it also where the request ends here
        headers = Headers(scope=scope)
        if not self._keyring:
            self._check_origin(scope["method"], headers)
            return Caller()
        role = role_for(scope["method"], path_of(route), self._settings)
        return Caller(self._keyring.admit(headers.get("authorization"), role).collections) if role else Caller()

    def _check_origin(self, method: str, headers: Headers) -> None:
        """A page of another site, or of a name that was made to point here, may send what needs no preflight."""
        origin = headers.get("origin")
        if origin is None or method == "GET" or {origin, "*"} & set(self._settings.cors_origins):
            return
        if not _is_own(origin, headers.get("host", "")):
            raise ForbiddenError(
                f"A page of {origin[:100]!r} may not call a service without keys; list it in EOSEEK_API__CORS_ORIGINS, "
                "or set EOSEEK_API__KEYS."
            )


def role_for(method: str, path: str, settings: ApiSettings) -> Role | None:
    """What a key must be allowed for this route, where there are keys; None: it is answered without."""
    access = ACCESS.get((method, path), "admin")
    if access == "open" or (access == "operations" and settings.open_operations):
        return None
    return "read" if access == "operations" else access


def path_of(route: BaseRoute) -> str:
    """The path of a route as the table and the OpenAPI document write it."""
    return str(getattr(route, "path_format", ""))


def _route(scope: Scope) -> BaseRoute | None:
    for route in scope["app"].routes:
        if route.matches(scope)[0] is Match.FULL:
            return route  # type: ignore[no-any-return]
    return None


def _is_own(origin: str, host: str) -> bool:
    """Whether a page of `origin` came from here, under a name for which no name server decides where it leads."""
    try:
        url = urlsplit(origin)
        if url.netloc != host or url.hostname == "localhost":
            return url.netloc == host
        ipaddress.ip_address(url.hostname or "")
    except ValueError:
        return False
    return True
