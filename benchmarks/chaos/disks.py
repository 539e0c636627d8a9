"""A small disk that is full: in ingest, in a backup, in a re-index.

The disk is an ext4 in a file, where we may mount one, else a tmpfs, in a mount namespace that a process holds which
ends with the experiment; services join it by `nsenter`. A ballast file in it takes the room away and gives it back.
"""

import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks.chaos.lab import TINY, Instance, Lab, count
from benchmarks.chaos.results import Goal, Result, SkippedError
from benchmarks.running import texts_of_lengths

_BATCH = 100
_BALLAST = 2**20
_PROMISED = "503 that names the disk, nothing lost nor half written, well again with room and after a restart"


_MOUNTS = {
    # holes in files that are read take no room there, as on the disks of real services
    "ext4": (
        ("unshare", "--mount"),
        'truncate -s "$1" "$2.img" && mkfs.ext4 -q -F -m 0 "$2.img" && mount -o loop "$2.img" "$2"',
        ("--mount",),
    ),
    "tmpfs": (
        ("unshare", "--user", "--map-root-user", "--mount"),
        'mount -t tmpfs -o size="$1" tmpfs "$2"',
        ("--user", "--mount", "--preserve-credentials"),
    ),
}


class SmallDisk:
    """A file system of `size_bytes` at `path`, seen by processes that start with `prefix`, and by us at `seen`."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        path.mkdir()
        whys = []
        for kind, (unshare, script, join) in _MOUNTS.items():  # noqa: B007, the last ones are those that it took
            holder = subprocess.Popen(
                [*unshare, "sh", "-c", f"{script} && echo mounted && exec cat", "sh", str(size_bytes), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert holder.stdout is not None
            if holder.stdout.readline() == b"mounted\n":
                break
            whys.append(f"{kind}: {holder.communicate()[1].decode(errors='replace').strip()}")
        else:
            raise SkippedError(f"no small file system could be mounted here: {'; '.join(whys)}")
        self._holder = holder
        self.kind = kind
        self.path = path
        self.seen = Path(f"/proc/{holder.pid}/root{path}")
        # it would go to the root directory, and what is imported from there is another EOSeek
        self.prefix = ("nsenter", "--target", str(holder.pid), *join, f"--wd={Path.cwd()}", "--")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._holder.kill()
        self._holder.communicate()

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all room but so many bytes."""
        with open(self.seen / "ballast", "ab") as ballast:
            try:
                while True:
                    ballast.write(bytes(_BALLAST))
                    ballast.flush()
            except OSError:
                pass
        with open(self.seen / "ballast", "r+b") as ballast:
            ballast.truncate(max(0, ballast.seek(0, 2) - leave_bytes))

    def free(self) -> None:
        """Give the room back."""
        (self.seen / "ballast").unlink()


