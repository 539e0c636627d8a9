import pytest

from service.store.memory import MemoryStore
from tests.service.api.parts import DIMENSION, tiny_checkpoint

FINGERPRINT = "f" * 64


def test_collection_is_created_described_listed_and_dropped(client):
    described = {"name": "docs", "documents": 0, "indexed": 0, "dimension": DIMENSION, "fingerprint": FINGERPRINT} | {
        "bytes": None
    }

    created = client.put("/collections/docs").json()
    assert {**created, "bytes": None} == described
    assert client.get("/collections/docs").json() == created
    assert [each["name"] for each in client.get("/collections").json()["collections"]] == ["default", "docs"]

    assert client.delete("/collections/docs").status_code == 204
    assert client.get("/collections/docs").status_code == 404


def test_creating_a_collection_again_keeps_its_documents(client):
    client.post("/documents", json={"documents": [{"id": "a", "text": "t"}]})

    assert client.put("/collections/default").json()["documents"] == 1


def test_a_dropped_collection_is_gone_at_once(client):
    client.put("/collections/docs")
    assert client.post("/search", json={"query": "a", "collection": "docs"}).status_code == 200

    client.delete("/collections/docs")

    assert client.post("/search", json={"query": "a", "collection": "docs"}).status_code == 404


class OldStore(MemoryStore):
    """Has a collection of another checkpoint."""

    async def start(self):
        await self.create_collection("old", fingerprint="e" * 64, dimension=DIMENSION)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/search", {"query": "a", "collection": "old"}),
        ("POST", "/documents", {"documents": [{"id": "a", "text": "t"}], "collection": "old"}),
        ("PUT", "/collections/old", None),
    ],
)
def test_a_collection_of_another_checkpoint_is_refused_with_the_way_out(make_client, method, path, body):
    client = make_client(store=OldStore(), checkpoint=tiny_checkpoint())

    response = client.request(method, path, json=body)

    problem = response.json()
    assert (response.status_code, problem["code"]) == (409, "fingerprint_mismatch")
    assert "eeee" in problem["detail"]
    assert "ffff" in problem["detail"]


def test_an_empty_default_collection_of_another_checkpoint_is_made_anew(make_client):
    class EmptyStore(MemoryStore):
        async def start(self):
            await self.create_collection("default", fingerprint="e" * 64, dimension=DIMENSION)

    client = make_client(store=EmptyStore())

    assert client.get("/collections/default").json()["fingerprint"] == FINGERPRINT


def test_a_collection_of_another_checkpoint_can_be_looked_at_and_dropped(make_client):
    client = make_client(store=OldStore())

    assert client.get("/collections/old").json()["fingerprint"] == "e" * 64
    assert client.delete("/collections/old").status_code == 204
    assert client.put("/collections/old").status_code == 200
