"""What only the server store promises: it leaves others' collections alone and outlasts a server's absence."""

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc.aio
import numpy as np
import pytest
from qdrant_client import grpc as qdrant_grpc
from qdrant_client import models

from service.errors import ConfigurationError, NotFoundError, StoreError
from service.settings import StoreSettings
from service.store.base import Document, Point, SearchOptions
from service.store.qdrant import QdrantStore

pytestmark = pytest.mark.anyio


class FlakyCollections(qdrant_grpc.CollectionsServicer):
    """A server without collections whose next `num_failures` answers are "unavailable"."""

    def __init__(self) -> None:
        self.num_failures = 0
        self.is_asked = asyncio.Event()

    async def ListAliases(self, request, context):
        if self.num_failures > 0:
            self.num_failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "moving house")
        self.is_asked.set()
        return qdrant_grpc.ListAliasesResponse()


@pytest.fixture
async def flaky() -> AsyncIterator[tuple[FlakyCollections, QdrantStore]]:
    """A server over real gRPC and a started store on it."""
    server, collections = grpc.aio.server(), FlakyCollections()
    qdrant_grpc.add_CollectionsServicer_to_server(collections, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    store = QdrantStore(StoreSettings(kind="qdrant", url="http://127.0.0.1", grpc_port=port, timeout_seconds=10))
    await store.start()
    yield collections, store
    await store.stop()
    await server.stop(None)


@pytest.fixture
async def local() -> AsyncIterator[QdrantStore]:
    store = QdrantStore(StoreSettings(kind="qdrant", url=":memory:"))
    await store.start()
    yield store
    await store.stop()


@pytest.mark.parametrize("is_grpc", [True, False])
async def test_start_without_a_server_ends_in_one_line(is_grpc: bool) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = unheard.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        store = QdrantStore(StoreSettings(kind="qdrant", url=url, grpc=is_grpc, grpc_port=port, timeout_seconds=0.3))
        with pytest.raises(ConfigurationError, match="no Qdrant server answers") as caught:
            await store.start()
        await store.stop()
    assert url in caught.value.detail
    assert "\n" not in caught.value.detail
    assert not store.is_ready


async def test_call_is_made_again_when_the_server_was_away(flaky: tuple[FlakyCollections, QdrantStore]) -> None:
    collections, store = flaky
    collections.num_failures = 1
    assert await store.list_collections() == []


async def test_server_that_stays_away_gives_store_error_and_is_found_again(
    flaky: tuple[FlakyCollections, QdrantStore], caplog: pytest.LogCaptureFixture
) -> None:
    collections, store = flaky
    collections.num_failures = 1000
    with pytest.raises(StoreError, match="could not get aliases; the service's log has more"):
        await store.list_collections()
    assert "moving house" in caplog.text
    assert not store.is_ready
    collections.is_asked.clear()
    collections.num_failures = 0
    async with asyncio.timeout(10):
        await collections.is_asked.wait()  # nobody called: the store looks by itself
    assert await store.list_collections() == []
    assert store.is_ready


async def test_collections_of_others_are_neither_listed_nor_touched(local: QdrantStore) -> None:
    client = local._client
    await client.create_collection("theirs", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    alias = models.CreateAlias(collection_name="theirs", alias_name="alias-of-theirs")
    await client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    assert await local.list_collections() == []
    for name in ("theirs", "alias-of-theirs"):
        with pytest.raises(NotFoundError):
            await local.drop_collection(name)
        with pytest.raises(NotFoundError):
            await local.delete_matching(name, {})


async def test_collection_dropped_by_another_process_is_not_found(local: QdrantStore) -> None:
    await local.create_collection("c", fingerprint="f" * 64, dimension=2)
    await local._client.delete_collection("c--ffffffff")
    point = Point(document=Document(id="d", text="t"), embedding=np.array([1, 0], np.float32))
    with pytest.raises(NotFoundError):
        await local.upsert("c", [point])
    with pytest.raises(NotFoundError):
        await local.search_batch("c", point.embedding[None], SearchOptions())


async def test_create_collection_left_without_its_alias_is_taken_up(local: QdrantStore) -> None:
    await local.create_collection("c", fingerprint="f" * 64, dimension=2)
    alias = models.DeleteAlias(alias_name="c")
    await local._client.update_collection_aliases([models.DeleteAliasOperation(delete_alias=alias)])
    info = await local.create_collection("c", fingerprint="f" * 64, dimension=2)
    assert info.physical_name == "c--ffffffff"
