"""The yardstick of quality: sentence-transformers in float32, every text whole, exact search.

    python -m benchmarks.reference --data ../shared/data/scifact --out runs/scifact.json

Prints the metrics and keeps them with every query's ranking; the service is then held against them by
`eoseek evaluate`. Run it with OMP_NUM_THREADS=1: it starts one process a core. Batches of two are twice as fast as
batches of eight, whose states fall out of the caches. On two cores SmolLM2-135M needs about an hour for SciFact,
MiniLM a few minutes.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from service.encoders.checkpoint import load_checkpoint
from training.evaluation.beir import read_corpus, read_qrels, read_queries
from training.evaluation.metrics import drop_self, evaluate

TOP_K = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in BEIR's layout")
    parser.add_argument("--checkpoint", default="default", help="as EOSEEK_ENCODER__CHECKPOINT")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, help="JSON file for metrics and run")
    arguments = parser.parse_args()
    result = measure(arguments.data, arguments.checkpoint, arguments.split)
    print(json.dumps({key: value for key, value in result.items() if key != "run"}))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result))


def measure(data: Path, name: str, split: str) -> dict[str, Any]:
    """Metrics and run of one set."""
    checkpoint = load_checkpoint(name)
    model = SentenceTransformer(str(checkpoint.path), device="cpu", model_kwargs={"dtype": torch.float32})
    documents = list(read_corpus(data))
    qrels = read_qrels(data, split)
    queries = [query for query_id, query in read_queries(data).items() if query_id in qrels]
    frame = checkpoint.contract.frame
    start = time.perf_counter()
    corpus = model.encode(
        [frame.document(document.title, document.text) for document in documents],
        batch_size=2,
        device=["cpu"] * (os.cpu_count() or 1),
        chunk_size=32,
        show_progress_bar=True,
    )
    seconds = time.perf_counter() - start
    prompts = model.encode([frame.query(query.text, query.instruction) for query in queries], batch_size=2)
    scores = np.asarray(prompts) @ np.asarray(corpus).T
    run = {}
    for query, row in zip(queries, scores, strict=True):
        best = np.argsort(-row, kind="stable")[: TOP_K + 1]
        found = {documents[index].document_id: float(row[index]) for index in best}
        run[query.query_id] = drop_self(found, query.query_id, top_k=TOP_K)
    return {
        "data": data.name,
        "checkpoint": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "max_length": checkpoint.max_length,
        "metrics": evaluate(run, qrels),
        "documents_per_second": len(documents) / seconds,
        "run": run,
    }


if __name__ == "__main__":
    main()
