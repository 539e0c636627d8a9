import json
from collections.abc import Callable
from pathlib import Path

import pytest

from training.evaluation.beir import JudgedSet, read_set

Rows = list[dict[str, str]]


@pytest.fixture
def write_set(tmp_path: Path) -> Callable[..., JudgedSet]:
    """A set of these documents, queries and judgement lines, written and read."""

    def write(corpus: Rows, queries: Rows, qrels: str, *, name: str = "toy") -> JudgedSet:
        folder = tmp_path / name
        (folder / "qrels").mkdir(parents=True)
        (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
        (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
        (folder / "qrels" / "test.tsv").write_text(qrels)
        return read_set(folder)

    return write
