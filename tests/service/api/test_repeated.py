"""Queries that come again, on every way that they can come."""

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.encoders.worker import LocalEncoder
from service.settings import BatchingSettings, Settings, StoreSettings
from service.store.memory import MemoryStore
from tests.fakes import FakeEncoder
from tests.service.api.parts import DIMENSION, tiny_checkpoint

QUERY = {"query": "second"}


@pytest.fixture
def encoder():
    return FakeEncoder(DIMENSION)


@pytest.fixture
def client(make_client, encoder):
    return make_client(encoder=LocalEncoder(encoder))


def test_repeated_search_finds_the_same_without_the_encoder_and_says_so_in_its_times(client, encoder):
    client.post("/documents", json={"documents": [{"id": "a", "text": "first"}, {"id": "b", "text": "second"}]})
    first = client.post("/search", json=QUERY).json()
    num_batches = len(encoder.batches)
    again = client.post("/search", json=QUERY).json()

    assert again["results"] == first["results"]
    assert (again["took_ms"]["queue"], again["took_ms"]["encode"]) == (0, 0)
    assert first["took_ms"]["encode"] > 0
    assert len(encoder.batches) == num_batches


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": ["second"], "kind": "query"}),
        ("/v1/embeddings", {"input": "second", "model": "any:query"}),
        ("/v1/embeddings", {"input": ["second", "second"], "model": "any", "kind": "query"}),
    ],
)
def test_repeated_query_is_one_on_every_path_with_its_tokens_counted(client, encoder, path, body):
    cold = client.post(path, json=body).json()
    client.post("/search", json=QUERY)
    warm = client.post(path, json=body).json()

    assert warm == cold
    assert len(encoder.batches) == 1


@pytest.mark.parametrize("other", [{"instruction": "another task"}, {"inputs": ["second "]}, {"kind": "document"}])
def test_repeated_text_with_other_tokens_or_as_a_document_is_encoded(client, encoder, other):
    client.post("/search", json=QUERY)
    body = {"inputs": ["second"], "kind": "query"} | other
    for expected in (2, 3 if body["kind"] == "document" else 2):
        assert client.post("/embed", json=body).status_code == 200
        assert len(encoder.batches) == expected


def test_repeated_queries_are_in_the_metrics(client):
    for _ in range(3):
        client.post("/search", json={"query": ["second", "third"]})
    lines = client.get("/metrics").text.splitlines()

    assert 'eoseek_cached_queries_total{outcome="hit"} 4.0' in lines
    assert 'eoseek_cached_queries_total{outcome="miss"} 2.0' in lines
    assert [float(line.split()[1]) > 0 for line in lines if line.startswith("eoseek_query_cache_bytes ")] == [True]


def test_repeated_query_is_encoded_again_where_the_cache_is_off(encoder):
    settings = Settings(batching=BatchingSettings(cache_bytes=0), store=StoreSettings(kind="memory"))
    parts = {"checkpoint": tiny_checkpoint(), "encoder": LocalEncoder(encoder), "store": MemoryStore()}
    with TestClient(create_app(settings, **parts)) as client:
        for _ in range(2):
            client.post("/search", json=QUERY)
    assert len(encoder.batches) == 2
