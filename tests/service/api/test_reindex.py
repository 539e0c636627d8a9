"""Re-indexing through the application, on the embedded store and in memory, with two tiny checkpoints."""

import io
import time
import zipfile
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
from service.errors import ConfigurationError, StoreError
from service.settings import Settings, StoreSettings
from service.store.base import CollectionInfo
from service.store.memory import MemoryStore
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
    return wait_for(client, lambda found: found.get("stage") == stage and found["remaining"] == 0)


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


def test_reindex_after_a_rollback_the_old_collection_has_all_that_was_written_since(
    client: TestClient, tmp_path: Path
) -> None:
    index(client, documents(*range(10)))
    start(client)
    wait_until(client, "ready")
    act(client, "switch")
    index(client, documents(3, 50, version=" changed"))
    client.delete("/documents/d4")
    client.post("/documents/delete", json={"filter": {"must": [{"key": "n", "match": {"value": 5}}]}})

    rolled_back = act(client, "rollback")

    assert (rolled_back["stage"], fingerprint(client)) == ("ready", OLD.fingerprint)
    expected = documents(0, 1, 2, 6, 7, 8, 9) + documents(3, 50, version=" changed")
    assert found(client) == fresh(expected, OLD, tmp_path / "fresh")
    index(client, documents(60))
    assert act(client, "switch")["stage"] == "switched"
    assert found(client) == fresh([*expected, *documents(60)], NEW, tmp_path / "fresh")


def test_reindex_abort_leaves_the_old_one_untouched(client: TestClient) -> None:
    index(client, documents(*range(10)))
    before = found(client)
    start(client)
    wait_until(client, "ready")

    assert act(client, "abort")["stage"] == "ready"

    assert (found(client), fingerprint(client)) == (before, OLD.fingerprint)
    assert client.get("/collections/default/reindex").status_code == 404
    start(client)
    assert wait_until(client, "ready")["encoded"] == 10


def test_reindex_dropped_old_collection_is_gone_and_the_new_one_goes_on(client: TestClient) -> None:
    index(client, documents(*range(10)))
    start(client)
    wait_until(client, "ready")
    act(client, "switch")

    act(client, "drop")

    assert client.get("/collections/default/reindex").status_code == 404
    index(client, documents(11))
    assert len(found(client)) == 11
    back = start(client, OLD)
    assert (back["source"], back["target"]) == (NEW.fingerprint, OLD.fingerprint)
    wait_until(client, "ready")
    act(client, "switch")
    act(client, "drop")
    assert (fingerprint(client), search(client, "text 11")["model"]) == (OLD.fingerprint, "old")


@pytest.mark.parametrize(
    ("stage", "refused"),
    [("ready", ("rollback", "drop", "start")), ("switched", ("switch", "abort", "start"))],
)
def test_reindex_steps_that_the_stage_does_not_allow_get_409(
    client: TestClient, stage: str, refused: tuple[str, ...]
) -> None:
    index(client, documents(1))
    start(client)
    wait_until(client, "ready")
    if stage == "switched":
        act(client, "switch")

    for action in refused:
        response = client.post("/collections/default/reindex", json={"action": action})
        assert (response.status_code, response.json()["code"]) == (409, "reindex_conflict"), action
        assert stage in response.json()["detail"]


def test_reindex_standby_is_in_no_list_and_has_no_public_name(client: TestClient) -> None:
    index(client, documents(1))
    start(client)
    wait_until(client, "ready")

    assert [each["name"] for each in client.get("/collections").json()["collections"]] == ["default"]
    assert client.get("/collections/default--bbbbbbbb").status_code == 422
    assert client.get("/collections/default:standby").status_code == 422
    metrics = client.get("/metrics").text
    assert 'eoseek_reindexes{stage="ready"} 1.0' in metrics
    assert "eoseek_reindex_behind_documents 0.0" in metrics
    assert "bbbb" not in metrics


def test_reindex_standby_is_in_no_backup(tmp_path: Path) -> None:
    with running("edge", tmp_path) as client:
        index(client, documents(1))
        start(client)
        wait_until(client, "ready")

        archive = zipfile.ZipFile(io.BytesIO(client.post("/backup").content))

    assert {name.partition("/")[0] for name in archive.namelist()} == {"default--aaaaaaaa", "manifest.json"}


def test_reindex_paused_encodes_nothing_and_catches_up_when_it_is_resumed(client: TestClient) -> None:
    index(client, documents(1, 2))
    start(client)
    wait_until(client, "ready")
    act(client, "pause")
    index(client, documents(3))
    paused = progress(client)
    assert (paused["stage"], paused["remaining"], paused["encoded"]) == ("paused", 1, 2)
    response = client.post("/collections/default/reindex", json={"action": "switch"})
    assert (response.status_code, response.json()["code"]) == (409, "reindex_conflict")

    assert act(client, "resume", share=0.25)["share"] == 0.25

    assert wait_until(client, "ready")["encoded"] == 3


