"""A real service, two tiny checkpoints, writers and searchers all the while, and a kill -9 in the middle."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eoseek import Client
from eoseek.client import EoseekClientError
from tests.checkpoints import write_tiny_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.slow]
NUM_DOCUMENTS = 400
LIMIT_SECONDS = 120.0  # what would hang fails


def document(number: int, version: int = 0) -> dict[str, str]:
    return {"id": f"d{number}", "text": f"document {number} in version {version}"}


@contextmanager
def service(store: Path, checkpoint: Path) -> Iterator[tuple[Client, subprocess.Popen[str]]]:
    environment = os.environ | {
        "EOSEEK_API__PORT": "0",
        "EOSEEK_STORE__PATH": str(store),
        "EOSEEK_ENCODER__CHECKPOINT": str(checkpoint),
        "EOSEEK_ENCODER__DTYPE": "float32",
        "EOSEEK_ENCODER__THREADS": "1",
    }
    command = [sys.executable, "-m", "eoseek", "serve"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        try:
            for line in process.stderr:
                lines.append(line)
                if ready := re.search(r"ready on (\S+),", line):
                    break
            else:
                raise AssertionError("".join(lines))
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
            with Client(ready[1]) as client:
                yield client, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT_SECONDS)


def wait_for(client: Client, stage: str, *, encoded: int = 0) -> dict[str, object]:
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        found = client.describe_reindex("default")
        if found["stage"] == stage and found["encoded"] >= encoded:
            return dict(found)
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


class Traffic:
    """Searches and writes until it is stopped; what was confirmed is in `versions`, None where deleted."""

    def __init__(self, client: Client, versions: dict[int, int | None]) -> None:
        self.versions = versions
        self.unsure: set[int] = set()
        self.num_searches, self.failures = 0, list[str]()
        self._client = Client(client.url, retry_seconds=5)
        self._end = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._search, self._write)]

    def __enter__(self) -> "Traffic":
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for each in self._threads:
            each.join()
        self._client.close()

    def _search(self) -> None:
        while not self._end.is_set():
            try:
                hits = self._client.search("document 7", top_k=5)
                self.num_searches += 1
                if len(hits) != 5:
                    self.failures.append(f"{len(hits)} hits")
            except EoseekClientError as error:
                if not self._end.is_set():
                    self.failures.append(str(error))
                return

    def _write(self) -> None:
        version = 0
        while not self._end.is_set():
            version += 1
            number = (version * 37) % (NUM_DOCUMENTS + 50)
            self.unsure.add(number)
            try:
                if version % 3 == 0 and self.versions.get(number) is not None:
                    self._client.delete_document(f"d{number}")
                    self.versions[number] = None
                else:
                    self._client.ingest_stream([document(number, version)])
                    self.versions[number] = version
            except EoseekClientError as error:
                if not self._end.is_set():
                    self.failures.append(str(error))
                return
            self.unsure.discard(number)


def everything(client: Client) -> dict[str, tuple[str, float]]:
    hits = client.search("document 7", top_k=1000)
    return {hit.id: (hit.text, hit.score) for hit in hits}


def test_reindex_killed_in_the_middle_goes_on_and_ends_equal_to_a_fresh_index(tmp_path: Path) -> None:
    old = write_tiny_checkpoint(tmp_path / "old", "llama")
    new = write_tiny_checkpoint(tmp_path / "new", "qwen3")
    versions: dict[int, int | None] = dict.fromkeys(range(NUM_DOCUMENTS), 0)

    with service(tmp_path / "store", old) as (client, process):
        client.ingest_stream([document(number) for number in range(NUM_DOCUMENTS)])
        client.reindex("default", checkpoint=str(new), share=0.05)
        with Traffic(client, versions) as before:
            wait_for(client, "copying", encoded=1)
            before._end.set()
            process.kill()
            process.wait()
    assert before.failures == []
    assert before.num_searches > 0

    with service(tmp_path / "store", old) as (client, _):
        for number in before.unsure:  # the kill cut its answer off
            client.ingest_stream([document(number, 999)])
            versions[number] = 999
        resumed = wait_for(client, "copying")
        client.reindex("default", "resume", share=1.0)
        with Traffic(client, versions) as during:
            ready = wait_for(client, "ready")
            switched = client.reindex("default", "switch", queries=["document 7", "version 3"])
        assert during.failures == []
        assert during.num_searches > 0
        assert resumed["stage"] == "copying"
        assert int(str(ready["unchanged"])) > 0  # what was encoded before the kill was not encoded again
        assert switched["overlap"]["queries"] == 2
        expected = {f"d{n}": document(n, v)["text"] for n, v in versions.items() if v is not None}
        found = everything(client)
        assert {key: text for key, (text, _) in found.items()} == expected

    with service(tmp_path / "fresh", new) as (client, _):
        client.ingest_stream({"id": key, "text": text} for key, text in expected.items())
        fresh = everything(client)
    assert fresh.keys() == found.keys()
    assert max(abs(fresh[key][1] - found[key][1]) for key in fresh) < 1e-4
