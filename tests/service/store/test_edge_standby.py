"""Standbys of the embedded store on disk: one file names both collections, and it alone says which one serves."""

import json
from pathlib import Path

import pytest

from service import paths
from service.store.edge_shards import EdgeShards

LIVE, STANDBY = "docs--ffffffff", "docs--eeeeeeee"


def with_standby(path: Path) -> EdgeShards:
    shards = EdgeShards(path)
    shards.create("docs", "f" * 64, 2)
    shards.create_standby("docs", "e" * 64, 3)
    return shards


def aliases(path: Path) -> dict[str, str]:
    return dict(json.loads((path / "aliases.json").read_text()))


def test_standby_is_there_after_a_restart_and_so_is_a_switch(tmp_path: Path) -> None:
    shards = with_standby(tmp_path)
    shards.switch("docs", STANDBY)
    shards.close()

    reopened = EdgeShards(tmp_path)

    assert (reopened.names(), reopened.standbys()) == (["docs"], [LIVE])
    assert reopened.describe("docs")["fingerprint"] == "e" * 64
    assert reopened.describe(LIVE)["name"] == "docs"
    assert aliases(tmp_path) == {"docs": STANDBY, "docs:standby": LIVE}
    reopened.close()


@pytest.mark.parametrize(("breaks", "expected"), [("replace", LIVE), ("sync_directory", STANDBY)])
def test_switch_whose_write_fails_holds_if_the_file_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str, expected: str
) -> None:
    """What this process believes is what the next one will read."""
    shards = with_standby(tmp_path)

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(*((Path, "replace") if breaks == "replace" else (paths, "sync_directory")), fail)
    with pytest.raises(OSError, match="full"):
        shards.switch("docs", STANDBY)
    monkeypatch.undo()

    assert shards.describe("docs")["physical_name"] == aliases(tmp_path)["docs"] == expected
    shards.switch("docs", STANDBY)
    assert shards.describe("docs")["physical_name"] == STANDBY
    shards.close()


def test_standby_that_lost_its_name_to_a_failed_write_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = with_standby(tmp_path)

    def fail(_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(paths, "sync_directory", fail)
    with pytest.raises(OSError, match="full"):
        shards.drop_standby("docs")
    monkeypatch.undo()

    assert shards.create_standby("docs", "e" * 64, 3)["num_documents"] == 0
    assert aliases(tmp_path) == {"docs": LIVE, "docs:standby": STANDBY}
    shards.close()


def test_dropping_leaves_no_directory(tmp_path: Path) -> None:
    shards = with_standby(tmp_path)

    shards.drop("docs")

    assert aliases(tmp_path) == {}
    assert list((tmp_path / "collections").iterdir()) == []
    shards.close()