def disk_full(lab: Lab, *, size_mib: int = 512, documents: int = 2000) -> Result:
    """Full in an ingest, a backup, a re-index: a clear error, the old state intact, and all well when room is back."""
    with SmallDisk(lab.directory / "disk", size_mib * 2**20) as disk:
        found = _Found()
        new = lab.checkpoint(TINY, "qwen3")
        instance = lab.instance("disk", TINY, disk.prefix, store__path=str(disk.path / "store"))
        try:
            instance.start()
            stored = _upsert(instance, range(documents // 2), found, "before")
            _in_ingest(disk, instance, stored, documents, found)
            _in_backup(disk, instance, stored, found)
            _in_reindex(disk, instance, stored, new, found)
            instance.stop()
            instance.start()
            found.expect("restart: all are there", _all_there(instance, stored))
        finally:
            instance.stop()
    return Result(
        done=f"{disk.kind} of {size_mib} MiB in a mount namespace, filled up under ingest, backup and re-index of "
        f"{len(stored)} documents: {'; '.join(f'{what}, {number} times' for what, number in found.errors.items())}",
        goals=[Goal("; ".join(found.faults) or "all so", _PROMISED, not found.faults)],
    )


class _Found:
    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        self.faults: list[str] = []

    def expect(self, what: str, holds: bool, seen: object = "") -> None:
        if not holds:
            self.faults.append(f"{what} {seen}".strip())


def _in_ingest(disk: SmallDisk, instance: Instance, stored: dict[str, str], documents: int, found: _Found) -> None:
    disk.fill()
    refused = 0
    for start in range(documents // 2, documents * 2, _BATCH):
        answer = _post(instance, range(start, start + _BATCH))
        if answer.is_success:
            stored |= _texts(range(start, start + _BATCH))
            continue
        refused += 1
        found.errors[f"ingest {answer.status_code} {answer.json()['detail']!r}"] += 1
        found.expect("ingest: 503", answer.status_code == 503, answer.status_code)
        said = answer.json()["detail"].lower()
        found.expect("ingest: the error names the disk", "space" in said or "disk" in said or "room" in said, said)
        if refused == 3:
            break
    found.expect("ingest: it was refused at last", refused == 3)
    found.expect("ingest: all are there while it is full", _all_there(instance, stored))
    disk.free()
    start_number = 3 * documents
    stored |= _upsert(instance, range(start_number, start_number + _BATCH), found, "ingest, room is back")
    found.expect("ingest: all are there when room is back", _all_there(instance, stored))


def _in_backup(disk: SmallDisk, instance: Instance, stored: dict[str, str], found: _Found) -> None:
    disk.fill(leave_bytes=_BALLAST)
    with httpx.stream("POST", f"{instance.url}/backup", timeout=300) as answer:
        answer.read()
        said = answer.json().get("detail", "") if answer.status_code != 200 else ""
    found.errors[f"backup {answer.status_code} {said!r}"] += 1
    found.expect("backup: 503 with the way out", answer.status_code == 503 and "room" in said, answer.status_code)
    left = list((disk.seen / "store" / "snapshots").glob("*"))
    found.expect("backup: no half copy is left", not left, left)
    found.expect("backup: all are there", _all_there(instance, stored))
    disk.free()
    answer = httpx.post(f"{instance.url}/backup", timeout=300)
    found.expect("backup: works when room is back", answer.status_code == 200, answer.status_code)


def _in_reindex(disk: SmallDisk, instance: Instance, stored: dict[str, str], new: str, found: _Found) -> None:
    url = f"{instance.url}/collections/default/reindex"
    httpx.post(url, json={"action": "start", "checkpoint": new, "share": 1.0}, timeout=120).raise_for_status()
    _wait(url, lambda state: state["encoded"] > 0 or state["stage"] not in ("loading", "copying"))
    disk.fill()
    # it tries again by itself, or has failed; either way it says why
    state = _wait(url, lambda state: state["stage"] in ("ready", "failed") or state["detail"], 60)
    found.errors[f"reindex {state['stage']} {state['detail']!r}"] += 1
    said = (state["detail"] or "").lower()
    is_told = state["stage"] in ("failed", "copying") and ("space" in said or "disk" in said or "room" in said)
    found.expect("reindex: does not get ready and names the disk", is_told, (state["stage"], said))
    found.expect("reindex: the old collection answers", _all_there(instance, stored))
    disk.free()
    if state["stage"] == "failed":
        httpx.post(url, json={"action": "resume", "share": 1.0}, timeout=60).raise_for_status()
    state = _wait(url, lambda state: state["stage"] == "ready" and not state["remaining"], 120)
    found.expect("reindex: goes on when room is back", state["stage"] == "ready", state)
    switched = httpx.post(url, json={"action": "switch"}, timeout=120)
    found.expect("reindex: switches", switched.is_success, switched.text[:200])
    found.expect("reindex: all are there in the new one", _all_there(instance, stored))
    httpx.post(url, json={"action": "rollback"}, timeout=120).raise_for_status()
    httpx.post(url, json={"action": "abort"}, timeout=120).raise_for_status()


def _wait(url: str, holds: Any, limit_seconds: float = 60) -> dict[str, Any]:
    """The state of a re-index once it holds, or the last one."""
    start = time.perf_counter()
    while True:
        state: dict[str, Any] = httpx.get(url, timeout=60).json()
        if holds(state) or time.perf_counter() - start > limit_seconds:
            return state
        time.sleep(0.1)


_STOCK = texts_of_lengths([120] * 50, seed=6)


def _texts(numbers: range) -> dict[str, str]:
    return {f"d{number}": f"{number} {_STOCK[number % len(_STOCK)]}" for number in numbers}


def _post(instance: Instance, numbers: range) -> httpx.Response:
    documents = [{"id": key, "text": text} for key, text in _texts(numbers).items()]
    body = {"documents": documents, "truncate": True}
    return httpx.post(f"{instance.url}/documents", json=body, timeout=150)


def _upsert(instance: Instance, numbers: range, found: _Found, when: str) -> dict[str, str]:
    for start in range(numbers.start, numbers.stop, _BATCH):
        answer = _post(instance, range(start, min(start + _BATCH, numbers.stop)))
        found.expect(f"{when}: documents are taken", answer.is_success, answer.text[:200])
    return _texts(numbers)


def _all_there(instance: Instance, stored: dict[str, str]) -> bool:
    """Number and, of every tenth, the text; and a search finds as many as it was asked for."""
    with httpx.Client(base_url=instance.url, timeout=60) as http:
        search = http.post("/search", json={"query": "effects of treatment", "top_k": 10})
        # what failed whole may still have been stored, as its answer was an error and no promise
        if not search.is_success or count(instance.url, "default") < len(stored):
            return False
        for key, text in list(stored.items())[::10]:
            found = http.get(f"/documents/{key}")
            if not found.is_success or found.json()["text"] != text:
                return False
        return len(search.json()["results"]) == 10
