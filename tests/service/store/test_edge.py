"""What only the embedded store promises: it survives kill -9, is locked, and cleans up after a crash."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from service.errors import ConfigurationError, NotReadyError, StoreError
from service.store import edge
from service.store.base import Document, Point, SearchOptions
from service.store.edge import EdgeStore
from service.store.edge_shards import EdgeShards

pytestmark = pytest.mark.anyio


def point(document_id: str, text: str = "text") -> Point:
    return Point(document=Document(id=document_id, text=text), embedding=np.array([0.6, 0.8], np.float32))


async def opened(path: Path, kind: type[EdgeStore] = EdgeStore, **options: float) -> Any:
    store = kind(path, **options)
    await store.start()
    await store.create_collection("c", fingerprint="f" * 64, dimension=2)
    return store


def kill_child(store: EdgeStore) -> None:
    assert store.pid is not None
    os.kill(store.pid, signal.SIGKILL)


class CountingStore(EdgeStore):
    num_commits = 0

    async def _put(self, collection: str, points: Sequence[Point]) -> None:
        self.num_commits += 1
        await super()._put(collection, points)


async def test_stop_and_start_keeps_everything(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.upsert("c", [point("d")])
    before = await store.list_collections()
    await store.stop()
    store = EdgeStore(tmp_path)
    await store.start()
    after = await store.list_collections()
    assert [(info.name, info.fingerprint, info.dimension, info.num_documents) for info in after] == [
        (info.name, info.fingerprint, info.dimension, info.num_documents) for info in before
    ]
    assert await store.get("c", ["d"]) == [point("d").document]
    assert after[0].size_bytes is not None
    assert 0 < after[0].size_bytes < 2**26  # sparse files count by their blocks
    await store.stop()


async def test_restart_of_the_child_is_told(tmp_path: Path) -> None:
    events: list[str] = []
    store = EdgeStore(tmp_path, on_event=events.append)
    await store.start()
    kill_child(store)
    assert await store.list_collections() == []
    assert events == ["died", "restarted"]
    await store.stop()


async def test_kill_under_load_every_upsert_that_returned_is_there(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    returned: set[str] = set()
    enough = asyncio.Event()

    async def write(writer: int) -> None:
        for i in range(40):
            ids = [f"{writer}-{i}-{part}" for part in "ab"]
            await store.upsert("c", [point(each) for each in ids])
            returned.update(ids)
            if len(returned) > 100:
                enough.set()

    writers = [asyncio.create_task(write(writer)) for writer in range(8)]
    await enough.wait()
    kill_child(store)
    await asyncio.gather(*writers)  # the call in flight is made again after the restart
    kill_child(store)  # nothing is flushed or closed
    await store.stop()
    reopened = await opened(tmp_path)
    assert await reopened.count("c") == len(returned) == 8 * 40 * 2
    assert None not in await reopened.get("c", sorted(returned))
    await reopened.stop()


async def test_search_while_the_child_restarts_answers_after_it(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.upsert("c", [point("d")])
    kill_child(store)
    ((hit,),) = await store.search_batch("c", point("d").embedding[None], SearchOptions())
    assert hit.document == point("d").document
    await store.stop()


async def test_child_that_cannot_come_back_calls_say_not_ready(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    store._timeout_seconds = 0.1  # from here on: what comes before may take as long as it needs
    (tmp_path / "aliases.json").write_text("{")
    kill_child(store)
    with pytest.raises(NotReadyError):
        await store.count("c")
    assert not store.is_ready
    await store.stop()


class HangingStore(EdgeStore):
    """The child stands still from the call of `hang_in` on, until `go_on`."""

    hang_in = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hangs = asyncio.Event()

    async def _call(self, method: str, *args: Any) -> Any:
        if method == self.hang_in:
            self.send(signal.SIGSTOP)
            self.hangs.set()  # who waits for it runs once this task waits for the answer, so the call is sent then
        return await super()._call(method, *args)

    async def give_up(self, call: Coroutine[Any, Any, object]) -> None:
        """Cancel `call` as soon as the child has been told to execute it."""
        calling = asyncio.create_task(call)
        await self.hangs.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

    def send(self, signal_number: int) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal_number)

    def go_on(self) -> None:
        self.hang_in = ""
        self.send(signal.SIGCONT)


async def test_drop_given_up_and_done_later_the_collection_can_be_made_anew(tmp_path: Path) -> None:
    store = await opened(tmp_path, HangingStore)
    await store.upsert("c", [point("d")])
    store.hang_in = "drop"
    await store.give_up(store.drop_collection("c"))
    store.go_on()
    info = await store.create_collection("c", fingerprint="e" * 64, dimension=3)
    assert (info.fingerprint, info.dimension, info.num_documents) == ("e" * 64, 3, 0)
    await store.stop()


async def test_create_given_up_and_done_later_the_collection_can_be_used(tmp_path: Path) -> None:
    store = await opened(tmp_path, HangingStore)
    store.hang_in = "create"
    await store.give_up(store.create_collection("late", fingerprint="f" * 64, dimension=2))
    store.go_on()
    await store.upsert("late", [point("d")])
    assert await store.count("late") == 1
    await store.drop_collection("late")
    await store.stop()


async def test_hung_child_is_restarted_and_the_call_is_made_again(tmp_path: Path) -> None:
    store = await opened(tmp_path, HangingStore)
    assert store._child._child is not None
    store._child._child._hang_seconds = 0.1
    store.send(signal.SIGSTOP)
    assert await store.count("c") == 0
    assert store._child.num_restarts == 1
    await store.stop()


async def test_stop_ends_a_child_that_hangs_and_says_so_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await opened(tmp_path, HangingStore)
    store._timeout_seconds = 0.1
    store.send(signal.SIGSTOP)
    await store.stop()
    assert store.pid is None
    (line,) = [each.getMessage() for each in caplog.records if each.name == "service.store.edge"]
    assert "was not closed" in line


async def test_upserts_at_once_share_commits(tmp_path: Path) -> None:
    store = CountingStore(tmp_path)
    await store.start()
    await store.create_collection("c", fingerprint="f", dimension=2)
    await asyncio.gather(*(store.upsert("c", [point(f"d{i}")]) for i in range(100)))
    assert await store.count("c") == 100
    assert store.num_commits <= 2
    await store.stop()


async def test_upserts_at_once_that_fail_each_caller_gets_an_error_of_its_own(tmp_path: Path) -> None:
    class FailingStore(EdgeStore):
        async def _put(self, collection: str, points: Sequence[Point]) -> None:
            raise StoreError("the disk is full")

    store = await opened(tmp_path, FailingStore)
    first, second = await asyncio.gather(*(store.upsert("c", [point(each)]) for each in "ab"), return_exceptions=True)
    assert [(type(each), each.detail) for each in (first, second)] == [(StoreError, "the disk is full")] * 2
    assert first is not second
    await store.stop()


def test_merged_upserts_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "_MAX_MERGED_BYTES", 100)

    async def sizes() -> list[int]:
        heavy = [edge._Upsert({str(i): replace(point(str(i)), num_bytes=40)}) for i in range(5)]
        return [len(edge._take(heavy)) for _ in range(3)]

    assert asyncio.run(sizes()) == [2, 2, 1]


async def test_upsert_later_call_at_once_wins(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await asyncio.gather(*(store.upsert("c", [point("d", text=f"version {i}")]) for i in range(20)))
    assert await store.get("c", ["d"]) == [point("d", text="version 19").document]
    await store.stop()


async def test_upsert_caller_gone_others_are_stored(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    leaving, staying = (asyncio.create_task(store.upsert("c", [point(each)])) for each in ("leaving", "staying"))
    await asyncio.sleep(0)  # both wait now
    leaving.cancel()
    await staying
    assert await store.get("c", ["staying"]) == [point("staying").document]
    await store.stop()


class DroppingStore(EdgeStore):
    """Another caller drops `c` between the two calls of a listing."""

    async def _call(self, method: str, *args: object) -> Any:
        result = await super()._call(method, *args)
        if method == "names" and "c" in result:
            await super()._call("drop", "c")
        return result


async def test_list_while_a_collection_is_dropped_leaves_it_out(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create_collection("other", fingerprint="f" * 64, dimension=2)
    await store.stop()
    store = DroppingStore(tmp_path)
    await store.start()
    assert [info.name for info in await store.list_collections()] == ["other"]
    await store.stop()


async def test_list_with_a_collection_whose_files_are_gone_has_the_others_and_no_path_in_its_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await opened(tmp_path)
    await store.create_collection("other", fingerprint="f" * 64, dimension=2)
    (tmp_path / "collections" / "c--ffffffff" / "collection.json").unlink()
    assert [info.name for info in await store.list_collections()] == ["other"]
    with pytest.raises(StoreError) as caught:
        await store.describe_collection("c")
    assert str(tmp_path) not in caught.value.detail
    assert str(tmp_path) in caplog.text
    await store.stop()


async def test_second_opening_is_refused_in_one_line_and_first_goes_on(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    with pytest.raises(ConfigurationError, match="open in another process") as caught:
        await EdgeStore(tmp_path).start()
    assert str(tmp_path) in caught.value.detail
    assert "\n" not in caught.value.detail
    await store.upsert("c", [point("d")])
    assert await store.count("c") == 1
    await store.stop()


async def test_path_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used") as caught:
        await EdgeStore(path).start()
    assert str(path) in caught.value.detail
    assert "\n" not in caught.value.detail


def made(path: Path) -> Path:
    """A closed store with one collection; returns the collection's directory."""
    shards = EdgeShards(path)
    shards.create("c", "f" * 64, 2)
    shards.upsert("c", [{"id": "d", "text": "t"}], np.ones((1, 2), np.float32))
    shards.close()
    return path / "collections" / "c--ffffffff"


