"""What the experiments share: a folder of their own, services that can be killed and started again, real texts."""

import contextlib
import csv
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Self

import httpx
import psutil

from benchmarks.chaos.results import SkippedError
from benchmarks.running import Service, free_port, plain_environment, start_service, stop, wait_until_ready
from eoseek.client import Client, EoseekClientError

# in the place of a checkpoint: random weights; encoding costs next to nothing, or a tenth of the default checkpoint's
TINY, SMALL = "tiny", "small"
_MAX_LENGTH = 2048
_RANDOM: dict[str, dict[str, Any]] = {
    TINY: {},
    SMALL: {
        "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 64,
    },
}  # fmt: skip
_START_SECONDS = 180


@dataclass(frozen=True)
class Lab:
    """A folder for everything that the experiments write, and the folder of the data sets."""

    directory: Path
    data: Path
    random: Random = field(default_factory=lambda: Random(0))

    def checkpoint(self, name: str, family: str = "llama") -> str:
        """As EOSEEK_ENCODER__CHECKPOINT; those of random weights are written here when they are asked for first."""
        if name not in _RANDOM:
            return name
        from tests.checkpoints import tiny_model, write_tiny_checkpoint

        path = self.directory / f"{name}-{family}"
        if not path.is_dir():
            model = tiny_model(family, max_position_embeddings=_MAX_LENGTH, **_RANDOM[name])
            write_tiny_checkpoint(path, family, model=model, max_length=_MAX_LENGTH)
        return str(path)

    def instance(self, name: str, checkpoint: str, prefix: Sequence[str] = (), **settings: str) -> "Instance":
        """A service, not started yet, whose store is `name` in this folder; `prefix` stands before its command."""
        chosen = {"encoder__checkpoint": self.checkpoint(checkpoint), "store__path": str(self.directory / name)}
        if checkpoint == TINY:
            chosen |= {"encoder__dtype": "float32", "encoder__threads": "1"}
        return Instance(self.directory / f"{name}.log", chosen | settings, prefix)

    def eoseek(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """A command of the command line, as a user types it, with a state directory of its own."""
        own = {"XDG_STATE_HOME": str(self.directory / "state")} | variables
        return subprocess.Popen(
            [sys.executable, "-m", "eoseek", *arguments],
            env=plain_environment() | own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def judged_set(self, num_documents: int, name: str = "scifact") -> Path:
        """A part of a set in BEIR's layout: judged documents of as many queries as half of it holds, then others.

        Raises SkippedError where the set is not at hand.
        """
        source, target = self.data / name, self.directory / f"{name}-{num_documents}"
        if not (source / "corpus.jsonl.gz").exists():
            raise SkippedError(f"{source} is not there")
        if target.is_dir():
            return target
        (target / "qrels").mkdir(parents=True)
        with open(source / "qrels" / "test.tsv", newline="") as file:
            header, *rows = csv.reader(file, delimiter="\t")
        wanted: set[str] = set()
        kept = []
        for query_id, document_id, grade in rows:
            if document_id in wanted or len(wanted) < num_documents // 2:
                wanted.add(document_id)
                kept.append((query_id, document_id, grade))
        with open(target / "qrels" / "test.tsv", "w", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([header, *kept])
        shutil.copy(source / "queries.jsonl.gz", target)
        with gzip.open(source / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
            corpus = [(json.loads(line)["_id"], line) for line in lines]
        num_others = num_documents - sum(document_id in wanted for document_id, _ in corpus)
        others = [document_id for document_id, _ in corpus if document_id not in wanted][:num_others]
        taken = wanted | set(others)
        with gzip.open(target / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(line for document_id, line in corpus if document_id in taken)
        return target


class Instance:
    """A service on one port and one store that may be killed and started again; all that it started dies with it."""

    def __init__(self, log: Path, settings: dict[str, str], prefix: Sequence[str] = ()) -> None:
        self.log = log
        self.settings = settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._prefix = prefix
        self._service: Service | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def service(self) -> Service:
        assert self._service is not None, "not started"
        return self._service

    @property
    def pid(self) -> int:
        return self.service.process.pid

    def begin(self) -> None:
        """Start it, and do not wait."""
        settings = {name: value for name, value in self.settings.items() if name != "store__path"}
        self._service = start_service(
            self.port, Path(self.settings["store__path"]), log=self.log, prefix=self._prefix, **settings
        )

    def start(self) -> float:
        """Start it and return the seconds until it was ready. Raises RuntimeError with its log's last lines."""
        self.begin()
        try:
            return wait_until_ready(self.service, _START_SECONDS)
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {' / '.join(self.said().splitlines()[-3:])}") from error

    def kill(self) -> int:
        """kill -9 of the service alone. Returns how many of its children were alive five seconds later."""
        children = psutil.Process(self.pid).children(recursive=True)
        self.service.process.kill()
        self.service.process.wait()
        _, alive = psutil.wait_procs(children, timeout=5)
        for child in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        return len(alive)

    def stop(self) -> None:
        """An orderly end, or a kill where that takes too long."""
        if self._service is None or self._service.process.poll() is not None:
            return
        try:
            stop(self._service)
        except subprocess.TimeoutExpired:
            self.kill()

    def said(self) -> str:
        """Its log up to now."""
        return self.log.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """The service and its children."""
        parent = psutil.Process(self.pid)
        return [parent, *parent.children(recursive=True)]

    def resident(self) -> dict[int, int]:
        """Bytes of memory by process, the service first."""
        return {each.pid: each.memory_info().rss for each in self.processes()}

    def resident_bytes(self) -> int:
        """Memory of the service and its children."""
        return sum(self.resident().values())


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """What a command said on stderr. Raises RuntimeError where it does not end with this code."""
    _, said = process.communicate()
    if process.returncode != code:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}, not {code}: {said[-500:]}")
    return said


def count(url: str, collection: str) -> int:
    """Documents of a collection, as the service counts them."""
    answer = httpx.get(f"{url}/collections/{collection}", timeout=60)
    answer.raise_for_status()
    return int(answer.json()["documents"])


def is_stored(client: Client, collection: str, document: dict[str, Any]) -> bool:
    """Whether GET gives this document as it was sent."""
    try:
        found = client.get_document(document["_id"], collection=collection)
    except EoseekClientError as error:
        if error.status == 404:
            return False
        raise
    return (found["title"] or "", found["text"]) == (document.get("title", ""), document["text"])


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a packed file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
