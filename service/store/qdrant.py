"""The store on a Qdrant server or cluster, over gRPC; many API processes may share it.

A public name is an alias of the physical collection, whose metadata carries name, fingerprint and dimension;
collections without it are not ours and are never touched. Writes return when applied. A call is made once more when the
server was away. An upsert of more than 256 points takes several requests: after a StoreError some of its documents,
each of them whole, may be there, and repeating the call is safe.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc.aio
import numpy as np
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from service.errors import ConfigurationError, EoseekError, NotImplementedHereError, StoreError
from service.settings import StoreSettings
from service.store.base import (
    CollectionInfo,
    Document,
    Embedding,
    Filter,
    Hit,
    Point,
    SearchOptions,
    Snapshot,
    point_id,
)
from service.store.filters import filter_model
from service.store.points import (
    DOCUMENT_FIELDS,
    check_cursor,
    check_embeddings,
    check_fingerprint,
    check_name,
    check_points,
    excluded_score,
    from_payload,
    physical_name,
    public_name,
    stored_point,
    to_payload,
    unknown_collection,
)

log = logging.getLogger(__name__)

_POINTS_PER_REQUEST = 256
_PAUSE_SECONDS = 0.2  # before the second try, and between two looks whether the server is back
_OURS = "eoseek"  # key of our entry in a collection's metadata
_TRANSIENT_CODES = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED}


class QdrantStore:
    """See `Store`. Of two points with one id in a call the last one wins."""

    def __init__(self, settings: StoreSettings) -> None:
        """Nothing is asked of the server before `start`."""
        self._settings = settings
        self._client = _client(settings)
        self._seconds = math.ceil(settings.timeout_seconds)  # the server gives up a read by itself then
        self._known: dict[str, CollectionInfo] = {}
        self._changing = asyncio.Lock()
        self._is_ready = False
        self._probe: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the server answered when it was asked last; while it does not, it is asked again and again."""
        return self._is_ready

    async def start(self) -> None:
        """See `Store`; waits for a server that is starting as long as one call may take."""
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                await self._await_server()
        except TimeoutError:
            way = f"gRPC port {self._settings.grpc_port}" if self._settings.grpc else "HTTP"
            raise ConfigurationError(
                f"no Qdrant server answers at {self._settings.url} ({way}); start one or set EOSEEK_STORE__URL"
            ) from None

    async def stop(self) -> None:
        """See `Store`."""
        self._is_ready = False
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        await self._client.close()

    async def create_collection(self, name: str, *, fingerprint: str, dimension: int) -> CollectionInfo:
        """See `Store`. Raises ConfigurationError when the server is too old to keep collection metadata."""
        check_name(name)
        async with self._changing:
            found = await self._find(name)
            if found is None:
                await self._create(name, fingerprint, dimension)
                found = await self._find(name)
            if found is None:
                raise ConfigurationError(
                    f"the Qdrant server at {self._settings.url} does not keep collection metadata; 1.16 or later does"
                )
            return check_fingerprint(found, fingerprint, dimension)

    async def list_collections(self) -> list[CollectionInfo]:
        """See `Store`; those of others are left out."""
        aliases = (await self._call("get_aliases")).aliases
        found = [await self._describe(alias.alias_name, alias.collection_name) for alias in aliases]
        return sorted((info for info in found if info is not None), key=lambda info: info.name)

    async def describe_collection(self, name: str) -> CollectionInfo:
        """See `Store`."""
        found = await self._find(name)
        if found is None:
            raise unknown_collection(name)
        return found

    async def drop_collection(self, name: str) -> None:
        """See `Store`; the alias goes with the physical collection, in one step."""
        async with self._changing:
            info = await self.describe_collection(name)
            await self._call("delete_collection", collection_name=info.physical_name)
            self._known.pop(name, None)
            self._known.pop(info.physical_name, None)

    async def create_standby(self, name: str, **_: Any) -> CollectionInfo:
        """See `Store`."""
        raise _no_standbys(name)

    async def list_standbys(self) -> list[CollectionInfo]:
        """See `Store`."""
        raise _no_standbys()

    async def switch_collection(self, name: str, physical_name: str) -> None:
        """See `Store`."""
        raise _no_standbys(f"{name} to {physical_name}")

    async def drop_standby(self, name: str) -> None:
        """See `Store`."""
        raise _no_standbys(name)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """See `Store`, and the module on calls of more than 256 points."""
        known = await self._collection(collection)
        checked = list(check_points(points, known.dimension).values())
        for start in range(0, len(checked), _POINTS_PER_REQUEST):
            batch = _batch(checked[start : start + _POINTS_PER_REQUEST])
            await self._on(collection, "upsert", points=batch, wait=True)

    async def content_hashes(self, collection: str, document_ids: Sequence[str]) -> dict[str, str]:
        """See `Store`."""
        found = await self._retrieve(collection, document_ids, ["content_hash"])
        return {document_id: payload["content_hash"] for document_id, payload in found.items()}

    async def get(self, collection: str, document_ids: Sequence[str]) -> list[Document | None]:
        """See `Store`."""
        found = await self._retrieve(collection, document_ids, DOCUMENT_FIELDS)
        return [from_payload(found[each]) if each in found else None for each in document_ids]

    async def delete(self, collection: str, document_ids: Sequence[str]) -> int:
        """See `Store`. Counted just before: the number may be off when others write the same documents."""
        present = await self._retrieve(collection, document_ids, ["id"])
        if present:
            selector = models.PointIdsList(points=[point_id(each) for each in present])
            await self._on(collection, "delete", points_selector=selector, wait=True)
        return len(present)

    async def delete_matching(self, collection: str, filter: Filter) -> int:
        """See `Store`. Counted just before, as for `delete`."""
        num_matching = await self.count(collection, filter)
        selector = models.FilterSelector(filter=filter_model(filter))
        await self._on(collection, "delete", points_selector=selector, wait=True)
        return num_matching

    async def count(self, collection: str, filter: Filter | None = None) -> int:
        """See `Store`."""
        result = await self._on(collection, "count", count_filter=_model(filter), exact=True, timeout=self._seconds)
        return int(result.count)

    async def search_batch(self, collection: str, embeddings: Embedding, options: SearchOptions) -> list[list[Hit]]:
        """See `Store`; one request."""
        known = await self._collection(collection)
        queries = check_embeddings(embeddings, known.dimension).tolist()
        if not queries:
            return []
        model = _model(options.filter)
        requests = [_query(row, model, options) for row in queries]
        found = await self._on(collection, "query_batch_points", requests=requests, timeout=self._seconds)
        return [
            [Hit(document=from_payload(point.payload), score=point.score) for point in each.points] for each in found
        ]

    async def snapshot(self) -> Snapshot:
        """See `Store`."""
        raise NotImplementedHereError(
            "A Qdrant server makes its own backups: POST /collections/{physical name}/snapshots there, or /snapshots "
            "for all of it."
        )

    async def scroll(
        self, collection: str, *, after: str | None = None, batch_size: int = 256, filter: Filter | None = None
    ) -> tuple[list[Point], str | None]:
        """See `Store`; the order is that of the point ids."""
        records, following = await self._on(
            collection,
            "scroll",
            scroll_filter=_model(filter),
            limit=batch_size,
            offset=check_cursor(after),
            with_payload=True,
            with_vectors=True,
            timeout=self._seconds,
        )
        points = [stored_point(record.payload, np.array(record.vector, dtype=np.float32)) for record in records]
        return points, None if following is None else str(following)

    async def _retrieve(self, collection: str, document_ids: Sequence[str], fields: list[str]) -> dict[str, Any]:
        """The named fields of the payloads that are there, by document id."""
        ids = {point_id(each): each for each in document_ids}
        if not ids:
            await self._collection(collection)
            return {}
        records = await self._on(collection, "retrieve", ids=list(ids), with_payload=fields)
        return {ids[str(record.id)]: record.payload for record in records}

    async def _create(self, name: str, fingerprint: str, dimension: int) -> None:
        """Create the physical collection and point the name at it. Another process doing the same does no harm."""
        physical = physical_name(name, fingerprint)
        mark = {"name": name, "fingerprint": fingerprint, "dimension": dimension}
        try:
            await self._call(
                "create_collection",
                collection_name=physical,
                # unit vectors: the dot product is the cosine, and vectors come back as they were given
                vectors_config=models.VectorParams(size=dimension, distance=models.Distance.DOT),
                metadata={_OURS: mark},
            )
        except StoreError:
            if not await self._call("collection_exists", collection_name=physical):
                raise
        create = models.CreateAlias(collection_name=physical, alias_name=name)
        operation = models.CreateAliasOperation(create_alias=create)
        await self._call("update_collection_aliases", change_aliases_operations=[operation])

    async def _find(self, name: str) -> CollectionInfo | None:
        """The collection that a public name points at, also by its physical name, if it is one of ours."""
        public = public_name(name)
        for alias in (await self._call("get_aliases")).aliases:
            if alias.alias_name == public and name in (public, alias.collection_name):
                return await self._describe(public, alias.collection_name)
        return None

    async def _describe(self, name: str, physical: str) -> CollectionInfo | None:
        found = await self._call("get_collection", collection_name=physical)
        mark = (found.config.metadata or {}).get(_OURS)
        if mark is None:
            return None
        count = await self._call("count", collection_name=physical, exact=True)
        info = CollectionInfo(
            name=name,
            physical_name=physical,
            fingerprint=mark["fingerprint"],
            dimension=int(mark["dimension"]),
            num_documents=count.count,
            num_indexed=min(found.indexed_vectors_count or 0, count.count),
            size_bytes=None,
        )
        self._known[name] = self._known[physical] = info
        return info

    async def _collection(self, name: str) -> CollectionInfo:
        """What is known of a collection; its count may be old."""
        return self._known[name] if name in self._known else await self.describe_collection(name)

    async def _on(self, collection: str, method: str, **arguments: Any) -> Any:
        """Call a method of the client on the alias of a collection of ours."""
        await self._collection(collection)
        try:
            return await self._call(method, collection_name=collection, **arguments)
        except StoreError:
            self._known.pop(collection, None)  # another process may have dropped or switched it
            await self._collection(collection)
            raise

    async def _call(self, method: str, **arguments: Any) -> Any:
        """Call a method of the client, twice if the server is away. Raises StoreError; its cause is in the log."""
        call = getattr(self._client, method)
        try:
            try:
                return await self._watched(call, arguments)
            except Exception as error:
                if not _is_transient(error):
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
            return await self._watched(call, arguments)
        except EoseekError:
            raise
        except (grpc.RpcError, ApiException, QdrantException, ValueError) as error:
            # the server's words may hold its paths and address, and the error goes to whoever made the request
            log.warning("Qdrant could not %s: %s", method.replace("_", " "), _reason(error))
            raise StoreError(f"Qdrant could not {method.replace('_', ' ')}; the service's log has more") from error

    async def _watched(self, call: Callable[..., Awaitable[Any]], arguments: dict[str, Any]) -> Any:
        """Call, and notice whether the server is there."""
        try:
            result = await call(**arguments)
        except Exception as error:
            if _is_transient(error) and self._is_ready:
                self._is_ready = False
                self._probe = asyncio.create_task(self._await_server(), name="probe qdrant")
            raise
        self._is_ready = True
        return result

    async def _await_server(self) -> None:
        """Return when the server answers; from then on the store is ready."""
        while not self._is_ready:
            with contextlib.suppress(grpc.RpcError, ApiException):
                await self._client.get_aliases()
                self._is_ready = True
                return
            await asyncio.sleep(_PAUSE_SECONDS)


