"""A standby becomes equal to its collection whatever happens in between."""

import asyncio

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.encoders.worker import LocalEncoder
from service.errors import StoreError
from service.ingest import follower as module
from service.ingest.follower import StandbyFollower
from service.ingest.pipeline import IngestPipeline
from service.metrics import Metrics
from service.settings import BatchingSettings
from service.store.base import Document, Point
from service.store.memory import MemoryStore
from tests.fakes import FakeEncoder
from tests.service.api.parts import tiny_checkpoint

CHECKPOINT = tiny_checkpoint(fingerprint="e" * 64, dimension=8)
LIVE, STANDBY = "docs--ffffffff", "docs--eeeeeeee"
LIMIT_SECONDS = 30


class FlakyStore(MemoryStore):
    """Its next scrolls fail; `on_get` is called before documents are read."""

    def __init__(self):
        super().__init__()
        self.num_failures = 0
        self.on_get = None

    async def scroll(self, *args, **options):
        if self.num_failures:
            self.num_failures -= 1
            raise StoreError("away")
        return await super().scroll(*args, **options)

    async def get(self, collection, document_ids):
        if self.on_get:
            on_get, self.on_get = self.on_get, None
            await on_get()
        return await super().get(collection, document_ids)


class Bench:
    def __init__(self, store, follower, pauses):
        self.store, self.follower, self.pauses = store, follower, pauses

    async def write(self, *ids, text="text"):
        embedding = np.eye(1, 4, dtype=np.float32)[0]
        await self.store.upsert(
            LIVE, [Point(document=Document(id=each, text=text, metadata={"n": 1}), embedding=embedding) for each in ids]
        )
        self.follower.changed(ids)

    async def contents(self, physical):
        points, _ = await self.store.scroll(physical, batch_size=1000)
        return sorted((point.document.id, point.document.text, point.content_hash) for point in points)

    async def assert_equal(self):
        await self.follower.settled()
        assert await self.contents(STANDBY) == await self.contents(LIVE)


def run(test, **options):
    async def body():
        store, pauses = FlakyStore(), []
        await store.create_collection("docs", fingerprint="f" * 64, dimension=4)
        await store.create_standby("docs", fingerprint="e" * 64, dimension=8)
        encoder, metrics = LocalEncoder(FakeEncoder(8)), Metrics(CollectorRegistry())
        await encoder.start()
        batcher = Batcher(encoder, BatchingSettings(), metrics=metrics)
        await batcher.start()

        async def sleep(seconds):
            pauses.append(seconds)

        copier = IngestPipeline(CHECKPOINT, batcher, store, metrics, BatchingSettings(), timeout_seconds=5)
        given = {"is_equal": False, "truncate": False, "share": 1.0, "sleep": sleep} | options
        follower = StandbyFollower(store, copier, live=LIVE, standby=STANDBY, **given)
        bench = Bench(store, follower, pauses)
        async with asyncio.timeout(LIMIT_SECONDS):
            working = asyncio.create_task(follower.run())
            try:
                await test(bench)
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                await batcher.stop(1)
                await encoder.stop()

    asyncio.run(body())


def test_follower_copies_follows_and_removes():
    async def test(bench):
        await bench.write(*(f"d{n}" for n in range(100)))
        await bench.assert_equal()
        await bench.write("d1", "new", text="changed")
        await bench.store.delete(LIVE, ["d2"])
        bench.follower.changed(["d2"])
        await bench.assert_equal()
        assert bench.follower.counts.removed == 1

    run(test)


def test_follower_a_document_that_changes_between_two_reads_ends_equal():
    async def test(bench):
        await bench.follower.settled()
        await bench.write("a")
        bench.store.on_get = lambda: bench.write("a", text="changed while it was read")
        await bench.assert_equal()
        assert (await bench.contents(STANDBY))[0][1] == "changed while it was read"

    run(test)


def test_follower_looks_again_at_what_a_deletion_by_filter_matched():
    async def test(bench):
        await bench.write("a", "b")
        await bench.assert_equal()
        conditions = {"must": [{"key": "n", "match": {"value": 1}}]}
        await bench.store.delete_matching(LIVE, conditions)
        await bench.store.upsert(
            LIVE, [Point(document=Document(id="b", text="back"), embedding=np.ones(4, np.float32))]
        )
        bench.follower.matched(conditions)
        await bench.assert_equal()
        assert [each[0] for each in await bench.contents(STANDBY)] == ["b"]

    run(test)


def test_follower_tries_again_while_the_store_is_away_and_says_so():
    async def test(bench):
        bench.store.num_failures = 3
        await bench.write("a")
        await bench.assert_equal()
        assert bench.pauses == [1.0, 2.0, 4.0]
        assert bench.follower.last_error == ""

    run(test)


def test_follower_with_more_changes_than_it_keeps_compares_all_again(monkeypatch):
    monkeypatch.setattr(module, "_MAX_CHANGES", 10)

    async def test(bench):
        await bench.follower.settled()
        await bench.write(*(f"d{n}" for n in range(40)))
        await bench.assert_equal()
        assert bench.follower.num_examined == 40

    run(test)


def test_follower_rests_for_the_rest_of_its_share_unless_it_is_hurried():
    async def test(bench):
        bench.follower.hurry(on=True)
        await bench.write("a")
        await bench.assert_equal()  # a share of a millionth would take hours
        bench.follower.hurry(on=False)
        await bench.write(*(f"d{n}" for n in range(100)))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await bench.follower.settled()
        bench.follower.hurry(on=True)
        await bench.assert_equal()

    run(test, share=1e-6)
