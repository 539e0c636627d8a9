"""Wiring: the parts of a running service, started and stopped in order, behind one FastAPI application."""

import asyncio
import logging
import math
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

from service import __version__
from service.api import (
    backup,
    collections,
    documents,
    embed,
    health,
    openai,
    openapi,
    playground,
    problems,
    reindex,
    search,
)
from service.api.access import AccessMiddleware
from service.api.bodies import TIMEOUT_HEADER
from service.api.keys import Keyring
from service.api.middleware import REQUEST_ID_HEADER, RequestMiddleware
from service.api.services import CollectionGate, Services
from service.batching.batcher import Batcher
from service.batching.cache import EmbeddingCache, SharedQueries
from service.encoders.base import AsyncEncoder
from service.encoders.checkpoint import Checkpoint, load_checkpoint
from service.encoders.remote_encoder import RemoteEncoder
from service.encoders.worker import WorkerEncoder, worker_options
from service.errors import ConfigurationError, EoseekError, FingerprintMismatchError
from service.ingest.guard import guarded
from service.ingest.pipeline import IngestPipeline
from service.ingest.reindex import Reindexer
from service.ingest.served import Load, ServedCheckpoint, ServedCheckpoints
from service.metrics import Metrics
from service.server import OnReady, OnStop, serve
from service.settings import EncoderSettings, Settings, StoreSettings
from service.store import open_store
from service.store.base import Store
from service.store.metered import metered
from service.tracing import Tracing

logger = logging.getLogger("eoseek.app")
_DESCRIPTION = """Dense retrieval with decoder LLMs pooled at their closing [EOS] token.

Errors are RFC 9457 problem documents with a stable `code`. Send `X-Request-Id` to find a request in the log, and
`X-Request-Timeout` (seconds) to give up earlier than the service would."""


def create_app(
    settings: Settings,
    *,
    checkpoint: Checkpoint | None = None,
    encoder: AsyncEncoder | None = None,
    store: Store | None = None,
    tracing: Tracing | None = None,
    load: Load | None = None,
) -> FastAPI:
    """The application; its parts start with its lifespan, which raises ConfigurationError when they cannot.

    Args:
        settings: all of them.
        checkpoint: instead of loading the one that the settings name.
        encoder: instead of a worker process; not yet started.
        store: instead of the one that the settings name; not yet started.
        tracing: instead of the one that the settings ask for; not yet started.
        load: instead of reading another checkpoint, for a re-index, and a worker process for it.
    """
    metrics = Metrics(CollectorRegistry())
    if settings.tracing and tracing is None:
        tracing = Tracing(database="memory" if settings.store.kind == "memory" else "qdrant")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            _traced(tracing),
            _running(settings, metrics, checkpoint=checkpoint, encoder=encoder, store=store, load=load) as services,
        ):
            app.state.services = services
            yield

    app = FastAPI(
        title="EOSeek",
        version=__version__,
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0"},
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from another host; ours is in playground.py
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,  # bodies.py checks it, and takes a missing one for JSON
    )
    app.state.settings = settings
    for module in (embed, search, collections, reindex, openai, backup, health, playground):
        app.include_router(module.router)
    # the stream first: it passes on what is not NDJSON
    app.include_router(documents.stream_router)
    app.include_router(documents.router)
    problems.install(app)
    app.add_middleware(AccessMiddleware, settings=settings.api, keyring=Keyring(settings.api.keys))
    app.add_middleware(RequestMiddleware, metrics=metrics, tracing=tracing)
    if settings.api.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.api.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", REQUEST_ID_HEADER, TIMEOUT_HEADER],
            expose_headers=[REQUEST_ID_HEADER, "Retry-After", "WWW-Authenticate"],
        )
    openapi.complete(app, settings.api)
    return app


