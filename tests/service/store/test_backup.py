"""Backup and restore: whole or not at all, whatever is written meanwhile and whatever happens to the file."""

import asyncio
import hashlib
import json
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from service.errors import ConfigurationError, StoreError
from service.store import backup
from service.store.base import Document, Point, SearchOptions
from service.store.edge import EdgeStore

# ruff: noqa: ASYNC240 - small files
pytestmark = pytest.mark.anyio

DIMENSION = 8
FINGERPRINT = "f" * 64
RANDOM = np.random.default_rng(3)


def points(start: int, number: int) -> list[Point]:
    rows = RANDOM.normal(size=(number, DIMENSION)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [
        Point(document=Document(id=str(start + i), text=f"text {start + i}", metadata={"n": start + i}), embedding=row)
        for i, row in enumerate(rows)
    ]


async def opened(path: Path) -> EdgeStore:
    store = EdgeStore(path)
    await store.start()
    return store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EdgeStore]:
    store = await opened(tmp_path / "store")
    await store.create_collection("docs", fingerprint=FINGERPRINT, dimension=DIMENSION)
    await store.upsert("docs", points(0, 300))
    yield store
    await store.stop()


async def saved(store: EdgeStore, file: Path) -> Path:
    snapshot = await store.snapshot()
    file.write_bytes(b"".join(backup.pack(snapshot.directory, snapshot.collections)))
    return file


async def answers(store: EdgeStore, queries: np.ndarray) -> list[list[tuple[str, float]]]:
    found = await store.search_batch("docs", queries, SearchOptions(top_k=10))
    return [[(hit.document.id, hit.score) for hit in hits] for hits in found]


async def test_backup_restored_elsewhere_gives_identical_answers(store: EdgeStore, tmp_path: Path) -> None:
    await store.create_collection("empty", fingerprint=FINGERPRINT, dimension=3)
    queries = np.array([point.embedding for point in points(0, 50)])
    before = await answers(store, queries)
    file = await saved(store, tmp_path / "b.zip")

    restored = backup.restore(file, tmp_path / "new" / "store", fingerprint=FINGERPRINT)

    other = await opened(tmp_path / "new" / "store")
    assert [(each.name, each.num_documents) for each in restored] == [("docs", 300), ("empty", 0)]
    assert await answers(other, queries) == before
    assert await other.get("docs", ["7"]) == await store.get("docs", ["7"])
    await other.upsert("docs", points(300, 1))
    assert await other.count("docs") == 301
    await other.stop()


async def test_backup_under_concurrent_writes_is_as_of_one_moment(store: EdgeStore, tmp_path: Path) -> None:
    acknowledged = [300]
    begun, stop = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await store.upsert("docs", points(acknowledged[0], 5))
            acknowledged[0] += 5
            begun.set()

    writing = asyncio.create_task(write())
    await begun.wait()
    num_before = acknowledged[0]
    file = await saved(store, tmp_path / "b.zip")
    num_after = acknowledged[0]
    stop.set()
    await writing
    backup.restore(file, tmp_path / "new", fingerprint=FINGERPRINT)
    other = await opened(tmp_path / "new")
    count = await other.count("docs")
    # writes came one after the other: what is there is all of them up to one moment within the backup
    assert num_before <= count <= num_after + 5
    assert count % 5 == 0
    assert None not in await other.get("docs", [str(i) for i in range(count)])
    assert await other.get("docs", [str(i) for i in range(count)]) == await store.get(
        "docs", [str(i) for i in range(count)]
    )
    assert acknowledged[0] > count  # and writing went on
    await other.stop()


