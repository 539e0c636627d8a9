"""What operators ask first: alive, ready, what is running, and metrics."""

import asyncio
import contextlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics

from service import __version__
from service.api.access import CallerDep
from service.api.bodies import JsonRoute
from service.api.problems import problems
from service.api.services import Services, ServicesDep
from service.errors import EoseekError, NotReadyError
from service.schemas import Info, Limits, Live, Ready

router = APIRouter(route_class=JsonRoute, tags=["operations"])
_COUNTING_SECONDS = 2.0  # a scraper gives up after ten
_METRICS_TEXT: dict[int | str, dict[str, Any]] = {200: {"description": "Prometheus or OpenMetrics text"}}


@router.get("/health/live", responses=problems(422, 500))
async def live() -> Live:
    """200 as long as the event loop runs."""
    return Live(status="live")


@router.get("/health/ready", responses=problems(422, 500, 503))
async def ready(services: ServicesDep) -> Ready:
    """200 when a request now would be worked on; 503 names the parts that are away."""
    parts = {
        "encoder": all(each.encoder.is_ready for each in services.reindexer.serving()),
        "store": services.store.is_ready,
    }
    missing = [part for part, is_ready in parts.items() if not is_ready]
    if missing:
        raise NotReadyError(f"Not ready: {', '.join(missing)}.", extra={"parts": parts})
    return Ready(status="ready", **parts)


@router.get("/info", responses=problems(422, 500, 503))
async def info(services: ServicesDep) -> Info:
    """Which checkpoint runs on what, and the limits."""
    checkpoint, settings = services.checkpoint, services.settings
    return Info(
        version=__version__,
        model=checkpoint.name,
        checkpoint=checkpoint.path.name,
        fingerprint=checkpoint.fingerprint,
        is_tuned=checkpoint.is_tuned,
        dimension=checkpoint.dimension,
        max_length=checkpoint.max_length,
        pooling=checkpoint.pooling,
        default_instruction=checkpoint.default_instruction,
        instructions=checkpoint.instructions,
        backend=settings.encoder.backend,
        dtype=services.encoder.dtype,
        store=settings.store.kind,
        default_collection=settings.store.collection,
        limits=_limits(services),
    )


@router.get("/metrics", response_class=PlainTextResponse, responses=_METRICS_TEXT | problems(422, 500))
async def metrics(services: ServicesDep, caller: CallerDep, accept: Annotated[str, Header()] = "") -> Response:
    """Metrics in the text format that the scraper asks for."""
    caller.check_all("Metrics have names and sizes")
    await _report_collections(services)
    registry = services.metrics.registry
    if "application/openmetrics-text" in accept:
        body = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return Response(body, media_type=openmetrics.CONTENT_TYPE_LATEST)
    return Response(exposition.generate_latest(registry), media_type=exposition.CONTENT_TYPE_LATEST)


async def _report_collections(services: Services) -> None:
    """Tell the metrics what is stored; while the store is away or busy they keep what they were told last."""
    if not services.store.is_ready:
        return
    with contextlib.suppress(EoseekError, TimeoutError):
        async with asyncio.timeout(_COUNTING_SECONDS):
            infos = await services.store.list_collections()
        services.metrics.set_reindexes(*services.reindexer.levels())
        services.metrics.set_collections({info.name: (info.num_documents, info.size_bytes) for info in infos})


def _limits(services: Services) -> Limits:
    limits = services.settings.api
    return Limits(
        max_body_bytes=limits.max_body_bytes,
        max_inputs=limits.max_inputs,
        max_documents=limits.max_documents,
        max_text_chars=limits.max_text_chars,
        max_top_k=limits.max_top_k,
        max_results=limits.max_results,
        max_metadata_bytes=limits.max_metadata_bytes,
        request_timeout_seconds=limits.request_timeout_seconds,
    )
