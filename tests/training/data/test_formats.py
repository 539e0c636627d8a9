import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import write_lines
from training.data.formats import DocumentText, read_examples
from training.errors import DataError


def _read(path: Path, row: dict[str, Any]) -> Any:
    return list(read_examples(write_lines(path / "rows.jsonl", [row])))


def test_reader_pair_line_gives_one_positive(tmp_path: Path) -> None:
    (example,) = _read(tmp_path, {"query": "q", "positive": "p", "negatives": ["n", "m"], "source": "s"})
    assert example.positives == (DocumentText("", "p"),)
    assert example.negatives == (DocumentText("", "n"), DocumentText("", "m"))
    assert (example.query, example.source, example.instruction) == ("q", "s", None)


def test_reader_flag_embedding_line_takes_prompt_and_scores(tmp_path: Path) -> None:
    row = {"query": "q", "pos": ["p"], "neg": ["n"], "prompt": "Find", "pos_scores": [2], "neg_scores": [1.5]}
    (example,) = _read(tmp_path, row)
    assert example.instruction == "Find"
    assert (example.positive_scores, example.negative_scores) == ((2.0,), (1.5,))


def test_reader_mined_line_takes_title_and_text(tmp_path: Path) -> None:
    row = {"query": "q", "positive": {"title": "T", "text": "p"}, "negatives": [{"text": "n", "rank": 3}]}
    (example,) = _read(tmp_path, row)
    assert example.positives == (DocumentText("T", "p"),)
    assert example.negatives == (DocumentText("", "n"),)


def test_reader_gz_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"query": "q", "positive": "p"}\n'))
    assert len(list(read_examples(path))) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\n", "the line is empty"),
        (b"  \n", "the line is empty"),
        (b'{"query": "\xff", "positive": "p"}\n', "not UTF-8"),
        (b'{"query": "\\ud800", "positive": "p"}\n', "lone surrogate"),
        (b'{"query": "q", \n', "not JSON"),
        (b'["q", "p"]\n', "not a JSON object"),
        (b'{"query": "q"}\n', "neither `positive` nor `pos`"),
        (b'{"query": " ", "positive": "p"}\n', "`query` is empty"),
        (b'{"query": "q", "positive": ""}\n', "`positive` is empty"),
        (b'{"query": "q", "positive": 3}\n', "must be a string"),
        (b'{"query": "q", "pos": []}\n', "`pos` is empty"),
        (b'{"query": "q", "positive": "p", "negatives": "n"}\n', "must be a list"),
        (b'{"query": "q", "positive": "p", "negatives": ["n", "p"]}\n', "a positive is among its own negatives"),
        (b'{"query": "q", "pos": ["p"], "neg": [], "pos_scores": [1, 2]}\n', "a list of 1 numbers"),
        (b'{"query": "q", "pos": ["p"], "pos_scores": [NaN]}\n', "a number that is not finite"),
        (b'{"query": "q", "pos": ["p"], "pos_scores": [1' + b"0" * 400 + b"]}\n", "not a number"),
        (b'{"query": "q", "pos": ["p"], "prompt": 5}\n', "`prompt` must be a string"),
        (b'{"query": "q", "pos": ["p"], "source": ["s"]}\n', "`source` must be a string"),
        (b'{"query": ' + b"[" * 100_000 + b"\n", "not JSON"),
    ],
)
def test_reader_malformed_line_names_file_and_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"query": "q", "positive": "p"}\n' + line)
    with pytest.raises(DataError, match=reason) as caught:
        list(read_examples(path))
    assert str(caught.value).startswith(f"{path}:2: ")


def test_reader_cut_gz_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"query": "q", "positive": "p"}\n' * 99)[:-9])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: cannot be read"):
        list(read_examples(path))


def _write_beir(folder: Path, qrels: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{index}", "title": "", "text": f"text {index}"} for index in range(3)]
    write_lines(folder / "corpus.jsonl", documents)
    write_lines(folder / "queries.jsonl", [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}])
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


def test_reader_beir_folder_groups_judgements_by_query(tmp_path: Path) -> None:
    folder = _write_beir(tmp_path / "set", "q1\td0\t1\nq1\td1\t2\nq1\td2\t0\nq2\td2\t1\n")
    one, two = read_examples(folder)
    assert one.positives == (DocumentText("", "text 0"), DocumentText("", "text 1"))
    assert one.negatives == (DocumentText("", "text 2"),)
    assert (two.query, two.negatives) == ("two", ())


def test_reader_beir_folder_with_unknown_document_is_refused(tmp_path: Path) -> None:
    folder = _write_beir(tmp_path / "set", "q1\td9\t1\n")
    with pytest.raises(DataError, match="document d9 is judged, but not in the corpus"):
        list(read_examples(folder))


def test_reader_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl"):
        list(read_examples(tmp_path / "none.jsonl"))


def test_reader_keeps_every_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"query": f"q{index}", "positive": f"p{index}"} for index in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [each.query for each in read_examples(path)] == [row["query"] for row in rows]
