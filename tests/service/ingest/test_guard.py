"""No write escapes a follower, none falls between two collections."""

import asyncio

import numpy as np
import pytest

from service.errors import CollectionSwitchedError, StoreError
from service.ingest.guard import WriteGuard
from service.store.base import Document, Point
from service.store.memory import MemoryStore

OLD, NEW = "docs--ffffffff", "docs--eeeeeeee"
LIMIT_SECONDS = 30


def point(document_id="a"):
    return Point(document=Document(id=document_id, text="t"), embedding=np.array([1.0], dtype=np.float32))


class SlowStore(MemoryStore):
    """Its writes land when the test says so."""

    def __init__(self):
        super().__init__()
        self.may_land = asyncio.Event()
        self.error = None

    async def upsert(self, collection, points):
        await self.may_land.wait()
        if self.error:
            raise self.error
        await super().upsert(collection, points)


class Notes:
    def __init__(self):
        self.ids, self.filters = [], []

    def changed(self, document_ids):
        self.ids += document_ids

    def matched(self, filter):
        self.filters.append(filter)


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def started():
    store, notes = SlowStore(), Notes()
    await store.create_collection("docs", fingerprint="f" * 64, dimension=1)
    await store.create_standby("docs", fingerprint="e" * 64, dimension=1)
    guard = WriteGuard(store)
    guard.follow("docs", notes, live=OLD)
    return store, guard, notes


def run(test):
    async def limited():
        async with asyncio.timeout(LIMIT_SECONDS):
            await test(*await started())

    asyncio.run(limited())


def test_guard_a_cancelled_write_that_lands_is_told_after_it_landed():
    async def test(store, guard, notes):
        writing = asyncio.create_task(guard.upsert(OLD, [point()]))
        await settle()
        writing.cancel()
        await asyncio.wait([writing])
        assert (writing.cancelled(), notes.ids) == (True, [])

        store.may_land.set()
        await settle()

        assert (notes.ids, await store.count("docs")) == (["a"], 1)

    run(test)


def test_guard_a_write_that_failed_is_told_as_well():
    async def test(store, guard, notes):
        store.error = StoreError("no answer in time; it may have landed")
        store.may_land.set()
        with pytest.raises(StoreError):
            await guard.upsert("docs", [point()])
        assert notes.ids == ["a"]

    run(test)


def test_guard_tells_deletions_by_id_and_by_filter():
    async def test(store, guard, notes):
        conditions = {"must": [{"key": "n", "match": {"value": 1}}]}
        assert await guard.delete("docs", ["a", "b"]) == 0
        assert await guard.delete_matching("docs", conditions) == 0
        assert (notes.ids, notes.filters) == (["a", "b"], [conditions])

    run(test)


def test_guard_closes_only_when_the_writes_under_way_have_landed_and_were_told():
    async def test(store, guard, notes):
        writing = asyncio.create_task(guard.upsert("docs", [point()]))
        await settle()
        entered = asyncio.Event()

        async def close():
            async with guard.closed("docs"):
                entered.set()
                assert notes.ids == ["a"]

        closing = asyncio.create_task(close())
        await settle()
        assert not entered.is_set()
        store.may_land.set()
        await asyncio.gather(writing, closing)

    run(test)


def test_guard_embeddings_that_waited_through_a_switch_are_refused_and_deletions_go_on():
    async def test(store, guard, notes):
        store.may_land.set()
        async with guard.closed("docs"):
            stale = asyncio.create_task(guard.upsert(OLD, [point()]))
            deletion = asyncio.create_task(guard.delete("docs", ["a"]))
            await settle()
            assert not stale.done()
            assert not deletion.done()
            await store.switch_collection("docs", NEW)
            guard.follow("docs", notes, live=NEW)
        with pytest.raises(CollectionSwitchedError, match="send it again"):
            await stale
        assert await deletion == 0
        await guard.upsert(NEW, [point()])
        assert (await store.count(OLD), await store.count(NEW)) == (0, 1)

    run(test)


def test_guard_keeps_nothing_of_names_that_are_followed_by_nobody():
    async def test(store, guard, notes):
        store.may_land.set()
        guard.follow("docs", None, live=None)
        await guard.upsert("docs", [point()])
        await settle()
        assert guard._doors == {}
        assert notes.ids == []

    run(test)
