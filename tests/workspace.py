"""What the pages' commands find in their folder: corpora, judged sets, training data, recipes, tiny checkpoints."""

import gzip
import json
from pathlib import Path

import yaml

from service.encoders.checkpoint import DEFAULT_NAME
from service.encoders.pull import ADAPTER, ADAPTER_SHA256, adapter_sha256
from tests.checkpoints import write_tiny_checkpoint
from tests.pages import ROOT
from tests.training.conftest import toy_rows, write_lines
from training.config import config_as_dict, load_config

SMALL = {
    "base": "default",
    "num_steps": "2",
    "batch_size": "4",
    "num_negatives": "2",
    "query_length": "64",
    "document_length": "100",
    "evaluation.held_out_queries": "4",
    "evaluation.corpus_size": "20",
    "evaluation.every_steps": "2",
    "saving.every_steps": "2",
    "logging_steps": "1",
}
DOCUMENTS = [
    {"_id": "d1", "title": "", "text": "vitamin D does help bones"},
    {"_id": "d2", "title": "Cats", "text": "cats sleep a lot"},
]


def write_small_recipe(source: Path, path: Path, **changes: str) -> None:
    """A recipe as it stands, but for a run of two steps on the tiny checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config_as_dict(load_config(source, SMALL | changes))))


def write_data(folder: Path) -> None:
    """Under the names of the pages: corpora, judged sets, training data, a recipe, other checkpoints."""
    lines = "".join(json.dumps(each) + "\n" for each in DOCUMENTS)
    for name in ("corpus.jsonl", "part1.jsonl", "part2.jsonl"):
        (folder / name).write_text(lines)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("scifact", "cacm"):
        (folder / name / "qrels").mkdir(parents=True)
        (folder / name / "corpus.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        (folder / name / "queries.jsonl").write_text(
            '{"_id": "q1", "text": "does vitamin D help"}\n{"_id": "q2", "text": "what do cats do"}\n'
        )
        (folder / name / "qrels" / "test.tsv").write_text("q1\td1\t1\nq2\td2\t1\n")
    write_lines(folder / "pairs.jsonl", [{"query": row["query"], "positive": row["positive"]} for row in toy_rows()])
    (folder / "data").mkdir()
    with gzip.open(folder / "data" / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in toy_rows())
    recipe = "training/recipes/paper.yaml"
    write_small_recipe(ROOT / recipe, folder / recipe)
    write_tiny_checkpoint(folder / "models" / "all-MiniLM-L6-v2", "bert")
    write_tiny_checkpoint(folder / "models" / "next", "qwen3")
    tuned = {ADAPTER_SHA256: adapter_sha256(ADAPTER)}
    write_tiny_checkpoint(folder / "cache" / "eoseek" / "checkpoints" / DEFAULT_NAME, name=DEFAULT_NAME, training=tuned)