def _client(settings: StoreSettings) -> AsyncQdrantClient:
    if settings.url == ":memory:":
        return AsyncQdrantClient(":memory:")
    return AsyncQdrantClient(
        url=settings.url,
        prefer_grpc=settings.grpc,
        grpc_port=settings.grpc_port,
        api_key=settings.api_key.get_secret_value() if settings.api_key else None,
        timeout=math.ceil(settings.timeout_seconds),
        check_compatibility=False,  # it asks in a thread at construction and only warns
    )


def _no_standbys(what: str = "a collection") -> NotImplementedHereError:
    return NotImplementedHereError(
        f"Collections of a Qdrant server cannot be re-indexed yet ({what}): start a service with the other checkpoint "
        "and ingest into a new collection."
    )


def _is_transient(error: Exception) -> bool:
    """Whether the same call may well succeed a moment later."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() in _TRANSIENT_CODES
    if isinstance(error, UnexpectedResponse):
        return error.status_code is not None and (error.status_code == 429 or error.status_code >= 500)
    return isinstance(error, ApiException | QdrantException)


def _reason(error: Exception) -> str:
    text = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    return " ".join((text or type(error).__name__).split())[:300]


def _model(filter: Filter | None) -> models.Filter | None:
    return None if filter is None else filter_model(filter)


def _batch(points: Sequence[Point]) -> models.Batch:
    return models.Batch(
        ids=[point_id(point.document.id) for point in points],
        vectors=[point.embedding.tolist() for point in points],
        payloads=[to_payload(point) for point in points],
    )


def _query(embedding: list[float], model: models.Filter | None, options: SearchOptions) -> models.QueryRequest:
    return models.QueryRequest(
        query=embedding,
        filter=model,
        limit=options.top_k,
        offset=options.offset,
        score_threshold=None if options.score_threshold is None else excluded_score(options.score_threshold),
        with_payload=DOCUMENT_FIELDS if options.with_text else [each for each in DOCUMENT_FIELDS if each != "text"],
        params=models.SearchParams(exact=True) if options.exact else None,
    )
