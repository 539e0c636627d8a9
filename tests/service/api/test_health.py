import os
import signal

from fastapi.testclient import TestClient

from service.app import create_app
from service.encoders.worker import LocalEncoder
from service.errors import StoreError
from service.settings import Settings, StoreSettings
from service.store.memory import MemoryStore
from tests.fakes import FakeEncoder, GatedEncoder
from tests.service.api.parts import DIMENSION, MAX_LENGTH, tiny_checkpoint


def test_live_and_ready_when_all_parts_are(client):
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready", "encoder": True, "store": True}


def test_ready_names_what_is_away_while_live_stays(make_client):
    encoder = GatedEncoder(DIMENSION)
    client = make_client(encoder=encoder)
    encoder.is_ready = False

    response = client.get("/health/ready")

    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert response.json()["parts"] == {"encoder": False, "store": True}
    assert int(response.headers["retry-after"]) >= 1
    assert client.get("/health/live").status_code == 200


def test_info_tells_what_runs_and_no_path(client):
    info = client.get("/info").json()

    assert info["model"] == info["checkpoint"] == "tiny"
    assert (info["dimension"], info["max_length"], info["is_tuned"]) == (DIMENSION, MAX_LENGTH, False)
    assert info["dtype"] == "float32"
    assert info["instructions"] == {"code": "Find the function"}
    assert info["limits"]["max_top_k"] == 1000
    assert "/checkpoints" not in str(info)


def test_metrics_count_requests_by_route_template(client):
    client.get("/documents/some-id")
    client.get("/no/such/path")
    client.request("BREW", "/info")

    text = client.get("/metrics").text

    assert 'eoseek_requests_total{method="GET",route="/documents/{document_id:path}",status="404"} 1.0' in text
    assert 'eoseek_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert 'method="other"' in text
    assert "some-id" not in text
    assert "BREW" not in text


def test_metrics_tell_what_is_stored_and_what_runs(make_client):
    client = make_client()
    client.put("/collections/papers")
    client.post("/documents", json={"documents": [{"id": "a", "text": "t"}], "collection": "papers"})

    text = client.get("/metrics").text

    assert 'eoseek_store_points{collection="papers"} 1.0' in text
    assert 'eoseek_store_points{collection="default"} 0.0' in text
    assert 'eoseek_documents_total{outcome="indexed"} 1.0' in text
    assert 'eoseek_ready{part="store"} 1.0' in text
    assert 'dtype="float32"' in text
    assert "eoseek_disk_free_bytes{" not in text  # no embedded store, no disk


def test_metrics_answer_while_the_store_does_not(make_client):
    class AwayStore(MemoryStore):
        async def list_collections(self):
            raise StoreError("away")

    response = make_client(store=AwayStore()).get("/metrics")

    assert response.status_code == 200
    assert 'eoseek_store_errors_total{operation="list_collections"} 1.0' in response.text


def test_metrics_count_restarts_of_the_store(tmp_path):
    settings = Settings(store=StoreSettings(path=tmp_path))
    app = create_app(settings, checkpoint=tiny_checkpoint(), encoder=LocalEncoder(FakeEncoder(DIMENSION)))
    with TestClient(app) as client:
        os.kill(app.state.services.store.pid, signal.SIGKILL)
        assert client.get("/collections").status_code == 200  # waits until it is back

        assert 'eoseek_worker_restarts_total{child="store"} 1.0' in client.get("/metrics").text


def test_metrics_speak_openmetrics_when_asked(client):
    plain = client.get("/metrics")
    modern = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})

    assert plain.headers["content-type"].startswith("text/plain")
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")
