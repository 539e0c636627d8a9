"""A store server behind a proxy that can be cut: connections refused, then connections that nothing comes through."""

import contextlib
import select
import socket
import threading
import time
from collections import Counter
from typing import Literal

import httpx

from benchmarks.chaos.lab import TINY, Instance, Lab
from benchmarks.chaos.results import Result, at_least, at_most, holds
from tests.fake_qdrant import FakeQdrant

_MAX_GROWTH = 0.15
_RECOVERY_SECONDS = 30.0
_Cut = Literal["refused", "silent"]
_AWAY = "503 store_unavailable"


class Proxy:
    """Carries bytes between its port and another; `cut` ends that, `mend` takes it up again on the same port."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._how: Literal["open", "refused", "silent"] = "open"
        self._links: list[socket.socket] = []
        self._listener = self._listen(0)
        self.port = int(self._listener.getsockname()[1])
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        for each in [self._listener, *self._links]:
            each.close()

    def cut(self, how: _Cut) -> None:
        """Refuse connections and end those there are, or carry nothing any more and say nothing of it."""
        self._how = how

    def mend(self) -> None:
        """Carry on; what was there before is ended."""
        self._how = "open"

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(256)
        return listener

    def _run(self) -> None:
        pairs: dict[socket.socket, socket.socket] = {}
        before = self._how
        while not self._end.is_set():
            how = self._how
            if how != before:
                self._change(before, how, pairs)
                before = how
            if how != "open":
                time.sleep(0.05)
                continue
            for each in select.select([self._listener, *pairs], [], [], 0.05)[0]:
                if each is self._listener:
                    self._accept(pairs)
                elif each in pairs:
                    self._carry(each, pairs)

    def _change(self, before: str, how: str, pairs: dict[socket.socket, socket.socket]) -> None:
        if how != "silent":
            for each in self._links:
                each.close()
            pairs.clear()
            self._links.clear()
        if how == "refused":
            self._listener.close()
        elif before == "refused":
            self._listener = self._listen(self.port)

    def _accept(self, pairs: dict[socket.socket, socket.socket]) -> None:
        ours, _ = self._listener.accept()
        try:
            theirs = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            ours.close()
            return
        pairs[ours], pairs[theirs] = theirs, ours
        self._links += [ours, theirs]

    def _carry(self, source: socket.socket, pairs: dict[socket.socket, socket.socket]) -> None:
        other = pairs[source]
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(2**16)
        try:
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        for each in (source, other):
            pairs.pop(each, None)
            each.close()


class _Traffic:
    """Threads that search and write all the while; what they are answered, by phase."""

    def __init__(self, url: str, num_threads: int) -> None:
        self.phase = "before"
        self.answers: Counter[tuple[str, int, str]] = Counter()
        self._url = url
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(num_threads)]

    def __enter__(self) -> "_Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        writes = number % 4 == 0
        with httpx.Client(base_url=self._url, timeout=120) as http:
            while not self._end.wait(0.05):
                phase = self.phase
                body = {"documents": [{"id": f"w{number}", "text": f"written at {time.time()}"}]}
                path, sent = ("/documents", body) if writes else ("/search", {"query": "document 7", "top_k": 3})
                try:
                    answer = http.post(path, json=sent)
                    code = "" if answer.is_success else str(answer.json().get("code"))
                    has_cause = answer.is_success or "Qdrant could not" in str(answer.json().get("detail"))
                    key = (answer.status_code, code if has_cause else f"{code} without cause")
                except httpx.HTTPError as error:
                    key = (0, type(error).__name__)
                # one that was sent in an earlier phase may end in this one
                self.answers[(phase if phase == self.phase else "between", *key)] += 1

    def of(self, phase: str) -> dict[str, int]:
        return {f"{status} {code}".strip(): n for (each, status, code), n in self.answers.items() if each == phase}


def store_away(lab: Lab, *, seconds: float = 30.0, threads: int = 16, store_timeout_seconds: int = 30) -> Result:
    """A Qdrant server that is away under load: 503 with the cause, no memory growth, and all well by itself after."""
    with FakeQdrant() as server, Proxy(server.port) as proxy:
        settings = {
            "store__kind": "qdrant",
            "store__grpc": "false",
            "store__url": f"http://127.0.0.1:{proxy.port}",
            "store__timeout_seconds": str(store_timeout_seconds),
        }
        with lab.instance("away", TINY, **settings) as instance:
            documents = [{"id": f"d{number}", "text": f"document {number}"} for number in range(50)]
            httpx.post(f"{instance.url}/documents", json={"documents": documents}, timeout=60).raise_for_status()
            with _Traffic(instance.url, threads) as traffic:
                time.sleep(max(3.0, seconds / 3))
                steady, most = instance.resident_bytes(), 0
                cuts: tuple[_Cut, ...] = ("refused", "silent")
                for how in cuts:
                    traffic.phase = how
                    proxy.cut(how)
                    most = max(most, _watch(instance, seconds / 2))
                was_ready = instance.service.is_ready()
                traffic.phase = "mended"
                proxy.mend()
                start = time.perf_counter()
                while not instance.service.is_ready() and time.perf_counter() - start < _RECOVERY_SECONDS:
                    time.sleep(0.05)
                recovery = time.perf_counter() - start
                traffic.phase = "after"
                most = max(most, _watch(instance, max(3.0, seconds / 3)))
    away = Counter(traffic.of("refused")) + Counter(traffic.of("silent"))
    after = traffic.of("after")
    return Result(
        done=f"a fake server over HTTP behind a proxy, {seconds / 2:g} s refused, {seconds / 2:g} s silent, {threads} "
        f"clients; calls to the store limited to {store_timeout_seconds} s",
        goals=[
            at_least(away[_AWAY], 1, f"answers {_AWAY}, with the cause,"),
            holds(f"away: {dict(away)}", "200 and 503 with the cause", set(away) <= {_AWAY, "200"}),
            holds(f"/health/ready {'true' if was_ready else 'false'}", "false while it is away", not was_ready),
            at_most(recovery, _RECOVERY_SECONDS, "ready again within", " s", needs_calm=False),
            holds(f"after: {after}", "200", set(after) == {"200"}),
            at_most(most / steady - 1, _MAX_GROWTH, "growth of memory"),
        ],
        figures={"answers": {" ".join(map(str, key)): n for key, n in traffic.answers.items()}},
    )


def _watch(instance: Instance, seconds: float) -> int:
    """The most memory that was resident in this time."""
    most, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        most = max(most, instance.resident_bytes())
        time.sleep(0.25)
    return most
