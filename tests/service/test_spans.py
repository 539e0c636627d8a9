"""Spans of requests: whose trace they belong to, what they are called, and that their times add up."""

import threading
from itertools import pairwise

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.encoders.worker import LocalEncoder
from service.errors import StoreError
from service.settings import Settings, StoreSettings
from service.store.memory import MemoryStore
from service.tracing import Tracing
from tests.fakes import FakeEncoder
from tests.service.api.parts import DIMENSION, tiny_checkpoint

pytest.importorskip("opentelemetry.sdk", reason="tracing needs the extra `otel`")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE_ID, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENCODE_SECONDS = 0.5


class SlowEncoder(FakeEncoder):
    def encode(self, token_ids):
        threading.Event().wait(ENCODE_SECONDS)
        return super().encode(token_ids)


@pytest.fixture
def traced():
    """A call that makes requests to an app and gives the spans of the last one, parent last."""

    def request(*requests, encoder=None, store=None, **headers):
        exporter = InMemorySpanExporter()
        app = create_app(
            Settings(store=StoreSettings(kind="memory")),
            checkpoint=tiny_checkpoint(),
            encoder=LocalEncoder(encoder or FakeEncoder(DIMENSION)),
            store=store or MemoryStore(),
            tracing=Tracing(database="memory", exporter=exporter),
        )
        with TestClient(app) as client:
            for method, path, body in requests:
                exporter.clear()
                client.request(method, path, json=body, headers=headers)
            return exporter.get_finished_spans()

    return request


def seconds(span):
    return (span.end_time - span.start_time) / 1e9


def by_stage(spans):
    return {span.attributes["eoseek.stage"]: span for span in spans if "eoseek.stage" in span.attributes}


def test_trace_of_a_search_has_its_stages_one_after_the_other(traced):
    *children, server = traced(("POST", "/search", {"query": "a"}), encoder=SlowEncoder(DIMENSION))

    stages = by_stage(children)
    assert list(stages) == ["tokenize", "queue", "encode", "search"]
    assert seconds(stages["encode"]) >= ENCODE_SECONDS
    edges = [edge for span in children for edge in (span.start_time, span.end_time)]
    assert all(later - earlier > -1e6 for earlier, later in pairwise([server.start_time, *edges, server.end_time]))
    assert {span.parent.span_id for span in children} == {server.context.span_id}


def test_trace_of_a_search_has_stages_that_add_up_to_its_duration(traced):
    missing = []
    for _ in range(5):  # on a busy machine the event loop may have to wait between two stages
        *children, server = traced(("POST", "/search", {"query": "a"}), encoder=SlowEncoder(DIMENSION))
        missing.append(1 - sum(map(seconds, children)) / seconds(server))
        if 0 <= missing[-1] < 0.05:
            break

    assert 0 <= missing[-1] < 0.05, missing


def test_trace_goes_by_the_conventions_for_http_embeddings_and_databases(traced):
    *children, server = traced(("POST", "/search", {"query": "secret"}), authorization="Bearer secret")

    attributes = dict(server.attributes)
    assert (server.name, server.kind, server.status.status_code) == ("POST /search", SpanKind.SERVER, StatusCode.UNSET)
    assert attributes["http.request.method"] == "POST"
    assert attributes["http.route"] == attributes["url.path"] == "/search"
    assert attributes["http.response.status_code"] == 200
    assert not [
        name for span in (*children, server) for name, value in span.attributes.items() if "secret" in str(value)
    ]
    search, encode = by_stage(children)["search"], by_stage(children)["encode"]
    assert (search.name, search.kind) == ("search default", SpanKind.CLIENT)
    assert search.attributes["db.system.name"] == "memory"
    assert search.attributes["db.operation.name"] == "search"
    assert search.attributes["db.collection.name"] == "default"
    assert encode.attributes["gen_ai.operation.name"] == "embeddings"
    assert encode.attributes["gen_ai.usage.input_tokens"] > 1


def test_trace_of_documents_has_their_flush(traced):
    documents = {"documents": [{"id": "a", "text": "t"}]}

    stages = by_stage(traced(("POST", "/documents", documents)))

    assert list(stages) == ["tokenize", "queue", "encode", "flush"]
    assert stages["flush"].name == "upsert default"


def test_trace_continues_the_caller_s(traced):
    *_, server = traced(("GET", "/info", None), traceparent=f"00-{TRACE_ID}-{CALLER}-01")

    assert f"{server.context.trace_id:032x}" == TRACE_ID
    assert f"{server.parent.span_id:016x}" == CALLER


@pytest.mark.parametrize("sent", ["", "00-0-0-01", f"00-{'0' * 32}-{CALLER}-01", "x" * 10_000])
def test_trace_of_a_caller_with_an_unreadable_parent_is_a_new_one(traced, sent):
    *_, server = traced(("GET", "/info", None), traceparent=sent)

    assert server.parent is None


def test_trace_that_the_caller_does_not_sample_is_not_kept(traced):
    assert traced(("GET", "/info", None), traceparent=f"00-{TRACE_ID}-{CALLER}-00") == ()


def test_trace_leaves_probes_and_scrapes_out(traced):
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert traced(("GET", path, None)) == ()


class AwayStore(MemoryStore):
    async def search_batch(self, collection, embeddings, options):
        raise StoreError("away")


def test_trace_of_a_fault_is_an_error_by_its_code_and_a_caller_s_mistake_is_none(traced):
    *_, fault = traced(("POST", "/search", {"query": "a"}), store=AwayStore())
    *_, mistake = traced(("POST", "/search", {"query": 1}))

    assert (fault.status.status_code, fault.attributes["error.type"]) == (StatusCode.ERROR, "store_unavailable")
    assert mistake.status.status_code == StatusCode.UNSET
    assert "error.type" not in mistake.attributes
