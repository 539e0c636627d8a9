"""What surrounds every request: its id, its metrics, the 500 of last resort, and its end when the client goes away or
the service does.

Plain ASGI, two tasks a request. Starlette runs a handler to its end even if nobody is there any more; here the work is
cancelled, so that the batcher can skip it.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import respond
from service.errors import EoseekError, NotReadyError
from service.logs import REQUESTS
from service.metrics import Metrics
from service.tracing import FinishedStage, Tracing

logger = logging.getLogger("eoseek.api")
request_log = logging.getLogger(REQUESTS)
REQUEST_ID_HEADER = "X-Request-Id"
_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CLIENT_CLOSED_REQUEST = 499
_SHUTTING_DOWN = "The service is shutting down and did not get to this request in time; send it again."
_PROBES = frozenset({"/health/live", "/health/ready", "/metrics"})  # too many and too alike to be logged or traced
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ShuttingDownError(NotReadyError):
    """The service ends and has waited for the request as long as it may."""

    code = "shutting_down"
    title = "Shutting down"


class _Exchange:
    """One request and its answer: what has been received and sent so far."""

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self._receive, self._send, self._request_id = receive, send, request_id
        self._body_read = asyncio.Event()
        self.status: int | None = None
        self.is_complete = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._body_read.set()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID_HEADER] = self._request_id
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True
        await self._send(message)

    async def disconnected(self) -> None:
        # before its end the body is the handler's to read, and it learns of a disconnect there
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class RequestMiddleware:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = asked if _SAFE_ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        if scope["method"] == "HEAD":
            # wherever GET is; the server, whose scope stays as it is, leaves out the body
            scope = {**scope, "method": "GET"}
        exchange = _Exchange(receive, send, request_id)
        started = time.monotonic()
        stages = self._tracing.begin() if self._tracing else []
        try:
            await self._answer(scope, exchange, request_id)
        finally:
            self._observe(scope, exchange, started, stages)

    async def _answer(self, scope: Scope, exchange: _Exchange, request_id: str) -> None:
        work = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        watch = asyncio.ensure_future(exchange.disconnected())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not exchange.is_complete:
                work.cancel()
            await work
        except asyncio.CancelledError:
            # ours if the client has gone; else the server's, which ends and drains no longer: it gets an answer to
            # send, since it would log the cancellation as a fault and send a bare 500
            if not watch.done():
                await _end(work)
                await self._fail(ShuttingDownError(_SHUTTING_DOWN), scope, exchange, request_id)
        except Exception:
            fields = {"request_id": request_id}
            logger.exception(
                "%s %s failed, request %s", scope["method"], scope["path"], request_id, extra={"fields": fields}
            )
            fault = EoseekError(f"A fault of the service; its log has more under request id {request_id}.")
            await self._fail(fault, scope, exchange, request_id)
        finally:
            watch.cancel()
            await _end(work)

    async def _fail(self, error: EoseekError, scope: Scope, exchange: _Exchange, request_id: str) -> None:
        if exchange.status is None:
            scope["state"]["error_code"] = error.code
            await respond(request_id, error)(scope, exchange.receive, exchange.send)

    def _observe(self, scope: Scope, exchange: _Exchange, started: float, stages: Sequence[FinishedStage]) -> None:
        seconds = time.monotonic() - started
        # the template, never the raw path: labels must stay few
        route = getattr(scope.get("route"), "path", None)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        status = exchange.status or _CLIENT_CLOSED_REQUEST
        label = route or "unmatched"
        self._metrics.observe_request(route=label, method=method, status=status, seconds=seconds)
        if route in _PROBES:
            return
        error_code = scope["state"].get("error_code")
        trace_id = None
        if self._tracing:
            trace_id = self._tracing.finish(
                scope, stages, route=route, status=exchange.status, error_code=error_code, started=started
            )
        if request_log.isEnabledFor(logging.INFO):
            fields = {
                "request_id": scope["state"]["request_id"],
                "method": method,
                "route": label,
                "status": status,
                "seconds": round(seconds, 6),
                "code": error_code,
                "trace_id": trace_id,
            }
            present = {key: value for key, value in fields.items() if value is not None}
            request_log.info("%s %s %d", method, label, status, extra={"fields": present})


async def _end(work: "asyncio.Future[None]") -> None:
    if work.cancel():
        await asyncio.wait({work})
