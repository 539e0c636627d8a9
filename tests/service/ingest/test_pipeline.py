import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.encoders.worker import LocalEncoder
from service.errors import EncoderError, InvalidInputError, OverloadedError, StoreError, TextTooLongError
from service.ingest import pipeline as pipeline_module
from service.ingest.pipeline import Failure, IncomingDocument, IngestPipeline
from service.metrics import Metrics
from service.settings import BatchingSettings
from service.store.base import Document, Point
from service.store.memory import MemoryStore
from tests.fakes import FakeEncoder, GatedEncoder, fake_embedding
from tests.service.api.parts import DIMENSION, MAX_LENGTH, tiny_checkpoint

LONG = "x" * MAX_LENGTH


class RecordingStore(MemoryStore):
    """Notes the sizes of writes; fails after some."""

    def __init__(self, fail_after: int | None = None) -> None:
        super().__init__()
        self.writes: list[int] = []
        self.fail_after = fail_after

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        if self.fail_after is not None and len(self.writes) >= self.fail_after:
            raise StoreError("the disk is full")
        await super().upsert(collection, points)
        self.writes.append(len(points))


class Rig:
    def __init__(self, pipeline, store, encoder, registry):
        self.pipeline, self.store, self.encoder, self.registry = pipeline, store, encoder, registry
        self.pauses: list[float] = []

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def ingest(self, documents, **more):
        return await self.pipeline.ingest("docs", documents, **more)

    async def count(self) -> int:
        return (await self.store.describe_collection("docs")).num_documents


@asynccontextmanager
async def rig(encoder=None, store=None, **batching) -> AsyncIterator[Rig]:
    encoder = encoder or LocalEncoder(FakeEncoder(DIMENSION))
    store = store or RecordingStore()
    registry = CollectorRegistry()
    metrics, settings = Metrics(registry), BatchingSettings(**batching)
    await encoder.start()
    await store.create_collection("docs", fingerprint="f", dimension=DIMENSION)
    batcher = Batcher(encoder, settings, metrics=metrics)
    await batcher.start()
    made = Rig(None, store, encoder, registry)
    made.pipeline = IngestPipeline(
        tiny_checkpoint(), batcher, store, metrics, settings, timeout_seconds=60, sleep=made.pause
    )
    try:
        yield made
    finally:
        await batcher.stop(0)
        await encoder.stop()


def run(body):
    async def limited():
        async with asyncio.timeout(20):
            await body()

    asyncio.run(limited())


def doc(number, text="some text"):
    return IncomingDocument(document=Document(id=f"d{number}", text=f"{text} {number}"), line=number)


async def stream(*items):
    for item in items:
        yield item


def test_pipeline_stores_each_document_with_its_own_embedding():
    async def body():
        async with rig() as it:
            await it.ingest(stream(*map(doc, range(300))))
            points, _ = await it.store.scroll("docs", batch_size=1000)
            contract = tiny_checkpoint().contract
            assert len(points) == 300
            for point in points:
                ids = contract.documents([("", point.document.text)]).token_ids[0]
                assert point.embedding.tolist() == fake_embedding(ids, DIMENSION).tolist()

    run(body)


def test_pipeline_report_adds_up():
    async def body():
        async with rig() as it:
            await it.ingest([doc(1), doc(2)])
            bad = Failure(id=None, line=9, code="malformed_input", detail="x")
            report = await it.ingest(stream(doc(1), bad, doc(3), doc(4, LONG), doc(2, "new")))
            assert (report.indexed, report.unchanged, len(report.failed)) == (2, 1, 2)
            assert [each.line for each in report.failed] == [9, 4]
            assert await it.count() == 3
            for outcome, number in {"indexed": 4, "unchanged": 1, "failed": 2}.items():
                assert it.registry.get_sample_value("eoseek_documents_total", {"outcome": outcome}) == number

    run(body)


def test_pipeline_batches_are_bounded_in_tokens_and_documents():
    async def body():
        # 12 tokens each with its [EOS]
        async with rig(max_batch_tokens=30, max_batch_texts=100) as it:
            await it.ingest([doc(number) for number in range(5)])
            assert sorted(it.store.writes) == [1, 2, 2]
        async with rig(max_batch_texts=3) as it:
            await it.ingest([doc(number) for number in range(7)])
            assert sorted(it.store.writes) == [1, 3, 3]

    run(body)


def test_pipeline_list_with_a_too_long_document_writes_nothing_and_names_it():
    async def body():
        async with rig() as it:
            with pytest.raises(TextTooLongError, match=r"documents\[1\] \(id 'd2'\) has 103 tokens, the limit is 100"):
                await it.ingest([doc(1), doc(2, LONG), doc(3)])
            assert it.store.writes == []

    run(body)


