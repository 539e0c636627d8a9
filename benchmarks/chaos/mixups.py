"""Two checkpoints mixed up in every way a user can: each time refused, with both fingerprints."""

import shutil
import subprocess
import time
from pathlib import Path

import httpx

from benchmarks.chaos.lab import TINY, Instance, Lab, finish
from benchmarks.chaos.results import Goal, Result
from service.encoders.checkpoint import load_checkpoint
from tests.fake_qdrant import FakeQdrant

_FAMILIES = ("llama", "qwen3")
_REFUSAL_SECONDS = 60.0


_WAYS = "embedded overwritten server"


def mixed_up(lab: Lab, *, ways: str = _WAYS) -> Result:
    """A store's path, a setting, a backup; weights that were overwritten; a server's collection."""
    return _Mixups(lab).result(ways.split())


class _Mixups:
    """Checkpoints A and B; each method mixes them up in one way and says what was not refused as it should."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._a, self._b = (lab.checkpoint(TINY, family) for family in _FAMILIES)
        self._fingerprints = [load_checkpoint(each).fingerprint for each in (self._a, self._b)]
        self._faults: list[str] = []
        self._num_refusals = 0

    def result(self, ways: list[str]) -> Result:
        done = {
            "embedded": (self._embedded, "path, environment, restored backup"),
            "overwritten": (self._overwritten, "weights overwritten under a running service and before a start"),
            "server": (self._server, "server collection of another model (fake server)"),
        }
        for way in ways:
            done[way][0]()
        return Result(
            done=f"{', '.join(done[way][1] for way in ways)}; by search, ingest, create and start",
            goals=[
                Goal(
                    f"{self._num_refusals} refused so; otherwise: {'; '.join(self._faults) or 'none'}",
                    "refused with both fingerprints",
                    not self._faults and self._num_refusals > 0,
                )
            ],
        )

    def _instance(self, name: str, checkpoint: str, **settings: str) -> Instance:
        return self._lab.instance(name, TINY, **{"encoder__checkpoint": checkpoint, **settings})

    def _embedded(self) -> None:
        backup = self._lab.directory / "backup.zip"
        with self._instance("mixed", self._a) as instance:
            _fill(instance.url, None)
            _fill(instance.url, "other")
            finish(self._lab.eoseek("backup", str(backup), "--url", instance.url))
        self._refuses_start("path", self._instance("mixed", self._b))
        with self._instance("mixed", self._b, store__collection="fresh") as instance:
            self._refuses_calls("environment", instance.url, ["default", "other"])

        restored = {"EOSEEK_STORE__PATH": str(self._lab.directory / "restored"), "EOSEEK_ENCODER__CHECKPOINT": self._b}
        said = finish(self._lab.eoseek("restore", str(backup), **restored), 2)
        self._check("restore", said)
        if Path(restored["EOSEEK_STORE__PATH"]).exists():
            self._faults.append("a refused restore left a store")
        finish(self._lab.eoseek("restore", str(backup), "--any-checkpoint", **restored))
        self._refuses_start("restored, path", self._instance("restored", self._b))
        with self._instance("restored", self._b, store__collection="fresh") as instance:
            self._refuses_calls("restored", instance.url, ["default", "other"])

    def _overwritten(self) -> None:
        """B's files over A's, in place: the worker that is started again must not serve them, nor the next start."""
        changed = self._lab.directory / "changed"
        shutil.copytree(self._a, changed)
        with self._instance("overwritten", str(changed)) as instance:
            _fill(instance.url, None)
            shutil.copytree(self._b, changed, dirs_exist_ok=True)
            instance.service.worker().kill()
            start = time.perf_counter()
            while not all(each in instance.said() for each in self._fingerprints):
                if time.perf_counter() - start > _REFUSAL_SECONDS:
                    self._faults.append("weights overwritten: the worker's refusal does not name both fingerprints")
                    break
                time.sleep(0.2)
            else:
                self._num_refusals += 1
            body, patience = {"inputs": "a text", "kind": "query"}, {"X-Request-Timeout": "5"}
            answer = httpx.post(f"{instance.url}/embed", json=body, headers=patience, timeout=60)
            if answer.status_code != 503:
                self._faults.append(f"weights overwritten: /embed answered {answer.status_code}")
        self._refuses_start("weights overwritten, start", self._instance("overwritten", str(changed)))

    def _server(self) -> None:
        with FakeQdrant() as server:
            settings = {
                "store__kind": "qdrant",
                "store__grpc": "false",
                "store__url": f"http://127.0.0.1:{server.port}",
            }
            with self._instance("server", self._a, **settings) as instance:
                _fill(instance.url, None)
            self._refuses_start("server collection", self._instance("server", self._b, **settings))
            with self._instance("server", self._b, **settings, store__collection="fresh") as instance:
                self._refuses_calls("server collection", instance.url, ["default"])

    def _refuses_start(self, how: str, instance: Instance) -> None:
        before = instance.said() if instance.log.exists() else ""
        instance.begin()
        try:
            code = instance.service.process.wait(_REFUSAL_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
            instance.stop()
        if code != 2:
            self._faults.append(f"{how}: the start ended with code {code}, not 2")
        self._check(how, instance.said()[len(before) :])

    def _refuses_calls(self, how: str, url: str, collections: list[str]) -> None:
        for name in collections:
            document = {"documents": [{"id": "x", "text": "x"}], "collection": name}
            calls = {
                "search": lambda name=name: httpx.post(
                    f"{url}/search", json={"query": "x", "collection": name}, timeout=60
                ),
                "ingest": lambda document=document: httpx.post(f"{url}/documents", json=document, timeout=60),
                "create": lambda name=name: httpx.put(f"{url}/collections/{name}", timeout=60),
            }
            for kind, call in calls.items():
                answer = call()
                if answer.status_code != 409:
                    self._faults.append(f"{how}: {kind} in {name} answered {answer.status_code}, not 409")
                self._check(f"{how}, {kind} in {name}", answer.text)

    def _check(self, how: str, said: str) -> None:
        if all(each in said for each in self._fingerprints):
            self._num_refusals += 1
        else:
            self._faults.append(f"{how}: not both fingerprints in {said.strip()[-300:]!r}")


def _fill(url: str, collection: str | None) -> None:
    if collection:
        httpx.put(f"{url}/collections/{collection}", timeout=60).raise_for_status()
    body = {"documents": [{"id": str(each), "text": f"text {each}"} for each in range(5)]}
    body |= {"collection": collection} if collection else {}  # type: ignore[dict-item]
    httpx.post(f"{url}/documents", json=body, timeout=60).raise_for_status()
