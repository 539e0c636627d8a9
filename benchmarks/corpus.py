"""A corpus encoded by Ray's actors, killed half-way and run again: every vector once, and each the service's own.

    python -m benchmarks.corpus --data ../shared/data/scifact [--max-length 128] [--actors 2] [--json FILE]

Runs `eoseek encode-corpus --engine ray` in float32, kills it and all that it started (kill -9) when half of its files
are there, and runs the same command again. Then a service loads the same corpus by `eoseek ingest` and is judged as in
`benchmarks.roundtrip`; what its store holds is compared with the files, vector by vector. FILE serves as a reference of
`benchmarks.roundtrip`, as for another backend. Exit code 1 when a vector is missing, there twice, or another.
"""

import argparse
import asyncio
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq

from benchmarks.roundtrip import COLLECTION, measure
from benchmarks.running import free_port, start_service, stop, wait_until_ready, write_json
from service.store.edge import EdgeStore
from training.evaluation.beir import read_corpus

MIN_COSINE = 0.99999
DTYPE = "float32"  # in bfloat16 a vector depends on its batch by rounding
_LIMIT_SECONDS = 7200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in BEIR's layout")
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--max-length", type=int, help="tokens of a text")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--part-size", type=int, default=256, help="documents of a file")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    wanted = Counter(each.document_id for each in read_corpus(arguments.data))
    with tempfile.TemporaryDirectory() as folder:
        num_kept, tables = encode_by_ray(arguments, Path(folder) / "vectors", len(wanted))
        result, stored = asyncio.run(load_service(arguments, Path(folder) / "store"))
    ids = [each for table in tables for each in table["id"].to_pylist()]
    embeddings = np.concatenate([np.stack(table["embedding"].to_numpy()) for table in tables])
    is_once_each = Counter(ids) == wanted == Counter(stored.keys())
    cosines = [float(row @ stored[name]) for name, row in zip(ids, embeddings, strict=True) if name in stored]
    lowest = float(np.min(cosines)) if cosines else math.nan  # of Python's, a NaN can be passed over
    write_json(arguments.json, result | {"kept": num_kept, "lowest_cosine": lowest})
    verdicts = {
        f"{len(ids)} vectors of {len(wanted)} documents, each once": is_once_each,
        f"{num_kept} of them from before the kill, and not written again": 0 < num_kept < len(wanted),
        f"lowest cosine to the service's {lowest:.7f}, at least {MIN_COSINE}": lowest >= MIN_COSINE,
    }
    for verdict, holds in verdicts.items():
        print("PASS" if holds else "FAIL", verdict)
    return 0 if all(verdicts.values()) else 1


def encode_by_ray(arguments: argparse.Namespace, output: Path, num_documents: int) -> tuple[int, Sequence[Any]]:
    """(vectors in files that a kill half-way left and the second run kept, all files as tables)."""
    given = {"output": output, "checkpoint": arguments.checkpoint, "engine": "ray", "actors": arguments.actors}
    given |= {"max_length": arguments.max_length, "part_size": arguments.part_size, "dtype": DTYPE}
    words = [str(word) for name, value in given.items() if value for word in (f"--{name.replace('_', '-')}", value)]
    corpus = str(arguments.data / "corpus.jsonl.gz")
    command = [sys.executable, "-m", "eoseek", "encode-corpus", corpus, "--truncate", *words]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # all of it is killed
    first = subprocess.Popen(command, env=environment)
    end = time.monotonic() + _LIMIT_SECONDS
    try:
        while len(parts(output)) < num_documents / arguments.part_size / 2:
            if first.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"encode-corpus: exit code {first.poll()}, {len(parts(output))} files")
            time.sleep(0.2)
    finally:
        kill_all(first)
    before = {each: each.stat().st_mtime_ns for each in parts(output)}
    subprocess.run(command, env=environment, check=True)
    kept = [each for each, written in before.items() if each.stat().st_mtime_ns == written]
    return sum(pq.read_metadata(each).num_rows for each in kept), [pq.read_table(each) for each in parts(output)]


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """kill -9 of it and of what it started."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, timeout=30)
    process.wait()


def parts(output: Path) -> list[Path]:
    return sorted(output.glob("part-*.parquet"))


async def load_service(arguments: argparse.Namespace, store: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(as `roundtrip.measure`, the store's embeddings by document id)."""
    length = {"encoder__max_length": str(arguments.max_length)} if arguments.max_length else {}
    model = {"encoder__checkpoint": arguments.checkpoint, "encoder__dtype": DTYPE}
    service = start_service(free_port(), store, **model, **length)
    try:
        wait_until_ready(service)
        result = measure(service.url, arguments.data)
    finally:
        stop(service)
    opened, after = EdgeStore(store), None
    stored: dict[str, Any] = {}
    await opened.start()
    try:
        while True:
            points, after = await opened.scroll(COLLECTION, after=after)
            stored |= {each.document.id: each.embedding for each in points}
            if after is None:
                return result, stored
    finally:
        await opened.stop()


if __name__ == "__main__":
    sys.exit(main())
