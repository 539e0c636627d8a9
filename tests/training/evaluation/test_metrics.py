from math import log2

import pytest

from training.evaluation.metrics import drop_self, evaluate, evaluate_queries, ranking

# ranks: b, a, d, c; grades 0, 2, 1, unjudged
RUN = {"q": {"a": 0.8, "b": 0.9, "c": 0.1, "d": 0.5}}
QRELS = {"q": {"a": 2, "b": 0, "d": 1}}


def test_evaluate_four_documents_ndcg_by_hand_with_linear_gain():
    dcg = 2 / log2(3) + 1 / log2(4)
    ideal = 2 / log2(2) + 1 / log2(3)
    values = evaluate(RUN, QRELS, ["ndcg@10", "mrr@10", "recall@2", "recall@100", "map@10"])
    assert values["ndcg@10"] == pytest.approx(dcg / ideal)
    assert values["ndcg@10"] == pytest.approx(0.6697, abs=5e-5)
    assert values["mrr@10"] == 0.5
    assert values["recall@2"] == 0.5
    assert values["recall@100"] == 1
    assert values["map@10"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_evaluate_judged_query_absent_from_the_run_counts_as_zero():
    values = evaluate(RUN, {**QRELS, "absent": {"a": 1}}, ["mrr@10"])
    assert values == {"mrr@10": 0.25}
    assert evaluate({}, QRELS, ["ndcg@10"]) == {"ndcg@10": 0}


def test_evaluate_query_without_judgements_is_ignored():
    assert evaluate({**RUN, "stranger": {"a": 1.0}}, QRELS) == evaluate(RUN, QRELS)


def test_evaluate_query_without_a_relevant_document_counts_as_zero():
    assert evaluate(RUN, {**QRELS, "none": {"a": 0}}, ["mrr@10"]) == {"mrr@10": 0.25}


@pytest.mark.parametrize(("relevant", "rank"), [("a", 1), ("b", 2), ("c", 3)])
def test_evaluate_equal_scores_are_ordered_by_document_id_for_every_metric(relevant, rank):
    values = evaluate({"q": {"c": 1.0, "a": 1.0, "b": 1.0}}, {"q": {relevant: 1}})
    assert values["mrr@10"] == pytest.approx(1 / rank)
    assert values["ndcg@10"] == pytest.approx(1 / log2(rank + 1))


def test_evaluate_scores_that_differ_beyond_single_precision_keep_their_order():
    run = {"q": {"a": 0.1, "b": 0.1 + 1e-12}}
    assert evaluate(run, {"q": {"b": 1}}, ["mrr@10"]) == {"mrr@10": 1}


def test_evaluate_cut_off_at_k():
    run = {"q": {str(number): -float(number) for number in range(200)}}
    assert evaluate(run, {"q": {"9": 1}}, ["mrr@10", "recall@10"]) == {"mrr@10": 0.1, "recall@10": 1}
    assert evaluate(run, {"q": {"10": 1}}, ["mrr@10", "recall@10"]) == {"mrr@10": 0, "recall@10": 0}


def test_evaluate_queries_follow_the_judgements():
    qrels = {"z": {"a": 1}, "q": {"b": 1}}
    assert evaluate_queries(RUN, qrels, ["mrr@10"]) == {"z": {"mrr@10": 0}, "q": {"mrr@10": 1}}


@pytest.mark.parametrize("name", ["ndcg", "ndcg@", "ndcg@0", "ndcg@ten", "bleu@4"])
def test_evaluate_unknown_metric_is_named(name):
    with pytest.raises(ValueError, match=f"unknown metric '{name}'"):
        evaluate(RUN, QRELS, [name])


def test_evaluate_nothing_judged_is_refused():
    with pytest.raises(ValueError, match="no query is judged"):
        evaluate(RUN, {})


def test_ranking_descends_and_breaks_ties_by_id():
    assert ranking({"b": 1.0, "a": 1.0, "c": 2.0}) == ["c", "a", "b"]
    assert ranking({"b": 1.0, "a": 1.0, "c": 2.0}, top_k=2) == ["c", "a"]


def test_drop_self_happens_before_the_cut():
    assert drop_self({"q": 1.0, "a": 0.5, "b": 0.4}, "q", top_k=2) == {"a": 0.5, "b": 0.4}
