import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.settings import StoreSettings
from service.store import open_store
from service.store.base import Store

LIVE_URL = os.environ.get("EOSEEK_TEST_QDRANT_URL")
NO_LIVE_SERVER = pytest.mark.skipif(LIVE_URL is None, reason="EOSEEK_TEST_QDRANT_URL names no Qdrant server")


def settings_of(kind: str, path: Path) -> StoreSettings:
    match kind:
        case "qdrant-local":
            return StoreSettings(kind="qdrant", url=":memory:")
        case "qdrant-live":
            return StoreSettings(kind="qdrant", url=str(LIVE_URL))
        case "edge-indexed":
            return StoreSettings(kind="edge", path=path, index_threshold=20)
        case _:
            return StoreSettings(kind=kind, path=path)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(
    scope="module",
    params=["memory", "edge", "edge-indexed", "qdrant-local", pytest.param("qdrant-live", marks=NO_LIVE_SERVER)],
)
async def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    """A started store, shared by the tests of a module: each takes a collection of its own."""
    opened = open_store(settings_of(request.param, tmp_path_factory.mktemp("store")))
    await opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
async def collection(store: Store) -> AsyncIterator[str]:
    """A fresh collection of dimension 4."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    await store.create_collection(name, fingerprint="f" * 64, dimension=4)
    yield name
    if name in [info.name for info in await store.list_collections()]:
        await store.drop_collection(name)