def run(
    settings: Settings,
    *,
    checkpoint: Checkpoint | None = None,
    on_ready: OnReady | None = None,
    on_stop: OnStop | None = None,
) -> int:
    """Serve until interrupted; returns an exit code and raises no ConfigurationError.

    Arguments as `create_app` and `server.serve` have them.
    """
    app = create_app(settings, checkpoint=checkpoint)
    return serve(
        app,
        settings.api,
        log_level=settings.log_level,
        log_format=settings.log_format,
        on_ready=on_ready,
        on_stop=on_stop,
    )


@asynccontextmanager
async def _traced(tracing: Tracing | None) -> AsyncIterator[None]:
    if tracing is None:
        yield
        return
    tracing.start()
    try:
        yield
    finally:
        await asyncio.to_thread(tracing.stop)


@asynccontextmanager
async def _running(
    settings: Settings,
    metrics: Metrics,
    *,
    checkpoint: Checkpoint | None,
    encoder: AsyncEncoder | None,
    store: Store | None,
    load: Load | None,
) -> AsyncIterator[Services]:
    """The started parts; stopped in reverse, the batchers first and with time to drain."""
    async with AsyncExitStack() as stack:
        try:
            if checkpoint is None:
                checkpoint = await asyncio.to_thread(_load, settings.encoder)
            encoder = encoder or _open_encoder(settings, checkpoint, metrics)
            store = store or open_store(
                settings.store,
                on_event=partial(metrics.count_child_event, "store"),
                on_build=metrics.note_index_build,
            )
            store = metered(store, metrics)
            await _start_both(stack, encoder, store)
            guarded_store, guard = guarded(store)
            num_bytes = settings.batching.cache_bytes
            cache = EmbeddingCache(num_bytes, metrics=metrics) if num_bytes else None
            assemble = partial(_assemble, settings, metrics, cache=cache, store=store, guarded_store=guarded_store)
            served = ServedCheckpoints(
                assemble(checkpoint, encoder),
                assemble=assemble,
                load=load or partial(_load_other, settings.encoder, metrics),
                drain_seconds=settings.api.drain_seconds,
            )
            await served.start()
            stack.push_async_callback(served.stop)
            gate = CollectionGate(store, served)
            path = settings.store.path / "reindex.json" if settings.store.kind == "edge" else None
            reindexer = Reindexer(store, guard, served, path=path, forget=gate.forget)
            stack.push_async_callback(reindexer.stop)
            await reindexer.start()
            await _open_default(store, settings.store, served, reindexer)
        except EoseekError as error:
            raise ConfigurationError(error.detail) from error
        _report(metrics, settings, checkpoint, encoder, store)
        yield Services(
            settings=settings,
            served=served,
            store=guarded_store,
            metrics=metrics,
            collections=gate,
            reindexer=reindexer,
        )


def _assemble(
    settings: Settings,
    metrics: Metrics,
    checkpoint: Checkpoint,
    encoder: AsyncEncoder,
    *,
    cache: EmbeddingCache | None,
    store: Store,
    guarded_store: Store,
) -> ServedCheckpoint:
    """An encoder with what works by it."""
    # the longest legal text is a batch of its own
    max_batch_tokens = max(settings.batching.max_batch_tokens, checkpoint.max_length)
    batching = settings.batching.model_copy(update={"max_batch_tokens": max_batch_tokens})
    batcher = Batcher(encoder, batching, metrics=metrics)
    pipeline = partial(
        IngestPipeline, checkpoint, batcher, settings=batching, timeout_seconds=settings.api.request_timeout_seconds
    )
    return ServedCheckpoint(
        checkpoint=checkpoint,
        encoder=encoder,
        batcher=batcher,
        queries=SharedQueries(batcher, cache, fingerprint=checkpoint.fingerprint, metrics=metrics),
        pipeline=pipeline(store=guarded_store, metrics=metrics),
        # what is copied was counted when it came in
        copier=pipeline(store=store, metrics=Metrics(CollectorRegistry())),
    )


