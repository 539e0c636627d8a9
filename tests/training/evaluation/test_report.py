from math import log2

import pytest

from training.evaluation.base import Found
from training.evaluation.report import compare_files, judge, table, write_files

CORPUS = [{"_id": "a", "text": "x"}]
QRELS = {"q1": {"a": 1}, "q2": {"a": 1, "z": 1}, "q3": {"a": 1}}
RUN = {"q1": {"a": 1.0}, "q2": {"b": 2.0, "a": 1.0}}
# q2 by hand: found at rank 2, two relevant; q3 is not in the run
NDCG = {"q1": 1.0, "q2": (1 / log2(3)) / (1 + 1 / log2(3)), "q3": 0.0}


@pytest.fixture
def judged(write_set):
    lines = "".join(f"{query}\t{document}\t1\n" for query, grades in QRELS.items() for document in grades)
    return write_set(CORPUS, [{"_id": "q1", "text": "x"}, {"_id": "q2", "text": "y"}], lines)


def test_judge_means_over_all_judged_queries_by_hand(judged):
    result = judge(Found(run=RUN, top_k=1000), judged, system="s")
    assert result.metrics == pytest.approx(
        {
            "ndcg@10": sum(NDCG.values()) / 3,
            "mrr@10": (1 + 1 / 2 + 0) / 3,
            "recall@10": (1 + 1 / 2 + 0) / 3,
            "recall@100": 0.5,
            "recall@1000": 0.5,
        }
    )
    assert result.num_missing_queries == 1
    assert {query: values["ndcg@10"] for query, values in result.per_query.items()} == pytest.approx(NDCG)
    assert 0 <= result.interval[0] <= result.metrics["ndcg@10"] <= result.interval[1] <= 1


def test_judge_a_metric_deeper_than_the_run_is_left_out(judged):
    result = judge(Found(run=RUN, top_k=100), judged, system="s")
    assert "recall@100" in result.metrics
    assert "recall@1000" not in result.metrics
    assert table([result]).splitlines()[1].split()[6:8] == ["0.5000", "-"]


def test_summary_names_what_is_missing_and_cut(judged):
    found = Found(run=RUN, top_k=10, num_truncated_documents=1200, num_truncated_queries=2, max_length=256)
    assert judge(found, judged, system="s").summary() == (
        "toy, s (limit 256 tokens): mean over 3 judged queries of test; 1 of them have no text and count as 0; "
        "2 queries were cut; 1,200 documents were cut"
    )


def test_table_keeps_sets_together(judged, write_set):
    other = write_set(CORPUS, [{"_id": "q1", "text": "x"}], "q1\ta\t1\n", name="other")
    found = Found(run=RUN, top_k=1000)
    results = [judge(found, each, system=system) for system in ("one", "two") for each in (judged, other)]
    rows = [line.split()[:3] for line in table(results).splitlines()]
    assert rows == [
        ["set", "system", "queries"],
        ["toy", "one", "3"],
        ["toy", "two", "3"],
        ["other", "one", "1"],
        ["other", "two", "1"],
    ]


def test_compare_run_and_values_files_of_one_result_do_not_differ(judged, tmp_path):
    write_files(judge(Found(run=RUN, top_k=1000), judged, system="s"), tmp_path)
    comparison = compare_files(tmp_path / "toy.s.run", tmp_path / "toy.s.jsonl", judged.qrels)
    assert comparison.mean_a == comparison.mean_b == pytest.approx(sum(NDCG.values()) / 3)
    assert (comparison.t_test_p, comparison.randomisation_p, comparison.num_queries) == (1.0, 1.0, 3)


def test_compare_drops_a_query_s_own_document_of_a_foreign_run(judged, tmp_path):
    (tmp_path / "own").write_text("q1 Q0 q1 1 9 t\nq1 Q0 a 2 1 t\n")
    (tmp_path / "plain").write_text("q1 Q0 a 1 1 t\n")
    assert compare_files(tmp_path / "own", tmp_path / "plain", judged.qrels).difference == 0


def test_compare_file_of_another_set_is_refused(judged, tmp_path):
    (tmp_path / "other").write_text("x Q0 a 1 1 t\n")
    with pytest.raises(ValueError, match="none of the judged queries"):
        compare_files(tmp_path / "other", tmp_path / "other", judged.qrels)


def test_compare_tells_of_judged_queries_that_a_file_lacks(judged, tmp_path):
    (tmp_path / "one").write_text("q1 Q0 a 1 1 t\n")
    (tmp_path / "all").write_text("".join(f"{query} Q0 a 1 1 t\n" for query in judged.qrels))
    told: list[str] = []
    compare_files(tmp_path / "all", tmp_path / "one", judged.qrels, tell=told.append)
    assert told == [f"{tmp_path / 'one'}: lacks 2 of the 3 judged queries, which count as 0"]
