"""kill -9 in the middle: of the service while documents come in, of the encoder worker while many ask."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.chaos.restarting import Restarting, encoder, restarting_service
from benchmarks.chaos.results import Goal, Options, Result, Skipped, at_most, zero
from benchmarks.clients import is_same_ranking, measure
from eoseek.client import Client, EoseekClientError
from training.evaluation.beir import JudgedSet, read_corpus, read_set
from training.evaluation.metrics import evaluate

COLLECTION = "chaos"
INGEST_SECONDS = 3600.0
Hits = list[dict[str, Any]]


def service_killed(options: Options) -> Result:
    """kill -9 of the service while `eoseek ingest` runs; what it had confirmed is there, once, and ranks as ever."""
    if not (options.data / "qrels").is_dir():
        raise Skipped(f"{options.data} is no folder in BEIR's layout; name one by --data")
    settings, num_kills = encoder(options), options.pick(50, 5)
    documents = list(islice(read_corpus(options.data), options.pick(options.num_documents, 1000)))
    corpus = write_corpus(options.directory / "corpus.jsonl", documents)
    judged = read_set(options.data)

    with restarting_service(options.directory / "undisturbed", **settings) as service:
        with ingesting(service, corpus, options.directory / "state-undisturbed") as process:
            finish(process)
        expected = rankings(service.url, judged)
    with restarting_service(options.directory / "killed", **settings) as service:
        state = options.directory / "state-killed"
        with ingesting(service, corpus, state) as process:
            attacked = kill_at_random(
                service, process, state, len(documents), num_kills=num_kills, seed=options.seed,
            )  # fmt: skip
            finish(process)
        with Client(service.url) as client:
            lost = missing(client, [each.document_id for each in documents])
            duplicates = client.describe_collection(COLLECTION)["documents"] - (len(documents) - len(lost))
        found = rankings(service.url, judged)

    different = sum(not is_same_ranking(found[query_id], hits) for query_id, hits in expected.items())
    ndcg = {name: ndcg_at_10(run, judged) for name, run in (("undisturbed", expected), ("killed", found))}
    return Result(
        done=f"kill -9 of the service at random moments while `eoseek ingest` loads {len(documents)} documents",
        goals=[
            Goal(f"{attacked['kills']} kills while it was loading", f"{num_kills}", attacked["kills"] == num_kills),
            zero(len(lost), "confirmed documents lost"),
            zero(duplicates, "duplicates"),
            zero(different, f"of {len(expected)} rankings differ from an undisturbed ingest"),
            Goal(
                f"nDCG@10 {ndcg['killed']:.4f}",
                f"{ndcg['undisturbed']:.4f}, as undisturbed",
                abs(ndcg["killed"] - ndcg["undisturbed"]) < 1e-6,
            ),
            zero(attacked["orphans"], "children outlived the service by 5 s"),
        ],
        figures=attacked | {"lost_at_end": lost[:20], "ndcg@10": ndcg},
    )


def worker_killed(options: Options) -> Result:
    """kill -9 of the encoder worker, one in each round of a load whose answers are known beforehand."""
    rounds = []
    with restarting_service(options.directory / "service", **encoder(options)) as service:
        for _ in range(options.pick(30, 3)):
            rounds.append(asyncio.run(measure(service.service, num_clients=20, num_requests=50, num_kills=1)))
    asked, wrong, lost, retried = (
        sum(each[key] for each in rounds) for key in ("requests", "wrong", "lost", "retried")
    )
    return Result(
        done=f"{len(rounds)} kill -9 of the encoder worker under {asked} mixed requests, {retried} of them tried again",
        goals=[
            zero(wrong, "wrong answers"),
            zero(lost, "requests without an answer"),
            at_most(max(each["slowest_recovery_seconds"] for each in rounds), 10, "ready again within", " s"),
        ],
        figures={"rounds": rounds},
    )


def write_corpus(path: Path, documents: Sequence[Any]) -> Path:
    """The documents as `eoseek ingest` reads them."""
    rows = ({"_id": each.document_id, "title": each.title, "text": each.text} for each in documents)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextmanager
def ingesting(service: Restarting, corpus: Path, state: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`eoseek ingest` under way; its watermark, what was confirmed to it, is kept under `state`."""
    command = [sys.executable, "-m", "eoseek", "ingest", str(corpus), "--url", service.url]
    command += ["--collection", COLLECTION, "--truncate", "--batch", "8"]
    log = state.with_suffix(".log")
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=os.environ | {"XDG_STATE_HOME": str(state)}, stderr=stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.returncode:
            print(f"eoseek ingest: {log.read_text()[-500:]}", file=sys.stderr)


def finish(process: "subprocess.Popen[bytes]") -> None:
    """Raises RuntimeError if `eoseek ingest` fails."""
    if code := process.wait(INGEST_SECONDS):
        raise RuntimeError(f"eoseek ingest ended with {code}")


def kill_at_random(
    service: Restarting,
    process: "subprocess.Popen[bytes]",
    state: Path,
    num_documents: int,
    *,
    num_kills: int,
    seed: int,
) -> dict[str, Any]:
    """Kills and restarts, each after a random document was confirmed.

    What the watermark has passed is never sent again, so what was lost is still missing when the ingest has ended; to
    look for it in between would give the ingest the time to end first.
    """
    generator = random.Random(seed)
    # the last twentieth is left alone, so that the last kill still meets an ingest that is under way
    targets = sorted(generator.randrange(num_documents * 19 // 20) for _ in range(num_kills))
    num_seen = num_orphans = kills = 0
    moments: list[int] = []
    restarts: list[float] = []
    for target in targets:
        # something new each time: at once after a restart nothing would be under way
        while watermark(state) < max(target, num_seen + 1) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.02))
        if process.poll() is not None:
            break
        num_orphans += service.kill()
        kills += 1
        num_seen = watermark(state)
        moments.append(num_seen)
        restarts.append(service.start())
    return {
        "kills": kills, "orphans": num_orphans, "confirmed_at_kill": moments,
        "restart_seconds": restarts,
    }  # fmt: skip


def watermark(state: Path) -> int:
    """Documents, from the first on, that were confirmed to `eoseek ingest`."""
    files = list((state / "eoseek" / "ingest").glob("*.json"))
    return int(json.loads(files[0].read_text())["line"]) if files else 0


def missing(client: Client, document_ids: Sequence[str]) -> list[str]:
    """Those of the documents that GET does not give."""
    lost = []
    for document_id in document_ids:
        try:
            client.get_document(document_id, collection=COLLECTION)
        except EoseekClientError as error:
            if error.status != 404:
                raise
            lost.append(document_id)
    return lost


def rankings(url: str, judged: JudgedSet) -> dict[str, Hits]:
    """The ten best of every judged query."""
    with Client(url) as client:
        queries = judged.judged
        answer = client.search_batch([each.text for each in queries], collection=COLLECTION, top_k=10)
    return {
        query.query_id: [{"id": hit.id, "score": hit.score} for hit in hits]
        for query, hits in zip(queries, answer.results, strict=True)
    }


def ndcg_at_10(found: dict[str, Hits], judged: JudgedSet) -> float:
    """Of a run against the judgements."""
    run = {query_id: {hit["id"]: hit["score"] for hit in hits} for query_id, hits in found.items()}
    return evaluate(run, judged.qrels, ["ndcg@10"])["ndcg@10"]