def _report(metrics: Metrics, settings: Settings, checkpoint: Checkpoint, encoder: AsyncEncoder, store: Store) -> None:
    """What stays as it is while the service runs, and what is asked at each scrape."""
    metrics.set_build(
        version=__version__,
        model=checkpoint.name,
        fingerprint=checkpoint.fingerprint,
        backend=settings.encoder.backend,
        dtype=encoder.dtype,
        store=settings.store.kind,
    )
    # only what runs in a child process has a pid
    metrics.watch_part("encoder", lambda: encoder.is_ready, lambda: getattr(encoder, "pid", None))
    metrics.watch_part("store", lambda: store.is_ready, lambda: getattr(store, "pid", None))
    if settings.store.kind == "edge":
        metrics.watch_disk("store", partial(_disk_usage, settings.store.path))


def _disk_usage(path: Path) -> tuple[float, float]:
    """Size and free bytes; NaN for both where the path cannot be asked, so that a scrape never fails of it."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return math.nan, math.nan
    return usage.total, usage.free


async def _open_default(store: Store, settings: StoreSettings, served: ServedCheckpoints, reindexer: Reindexer) -> None:
    name, main = settings.collection, served.main.checkpoint
    create = partial(store.create_collection, name, fingerprint=main.fingerprint, dimension=main.dimension)
    try:
        await create()
    except FingerprintMismatchError:
        if served.find((await store.describe_collection(name)).fingerprint):  # it was re-indexed
            return
        # an empty one holds nothing that could be lost, unless another service writes to the same server
        if settings.kind == "qdrant" or (await store.describe_collection(name)).num_documents:
            raise
        await reindexer.drop_collection(name)
        await create()


async def _start_both(stack: AsyncExitStack, encoder: AsyncEncoder, store: Store) -> None:
    async def start(begin: Callable[[], Awaitable[None]], end: Callable[[], Awaitable[None]]) -> None:
        stack.push_async_callback(end)
        await begin()

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(start(encoder.start, encoder.stop))
            tasks.create_task(start(store.start, store.stop))
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def _load_other(settings: EncoderSettings, metrics: Metrics, name_or_path: str) -> tuple[Checkpoint, AsyncEncoder]:
    """Another checkpoint than the configured one, and its worker, which is not started.

    Its path came in a request, so code that it brings along never runs, whatever the setting admits for the own one.
    Raises ConfigurationError.
    """
    if settings.backend == "remote":
        raise ConfigurationError(
            "the upstreams of EOSEEK_ENCODER__URLS serve one checkpoint, so this service runs no other beside it; "
            "index into a new collection by a service whose upstreams serve the other one"
        )
    other = settings.model_copy(update={"checkpoint": name_or_path, "trust_remote_code": False})
    checkpoint = _load(other)
    return checkpoint, _worker_encoder(other, checkpoint, metrics)


def _load(settings: EncoderSettings) -> Checkpoint:
    if settings.trust_remote_code:
        logger.warning(
            "EOSEEK_ENCODER__TRUST_REMOTE_CODE is on: whatever code the checkpoint %s brings along runs here, with all "
            "that this process may do",
            settings.checkpoint,
        )
    return load_checkpoint(
        settings.checkpoint, max_length=settings.max_length, trust_remote_code=settings.trust_remote_code
    )


def _open_encoder(settings: Settings, checkpoint: Checkpoint, metrics: Metrics) -> AsyncEncoder:
    if settings.encoder.backend != "remote":
        return _worker_encoder(settings.encoder, checkpoint, metrics)
    encoder = RemoteEncoder(
        checkpoint,
        settings.encoder,
        limit_seconds=settings.api.request_timeout_seconds,
        on_call=metrics.count_upstream_call,
    )
    metrics.watch_upstreams(encoder.num_upstreams, encoder.is_serving)
    return encoder


def _worker_encoder(settings: EncoderSettings, checkpoint: Checkpoint, metrics: Metrics) -> WorkerEncoder:
    return WorkerEncoder(
        worker_options(settings, checkpoint),
        start_timeout_seconds=settings.start_timeout_seconds,
        on_event=partial(metrics.count_child_event, "encoder"),
        on_prefixes=metrics.note_prefixes,
    )
