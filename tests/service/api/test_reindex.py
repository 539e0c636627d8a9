"""Re-indexing through the application, on the embedded store and in memory, with two tiny checkpoints."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.encoders.base import AsyncEncoder
from service.encoders.checkpoint import Checkpoint
from service.encoders.worker import LocalEncoder
from service.errors import ConfigurationError
from service.settings import Settings, StoreSettings
from tests.fakes import FakeEncoder
from tests.service.api.parts import tiny_checkpoint

OLD = tiny_checkpoint(name="old", fingerprint="a" * 64, dimension=8)
NEW = tiny_checkpoint(name="new", fingerprint="b" * 64, dimension=16)
SHORT = tiny_checkpoint(name="short", fingerprint="c" * 64, dimension=12, max_length=20)
CHECKPOINTS = {str(each.path): each for each in (OLD, NEW, SHORT)}
LIMIT_SECONDS = 30.0  # what would hang fails


def load(path: str) -> tuple[Checkpoint, AsyncEncoder]:
    if path not in CHECKPOINTS:
        raise ConfigurationError(f"checkpoint {path!r} is no directory")
    return CHECKPOINTS[path], LocalEncoder(FakeEncoder(CHECKPOINTS[path].dimension))


@contextmanager
def running(kind: str, path: Path, checkpoint: Checkpoint = OLD, load: Any = load) -> Iterator[TestClient]:
    settings = Settings(store=StoreSettings(kind=kind, path=path))
    encoder = LocalEncoder(FakeEncoder(checkpoint.dimension))
    with TestClient(create_app(settings, checkpoint=checkpoint, encoder=encoder, load=load)) as client:
        yield client


@pytest.fixture(params=["edge", "memory"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TestClient]:
    with running(request.param, tmp_path) as started:
        yield started


def documents(*numbers: int, version: str = "") -> list[dict[str, Any]]:
    return [{"id": f"d{n}", "text": f"text {n}{version}", "metadata": {"n": n, "x": 1.0}} for n in numbers]


def index(client: TestClient, sent: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    response = client.post("/documents", json={"documents": sent} | options)
    assert response.status_code == 200, response.text
    return dict(response.json())


def act(client: TestClient, action: str, **fields: Any) -> dict[str, Any]:
    response = client.post("/collections/default/reindex", json={"action": action} | fields)
    assert response.status_code == 202, response.text
    return dict(response.json())


def start(client: TestClient, checkpoint: Checkpoint = NEW, **fields: Any) -> dict[str, Any]:
    return act(client, "start", checkpoint=str(checkpoint.path), share=1.0, **fields)


def progress(client: TestClient) -> dict[str, Any]:
    return dict(client.get("/collections/default/reindex").json())


def wait_for(client: TestClient, is_there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not is_there(found := progress(client)):
        assert time.monotonic() < deadline, found
    return found


def wait_until(client: TestClient, stage: str) -> dict[str, Any]:
    return wait_for(client, lambda found: found["stage"] == stage and found["remaining"] == 0)


def search(client: TestClient, query: str) -> dict[str, Any]:
    response = client.post("/search", json={"query": query, "top_k": 100})
    assert response.status_code == 200, response.text
    return dict(response.json())


def fingerprint(client: TestClient) -> str:
    return str(client.get("/collections/default").json()["fingerprint"])


def found(client: TestClient, query: str = "a query") -> list[tuple[str, str, float]]:
    """Everything that is stored, with its score for a query, which tells its vector."""
    hits = search(client, query)["results"]
    return sorted((each["id"], each["text"], round(each["score"], 5)) for each in hits)


def fresh(sent: list[dict[str, Any]], checkpoint: Checkpoint, path: Path, **options: Any) -> list[Any]:
    """What `found` gives of an index that never was another one."""
    with running("memory", path, checkpoint) as client:
        index(client, sent, **options)
        return found(client)


def test_reindex_all_documents_and_later_writes_are_there_after_the_switch_as_in_a_fresh_index(
    client: TestClient, tmp_path: Path
) -> None:
    index(client, documents(*range(100)))
    before = found(client)

    assert start(client)["stage"] == "loading"
    index(client, documents(5, 200, version=" changed"))
    assert client.delete("/documents/d6").status_code == 200
    wait_until(client, "ready")
    index(client, documents(7, 201, version=" changed"))
    client.post("/documents/delete", json={"filter": {"must": [{"key": "n", "range": {"gte": 90, "lt": 95}}]}})
    client.post("/documents/delete", json={"ids": ["d8"]})
    assert fingerprint(client) == OLD.fingerprint
    assert set(before) & set(found(client)) != set()
    switched = act(client, "switch")

    assert (switched["stage"], fingerprint(client)) == ("switched", NEW.fingerprint)
    left = [n for n in range(100) if n not in (5, 6, 7, 8, *range(90, 95))]
    expected = documents(*left) + documents(5, 7, 200, 201, version=" changed")
    assert found(client) == fresh(expected, NEW, tmp_path / "fresh")
    assert search(client, "a query")["model"] == "new"
    assert index(client, expected)["unchanged"] == len(expected)