async def test_backup_searches_go_on_and_writes_wait_while_files_are_copied(
    store: EdgeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, copying, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def slow_copy(source: Path, target: Path) -> None:
        loop.call_soon_threadsafe(copying.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(20)
        backup.copy_directory(source, target)

    monkeypatch.setattr("service.store.edge.copy_directory", slow_copy)
    making = asyncio.create_task(store.snapshot())
    await copying.wait()
    writing = asyncio.create_task(store.upsert("docs", points(300, 1)))
    deleting = asyncio.create_task(store.delete("docs", ["0"]))
    assert await store.count("docs") == 300  # behind the writes, had they been sent
    assert not writing.done()
    go_on.set()
    snapshot = await making
    await asyncio.gather(writing, deleting)
    assert snapshot.collections[0].num_documents == 300


async def test_backup_child_killed_while_it_is_copied_is_refused_and_leaves_nothing(
    store: EdgeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarted = threading.Event()
    monkeypatch.setattr(store._child, "_on_event", lambda event: restarted.set() if event == "restarted" else None)

    def killing_copy(source: Path, target: Path) -> None:
        store._child.kill()
        restarted.wait(20)
        backup.copy_directory(source, target)

    monkeypatch.setattr("service.store.edge.copy_directory", killing_copy)
    with pytest.raises(StoreError, match="restarted while it was copied"):
        await store.snapshot()
    assert not list((tmp_path / "store" / "snapshots").glob("*"))


async def test_backup_copy_that_fails_is_a_store_error_and_writes_go_on(
    store: EdgeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.store.edge.copy_directory", full)
    with pytest.raises(StoreError, match="No space left on device"):
        await store.snapshot()
    assert not list((tmp_path / "store" / "snapshots").glob("*"))
    await store.upsert("docs", points(300, 1))


async def test_backup_that_would_fill_the_disk_is_refused_before_it_is_copied(
    store: EdgeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=2**40, free=2**26 + 10))
    with pytest.raises(StoreError, match=r"takes [\d,]+ bytes, and 10 may be written to its disk; make room"):
        await store.snapshot()
    assert not list((tmp_path / "store" / "snapshots").glob("*"))


async def test_backup_left_by_a_crash_is_cleared_at_start(tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "old").mkdir(parents=True)
    store = await opened(tmp_path)
    assert not (tmp_path / "snapshots").exists()
    await store.stop()


def test_copy_leaves_out_what_the_engine_is_about_to_rename(tmp_path: Path) -> None:
    log = tmp_path / "from" / "shard" / "wal"
    log.mkdir(parents=True)
    for name in ("open-1", "tmp-open-2"):
        (log / name).write_bytes(b"log")
    backup.copy_directory(tmp_path / "from", tmp_path / "to")
    assert [each.name for each in (tmp_path / "to").rglob("*") if each.is_file()] == ["open-1"]


async def test_restore_over_a_store_is_refused(store: EdgeStore, tmp_path: Path) -> None:
    file = await saved(store, tmp_path / "b.zip")
    with pytest.raises(ConfigurationError, match=r"there is a store at .* already"):
        backup.restore(file, tmp_path / "store", fingerprint=FINGERPRINT)
    assert await store.count("docs") == 300


async def test_restore_of_another_checkpoint_names_both_unless_any_is_taken(store: EdgeStore, tmp_path: Path) -> None:
    file = await saved(store, tmp_path / "b.zip")
    with pytest.raises(ConfigurationError) as caught:
        backup.restore(file, tmp_path / "new", fingerprint="e" * 64)
    assert FINGERPRINT in caught.value.detail
    assert "e" * 64 in caught.value.detail
    assert not (tmp_path / "new").exists()
    assert backup.restore(file, tmp_path / "new", fingerprint=None)[0].name == "docs"


def small_backup(folder: Path, *, files: dict[str, bytes], **manifest: object) -> Path:
    """A backup as another program might write it."""
    listed = dict.fromkeys(files, "0" * 64)
    content = {"format": "eoseek-backup-1", "collections": [], "files": listed, **manifest}
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("manifest.json", json.dumps(content))
    return folder / "b.zip"


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/tmp/evil",
        "c/../../evil",
        "c/./evil",
        "c//evil",
        "c\\evil/x",
        "~/x",
        "c/.hidden",
        "evil",
        "c/e\nvil",
    ],
)
def test_restore_path_out_of_the_store_is_refused(tmp_path: Path, name: str) -> None:
    collection = {"name": "c", "physical_name": "c", "fingerprint": "f", "dimension": 1, "num_documents": 0}
    file = small_backup(tmp_path, files={name: b"x"}, collections=[collection])
    with pytest.raises(ConfigurationError, match="no whole backup"):
        backup.restore(file, tmp_path / "deep" / "er" / "store", fingerprint=None)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [file]


def forge(good: Path, file: Path, *, manifest: dict[str, object] | None = None, **contents: bytes) -> Path:
    """A copy with members replaced or added, keyed by their path below the collection, and its manifest to match."""
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    written = json.loads(members.pop("manifest.json")) | (manifest or {})
    members |= {f"docs--ffffffff/{name}": data for name, data in contents.items()}
    written["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr("manifest.json", json.dumps(written))
    return file


def refusal(file: Path) -> str:
    """The one line that a restore of `file` ends with; nothing is left."""
    before = sorted(file.parent.iterdir())
    with pytest.raises(ConfigurationError) as caught:
        backup.restore(file, file.parent / "new", fingerprint=None)
    assert sorted(file.parent.iterdir()) == before
    assert "\n" not in caught.value.detail
    return caught.value.detail


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1]", "collection.json"),
        (b"null", "collection.json"),
        (b'{"name": "docs", "fingerprint": 1, "dimension": 8}', "fingerprint"),
        (b'{"name": "docs", "fingerprint": "ff"}', "dimension"),
        (b"\xff\x00", "collection.json"),
        (b'{"name": "other", "fingerprint": "f", "dimension": 8}', "not what its manifest says"),
        (b'{"name": "docs", "fingerprint": "f", "dimension": 9}', "dimension"),  # the shard's vectors have 8
    ],
)
async def test_restore_forged_description_is_refused_in_one_line(
    good: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    assert said in refusal(forge(good, tmp_path / "b.zip", **{"collection.json": content}))


COLLECTION = {"name": "docs", "physical_name": "docs--ffffffff", "fingerprint": FINGERPRINT, "dimension": 8}
FORGED_COLLECTIONS: dict[str, object] = {
    "a list": [1],
    "none": None,
    "not there": [COLLECTION | {"num_documents": 20, "physical_name": "docs--eeeeeeee"}],
    "twice": [COLLECTION | {"num_documents": 20}] * 2,
    "two names": [COLLECTION | {"num_documents": 20}, COLLECTION | {"num_documents": 20, "name": "other"}],
    "a path": [COLLECTION | {"num_documents": 20, "name": "../docs"}],
    "no dimension": [COLLECTION | {"num_documents": 20, "dimension": 0}],
    "a dimension beyond memory": [COLLECTION | {"num_documents": 20, "dimension": 10**12}],
    "fewer documents": [COLLECTION | {"num_documents": -1}],
    "more documents": [COLLECTION | {"num_documents": 21}],
}


@pytest.mark.parametrize("collections", FORGED_COLLECTIONS.values(), ids=list(FORGED_COLLECTIONS))
async def test_restore_forged_manifest_is_refused_in_one_line(good: Path, tmp_path: Path, collections: object) -> None:
    assert "b.zip" in refusal(forge(good, tmp_path / "b.zip", manifest={"collections": collections}))


@pytest.mark.parametrize("content", ["[1]", "1", "null", "{}", '{"format": "eoseek-backup-1"}', "[" * 100_000])
def test_restore_manifest_of_another_shape_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("manifest.json", content)
    assert "its manifest is refused" in refusal(tmp_path / "b.zip")


async def test_restore_shard_that_cannot_be_mapped_is_refused_in_one_line(good: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(good) as archive:
        mapped = next(name for name in archive.namelist() if name.endswith("deleted/status.dat"))
    file = forge(good, tmp_path / "b.zip", **{mapped.partition("/")[2]: b""})
    assert "cannot be opened" in refusal(file)


def with_member(good: Path, file: Path, info: zipfile.ZipInfo, data: bytes = b"x") -> Path:
    """A copy whose first member is one more, as `info` describes it, which the manifest knows."""
    forge(good, file, extra=data)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/extra")}
    info.filename = "docs--ffffffff/extra"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(info, data)
        for name, content in members.items():
            archive.writestr(name, content)
    return file


async def test_restore_symbolic_link_is_refused(good: Path, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("extra")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "extra is no file" in refusal(with_member(good, tmp_path / "b.zip", link, b"/etc"))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
async def test_restore_of_another_compression_is_refused(good: Path, tmp_path: Path, method: int) -> None:
    member = zipfile.ZipInfo("extra")
    member.compress_type = method
    assert f"packed by method {method}" in refusal(with_member(good, tmp_path / "b.zip", member))


@pytest.mark.parametrize("name", ["COLLECTION.json", "collection.json/x"])
async def test_restore_path_that_another_one_takes_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    assert "no whole backup" in refusal(forge(good, tmp_path / "b.zip", **{name: b"x"}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
async def test_restore_path_that_is_there_twice_is_refused(good: Path, tmp_path: Path) -> None:
    file = forge(good, tmp_path / "b.zip")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("docs--ffffffff/collection.json", b"[1]")
    assert "not those of its manifest" in refusal(file)


@pytest.mark.parametrize("num_bytes", [0, 5, 2**30])
async def test_restore_size_that_is_not_the_claimed_one_is_refused(good: Path, tmp_path: Path, num_bytes: int) -> None:
    file = with_member(good, tmp_path / "b.zip", zipfile.ZipInfo("extra"), b"x" * 100)
    data = bytearray(file.read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # the first entry of the directory at the archive's end
    data[at : at + 4] = num_bytes.to_bytes(4, "little")
    file.write_bytes(data)
    assert "no whole backup" in refusal(file)


async def test_restore_members_that_share_their_bytes_are_refused(good: Path, tmp_path: Path) -> None:
    file = forge(good, tmp_path / "b.zip")
    with zipfile.ZipFile(file) as archive:
        sizes = [info.compress_size for info in archive.infolist()]
    data = bytearray(file.read_bytes())
    at = data.index(b"PK\x01\x02") + 20  # the first entry of the directory: one byte more than the others leave to it
    data[at : at + 4] = (len(data) - sum(sizes[1:]) + 1).to_bytes(4, "little")
    file.write_bytes(data)
    assert "its files overlap" in refusal(file)


async def test_restore_of_more_than_the_disk_has_room_for_is_refused_before_it_is_full(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = forge(good, tmp_path / "b.zip", extra=b"x" * 3_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    assert "more than the 1,800,000 bytes that may be written" in refusal(file)


@pytest.mark.parametrize("physical_name", ["..", "a/b", "", "."])
def test_restore_physical_name_that_is_a_path_is_refused(tmp_path: Path, physical_name: str) -> None:
    collection = {"name": "c", "physical_name": physical_name, "fingerprint": "f", "dimension": 1, "num_documents": 0}
    file = small_backup(tmp_path, files={}, collections=[collection])
    with pytest.raises(ConfigurationError, match="no whole backup"):
        backup.restore(file, tmp_path / "store", fingerprint=None)


def cut(file: Path, num_bytes: int) -> None:
    file.write_bytes(file.read_bytes()[:num_bytes])


def flip(file: Path, member: Callable[[list[zipfile.ZipInfo]], zipfile.ZipInfo]) -> None:
    """Change a byte of a member's data; one of a header that nobody reads would be no damage."""
    with zipfile.ZipFile(file) as archive:
        info = member(archive.infolist())
    data = bytearray(file.read_bytes())
    names = [int.from_bytes(data[info.header_offset + at : info.header_offset + at + 2], "little") for at in (26, 28)]
    data[info.header_offset + 30 + sum(names) + info.compress_size // 2] ^= 0xFF
    file.write_bytes(data)


def other_sum(file: Path) -> None:
    """Good by zip's own sums, not by the manifest's."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["docs--ffffffff/collection.json"] += b" "
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def without(file: Path, name: str) -> None:
    with zipfile.ZipFile(file) as archive:
        members = {each: archive.read(each) for each in archive.namelist() if each != name}
    with zipfile.ZipFile(file, "w") as archive:
        for each, data in members.items():
            archive.writestr(each, data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: cut(file, 0),
    "cut in the middle": lambda file: cut(file, file.stat().st_size // 2),
    "cut by one byte": lambda file: cut(file, file.stat().st_size - 1),
    "flipped in a file": lambda file: flip(file, lambda infos: max(infos, key=lambda info: info.compress_size)),
    "flipped in the manifest": lambda file: flip(file, lambda infos: infos[-1]),
    "another sum": other_sum,
    "no manifest": lambda file: without(file, "manifest.json"),
    "no file": lambda file: without(file, "docs--ffffffff/collection.json"),
    "something else": lambda file: file.write_text("{}"),
}


@pytest.fixture(scope="module")
async def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    store = await opened(folder / "store")
    await store.create_collection("docs", fingerprint=FINGERPRINT, dimension=DIMENSION)
    await store.upsert("docs", points(0, 20))
    file = await saved(store, folder / "b.zip")
    await store.stop()
    return file


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
async def test_damaged_backup_is_refused_in_one_line_and_nothing_is_put_in_place(
    good: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    file = tmp_path / "b.zip"
    file.write_bytes(good.read_bytes())
    backup.check(file)
    damage(file)
    for read in (lambda: backup.check(file), lambda: backup.restore(file, tmp_path / "new", fingerprint=None)):
        with pytest.raises(ConfigurationError, match=r"b\.zip is no whole backup") as caught:
            read()
        assert "\n" not in caught.value.detail
    assert list(tmp_path.iterdir()) == [file]


async def test_restored_files_are_sparse_again(good: Path, tmp_path: Path) -> None:
    backup.restore(good, tmp_path / "new", fingerprint=None)
    files = [each.stat() for each in (tmp_path / "new").rglob("*") if each.is_file()]
    assert sum(each.st_size for each in files) > 2**26
    assert sum(each.st_blocks * 512 for each in files) < 2**24


_RESTORE = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
from service.errors import ConfigurationError
from service.store import backup
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    backup.restore(Path(sys.argv[1]), Path(sys.argv[2]), fingerprint=None)
except ConfigurationError as error:
    print(error.detail)
"""


async def test_restore_disk_full_says_so_and_leaves_nothing(good: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _RESTORE, str(good), str(tmp_path / "new")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    assert "cannot be restored: File too large; nothing was put in place" in done.stdout
    assert list(tmp_path.iterdir()) == []
