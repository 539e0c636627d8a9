"""A service whose encoder is elsewhere: over fake upstreams, and over another service of ours."""

import json
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.encoders.checkpoint import load_checkpoint
from service.encoders.probes import encode_probes
from service.encoders.remote_encoder import Pace, RemoteEncoder
from service.encoders.torch_loading import load_encoder
from service.errors import ConfigurationError
from service.settings import EncoderSettings, Settings, StoreSettings
from tests.checkpoints import write_tiny_checkpoint
from tests.service.encoders.fake_upstream import CHECKPOINT, FakeNetwork, FakeUpstream
from tests.service.encoders.upstreams import KEY, eoseek_served

FLOAT32 = {"encoder__dtype": "float32", "encoder__threads": "1"}
TEXTS = ["a", "merge two sorted lists", "naïve café, 検索", "def add(a, b): return a + b"]


def embed(client: TestClient):
    return client.post("/embed", json={"inputs": TEXTS, "kind": "document"})


def test_remote_service_without_upstreams_is_503_with_the_cause_not_ready_and_heals(make_client):
    upstreams = [FakeUpstream(), FakeUpstream()]
    network = FakeNetwork(*upstreams)
    encoder = RemoteEncoder(
        CHECKPOINT,
        EncoderSettings(backend="remote", urls=json.dumps(network.urls)),
        limit_seconds=10,
        pace=Pace(proof_seconds=0.02, first_backoff_seconds=0.001, max_backoff_seconds=0.001),
        transport=network,
    )
    client = make_client(encoder=encoder, checkpoint=CHECKPOINT)
    assert embed(client).status_code == 200

    for upstream in upstreams:
        upstream.is_up = False
    wait_until(lambda: client.get("/health/ready").status_code == 503)
    refused = embed(client)
    assert (refused.status_code, refused.json()["code"]) == (503, "encoder_unavailable")
    assert "upstream 0 cannot be reached; upstream 1 cannot be reached" in refused.json()["detail"]
    assert client.get("/health/live").status_code == 200

    upstreams[1].is_up = True
    wait_until(lambda: client.get("/health/ready").status_code == 200)
    assert embed(client).status_code == 200


def wait_until(condition) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit


def test_remote_metrics_tell_upstreams_apart_by_their_place(monkeypatch):
    network = FakeNetwork(FakeUpstream(), FakeUpstream(salt=1))
    monkeypatch.setattr("httpx._client.AsyncHTTPTransport", lambda *args, **kwargs: network)
    settings = Settings(
        encoder=EncoderSettings(backend="remote", urls=json.dumps(network.urls)), store=StoreSettings(kind="memory")
    )
    with TestClient(create_app(settings, checkpoint=CHECKPOINT)) as client:
        assert embed(client).status_code == 200
        text = client.get("/metrics").text
        assert client.get("/info").json()["backend"] == "remote"

    assert 'eoseek_upstream_serving{upstream="0"} 1.0' in text
    assert 'eoseek_upstream_serving{upstream="1"} 0.0' in text
    assert 'eoseek_upstream_calls_total{outcome="answered",upstream="0"} 1.0' in text
    assert 'eoseek_upstream_calls_total{outcome="away",upstream="1"} 0.0' in text


def test_remote_service_refuses_to_reindex_as_its_upstreams_serve_one_checkpoint(monkeypatch):
    network = FakeNetwork(FakeUpstream())
    monkeypatch.setattr("httpx._client.AsyncHTTPTransport", lambda *args, **kwargs: network)
    settings = Settings(
        encoder=EncoderSettings(backend="remote", urls=json.dumps(network.urls)), store=StoreSettings(kind="memory")
    )
    with TestClient(create_app(settings, checkpoint=CHECKPOINT)) as client:
        refused = client.post("/collections/default/reindex", json={"action": "start", "checkpoint": "/other"})
    assert refused.status_code == 422, refused.text
    assert "EOSEEK_ENCODER__URLS serve one checkpoint" in refused.json()["detail"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny checkpoint with its own vectors recorded."""
    path = write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")
    probes = encode_probes(load_encoder(str(path), dtype="float32", device="cpu"), load_checkpoint(str(path)).contract)
    card = json.loads((path / "eoseek.json").read_text())
    (path / "eoseek.json").write_text(json.dumps(card | {"probes": probes}))
    return path


def front_settings(url: str, checkpoint: Path, key: str = KEY) -> Settings:
    encoder = EncoderSettings(backend="remote", urls=json.dumps([url]), checkpoint=str(checkpoint), api_key=key)
    return Settings(encoder=encoder, store=StoreSettings(kind="memory"))


@pytest.mark.integration
def test_remote_service_over_another_gives_its_vectors_and_says_when_it_is_gone(checkpoint):
    near = load_encoder(str(checkpoint), dtype="float32", device="cpu")
    contract = load_checkpoint(str(checkpoint)).contract
    with ExitStack() as stack:
        upstream = stack.enter_context(ExitStack())
        url = upstream.enter_context(eoseek_served(checkpoint, **FLOAT32))
        settings = front_settings(url, checkpoint)
        client = stack.enter_context(TestClient(create_app(settings)))

        documents = embed(client).json()["embeddings"]
        expected = near.encode(contract.documents([("", text) for text in TEXTS]).token_ids)
        np.testing.assert_allclose(documents, expected, atol=2e-6)
        queries = client.post("/embed", json={"inputs": TEXTS, "kind": "query", "instruction": "Find it"}).json()
        expected = near.encode(contract.queries(TEXTS, instruction="Find it").token_ids)
        np.testing.assert_allclose(queries["embeddings"], expected, atol=2e-6)

        upstream.close()
        refused = embed(client)
        assert refused.status_code == 503
        assert "upstream 0 cannot be reached" in refused.json()["detail"]


@pytest.mark.integration
def test_remote_service_refuses_another_checkpoint_of_the_same_shape_at_its_start(checkpoint, tmp_path):
    other = write_tiny_checkpoint(tmp_path / "other", "qwen3")
    with eoseek_served(other, **FLOAT32) as url:
        settings = front_settings(url, checkpoint)
        with pytest.raises(ConfigurationError, match="it serves another model"), TestClient(create_app(settings)):
            pass
        settings = front_settings(url, checkpoint, key="w" * 40)
        with pytest.raises(ConfigurationError, match="401: it wants another key"), TestClient(create_app(settings)):
            pass