def damage_segment(directory: Path) -> None:
    (segment,) = (directory / "shard" / "segments").iterdir()
    (segment / "segment.json").write_text("{")


@pytest.mark.parametrize(
    "damage",
    [
        damage_segment,
        lambda directory: (directory / "shard" / "wal" / "open-1").write_bytes(b"\xff" * 100),
        lambda directory: (directory / "collection.json").write_text("{"),
        lambda directory: (directory / "collection.json").unlink(),
        lambda directory: (directory.parents[1] / "aliases.json").write_text("{"),
        lambda directory: (directory.parents[1] / "aliases.json").write_text("[]"),
        lambda directory: (directory.parents[1] / "aliases.json").unlink(),
        lambda directory: (directory.parents[1] / "aliases.json").write_text('{"c": "c--00000000"}'),
    ],
    ids=[
        "segment",
        "log",
        "description",
        "no description",
        "aliases",
        "aliases of another kind",
        "no aliases",
        "missing directory",
    ],
)
def test_damaged_store_is_refused_in_one_line(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    directory = made(tmp_path)
    damage(directory)
    with pytest.raises(ConfigurationError) as caught:
        EdgeShards(tmp_path)
    assert str(tmp_path) in caught.value.detail
    assert "\n" not in caught.value.detail
    assert (directory / "shard" / "segments").exists()  # what may still be rescued is not cleared


@pytest.mark.parametrize("removed", ["shard/segments", "shard/segments/*"])
def test_store_without_its_segments_is_refused_and_not_served_empty(tmp_path: Path, removed: str) -> None:
    directory = made(tmp_path)
    for each in directory.glob(removed):
        shutil.rmtree(each)
    with pytest.raises(ConfigurationError, match="segments is missing or empty") as caught:
        EdgeShards(tmp_path)
    assert "restore it from a backup" in caught.value.detail
    assert "\n" not in caught.value.detail


def test_refused_collection_can_be_given_up_as_the_message_says(tmp_path: Path) -> None:
    directory = made(tmp_path)
    shutil.rmtree(directory)
    (tmp_path / "aliases.json").write_text("{}")
    shards = EdgeShards(tmp_path)
    assert shards.names() == []
    shards.close()


def test_refused_opening_gives_the_lock_back(tmp_path: Path) -> None:
    directory = made(tmp_path)
    whole = (directory / "collection.json").read_text()
    (directory / "collection.json").write_text("{")
    with pytest.raises(ConfigurationError):
        EdgeShards(tmp_path)
    (directory / "collection.json").write_text(whole)
    EdgeShards(tmp_path).close()


def test_open_clears_directories_without_a_name_and_keeps_the_others(tmp_path: Path) -> None:
    directory = made(tmp_path)
    half_made = tmp_path / "collections" / "new--00000000"
    (half_made / "shard").mkdir(parents=True)
    shards = EdgeShards(tmp_path)
    assert not half_made.exists()
    assert shards.names() == ["c"]
    assert shards.count("c", None) == 1
    shards.close()
    assert directory.exists()


def test_create_over_a_half_made_directory_starts_afresh(tmp_path: Path) -> None:
    shards = EdgeShards(tmp_path)
    (tmp_path / "collections" / "c--ffffffff" / "shard" / "segments").mkdir(parents=True)
    assert shards.create("c", "f" * 64, 2)["num_documents"] == 0
    shards.close()


def test_create_repeated_after_a_crash_keeps_what_is_there(tmp_path: Path) -> None:
    made(tmp_path)
    shards = EdgeShards(tmp_path)
    assert shards.create("c", "f" * 64, 2)["num_documents"] == 1
    shards.close()


def test_drop_leaves_no_files(tmp_path: Path) -> None:
    made(tmp_path)
    shards = EdgeShards(tmp_path)
    shards.drop("c")
    shards.close()
    assert list((tmp_path / "collections").iterdir()) == []
    assert json.loads((tmp_path / "aliases.json").read_text()) == {}


def test_write_to_a_disk_without_room_is_refused_before_it_and_the_store_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(number: int) -> None:
        payload = {"id": f"d{number}", "title": "", "text": "x" * 1000, "metadata": {}, "content_hash": "h"}
        shards.upsert("c", [payload], np.array([[0.6, 0.8]], np.float32))

    total, free = 2**40, 2**40
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=total, free=free))
    shards = EdgeShards(tmp_path)
    shards.create("c", "f" * 64, 2)
    write(1)

    free = 2**26 + 3 * (1000 + 8) - 1  # 64 MiB are kept free, and a text and its vector are counted three times
    with pytest.raises(StoreError, match="disk is full: 3,023 bytes may still be written, this takes about 3,024"):
        write(2)
    free = 2**26 - 1
    with pytest.raises(StoreError, match="disk is full: 0 bytes"):
        shards.create("other", "f" * 64, 2)
    assert (shards.names(), shards.count("c", None)) == (["c"], 1)
    total, free = 2**28, 2**26  # of a small disk a twentieth is kept
    write(2)
    assert shards.count("c", None) == 2
    shards.close()


async def test_start_on_a_full_disk_says_so_and_does_not_advise_to_give_the_collection_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    await store.stop()
    full = "Service runtime error: Failed to save structure on disk with error: No space left on device (os error 28)"
    monkeypatch.setattr("qdrant_edge.EdgeShard", SimpleNamespace(load=Mock(side_effect=RuntimeError(full))))

    with pytest.raises(ConfigurationError, match="disk is full: make room") as caught:
        EdgeShards(tmp_path)
    assert "delete" not in caught.value.detail