def test_reindex_documents_too_long_for_the_new_checkpoint_keep_it_from_being_switched(
    client: TestClient, tmp_path: Path
) -> None:
    too_long = {"id": "long", "text": "x" * 50}
    index(client, [*documents(1), too_long])
    start(client, SHORT)
    found_failed = wait_until(client, "ready")
    assert (found_failed["failed"], list(found_failed["failures"])) == (1, ["long"])
    assert "51 tokens" in found_failed["failures"]["long"]
    response = client.post("/collections/default/reindex", json={"action": "switch"})
    assert (response.status_code, response.json()["code"]) == (409, "reindex_conflict")
    assert "truncate" in response.json()["detail"]

    act(client, "resume", truncate=True)
    wait_for(client, lambda found: found["failed"] == 0 and found["remaining"] == 0)
    act(client, "switch")

    expected = fresh([*documents(1), too_long], SHORT, tmp_path, truncate=True)
    assert found(client) == expected
    assert index(client, [too_long], truncate=True)["unchanged"] == 1


def test_reindex_a_document_that_was_cut_is_encoded_whole_where_the_new_checkpoint_reaches(
    tmp_path: Path,
) -> None:
    cut = {"id": "cut", "text": "x" * 50}
    with running("edge", tmp_path / "store", SHORT) as client:
        index(client, [cut], truncate=True)
        start(client, NEW)
        wait_until(client, "ready")
        act(client, "switch")

        assert found(client) == fresh([cut], NEW, tmp_path / "fresh")
        assert index(client, [cut])["unchanged"] == 1


def test_reindex_compares_on_given_queries_or_on_recent_ones(client: TestClient) -> None:
    index(client, documents(*range(10)))
    start(client)
    wait_until(client, "ready")
    none = client.post("/collections/default/reindex", json={"action": "compare"})
    assert (none.status_code, "queries" in none.json()["detail"]) == (422, True)

    given = act(client, "compare", queries=["a", "b"])

    assert given["overlap"] == {"queries": 2, "mean": 1.0, "lowest": 1.0}  # ten documents: both find them all
    index(client, documents(*range(10, 40)))
    search(client, "c")
    wait_until(client, "ready")
    recent = act(client, "switch")["overlap"]
    assert recent["queries"] == 1
    assert 0 <= recent["lowest"] == recent["mean"] < 1


def test_reindex_a_dropped_collection_ends_it(client: TestClient) -> None:
    index(client, documents(1))
    start(client)
    wait_until(client, "ready")

    assert client.delete("/collections/default").status_code == 204

    assert client.get("/collections/default/reindex").status_code == 404
    assert client.put("/collections/default").json()["documents"] == 0
    assert fingerprint(client) == OLD.fingerprint
    index(client, documents(2))
    start(client)
    assert wait_until(client, "ready")["encoded"] == 1


def test_reindex_of_a_collection_whose_checkpoint_runs_nowhere_opens_it_again(tmp_path: Path) -> None:
    with running("edge", tmp_path) as client:
        client.put("/collections/docs")
        index(client, documents(*range(5)), collection="docs")
    with running("edge", tmp_path, NEW) as client:
        refused = client.post("/search", json={"query": "a", "collection": "docs"})
        assert (refused.status_code, "/reindex" in refused.json()["detail"]) == (409, True)
        at_docs = "/collections/docs/reindex"
        assert client.post(at_docs, json={"share": 1.0}).status_code == 202
        deadline = time.monotonic() + LIMIT_SECONDS
        while (stage := client.get(at_docs).json()["stage"]) != "ready" and time.monotonic() < deadline:
            assert stage in ("loading", "copying")

        assert client.post(at_docs, json={"action": "switch"}).json()["stage"] in ("loading", "failed")

        assert len(client.post("/search", json={"query": "a", "collection": "docs"}).json()["results"]) == 5
        assert client.post(at_docs, json={"action": "rollback"}).status_code == 409
        assert client.post(at_docs, json={"action": "drop"}).status_code == 202
        assert client.get(at_docs).status_code == 404


def test_reindex_on_a_qdrant_server_is_not_implemented() -> None:
    settings = Settings(store=StoreSettings(kind="qdrant", url=":memory:"))
    encoder = LocalEncoder(FakeEncoder(OLD.dimension))
    with TestClient(create_app(settings, checkpoint=OLD, encoder=encoder, load=load)) as client:
        response = client.post("/collections/default/reindex", json={"checkpoint": str(NEW.path)})

    assert (response.status_code, response.json()["code"]) == (501, "not_implemented")
    assert "Qdrant" in response.json()["detail"]


# restarts