def test_pipeline_list_on_a_full_queue_is_refused_at_once():
    async def body():
        async with rig(GatedEncoder(DIMENSION), max_batch_tokens=12, max_batch_texts=1, max_queue_tokens=12) as it:
            with pytest.raises(OverloadedError) as caught:
                await it.ingest([doc(number) for number in range(9)], deadline=float("inf"))
            assert caught.value.extra == {"indexed": 0, "unchanged": 0}
            assert it.pauses == []

    run(body)


def test_pipeline_stream_waits_out_a_full_queue():
    async def body():
        async with rig(max_batch_tokens=12, max_queue_tokens=12) as it:
            report = await it.ingest(stream(*[doc(number) for number in range(9)]))
            assert report.indexed == 9
            assert it.pauses
            assert min(it.pauses) >= 1

    run(body)


def test_pipeline_documents_of_a_stream_are_counted_while_it_lasts():
    written = asyncio.Event()

    class SignallingStore(RecordingStore):
        async def upsert(self, collection, points):
            await super().upsert(collection, points)
            written.set()

    async def body():
        async with rig(store=SignallingStore()) as it:

            def num_indexed():
                return it.registry.get_sample_value("eoseek_documents_total", {"outcome": "indexed"})

            async def documents():
                for number in range(256):
                    yield doc(number)
                await written.wait()
                assert num_indexed() == 256
                yield doc(256)

            await it.ingest(documents())
            assert num_indexed() == 257

    run(body)


def test_pipeline_store_failure_ends_the_request_and_tells_what_was_done():
    async def body():
        async with rig(store=RecordingStore(fail_after=2), max_batch_texts=10) as it:
            with pytest.raises(StoreError, match="disk is full") as caught:
                await it.ingest(stream(*map(doc, range(100))))
            assert caught.value.extra == {"indexed": 20, "unchanged": 0}
            assert await it.count() == 20

    run(body)


def test_pipeline_encoder_failure_leaves_nothing_in_flight():
    async def body():
        async with rig(GatedEncoder(DIMENSION), max_batch_texts=1) as it:
            work = asyncio.ensure_future(it.ingest(stream(*map(doc, range(50)))))
            (await it.encoder.waiting.get()).fail(EncoderError("died"))
            with pytest.raises(EncoderError, match="died"):
                await work
            assert it.registry.get_sample_value("eoseek_queue_requests", {"lane": "document"}) == 0

    run(body)


def test_pipeline_ends_a_stream_of_nothing_but_failures(monkeypatch):
    monkeypatch.setattr(pipeline_module, "_MAX_FAILURES", 5)

    async def body():
        async with rig() as it:
            failures = [Failure(id=None, line=line, code="malformed_input", detail="not JSON") for line in range(1, 10)]
            with pytest.raises(InvalidInputError, match=r"stopped at line 6.*line 1: not JSON"):
                await it.ingest(stream(*failures))

    run(body)


def test_pipeline_chunks_and_writes_are_bounded_in_bytes_of_any_kind(monkeypatch):
    monkeypatch.setattr(pipeline_module, "_CHUNK_BYTES", 100)

    def heavy(number):  # its metadata weighs, not its text
        return IncomingDocument(document=Document(id=f"d{number}", text="t"), num_bytes=40)

    async def body():
        async with rig() as it:
            await it.ingest(list(map(heavy, range(5))))
            assert sorted(it.store.writes) == [1, 2, 2]
        chunks = pipeline_module._chunks(stream(*map(heavy, range(7))), pipeline_module.IngestReport())
        assert [len(chunk) async for chunk in chunks] == [3, 3, 1]

    run(body)


def test_pipeline_document_that_was_cut_is_unchanged_only_when_it_may_be_cut_there_again():
    async def body():
        async with rig() as it:
            whole, cut = doc(1), doc(2, LONG)
            assert (await it.ingest(stream(whole, cut), truncate=True)).truncated == ["d2"]
            assert (await it.ingest(stream(whole, cut), truncate=True)).unchanged == 2
            report = await it.ingest(stream(whole, cut))
            assert (report.unchanged, [each.code for each in report.failed]) == (1, ["text_too_long"])
            with pytest.raises(TextTooLongError):
                await it.ingest([cut])
            it.pipeline._checkpoint = replace(it.pipeline._checkpoint, max_length=MAX_LENGTH + 1)
            assert (await it.ingest(stream(whole, cut), truncate=True)).indexed == 1

    run(body)
