"""What surrounds a request: its id, its deadline, its size, its client going away, and faults."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from service.app import create_app
from service.errors import EncoderError, StoreError
from service.settings import ApiSettings, BatchingSettings, Settings, StoreSettings
from service.store.memory import MemoryStore
from tests.fakes import GatedEncoder
from tests.service.api.asgi import Exchange
from tests.service.api.parts import DIMENSION, tiny_checkpoint

EMBED = json.dumps({"inputs": "a", "kind": "query"}).encode()


@asynccontextmanager
async def gated_app(
    store: MemoryStore | None = None, max_queue_tokens: int = 1000, **api: Any
) -> AsyncIterator[tuple[FastAPI, GatedEncoder]]:
    encoder = GatedEncoder(DIMENSION)
    settings = Settings(
        api=ApiSettings(drain_seconds=0, **api),
        batching=BatchingSettings(max_queue_tokens=max_queue_tokens),
        store=StoreSettings(kind="memory"),
    )
    app = create_app(settings, checkpoint=tiny_checkpoint(), encoder=encoder, store=store or MemoryStore())
    async with app.router.lifespan_context(app):
        yield app, encoder


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await body()

    asyncio.run(limited())


def start(app: FastAPI, path: str = "/embed", body: bytes = EMBED, **headers: str) -> Exchange:
    exchange = Exchange(app, "POST", path, {name.replace("_", "-"): value for name, value in headers.items()})
    exchange.feed(body, more=False)
    return exchange


async def release_until(done: asyncio.Future[Any], encoder: GatedEncoder) -> None:
    """Let every batch through until `done`."""

    async def release() -> None:
        while True:
            (await encoder.waiting.get()).release()

    releasing = asyncio.ensure_future(release())
    await done
    releasing.cancel()


@pytest.mark.parametrize("sent", ["abc-123", "a" * 128])
def test_request_id_is_taken_over(client, sent):
    response = client.get("/nothing", headers={"X-Request-Id": sent})

    assert response.headers["x-request-id"] == response.json()["instance"] == sent


@pytest.mark.parametrize("sent", ["", "a" * 129, "a b", "<script>", "a\\nb"])
def test_request_id_that_is_unsafe_is_replaced(client, sent):
    response = client.get("/health/live", headers={"X-Request-Id": sent})

    assert response.headers["x-request-id"] not in ("", sent)
    assert len(response.headers["x-request-id"]) == 32


def test_request_body_over_its_declared_limit_is_refused_before_it_is_read():
    async def body():
        async with gated_app(max_body_bytes=100) as (app, _):
            exchange = Exchange(app, "POST", "/embed", {"content-length": "101"})
            await exchange.done
            assert (exchange.status, exchange.problem()["code"]) == (413, "body_too_large")
            assert "100 bytes" in exchange.problem()["detail"]
            assert exchange.num_received == 0

    run(body)


@pytest.mark.parametrize("declared", [{}, {"content-length": "10"}, {"content-length": "x"}])
def test_request_body_over_the_limit_is_refused_as_soon_as_it_is(declared):
    async def body():
        async with gated_app(max_body_bytes=100) as (app, _):
            exchange = Exchange(app, "POST", "/search", declared)
            for _ in range(10):
                exchange.feed(b"x" * 60)
            await exchange.done
            assert (exchange.status, exchange.problem()["code"]) == (413, "body_too_large")
            assert exchange.num_received == 2

    run(body)


def test_request_body_of_exactly_the_limit_is_read(make_client):
    client = make_client(max_body_bytes=len(EMBED))

    assert client.post("/embed", content=EMBED).status_code == 200
    assert client.post("/embed", content=EMBED + b" ").status_code == 413


def test_request_client_gone_while_it_waits_cancels_the_work():
    async def body():
        async with gated_app() as (app, encoder):
            exchange = start(app)
            await encoder.waiting.get()
            exchange.hang_up()
            await exchange.done
            assert exchange.status is None
            assert not app.state.services.served.main.batcher._requests
            labels = {"route": "/embed", "method": "POST", "status": "499"}
            assert app.state.services.metrics.registry.get_sample_value("eoseek_requests_total", labels) == 1

    run(body)


def test_request_client_gone_within_the_body_ends_quietly():
    async def body():
        async with gated_app() as (app, _):
            exchange = Exchange(app, "POST", "/embed")
            exchange.feed(b'{"inputs"')
            exchange.hang_up()
            await exchange.done
            assert exchange.problem()["code"] == "client_gone"

    run(body)


def test_request_over_its_deadline_gets_503_and_leaves_the_queue():
    async def body():
        async with gated_app() as (app, _):
            exchange = start(app, x_request_timeout="0.05")
            await exchange.done
            assert (exchange.status, exchange.problem()["code"]) == (503, "deadline_exceeded")
            assert int(exchange.headers["retry-after"]) >= 1
            assert not app.state.services.served.main.batcher._requests

    run(body)


def test_request_timeout_is_bounded_by_the_setting():
    async def body():
        async with gated_app(request_timeout_seconds=0.05) as (app, _):
            exchange = start(app, x_request_timeout="999999")
            await exchange.done
            assert exchange.status == 503

    run(body)


def test_request_to_a_full_queue_gets_429_with_retry_after_and_the_others_are_served():
    async def body():
        async with gated_app(max_queue_tokens=10) as (app, encoder):
            # 10 tokens each; equal ones would share a computation
            texts = [json.dumps({"inputs": str(123456789 + i), "kind": "query"}).encode() for i in range(5)]
            exchanges = [start(app, body=texts[0])]
            batch = await encoder.waiting.get()
            exchanges += [start(app, body=text) for text in texts[1:]]
            await asyncio.wait([each.done for each in exchanges], return_when=asyncio.FIRST_COMPLETED)
            refused = next(each for each in exchanges if each.done.done())
            assert (refused.status, refused.problem()["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            batch.release()
            await release_until(asyncio.gather(*(each.done for each in exchanges)), encoder)
            assert {each.status for each in exchanges} == {200, 429}

    run(body)


def test_request_encoder_failure_is_503():
    async def body():
        async with gated_app() as (app, encoder):
            exchange = start(app)
            (await encoder.waiting.get()).fail(EncoderError("the worker died"))
            await exchange.done
            assert (exchange.status, exchange.problem()["code"]) == (503, "encoder_unavailable")

    run(body)


class FailingStore(MemoryStore):
    error: Exception = StoreError("the server is away")

    async def search_batch(self, collection, embeddings, options):
        raise self.error


def test_request_store_failure_is_503():
    async def body():
        async with gated_app(store=FailingStore()) as (app, encoder):
            exchange = start(app, "/search", b'{"query": "a"}')
            (await encoder.waiting.get()).release()
            await exchange.done
            assert (exchange.status, exchange.problem()["code"]) == (503, "store_unavailable")

    run(body)


def test_request_fault_is_a_500_without_its_cause_and_is_logged(caplog):
    store = FailingStore()
    store.error = RuntimeError("secret /path")

    async def body():
        async with gated_app(store=store) as (app, encoder):
            exchange = start(app, "/search", b'{"query": "a"}', x_request_id="find-me")
            (await encoder.waiting.get()).release()
            await exchange.done
            assert (exchange.status, exchange.problem()["code"]) == (500, "internal")
            assert "find-me" in exchange.problem()["detail"]
            assert b"secret" not in exchange.body

    run(body)
    assert "secret /path" in caplog.text


def test_stream_stops_reading_when_batches_wait_and_ends_well():
    async def body():
        async with gated_app(max_queue_tokens=10**6) as (app, encoder):
            exchange = Exchange(app, "POST", "/documents", {"content-type": "application/x-ndjson"})
            lines = [
                json.dumps({"id": str(number), "text": f"text {number}"}).encode() + b"\n" for number in range(5000)
            ]
            for line in lines:
                exchange.feed(line)
            exchange.feed(b"", more=False)
            first = await encoder.waiting.get()
            for _ in range(1000):
                await asyncio.sleep(0)
            # the encoder takes nothing more, so most of the body stays where it is
            assert exchange.num_received < 3000
            first.release()
            await release_until(exchange.done, encoder)
            assert exchange.status == 200
            assert json.loads(exchange.body)["indexed"] == 5000

    run(body)


class TellingStore(MemoryStore):
    def __init__(self):
        super().__init__()
        self.written = asyncio.Event()

    async def upsert(self, collection, points):
        await super().upsert(collection, points)
        self.written.set()


def test_stream_client_gone_keeps_what_was_written_and_stops():
    async def body():
        store = TellingStore()
        async with gated_app(store=store) as (app, encoder):
            exchange = Exchange(app, "POST", "/documents", {"content-type": "application/x-ndjson"})
            for number in range(260):  # one chunk of 256, and a few more
                exchange.feed(json.dumps({"id": str(number), "text": "t"}).encode() + b"\n")
            await release_until(asyncio.ensure_future(store.written.wait()), encoder)
            exchange.hang_up()
            await exchange.done
            assert (exchange.problem()["code"], exchange.problem()["indexed"]) == ("client_gone", 256)
            assert (await store.describe_collection("default")).num_documents == 256
            assert encoder.waiting.empty()

    run(body)


def test_stream_that_stalls_gets_503():
    async def body():
        async with gated_app(request_timeout_seconds=0.05) as (app, _):
            exchange = Exchange(app, "POST", "/documents", {"content-type": "application/x-ndjson"})
            exchange.feed(b'{"id": "a"')
            await exchange.done
            assert (exchange.status, exchange.problem()["code"]) == (503, "deadline_exceeded")
            assert exchange.problem()["indexed"] == 0

    run(body)
