"""A real set through a real service: every document found again, and quality as the yardstick's.

    python -m benchmarks.reference --data ../shared/data/scifact --out runs/scifact.json
    python -m benchmarks.roundtrip --data ../shared/data/scifact --reference runs/scifact.json [--json FILE]

Starts a service with a store of its own, loads the corpus by `eoseek ingest`, fetches every document by GET and
compares it, and judges the service by `eoseek evaluate`. Exit code 1 when a document is missing or altered, or when
nDCG@10 is over 0.2 points from the reference's. On two cores SciFact takes the default checkpoint about half an hour
in bfloat16. With `--backend vllm`, run by `.venv-vllm/bin/python` (`make vllm-env`), it is vLLM that is judged.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.running import running_service, write_json
from eoseek.client import Client, EoseekClientError
from service.encoders.checkpoint import load_checkpoint
from training.evaluation.beir import read_corpus
from training.evaluation.report import MAIN_METRIC

MAX_POINTS = 0.2
COLLECTION = "roundtrip"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in BEIR's layout")
    parser.add_argument("--reference", type=Path, required=True, help="what benchmarks.reference wrote for this set")
    parser.add_argument("--checkpoint", default="default", help="as EOSEEK_ENCODER__CHECKPOINT")
    parser.add_argument("--backend", default="torch", choices=["torch", "vllm"], help="as EOSEEK_ENCODER__BACKEND")
    parser.add_argument("--dtype", default="auto", help="as EOSEEK_ENCODER__DTYPE")
    parser.add_argument("--max-length", type=int, help="as EOSEEK_ENCODER__MAX_LENGTH")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    reference = json.loads(arguments.reference.read_text())
    checkpoint = load_checkpoint(arguments.checkpoint, max_length=arguments.max_length)
    for name in ("fingerprint", "max_length"):
        if (own := getattr(checkpoint, name)) != reference.get(name):
            parser.error(f"{arguments.reference} was made with the {name} {reference.get(name)}, here it is {own}")
    settings = {name: getattr(arguments, name) for name in ("checkpoint", "backend", "dtype", "max_length")}
    settings["memory_share"] = "0.4" if arguments.backend == "vllm" else None  # on processors it takes it at once
    with running_service(**{f"encoder__{name}": str(value) for name, value in settings.items() if value}) as service:
        result = measure(service.url, arguments.data)
    result["backend"] = arguments.backend
    result["reference"] = reference["metrics"]
    write_json(arguments.json, result)
    print(json.dumps(result))
    points = 100 * abs(result["metrics"][MAIN_METRIC] - reference["metrics"][MAIN_METRIC])
    verdicts = {
        f"{result['found']} of {result['documents']} documents found again": result["found"] == result["documents"],
        f"nDCG@10 {points:.2f} points from the reference, at most {MAX_POINTS}": points <= MAX_POINTS,
    }
    for verdict, holds in verdicts.items():
        print("PASS" if holds else "FAIL", verdict)
    return 0 if all(verdicts.values()) else 1


def measure(url: str, data: Path) -> dict[str, Any]:
    """Load, fetch, judge."""
    start = time.perf_counter()
    eoseek("ingest", str(data / "corpus.jsonl.gz"), "--url", url, "--collection", COLLECTION, "--truncate")
    seconds = time.perf_counter() - start
    documents = list(read_corpus(data))
    with Client(url) as client:
        info = client.info()
        found = sum(is_found(client, each.document_id, each.title, each.text) for each in documents)
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        eoseek(
            "evaluate",
            "--data",
            str(data),
            "--url",
            url,
            "--collection",
            COLLECTION,
            "--truncate",
            "--json",
            str(report),
        )
        judged = json.loads(report.read_text())
    return {
        "data": data.name,
        "fingerprint": info["fingerprint"],
        "max_length": info["max_length"],
        "dtype": info["dtype"],
        "documents": len(documents),
        "found": found,
        "documents_per_second": len(documents) / seconds,
        "metrics": judged["metrics"],
    }


def is_found(client: Client, document_id: str, title: str, text: str) -> bool:
    """Whether GET gives the document as it was sent."""
    try:
        document = client.get_document(document_id, collection=COLLECTION)
    except EoseekClientError as error:
        print(f"{document_id}: {error}", file=sys.stderr)
        return False
    return (document["title"], document["text"]) == (title, text)


def eoseek(*arguments: str) -> None:
    """A command of the command line, as a user types it."""
    subprocess.run([sys.executable, "-m", "eoseek", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
