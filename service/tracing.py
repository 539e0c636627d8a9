"""Traces of requests by OpenTelemetry: one span a request with a child for each of its stages; off unless asked for.

The spans are made when the request is over, from the times that the metrics are told anyway: on its way a request pays
for a list of a few records, sampled or not. The price: a request that hangs has no span yet, and neither the encoder
worker nor a Qdrant server continues the trace.
"""

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from service import __version__
from service.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_MAX_STAGES = 1000  # of a stream with thousands of batches the first ones tell enough
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # of HEAD the server makes GET
_DATABASE_OPERATIONS = {"search": "search", "flush": "upsert"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedStage:
    """A part of a request that is over; times are on `time.monotonic`."""

    name: str
    started: float
    ended: float
    collection: str | None  # of the store, where the stage is a call to it
    num_tokens: int | None  # that were encoded in it


_stages: ContextVar[list[FinishedStage] | None] = ContextVar("stages", default=None)


def note_stage(
    name: str, seconds: float, *, ended: float | None, collection: str | None = None, num_tokens: int | None = None
) -> None:
    """Keep a stage of the current request for its trace; None ends it now. Does nothing while nobody traces."""
    noted = _stages.get()
    if noted is not None and len(noted) < _MAX_STAGES:
        ended = time.monotonic() if ended is None else ended
        noted.append(
            FinishedStage(name=name, started=ended - seconds, ended=ended, collection=collection, num_tokens=num_tokens)
        )


class Tracing:
    """Turns requests that are over into spans, and sends them where OpenTelemetry's own OTEL_* variables say."""

    def __init__(self, *, database: str, exporter: "SpanExporter | None" = None) -> None:
        """Nothing is sent before `start`.

        Args:
            database: what keeps the vectors, as `db.system.name`.
            exporter: gets each span at once, instead of OTLP in batches.
        """
        self._database = database
        self._exporter = exporter
        self._provider: Any = None
        self._tracer: Any = None

    def start(self) -> None:
        """Make the tracer. Raises ConfigurationError without the packages of the extra `otel`."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        except ImportError as error:
            raise ConfigurationError(
                f"EOSEEK_TRACING is on and {error.name} is missing; pip install 'eoseek[otel]', or turn it off"
            ) from error
        ours = Resource({"service.name": "eoseek", "service.version": __version__})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(
            SimpleSpanProcessor(self._exporter) if self._exporter else BatchSpanProcessor(OTLPSpanExporter())
        )
        self._tracer = self._provider.get_tracer("eoseek", __version__)

    def stop(self) -> None:
        """Send what is left; blocks for seconds when the collector is away."""
        self._provider.shutdown()

    def begin(self) -> list[FinishedStage]:
        """The list that takes the stages of the request that the current task begins with."""
        stages: list[FinishedStage] = []
        _stages.set(stages)
        return stages

    def finish(
        self,
        scope: Scope,
        stages: Sequence[FinishedStage],
        *,
        route: str | None,
        status: int | None,
        error_code: str | None,
        started: float,
    ) -> str | None:
        """Make the spans of a request that ends now; a `traceparent` among its headers makes them part of its trace.

        Args:
            scope: of the request.
            stages: from `begin`.
            route: the template of its path, if it met any.
            status: of its answer, None without one.
            error_code: of the problem document that answered it.
            started: on `time.monotonic`.
        Returns:
            The trace's id in hex, if it is sampled.
        """
        from opentelemetry import propagate, trace

        ended = time.monotonic()
        epoch = time.time_ns() - int(ended * 1e9)  # of the monotonic clock
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        span = self._tracer.start_span(
            f"{'HTTP' if method == '_OTHER' else method} {route or ''}".rstrip(),
            context=propagate.extract(Headers(scope=scope)),
            kind=trace.SpanKind.SERVER,
            attributes=_http_attributes(scope, method, route, status),
            start_time=epoch + int(started * 1e9),
        )
        if not span.is_recording():
            return None
        if status is None or status >= 500:
            span.set_status(trace.StatusCode.ERROR)
            span.set_attribute("error.type", error_code or ("client_gone" if status is None else str(status)))
        parent = trace.set_span_in_context(span)
        for stage in stages:
            self._tracer.start_span(
                f"{_DATABASE_OPERATIONS.get(stage.name, stage.name)} {stage.collection or ''}".rstrip(),
                context=parent,
                kind=trace.SpanKind.CLIENT if stage.collection else trace.SpanKind.INTERNAL,
                attributes=self._attributes(stage),
                start_time=epoch + int(stage.started * 1e9),
            ).end(epoch + int(stage.ended * 1e9))
        span.end(epoch + int(ended * 1e9))
        return str(trace.format_trace_id(span.get_span_context().trace_id))

    def _attributes(self, stage: FinishedStage) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {"eoseek.stage": stage.name}
        if stage.collection is not None:
            attributes["db.system.name"] = self._database
            attributes["db.operation.name"] = _DATABASE_OPERATIONS[stage.name]
            attributes["db.collection.name"] = stage.collection
        if stage.num_tokens is not None:
            attributes["gen_ai.operation.name"] = "embeddings"
            attributes["gen_ai.usage.input_tokens"] = stage.num_tokens
        return attributes


def _http_attributes(scope: Scope, method: str, route: str | None, status: int | None) -> dict[str, Any]:
    """Without the query string, which may hold anything."""
    client, server = scope.get("client") or (None, None), scope.get("server") or (None, None)
    attributes = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope["http_version"],
        "server.address": server[0],
        "server.port": server[1],
        "client.address": client[0],
        "user_agent.original": Headers(scope=scope).get("user-agent"),
        "eoseek.request_id": scope["state"]["request_id"],
    }
    return {name: value for name, value in attributes.items() if value is not None}
