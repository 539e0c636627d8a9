"""`eoseek backup` and `eoseek restore`: a whole file or none, a whole store or none."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from eoseek.backup import save
from eoseek.client import Client, EoseekClientError
from service.errors import ConfigurationError
from service.store import backup
from service.store.base import Document, Point
from service.store.edge import EdgeStore
from tests.checkpoints import write_tiny_checkpoint

FINGERPRINT = "a" * 64


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A backup of one document."""

    async def make(folder: Path) -> bytes:
        store = EdgeStore(folder)
        await store.start()
        await store.create_collection("docs", fingerprint=FINGERPRINT, dimension=2)
        document = Document(id="d", text="kept")
        await store.upsert("docs", [Point(document=document, embedding=np.array([0.6, 0.8], np.float32))])
        snapshot = await store.snapshot()
        data = b"".join(backup.pack(snapshot.directory, snapshot.collections))
        await store.stop()
        return data

    path = tmp_path_factory.mktemp("good") / "b.zip"
    path.write_bytes(asyncio.run(make(path.parent / "store")))
    return path


def serving(status: int, body) -> Client:
    return Client(transport=httpx.MockTransport(lambda request: httpx.Response(status, content=body)))


def test_save_writes_the_whole_file_in_place_of_an_older_one(good, tmp_path):
    file = tmp_path / "b.zip"
    file.write_bytes(b"old")

    with serving(200, good.read_bytes()) as client:
        manifest = save(client, file)

    assert file.read_bytes() == good.read_bytes()
    assert [each.name for each in manifest.collections] == ["docs"]
    assert list(tmp_path.iterdir()) == [file]


def test_backup_is_waited_for_longer_than_other_calls_while_the_service_copies_its_store():
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path, request.extensions["timeout"]))
        return httpx.Response(200, content=b"zip")

    with Client(timeout_seconds=5, transport=httpx.MockTransport(answer)) as client, client.backup() as blocks:
        assert list(blocks) == [b"zip"]

    ((method, path, limits),) = asked
    assert (method, path, limits["connect"], limits["read"]) == ("POST", "/backup", 10, 3600)


def lost(data: bytes):
    yield data[:1000]
    raise httpx.ReadError("connection lost")


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, lambda data: data[:-100], "no whole backup"),
        (200, lambda data: b"<html>", "no whole backup"),
        (200, lost, "connection lost"),
        (401, lambda data: b'{"code": "unauthorized", "detail": "a key"}', "a key"),
        (501, lambda data: b'{"code": "not_implemented", "detail": "a Qdrant server"}', "a Qdrant server"),
    ],
    ids=["cut off", "something else", "lost on the way", "no key", "another store"],
)
def test_save_that_fails_keeps_the_older_file_and_leaves_no_half_one(good, tmp_path, status, body, reason):
    file = tmp_path / "b.zip"
    file.write_bytes(b"old")

    with (
        serving(status, body(good.read_bytes())) as client,
        pytest.raises((ConfigurationError, EoseekClientError), match=reason),
    ):
        save(client, file)

    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


_SAVE = """
import resource, sys
from pathlib import Path
import httpx
from eoseek.backup import save
from eoseek.client import Client
from service.errors import ConfigurationError
content = Path(sys.argv[1]).read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save(Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, content=content))), Path(sys.argv[2]))
except ConfigurationError as error:
    print(error.detail)
"""


def test_save_disk_full_says_so_and_leaves_no_half_file(good, tmp_path):
    command = [sys.executable, "-c", _SAVE, str(good), str(tmp_path / "b.zip")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "b.zip cannot be written: File too large; no half file is left" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_restore_command_checks_the_checkpoint_and_never_overwrites(good, eoseek, monkeypatch, tmp_path):
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny")
    monkeypatch.setenv("EOSEEK_ENCODER__CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("EOSEEK_STORE__PATH", str(tmp_path / "store"))

    code, _, err = eoseek("restore", good)
    assert (code, err.count("\n")) == (2, 1)
    assert FINGERPRINT in err
    assert not (tmp_path / "store").exists()

    code, _, err = eoseek("restore", good, "--any-checkpoint")
    assert (code, "collection docs: 1 documents" in err) == (0, True)
    assert json.loads((tmp_path / "store" / "aliases.json").read_text()) == {"docs": "docs--aaaaaaaa"}

    code, _, err = eoseek("restore", good, "--any-checkpoint")
    assert (code, "already" in err) == (2, True)


def test_restore_command_to_a_server_is_refused(good, eoseek, monkeypatch):
    monkeypatch.setenv("EOSEEK_STORE__KIND", "qdrant")
    code, _, err = eoseek("restore", good)
    assert (code, "EOSEEK_STORE__KIND=qdrant" in err) == (2, True)


def test_backup_command_without_a_service_leaves_nothing(eoseek, service, tmp_path):
    with service.listening() as url:
        pass
    code, _, err = eoseek("backup", tmp_path / "b.zip", "--url", url)
    assert (code, "no answer from" in err) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_backup_command_folder_missing_is_exit_code_2(eoseek, url, tmp_path):
    code, _, err = eoseek("backup", tmp_path / "none" / "b.zip", "--url", url)
    assert (code, "cannot be written" in err) == (2, True)