def test_reindex_goes_on_after_a_stop_and_encodes_only_what_is_missing(tmp_path: Path) -> None:
    with running("edge", tmp_path / "store") as client:
        index(client, documents(*range(10)))
        start(client)
        wait_until(client, "ready")
        act(client, "pause")  # what changes now is not in the standby when the process ends
        index(client, documents(3, version=" changed"))
        index(client, documents(10))
        client.delete("/documents/d4")

    with running("edge", tmp_path / "store") as client:
        assert progress(client)["stage"] in ("paused", "loading")
        act(client, "resume")
        resumed = wait_until(client, "ready")
        assert (resumed["encoded"], resumed["unchanged"], resumed["removed"]) == (2, 8, 1)
        act(client, "switch")
        expected = documents(0, 1, 2, 5, 6, 7, 8, 9, 10) + documents(3, version=" changed")
        assert found(client) == fresh(expected, NEW, tmp_path / "fresh")


def test_reindex_after_a_restart_a_switched_collection_is_served_by_its_checkpoint_and_can_go_back(
    tmp_path: Path,
) -> None:
    with running("edge", tmp_path) as client:
        index(client, documents(*range(5)))
        start(client)
        wait_until(client, "ready")
        act(client, "switch")
        switched = found(client)

    with running("edge", tmp_path) as client:
        assert (fingerprint(client), found(client)) == (NEW.fingerprint, switched)
        wait_until(client, "switched")
        act(client, "rollback")
        assert fingerprint(client) == OLD.fingerprint
        act(client, "switch")
        act(client, "drop")

    for configured in (OLD, NEW):  # both know by now how to serve it
        with running("edge", tmp_path, configured) as client:
            assert found(client) == switched
            assert client.get("/collections/default/reindex").status_code == 404
            assert client.put("/collections/default").json()["fingerprint"] == NEW.fingerprint


def test_reindex_after_a_restart_without_its_checkpoint_the_collection_stays_closed_with_the_way_out(
    tmp_path: Path,
) -> None:
    with running("edge", tmp_path) as client:
        client.put("/collections/docs")
        index(client, documents(1), collection="docs")
        for action in ({"checkpoint": str(NEW.path)}, {"action": "switch"}, {"action": "drop"}):
            deadline = time.monotonic() + LIMIT_SECONDS
            while client.post("/collections/docs/reindex", json=action).status_code == 409:
                assert time.monotonic() < deadline

    def load_none(path: str) -> tuple[Checkpoint, AsyncEncoder]:
        raise ConfigurationError(f"checkpoint {path!r} is no directory")

    with running("edge", tmp_path, load=load_none) as client:
        response = client.post("/search", json={"query": "a", "collection": "docs"})

    assert (response.status_code, response.json()["code"]) == (409, "fingerprint_mismatch")
    assert NEW.fingerprint in response.json()["detail"]
    assert OLD.fingerprint in response.json()["detail"]


def test_reindex_whose_new_checkpoint_is_gone_after_a_restart_says_so_and_can_be_aborted(tmp_path: Path) -> None:
    with running("edge", tmp_path) as client:
        index(client, documents(1))
        start(client)
        wait_until(client, "ready")

    def load_none(path: str) -> tuple[Checkpoint, AsyncEncoder]:
        raise ConfigurationError(f"checkpoint {path!r} is no directory")

    with running("edge", tmp_path, load=load_none) as client:
        failed = wait_for(client, lambda found: found["stage"] == "failed")
        assert str(NEW.path) in failed["detail"]
        assert len(found(client)) == 1
        act(client, "abort")
        assert not list((tmp_path / "collections").glob("*bbbbbbbb"))


# failures of the store


class BrokenStore(MemoryStore):
    """Its switch fails after or before it was done, and cannot be described for a while then."""

    def __init__(self, *, is_done: bool) -> None:
        super().__init__()
        self.is_done, self.is_broken, self.num_away = is_done, True, 0

    async def switch_collection(self, name: str, physical_name: str) -> None:
        if self.is_done or not self.is_broken:
            await super().switch_collection(name, physical_name)
        if self.is_broken:
            self.num_away = 2
            raise StoreError("the disk is full")

    async def describe_collection(self, name: str) -> CollectionInfo:
        if self.num_away:
            self.num_away -= 1
            raise StoreError("away")
        return await super().describe_collection(name)


@pytest.mark.parametrize("is_done", [True, False])
def test_reindex_after_a_switch_that_failed_the_store_says_what_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_done: bool
) -> None:
    monkeypatch.setattr("service.ingest.reindex._PAUSE_SECONDS", 0.01)
    store = BrokenStore(is_done=is_done)
    encoder = LocalEncoder(FakeEncoder(OLD.dimension))
    settings = Settings(store=StoreSettings(kind="memory"))
    with TestClient(create_app(settings, checkpoint=OLD, encoder=encoder, load=load, store=store)) as client:
        index(client, documents(*range(5)))
        start(client)
        wait_until(client, "ready")

        response = client.post("/collections/default/reindex", json={"action": "switch"})

        assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
        wait_until(client, "switched" if is_done else "ready")
        assert fingerprint(client) == (NEW if is_done else OLD).fingerprint
        index(client, documents(7))
        store.is_broken = False
        act(client, "rollback" if is_done else "switch")
        assert found(client) == fresh(documents(0, 1, 2, 3, 4, 7), OLD if is_done else NEW, tmp_path)
