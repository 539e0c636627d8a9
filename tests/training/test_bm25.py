import math

import numpy as np
import pytest

from training.bm25 import Bm25, best, english_words, words


def test_words_cut_text_without_spaces_into_pairs() -> None:
    assert words("Héllo, wörld_2! 検索語 を x") == ["héllo", "wörld", "2", "検索", "索語", "を", "x"]


def test_english_words_drop_stop_words_and_single_letters_and_stem() -> None:
    assert english_words()("The retrieval of A x retrieves 検索語 を") == ["retriev", "retriev", "検索", "索語", "を"]


def test_bm25_documents_and_queries_are_analyzed_alike() -> None:
    scores = Bm25(["merging lists", "sorted items"], analyze=english_words()).scores("the merged list")
    assert scores[0] > 0
    assert scores[1] == 0


def test_bm25_scores_by_hand() -> None:
    # three documents of two words, `a` in two of them: idf = ln(1 + 1.5 / 2.5), tf = 1 / (1 + 1.5)
    index = Bm25(["a b", "a c", "d e"])
    expected = math.log(1 + 1.5 / 2.5) / 2.5
    assert index.scores("a").tolist() == pytest.approx([expected, expected, 0.0])


def test_bm25_query_without_known_words_scores_zero() -> None:
    assert Bm25(["a b", ""]).scores("zzz").tolist() == [0.0, 0.0]


def test_bm25_search_orders_equal_scores_by_position() -> None:
    _, positions = Bm25(["a", "b", "a", "a"]).search("a", top_k=2)
    assert positions.tolist() == [0, 2]


def test_best_returns_all_of_a_short_list() -> None:
    scores, positions = best(np.array([1.0, 3.0, 2.0], dtype=np.float32), 9)
    assert (scores.tolist(), positions.tolist()) == ([3.0, 2.0, 1.0], [1, 2, 0])
