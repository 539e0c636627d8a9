"""kill -9 of the service while documents come in."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos.lab import Instance, Lab, count, finish, is_stored, read_jsonl
from benchmarks.chaos.results import Goal, Result, at_least, zero
from benchmarks.clients import is_same_ranking
from eoseek.client import Client
from training.evaluation.beir import JudgedSet, read_set
from training.evaluation.metrics import evaluate
from training.evaluation.report import MAIN_METRIC

COLLECTION = "chaos"
_SEEN_AGAIN = 200  # the newest acknowledged documents, fetched after each restart; all of them are in the end
_SHARE_AT_START = 0.2  # of the kills hit a service that is not ready yet
_SAME = 1e-6  # of nDCG@10: in float32 the batch mates of a text move its vector by 4e-7 at most


def service_killed(
    lab: Lab, *, kills: int = 50, documents: int = 2000, checkpoint: str = "default", dtype: str = "float32"
) -> Result:
    """`eoseek ingest` of real texts goes on through kills at random moments, and ends as one that was left alone."""
    folder = lab.judged_set(documents)
    corpus, judged = read_jsonl(folder / "corpus.jsonl.gz"), read_set(folder)
    with lab.instance("undisturbed", checkpoint, encoder__dtype=dtype) as instance:
        seconds = _ingest(lab, instance, folder)
        expected = _rankings(instance, judged)
    killed = _Killed(lab, lab.instance("killed", checkpoint, encoder__dtype=dtype), folder, corpus)
    try:
        killed.run(kills, window_seconds=1.2 * seconds / (kills + 1))
        found = _rankings(killed.instance, judged)
        num_stored = count(killed.instance.url, COLLECTION)
        with Client(killed.instance.url) as client:
            missing = {each["_id"] for each in corpus if not is_stored(client, COLLECTION, each)}
    finally:
        killed.stop()
    lost = killed.lost | missing
    num_different = sum(not is_same_ranking(found[query_id], hits) for query_id, hits in expected.items())
    ndcg, undisturbed = _ndcg(found, judged), _ndcg(expected, judged)
    return Result(
        done=f"{killed.num_kills} kill -9 ({killed.num_at_start} of them while it started) in an ingest of "
        f"{len(corpus)} documents, {checkpoint}, {dtype}; eoseek ingest started {killed.num_ingests} times",
        goals=[
            at_least(killed.num_kills, kills, "kills"),
            zero(len(lost), "acknowledged documents lost"),
            zero(num_stored - len(corpus) + len(missing), "duplicates"),
            zero(num_different, f"of {len(expected)} rankings differ"),
            Goal(f"nDCG@10 {ndcg:.6f}", f"{undisturbed:.6f}, as undisturbed", abs(ndcg - undisturbed) <= _SAME),
            zero(killed.num_orphans, "children outlived the service by 5 s"),
        ],
        figures={
            "lost": sorted(lost),
            "undisturbed_seconds": round(seconds, 1),
            "given_up": killed.given_up,
            "slowest_start_seconds": round(killed.slowest_start_seconds, 1),
        },
    )


class _Killed:
    """An ingest whose service is killed again and again."""

    def __init__(self, lab: Lab, instance: Instance, folder: Path, corpus: list[dict[str, Any]]) -> None:
        self.instance = instance
        self.lost: set[str] = set()
        self.given_up: list[str] = []  # the last line of each ingest that ended before its file did
        self.num_kills = self.num_at_start = self.num_ingests = self.num_orphans = 0
        self.slowest_start_seconds = 0.0
        self._lab, self._folder, self._corpus = lab, folder, corpus
        self._loading: Any = None  # the process of the ingest under way

    def run(self, kills: int, *, window_seconds: float) -> None:
        """All kills, each at most a window after the service was ready, then the rest of the ingest in peace."""
        start_seconds = self.instance.start()
        self._load()
        while self.num_kills < kills and self._loading.poll() != 0:
            time.sleep(self._lab.random.uniform(0, window_seconds))
            self._kill()
            if self.num_kills < kills and self._lab.random.random() < _SHARE_AT_START:
                self.instance.begin()
                time.sleep(self._lab.random.uniform(0, start_seconds))
                self._kill()
                self.num_at_start += 1
            start_seconds = self.instance.start()
            self.slowest_start_seconds = max(self.slowest_start_seconds, start_seconds)
            self._look()
            if self._loading.poll() not in (None, 0):
                self._again()
        while self._loading.wait() != 0:
            self._again()
            assert self.num_ingests < 2 * kills + 10, f"eoseek ingest does not end: {self.given_up[-1]}"

    def stop(self) -> None:
        """End what was started here."""
        if self._loading is not None:
            self._loading.kill()
            self._loading.communicate()
        self.instance.stop()

    def _again(self) -> None:
        """The same command goes on where this one gave up."""
        said = self._loading.communicate()[1].strip().splitlines()
        self.given_up.append(said[-1] if said else f"exit code {self._loading.returncode}")
        self._load()

    def _load(self) -> None:
        self.num_ingests += 1
        self._loading = _start_ingest(self._lab, self.instance, self._folder)

    def _kill(self) -> None:
        self.num_orphans += self.instance.kill()
        self.num_kills += 1

    def _look(self) -> None:
        """The newest documents that were acknowledged are there, and as many as were acknowledged."""
        num_acknowledged = _watermark(self._lab)
        newest = self._corpus[max(0, num_acknowledged - _SEEN_AGAIN) : num_acknowledged]
        with Client(self.instance.url) as client:
            self.lost |= {each["_id"] for each in newest if not is_stored(client, COLLECTION, each)}
        if num_acknowledged and count(self.instance.url, COLLECTION) < num_acknowledged:
            self.lost.add(f"some of the first {num_acknowledged}")


def _watermark(lab: Lab) -> int:
    """Lines that the ingest under way holds for acknowledged."""
    states = list((lab.directory / "state" / "eoseek" / "ingest").glob("*.json"))
    return max((int(json.loads(each.read_text())["line"]) for each in states), default=0)


def _start_ingest(lab: Lab, instance: Instance, folder: Path) -> "subprocess.Popen[str]":
    options = ("--url", instance.url, "--collection", COLLECTION, "--truncate", "--batch", "8")
    return lab.eoseek("ingest", str(folder / "corpus.jsonl.gz"), *options)


def _ingest(lab: Lab, instance: Instance, folder: Path) -> float:
    """Seconds of an ingest that nobody disturbs."""
    start = time.perf_counter()
    finish(_start_ingest(lab, instance, folder))
    return time.perf_counter() - start


def _rankings(instance: Instance, judged: JudgedSet) -> dict[str, list[dict[str, Any]]]:
    """The ten best of every judged query."""
    with Client(instance.url) as client:
        texts = [each.text for each in judged.judged]
        results = client.search_batch(texts, collection=COLLECTION, top_k=10).results
    return {
        query.query_id: [{"id": hit.id, "score": hit.score} for hit in hits]
        for query, hits in zip(judged.judged, results, strict=True)
    }


def _ndcg(rankings: dict[str, list[dict[str, Any]]], judged: JudgedSet) -> float:
    run = {query_id: {hit["id"]: hit["score"] for hit in hits} for query_id, hits in rankings.items()}
    return evaluate(run, judged.qrels, [MAIN_METRIC])[MAIN_METRIC]
