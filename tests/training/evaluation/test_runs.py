import pytest

from training.evaluation.runs import holds_values, read_run, read_values, write_run, write_values

RUN = {"q1": {"b": 0.1, "a": 0.30000000000000004}, "q2": {"z": -1.0, "y": -1.0}}


def test_run_written_and_read_back_is_the_same(tmp_path):
    path = tmp_path / "run"
    write_run(RUN, path, tag="eoseek")
    assert read_run(path) == RUN


def test_run_file_is_trec_best_first_ties_by_id(tmp_path):
    path = tmp_path / "run"
    write_run(RUN, path, tag="eoseek")
    assert path.read_text().splitlines() == [
        "q1 Q0 a 1 0.30000000000000004 eoseek",
        "q1 Q0 b 2 0.1 eoseek",
        "q2 Q0 y 1 -1.0 eoseek",
        "q2 Q0 z 2 -1.0 eoseek",
    ]


@pytest.mark.parametrize("bad", ["", "a b", " a", "a\n"])
def test_run_id_that_the_format_cannot_carry_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="white space"):
        write_run({"q": {bad: 1.0}}, tmp_path / "run", tag="eoseek")


@pytest.mark.parametrize("line", ["q Q0 d 1 0.5", "q Q0 d 1 high eoseek", "q Q0 d 1 nan eoseek"])
def test_run_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "run"
    path.write_text(f"q Q0 d 1 0.5 eoseek\n{line}\n")
    with pytest.raises(ValueError, match="run:2: not"):
        read_run(path)


def test_values_written_and_read_back_are_the_same(tmp_path):
    path = tmp_path / "values"
    write_values({"q1": {"ndcg@10": 0.1 + 0.2, "mrr@10": 1.0}, "q2": {"ndcg@10": 0.0, "mrr@10": 0.0}}, path)
    assert read_values(path, "ndcg@10") == {"q1": 0.1 + 0.2, "q2": 0.0}
    assert holds_values(path)
    write_run(RUN, path, tag="eoseek")
    assert not holds_values(path)


@pytest.mark.parametrize(
    "line",
    [
        "", "[]", '{"query_id": "q"}', '{"query_id": "q", "ndcg@10": null}', '{"query_id": "q", "ndcg@10": NaN}',
        '{"query_id": "q", "ndcg@10": 1' + "0" * 400 + "}", "[" * 100_000,
    ],
)  # fmt: skip
def test_values_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "values"
    path.write_text(f'{{"query_id": "p", "ndcg@10": 1}}\n{line}\n')
    with pytest.raises(ValueError, match="values:2: not"):
        read_values(path, "ndcg@10")


def test_run_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "run").write_bytes(b"\xff\xfe")
    assert not holds_values(tmp_path / "run")
    with pytest.raises(ValueError, match="run: not UTF-8 beyond line 0"):
        read_run(tmp_path / "run")
