import gzip

import pytest

from training.errors import DataError
from training.evaluation.beir import (
    Document,
    Query,
    choose_split,
    read_corpus,
    read_document_ids,
    read_qrels,
    read_queries,
    read_set,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl.gz").write_bytes(
        gzip.compress('{"_id": "d1", "title": "T", "text": "é"}\n\n{"_id": "d2", "text": "x"}\n'.encode())
    )
    (tmp_path / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "a"}\n{"_id": "q2", "text": "b", "instruction": "I"}'
    )
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\r\nq2\td2\t2\n")
    return tmp_path


def test_read_corpus_packed_or_not(folder):
    expected = [Document(document_id="d1", title="T", text="é"), Document(document_id="d2", text="x")]
    assert list(read_corpus(folder)) == expected
    packed = folder / "corpus.jsonl.gz"
    (folder / "corpus.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert list(read_corpus(folder)) == expected


def test_read_queries_keeps_instructions(folder):
    assert read_queries(folder) == {
        "q1": Query(query_id="q1", text="a"),
        "q2": Query(query_id="q2", text="b", instruction="I"),
    }


def test_read_qrels_with_and_without_header(folder):
    expected = {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}}
    path = folder / "qrels" / "test.tsv"
    assert read_qrels(folder, "test") == expected
    path.write_text(path.read_text().split("\n", 1)[1])
    assert read_qrels(folder, "test") == expected


@pytest.mark.parametrize("line", ["q1\td1", "q1\td1\tmany", "q1 d1 1"])
def test_read_qrels_malformed_line_is_named(folder, line):
    path = folder / "qrels" / "test.tsv"
    path.write_text(f"q0\td0\t1\n{line}\n")
    with pytest.raises(ValueError, match=r"test\.tsv:2: not"):
        read_qrels(folder, "test")


@pytest.mark.parametrize("grade", ["10001", "-10001", "99999999999999999999"])
def test_read_qrels_grade_that_cannot_be_counted_is_refused(folder, grade):
    (folder / "qrels" / "test.tsv").write_text(f"q1\td1\t{grade}\n")
    with pytest.raises(DataError, match=r"test\.tsv:1: grade .* is beyond 10,000"):
        read_qrels(folder, "test")


def test_read_qrels_not_utf8_is_named(folder):
    (folder / "qrels" / "test.tsv").write_bytes(b"q1\td\xff\t1\n")
    with pytest.raises(DataError, match=r"test\.tsv: cannot be read"):
        read_qrels(folder, "test")


def test_read_set_whose_judged_queries_have_no_text_is_refused(folder):
    (folder / "qrels" / "test.tsv").write_text("q8\td1\t1\nq9\td1\t1\n")
    with pytest.raises(DataError, match="none of the 2 judged queries"):
        read_set(folder)


def test_read_document_ids_of_an_empty_corpus_is_refused(folder):
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="holds no document"):
        read_document_ids(folder)


def test_read_corpus_title_that_is_no_text_is_named(folder):
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "d1", "text": "x", "title": 5}\n'))
    with pytest.raises(DataError, match="gz:1: needs `title`, a string"):
        list(read_corpus(folder))


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", '{"_id": 1, "text": "x"}', '{"_id": "q"}', '{"_id": "q", "text": "x", "instruction": 5}',
        '{"_id": "q", "text": "\\ud800"}', "[" * 100_000,
    ],
)  # fmt: skip
def test_read_queries_malformed_line_is_named(folder, line):
    (folder / "queries.jsonl").write_text(f'{{"_id": "q1", "text": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"queries\.jsonl:2: "):
        read_queries(folder)


def test_read_missing_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dev\.tsv"):
        read_qrels(folder, "dev")
    with pytest.raises(FileNotFoundError, match=r"corpus\.jsonl"):
        list(read_corpus(tmp_path / "qrels"))


def test_read_set_judged_queries_follow_the_judgements(folder):
    (folder / "qrels" / "test.tsv").write_text("q2\td2\t1\nq9\td1\t1\nq1\td1\t1\n")
    judged = read_set(folder)
    assert (judged.name, judged.split) == (folder.name, "test")
    assert [query.query_id for query in judged.judged] == ["q2", "q1"]


def test_read_set_split_that_judges_nothing_is_refused(folder):
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(DataError, match="judges no query"):
        read_set(folder)


@pytest.mark.parametrize(
    ("there", "asked", "chosen"),
    [
        (["dev"], None, "dev"),
        (["dev", "test"], None, "test"),
        (["dev", "test"], "dev", "dev"),
    ],
)
def test_choose_split_takes_test_or_the_only_one(tmp_path, there, asked, chosen):
    (tmp_path / "qrels").mkdir()
    for name in there:
        (tmp_path / "qrels" / f"{name}.tsv").touch()
    assert choose_split(tmp_path, asked) == chosen


@pytest.mark.parametrize(("there", "asked"), [(["dev", "train"], None), (["dev", "train"], "test"), (["dev"], "test")])
def test_choose_split_that_is_not_there_lists_those_that_are(tmp_path, there, asked):
    (tmp_path / "qrels").mkdir()
    for name in there:
        (tmp_path / "qrels" / f"{name}.tsv").touch()
    with pytest.raises(DataError, match=f"there is {', '.join(there)}"):
        choose_split(tmp_path, asked)


def test_read_document_ids_twice_the_same_is_refused(folder):
    assert read_document_ids(folder) == ["d1", "d2"]
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}\n'))
    with pytest.raises(DataError, match=r"gz:2: document 'd1' was there before"):
        read_document_ids(folder)


def test_read_corpus_broken_gzip_is_named(folder):
    path = folder / "corpus.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read beyond line"):
        list(read_corpus(folder))
