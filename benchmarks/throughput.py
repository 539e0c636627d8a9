"""Documents/s, queries/s and latencies of ours beside sentence-transformers, in one run.

    python -m benchmarks.throughput [--rounds 3] [--texts 256] [--json FILE]

Engines take turns round by round; the table shows medians and ratios. Ours is measured offline and over HTTP, with 8
clients for single queries. sentence-transformers is called in its process, without HTTP, which is generous to it: in
batches of 32 for documents, one query at a time for single queries. Floors: 1.5x its bfloat16 on documents, 2x on
single queries.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import torch

from benchmarks.running import Service, running_service, texts_of_lengths, write_json
from service.encoders.base import Embeddings
from service.encoders.checkpoint import Checkpoint, load_checkpoint
from service.encoders.torch_loading import load_encoder

CLIENTS = 8
FLOORS = {"documents/s": 1.5, "queries/s": 2.0}
Measurement = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=256, help="documents, and as many queries")
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    documents, queries = workload(arguments.texts)
    tokens = [len(ids) for ids in checkpoint.contract.documents([("", text) for text in documents]).token_ids]
    print(
        f"{len(documents)} documents, mean {np.mean(tokens):.0f} tokens, at most {max(tokens)}; {len(queries)} queries"
    )
    with running_service(encoder__checkpoint=arguments.checkpoint) as service:
        engines: dict[str, Callable[[], Measurement]] = {
            "sentence-transformers float32": sentence_transformers(checkpoint, torch.float32, documents, queries),
            "sentence-transformers bfloat16": sentence_transformers(checkpoint, torch.bfloat16, documents, queries),
            "eoseek offline": offline(checkpoint, documents, queries),
            "eoseek HTTP": lambda: over_http(service, documents, queries),
        }
        rounds: dict[str, list[Measurement]] = {name: [] for name in engines}
        for number in range(arguments.rounds):
            limit = matrix_product_gflops()
            print(f"round {number + 1}: bfloat16 matrix product {limit:.0f} GFLOP/s", flush=True)
            for name, run in engines.items():
                rounds[name].append(run())
    medians = {name: {key: statistics.median(m[key] for m in runs) for key in runs[0]} for name, runs in rounds.items()}
    write_json(arguments.json, {"medians": medians, "rounds": rounds})
    return report(medians)


def workload(count: int) -> tuple[list[str], list[str]]:
    """Documents of log-normal length (about 80 words in the mean, up to 550), queries of 6 words."""
    generator = random.Random(11)
    num_words = [min(550, max(4, round(generator.lognormvariate(math.log(64), 0.75)))) for _ in range(count)]
    return texts_of_lengths(num_words, seed=12), texts_of_lengths([6] * count, seed=13)


def matrix_product_gflops() -> float:
    """What the processor reaches on a product of the model's shape."""
    a, b = torch.randn(1024, 576, dtype=torch.bfloat16), torch.randn(1536, 576, dtype=torch.bfloat16)
    for _ in range(20):
        torch.nn.functional.linear(a, b)
    start = time.perf_counter()
    for _ in range(200):
        torch.nn.functional.linear(a, b)
    return 200 * 2 * 1024 * 576 * 1536 / (time.perf_counter() - start) / 1e9


def timed(encode_documents: Callable[[], object], encode_query: Callable[[str], object], documents: list[str],
          queries: list[str]) -> Measurement:  # fmt: skip
    start = time.perf_counter()
    encode_documents()
    documents_seconds = time.perf_counter() - start
    latencies = []
    for query in queries:
        start = time.perf_counter()
        encode_query(query)
        latencies.append(time.perf_counter() - start)
    return {
        "documents/s": len(documents) / documents_seconds,
        "queries/s": len(queries) / sum(latencies),
        "query p50 ms": 1000 * float(np.quantile(latencies, 0.5)),
        "query p99 ms": 1000 * float(np.quantile(latencies, 0.99)),
    }


def sentence_transformers(
    checkpoint: Checkpoint, dtype: torch.dtype, documents: list[str], queries: list[str]
) -> Callable[[], Measurement]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(checkpoint.path), device="cpu", model_kwargs={"dtype": dtype})
    model.encode(documents[:4], show_progress_bar=False)
    return lambda: timed(
        lambda: model.encode(documents, batch_size=32, show_progress_bar=False),
        lambda query: model.encode([query], show_progress_bar=False),
        documents,
        queries[: len(queries) // 4],
    )


def offline(checkpoint: Checkpoint, documents: list[str], queries: list[str]) -> Callable[[], Measurement]:
    encoder, contract = load_encoder(str(checkpoint.path), device="cpu"), checkpoint.contract

    def encode_documents() -> Embeddings:
        return encoder.encode(contract.documents([("", text) for text in documents]).token_ids)

    def encode_query(text: str) -> Embeddings:
        return encoder.encode(contract.queries([text]).token_ids)

    encode_query(queries[0])
    return lambda: timed(encode_documents, encode_query, documents, queries[: len(queries) // 4])


def over_http(service: Service, documents: list[str], queries: list[str]) -> Measurement:
    """Documents in requests of 64 by two clients; single queries by eight; searches by one."""
    with httpx.Client(base_url=service.url, timeout=600) as client, ThreadPoolExecutor(CLIENTS) as pool:

        def embed(inputs: str | list[str], kind: str) -> float:
            start = time.perf_counter()
            body = {"inputs": inputs, "kind": kind, "encoding_format": "base64"}
            client.post("/embed", json=body).raise_for_status()
            return time.perf_counter() - start

        def search(query: str) -> float:
            start = time.perf_counter()
            client.post("/search", json={"query": query}).raise_for_status()
            return time.perf_counter() - start

        parts = [documents[start : start + 64] for start in range(0, len(documents), 64)]
        start = time.perf_counter()
        list(pool.map(lambda part: embed(part, "document"), parts))
        documents_seconds = time.perf_counter() - start
        start = time.perf_counter()
        latencies = list(pool.map(lambda query: embed(query, "query"), queries))
        queries_seconds = time.perf_counter() - start
        body = {"documents": [{"id": str(index), "text": query} for index, query in enumerate(queries[:32])]}
        client.post("/documents", json=body).raise_for_status()
        searches = [search(query) for query in queries[: len(queries) // 4]]
    return {
        "documents/s": len(documents) / documents_seconds,
        "queries/s": len(queries) / queries_seconds,
        "query p50 ms": 1000 * float(np.quantile(latencies, 0.5)),
        "query p99 ms": 1000 * float(np.quantile(latencies, 0.99)),
        "search p50 ms": 1000 * float(np.quantile(searches, 0.5)),
        "search p99 ms": 1000 * float(np.quantile(searches, 0.99)),
    }


def report(medians: dict[str, Measurement]) -> int:
    columns = ["documents/s", "queries/s", "query p50 ms", "query p99 ms", "search p50 ms", "search p99 ms"]
    print("| engine | " + " | ".join(columns) + " |\n| --- |" + " ---: |" * len(columns))
    for name, values in medians.items():
        print(f"| {name} | " + " | ".join(f"{values[key]:.1f}" if key in values else "" for key in columns) + " |")
    ours, theirs = medians["eoseek HTTP"], medians["sentence-transformers bfloat16"]
    ok = True
    for key, floor in FLOORS.items():
        ratio = ours[key] / theirs[key]
        verdict = "PASS" if ratio >= floor else "FAIL"
        ok &= ratio >= floor
        print(f"{verdict}  {key}: {ratio:.2f}x sentence-transformers bfloat16, floor {floor}x")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
