"""Indexes of the embedded store: built beside searches and writes, equal to the collection, whatever is killed."""

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import paths
from service.errors import NotFoundError, StoreError
from service.store import backup, index_builds
from service.store.base import Document, Hit, Point, SearchOptions, Snapshot
from service.store.edge import EdgeStore
from service.store.edge_files import described
from service.store.edge_index import IndexFigures, search_params
from service.store.edge_shards import EdgeShards
from service.store.filters import check_filter

pytestmark = pytest.mark.anyio

DIMENSION = 16
THRESHOLD = 20
PHYSICAL = "c--ffffffff"


def points(start: int, stop: int, text: str = "text") -> list[Point]:
    rows = np.random.default_rng(5).normal(size=(stop, DIMENSION)).astype(np.float32)[start:]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    documents = [Document(id=f"d{i}", text=text, metadata={"even": i % 2 == 0}) for i in range(start, stop)]
    return [Point(document=document, embedding=row) for document, row in zip(documents, unit, strict=True)]


class StoppedStore(EdgeStore):
    """Stands still before the call of its child that is named by `before`, until `go_on`; tells of its builds."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.events: asyncio.Queue[str | None] = asyncio.Queue()
        options = {"index_threshold": THRESHOLD, "on_build": lambda event, _: self.events.put_nowait(event)} | options
        super().__init__(path, **options)
        self.before = ""
        self.stands, self.go_on = asyncio.Event(), asyncio.Event()

    async def _call(self, method: str, *args: Any) -> Any:
        if method == self.before:
            self.before = ""
            self.stands.set()
            await self.go_on.wait()
        return await super()._call(method, *args)

    async def ends(self) -> str:
        """How the next build, or the one under way, ends."""
        while (event := await asyncio.wait_for(self.events.get(), 60)) is None:
            pass
        return event

    async def call_due(self) -> list[str]:
        due: list[str] = await self._call("unindexed", self._builds._threshold)
        return due

    async def indexed(self) -> int:
        return (await self.describe_collection("c")).num_indexed


async def opened(path: Path, **options: Any) -> StoppedStore:
    store = StoppedStore(path, **options)
    await store.start()
    await store.create_collection("c", fingerprint="f" * 64, dimension=DIMENSION)
    return store


async def standing(path: Path, before: str, **options: Any) -> StoppedStore:
    """A store with 100 documents whose build stands before a call of the child."""
    store = await opened(path, **options)
    store.before = before
    await store.upsert("c", points(0, 100))
    await asyncio.wait_for(store.stands.wait(), 60)
    return store


async def found(store: EdgeStore, **options: Any) -> list[list[Hit]]:
    queries = np.stack([each.embedding for each in points(500, 510)])
    return await store.search_batch("c", queries, SearchOptions(**options))


def same(one: list[list[Hit]], other: list[list[Hit]]) -> bool:
    def plain(hits: list[Hit]) -> list[tuple[Document, float]]:
        return [(hit.document, pytest.approx(hit.score, abs=1e-5)) for hit in hits]

    return list(map(plain, one)) == list(map(plain, other))


def directories(path: Path) -> list[str]:
    return sorted(each.name for each in (path / "collections" / PHYSICAL).iterdir() if each.is_dir())


def building(path: Path) -> list[Path]:
    return list((path / "building").glob("*"))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_builds, "_FIRST_PAUSE_SECONDS", 0.0)


@pytest.mark.parametrize("quantization", ["none", "scalar"])
async def test_index_gives_what_a_scan_gives_and_leaves_one_directory(tmp_path: Path, quantization: str) -> None:
    store = await standing(tmp_path, "adopt", quantization=quantization)
    before = await found(store)
    store.go_on.set()
    assert await store.ends() == "built"
    assert await store.indexed() == 100
    assert same(await found(store), before)
    assert same(await found(store, exact=True), before)
    assert len(directories(tmp_path)) == 1
    assert building(tmp_path) == []
    await store.stop()


async def test_writes_during_a_build_are_in_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_builds, "_CATCH_UP_POINTS", 3)  # of 48: several rounds
    store = await standing(tmp_path, "adopt", index_threshold=60)
    await store.upsert("c", points(100, 110))  # new
    await store.upsert("c", points(0, 10, "changed"))
    assert await store.delete("c", [f"d{i}" for i in range(10, 20)]) == 10
    assert await store.delete_matching("c", check_filter({"must": [{"key": "even", "match": {"value": True}}]})) == 50
    await store.upsert("c", points(50, 60, "again"))  # half of them were deleted by the filter
    before, everything = await found(store), (await store.scroll("c"))[0]
    store.go_on.set()
    assert await store.ends() == "built"
    after = (await store.scroll("c"))[0]
    assert [each.document for each in after] == [each.document for each in everything]
    np.testing.assert_array_equal([each.embedding for each in after], [each.embedding for each in everything])
    assert same(await found(store, exact=True), before)
    await store.stop()


async def test_writes_at_once_with_a_build_are_all_there(tmp_path: Path) -> None:
    store = await opened(tmp_path)

    async def write(start: int) -> None:
        for i in range(start, start + 40, 5):
            await store.upsert("c", points(i, i + 5))
            await store.delete("c", [f"d{i}"])

    await asyncio.gather(*(write(start) for start in range(0, 200, 40)))
    while await store.ends() != "built" or await store.call_due():
        pass
    kept = {f"d{i}" for i in range(200) if i % 5}
    page, _ = await store.scroll("c", batch_size=1000)
    assert {each.document.id for each in page} == kept
    assert same(await found(store), await found(store, exact=True))
    await store.stop()


async def test_builder_killed_the_old_state_serves_and_it_is_built_again(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    started = asyncio.Event()
    run = index_builds._Build.run

    async def killed(build: Any, *args: Any) -> None:
        index_builds._Build.run = run  # type: ignore[method-assign]
        running = asyncio.create_task(run(build, *args))
        while build._process is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        os.kill(build._process.pid, signal.SIGKILL)
        started.set()
        await running

    index_builds._Build.run = killed  # type: ignore[method-assign]
    await store.upsert("c", points(0, 100))
    assert await store.ends() == "failed"
    assert started.is_set()
    assert len((await found(store))[0]) == 10
    assert await store.ends() == "built"
    await store.stop()


@pytest.mark.parametrize("before", ["adopt", "exchange"])
async def test_child_killed_before_the_exchange_nothing_is_lost_and_it_is_built_again(
    tmp_path: Path, before: str
) -> None:
    store = await standing(tmp_path, before)
    expected = await found(store)
    assert store.pid is not None
    os.kill(store.pid, signal.SIGKILL)
    assert same(await found(store), expected)  # after the restart
    await_writes = [] if before == "exchange" else points(100, 105)  # writes wait in the exchange
    await store.upsert("c", await_writes)
    store.go_on.set()
    ends = [await store.ends()]
    if ends[0] == "failed":
        ends.append(await store.ends())
    assert ends == (["failed", "built"] if before == "exchange" else ["built"])
    assert await store.count("c") == 100 + len(await_writes)
    assert len(directories(tmp_path)) == 1
    await store.stop()


@pytest.mark.parametrize("when", ["as it is sent", "once the new one is named"])
async def test_child_killed_in_the_exchange_leaves_one_state_that_has_everything(tmp_path: Path, when: str) -> None:
    store = await standing(tmp_path, "exchange")
    pid = store.pid
    assert pid is not None
    store.go_on.set()
    await asyncio.sleep(0)  # sent by now
    while when != "as it is sent" and named(tmp_path) == "shard":  # noqa: ASYNC110
        await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    await store.ends()
    await store.upsert("c", points(0, 10, "after"))
    texts = {each.document.id: each.document.text for each in (await store.scroll("c"))[0]}
    assert texts == {f"d{i}": "after" if i < 10 else "text" for i in range(100)}
    assert named(tmp_path) in directories(tmp_path)
    await store.stop()


def named(path: Path) -> str:
    return described(path / "collections" / PHYSICAL).shard


async def test_crash_of_everything_leftovers_are_cleared_and_it_is_built_again(tmp_path: Path) -> None:
    store = await standing(tmp_path, "exchange")
    crashed = tmp_path / "crashed"
    shutil.copytree(tmp_path / "collections", crashed / "collections")
    shutil.copytree(tmp_path / "building", crashed / "building")
    shutil.copy(tmp_path / "aliases.json", crashed)
    store.go_on.set()
    await store.stop()
    assert len(directories(crashed)) == 2

    shards = EdgeShards(crashed)
    assert (shards.count("c", None), directories(crashed)) == (100, ["shard"])
    shards.close()
    store = await opened(crashed)
    assert await store.ends() == "built"
    assert building(crashed) == []
    assert len(directories(crashed)) == 1
    await store.stop()


@pytest.mark.parametrize("before", ["adopt", "exchange"])
async def test_drop_during_a_build_and_another_collection_of_the_name_stays_as_it_is(
    tmp_path: Path, before: str
) -> None:
    store = await standing(tmp_path, before, index_threshold=60)
    dropping = asyncio.create_task(drop_and_make(store))
    await asyncio.sleep(0)
    if before == "adopt":
        await dropping  # done before the build goes on
    store.go_on.set()
    assert await store.ends() == ("given_up" if before == "adopt" else "built")
    await dropping
    assert await store.count("c") == 1
    assert await store.indexed() == 0
    await store.stop()


async def drop_and_make(store: EdgeStore) -> None:
    await store.drop_collection("c")
    await store.create_collection("c", fingerprint="f" * 64, dimension=DIMENSION)
    await store.upsert("c", points(0, 1))


async def test_quantization_takes_effect_and_is_taken_back_with_the_next_index(tmp_path: Path) -> None:
    for start, quantization in enumerate(["none", "scalar", "none"]):
        store = await opened(tmp_path, quantization=quantization)
        await store.upsert("c", points(100 * start, 100 * start + 100))
        assert await store.ends() == "built"
        assert is_quantized(tmp_path) is (quantization == "scalar")
        await store.stop()


def is_quantized(path: Path) -> bool:
    written = [each.read_text() for each in path.glob("collections/*/*/segments/*/segment.json")]
    return any('"quantization_config":{"scalar"' in each for each in written)


async def test_drop_ends_the_process_that_builds(tmp_path: Path) -> None:
    build = index_builds._Build("c")
    running = asyncio.create_task(build.run(tmp_path, "none"))
    while build._process is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    build.note("drop", ["c"])
    with pytest.raises(index_builds._GivenUpError):
        await running
    assert build._process.returncode == -signal.SIGKILL


async def saved(store: EdgeStore, snapshot: Snapshot, path: Path) -> StoppedStore:
    """The store that is restored from a backup."""
    file = path / "backup.zip"
    file.write_bytes(b"".join(backup.pack(snapshot.directory, snapshot.collections)))
    backup.restore(file, path / "restored", fingerprint="f" * 64)
    assert len(directories(path / "restored")) == 1
    restored = await opened(path / "restored", index_threshold=0)
    assert same(await found(restored, exact=True), await found(store, exact=True))
    return restored


async def test_backup_while_an_index_is_built_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, go_on, run = asyncio.Event(), asyncio.Event(), index_builds._Build.run

    async def standing_run(build: Any, *args: Any) -> None:
        await run(build, *args)
        built.set()
        await go_on.wait()

    monkeypatch.setattr(index_builds._Build, "run", standing_run)
    store = await opened(tmp_path / "store")
    await store.upsert("c", points(0, 100))
    await asyncio.wait_for(built.wait(), 60)
    restored = await saved(store, await store.snapshot(), tmp_path)
    assert await restored.indexed() == 0
    go_on.set()
    assert await store.ends() == "built"
    await restored.stop()
    await store.stop()


async def test_backup_in_the_exchange_waits_and_holds_the_index_once(tmp_path: Path) -> None:
    store = await standing(tmp_path / "store", "exchange")
    saving = asyncio.create_task(store.snapshot())
    await asyncio.sleep(0)
    store.go_on.set()
    restored = await saved(store, await saving, tmp_path)
    assert await restored.indexed() == 100
    await restored.stop()
    await store.stop()


async def test_standby_is_indexed_too_and_a_switch_during_its_build_keeps_both(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create_standby("c", fingerprint="e" * 64, dimension=DIMENSION)
    store.before = "adopt"
    await store.upsert("c--eeeeeeee", points(0, 50))
    await asyncio.wait_for(store.stands.wait(), 60)
    await store.switch_collection("c", "c--eeeeeeee")
    await store.upsert("c", points(50, 55))
    store.go_on.set()
    assert await store.ends() == "built"
    info = await store.describe_collection("c")
    assert (info.physical_name, info.num_documents, info.num_indexed) == ("c--eeeeeeee", 55, 50)
    assert await store.count(PHYSICAL) == 0
    await store.stop()


async def test_stop_during_a_build_leaves_the_old_state_and_no_copy(tmp_path: Path) -> None:
    store = await standing(tmp_path, "adopt")
    await store.stop()
    assert await store.ends() == "given_up"
    assert building(tmp_path) == []
    store = await opened(tmp_path, index_threshold=0)
    assert (await store.count("c"), await store.indexed()) == (100, 0)
    await store.stop()


async def test_disk_without_room_for_a_copy_builds_none_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.store.edge.writable_bytes", lambda _: 0)
    monkeypatch.setattr(index_builds, "_FIRST_PAUSE_SECONDS", 60.0)
    store = await opened(tmp_path)
    await store.upsert("c", points(0, 100))
    assert await store.ends() == "failed"
    assert "cannot be copied for its index" in caplog.text
    await store.stop()


async def test_index_is_built_again_only_after_a_fifth_has_changed(tmp_path: Path) -> None:
    store = await standing(tmp_path, "adopt")
    store.go_on.set()
    assert await store.ends() == "built"
    await store.upsert("c", points(100, 124))  # 24 of 124
    assert await store.call_due() == []
    await store.delete("c", [f"d{i}" for i in range(20)])  # of 100
    assert await store.ends() == "built"  # 20 deletions are a look
    assert await store.indexed() == 104
    await store.stop()


def test_exchange_that_is_repeated_or_comes_too_late_changes_nothing(tmp_path: Path) -> None:
    shards, shard = adopted(tmp_path)
    shards.exchange(PHYSICAL, shard, [], [])
    shards.exchange(PHYSICAL, shard, ["d"], [])
    assert (shards.count("c", None), directories(tmp_path)) == (1, [shard])
    with pytest.raises(StoreError, match="built again"):
        shards.exchange(PHYSICAL, "shard-other", [], [])
    with pytest.raises(NotFoundError):
        shards.exchange("other--ffffffff", shard, [], [])
    shards.close()


def adopted(path: Path) -> tuple[EdgeShards, str]:
    """A store of one document with a copy of its collection that is about to take its place."""
    shards = EdgeShards(path)
    shards.create("c", "f" * 64, DIMENSION)
    shards.upsert("c", [{"id": "d", "text": "t"}], np.ones((1, DIMENSION), np.float32))
    backup.copy_directory(path / "collections" / PHYSICAL, path / "copy" / PHYSICAL)
    return shards, shards.adopt(PHYSICAL, str(path / "copy" / PHYSICAL))


@pytest.mark.parametrize("breaks", ["replace", "sync_directory"])
def test_exchange_whose_write_fails_holds_if_the_file_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    """What this process serves is what the next one will open."""
    shards, shard = adopted(tmp_path)

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(*((Path, "replace") if breaks == "replace" else (paths, "sync_directory")), fail)
    with pytest.raises(OSError, match="full"):
        shards.exchange(PHYSICAL, shard, [], [])
    monkeypatch.undo()

    assert named(tmp_path) == ("shard" if breaks == "replace" else shard)
    shards.upsert("c", [{"id": "e", "text": "t"}], np.ones((1, DIMENSION), np.float32))
    shards.close()
    shards = EdgeShards(tmp_path)
    assert shards.count("c", None) == 2
    assert directories(tmp_path) == [named(tmp_path)]
    shards.close()


def test_old_directory_that_outlived_the_exchange_is_cleared_at_the_next_open(tmp_path: Path) -> None:
    shards, shard = adopted(tmp_path)
    shutil.rmtree(tmp_path / "copy")  # the build was given up just now
    shards.exchange(PHYSICAL, shard, [], [])
    shards.close()
    assert directories(tmp_path) == ["shard", shard]
    shards = EdgeShards(tmp_path)
    assert (shards.count("c", None), directories(tmp_path)) == (1, [shard])
    shards.close()


@pytest.mark.parametrize(
    ("num_points", "num_indexed", "num_gone", "is_due"),
    [
        (19, 0, 0, False),  # below the threshold
        (20, 0, 0, True),
        (120, 100, 0, False),  # 20 outside are no fifth of 120
        (125, 100, 0, True),
        (100, 100, 19, False),
        (100, 100, 20, True),  # written again: outside, and gone
        (80, 100, 20, True),  # deleted
        (8, 10, 2, True),  # the threshold is for those outside
        (5, 100, 95, True),
        (0, 100, 100, False),  # nothing to index
    ],
)
def test_index_is_due(num_points: int, num_indexed: int, num_gone: int, is_due: bool) -> None:
    figures = IndexFigures(num_points=num_points, num_indexed=num_indexed, num_gone=num_gone)
    assert figures.is_due(threshold=20, dimension=1024) is is_due


@pytest.mark.parametrize(
    ("num_points", "changes", "candidates"),
    [(1, {}, 192), (100_000, {}, 192), (1_600_000, {}, 384), (100, {"top_k": 150, "offset": 100}, 250)],
)
async def test_a_larger_index_is_searched_with_more_candidates(
    num_points: int, changes: dict[str, int], candidates: int
) -> None:
    options = {"exact": False, "filter": None, "top_k": 10, "offset": 0} | changes
    assert search_params(options, num_points=num_points).hnsw_ef == candidates  # 2 ** 4 times as many points, 2 times
