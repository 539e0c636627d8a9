"""A backup that is taken under load answers as the service that it was taken of."""

import random
import threading
import time
from typing import Any

import httpx

from benchmarks.chaos.lab import TINY, Lab, count, finish
from benchmarks.chaos.results import Result, at_least, zero
from benchmarks.running import real_texts

_STILL, _BUSY = "still", "busy"  # nobody writes to the one; the load writes to the other


def backup_under_load(lab: Lab, *, documents: int = 5000, queries: int = 200, checkpoint: str = TINY) -> Result:
    """`eoseek backup` while others write and search, `eoseek restore` elsewhere: the same answers to all queries."""
    texts = real_texts()
    stock = [texts[number % len(texts)] for number in range(documents)]
    asked = [" ".join(each.split()[:12]) for each in random.Random(5).choices(texts, k=queries)]
    backup, restored = lab.directory / "backup.zip", lab.directory / "restored"
    # the store is in question: a query that continues from kept states differs in the last bits from one that does not
    whole = {"encoder__prefix_cache_tokens": "0"}
    with lab.instance("original", checkpoint, **whole) as instance:
        for name in (_STILL, _BUSY):
            httpx.put(f"{instance.url}/collections/{name}", timeout=60).raise_for_status()
            for start in range(0, documents, 200):
                _post(instance.url, name, range(start, min(start + 200, documents)), stock)
        with _Load(instance.url, stock) as load:
            time.sleep(1)
            before = len(load.acknowledged)
            start_seconds = time.perf_counter()
            finish(lab.eoseek("backup", str(backup), "--url", instance.url))
            seconds = time.perf_counter() - start_seconds
            num_during = len(load.acknowledged) - before
        expected = _answers(instance.url, asked)
        variables = {"EOSEEK_STORE__PATH": str(restored), "EOSEEK_ENCODER__CHECKPOINT": lab.checkpoint(checkpoint)}
        finish(lab.eoseek("restore", str(backup), **variables))
        acknowledged = load.acknowledged[:before]
    with lab.instance("restored", checkpoint, **whole) as other:
        found = _answers(other.url, asked)
        num_still = count(other.url, _STILL)
        with httpx.Client(base_url=other.url, timeout=60) as http:
            asked_for = {"collection": _BUSY}
            lost = [
                each for each in acknowledged if http.get(f"/documents/{each}", params=asked_for).status_code != 200
            ]
    num_different = sum(left != right for left, right in zip(found, expected, strict=True))
    return Result(
        done=f"{documents} documents each in two collections, {num_during} writes and {load.num_searches} searches "
        f"while the backup was taken in {seconds:.1f} s ({backup.stat().st_size / 2**20:.1f} MiB)",
        goals=[
            zero(num_different, f"of {queries} answers differ"),
            zero(documents - num_still, f"of {documents} documents missing"),
            zero(len(lost), f"of {before} documents lost that were written before it"),
            zero(len(load.failures), "requests of the load failed"),
            at_least(num_during, 1, "writes meanwhile"),
        ],
        figures={"lost": lost, "failures": load.failures[:10], "seconds": seconds},
    )


class _Load:
    """One thread that writes new documents, one that searches."""

    def __init__(self, url: str, stock: list[str]) -> None:
        self.acknowledged: list[str] = []
        self.failures: list[str] = []
        self.num_searches = 0
        self._url, self._stock = url, stock
        self._end = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._write, self._search)]

    def __enter__(self) -> "_Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        number = 0
        while not self._end.is_set():
            key = f"new{number}"
            body = {"collection": _BUSY, "documents": [{"id": key, "text": self._stock[number % len(self._stock)]}]}
            answer = httpx.post(f"{self._url}/documents", json=body | {"truncate": True}, timeout=120)
            if answer.is_success:
                self.acknowledged.append(key)
            else:
                self.failures.append(answer.text[:200])
            number += 1

    def _search(self) -> None:
        with httpx.Client(base_url=self._url, timeout=120) as http:
            while not self._end.wait(0.05):
                answer = http.post("/search", json={"query": "effects of treatment", "collection": _STILL})
                self.num_searches += 1
                if not answer.is_success:
                    self.failures.append(answer.text[:200])


def _post(url: str, collection: str, numbers: range, stock: list[str]) -> None:
    documents = [{"id": f"d{number}", "text": stock[number]} for number in numbers]
    body = {"collection": collection, "documents": documents, "truncate": True}
    httpx.post(f"{url}/documents", json=body, timeout=150).raise_for_status()


def _answers(url: str, queries: list[str]) -> list[Any]:
    """Ids and scores, asked one by one, as batch mates move a score's last digits."""
    found = []
    with httpx.Client(base_url=url, timeout=60) as http:
        for query in queries:
            answer = http.post("/search", json={"query": query, "collection": _STILL, "top_k": 10})
            answer.raise_for_status()
            found.append([(hit["id"], hit["score"], hit["text"]) for hit in answer.json()["results"]])
    return found
