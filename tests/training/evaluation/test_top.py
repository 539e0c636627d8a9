import numpy as np
import pytest

from training.evaluation.metrics import ranking
from training.evaluation.top import TopDocuments


def test_top_ties_at_the_cut_are_decided_by_document_id_across_blocks():
    top = TopDocuments(["c", "b", "d", "a"], num_queries=1, top_k=2)
    top.add(np.array([[1.0, 1.0]], dtype=np.float32))
    top.add(np.array([[2.0, 1.0]], dtype=np.float32))
    assert top.results() == [{"d": 2.0, "a": 1.0}]


@pytest.mark.parametrize("block_size", [1, 7, 50])
def test_top_equals_sorting_everything(block_size):
    # few distinct scores, so that there are many ties
    scores = np.random.default_rng(0).integers(5, size=(3, 50)).astype(np.float32)
    ids = [f"d{number * 37 % 50}" for number in range(50)]
    top = TopDocuments(ids, num_queries=3, top_k=20)
    for start in range(0, 50, block_size):
        top.add(scores[:, start : start + block_size])
    for row, found in zip(scores, top.results(), strict=True):
        assert list(found) == ranking(dict(zip(ids, row, strict=True)), top_k=20)


def test_top_one_query_s_scores_of_the_whole_corpus():
    top = TopDocuments(["b", "a"], num_queries=2, top_k=5)
    top.add_query(1, np.array([0.5, 0.5], dtype=np.float32))
    assert top.results() == [{}, {"a": 0.5, "b": 0.5}]
    assert [list(each) for each in top.results()] == [[], ["a", "b"]]
