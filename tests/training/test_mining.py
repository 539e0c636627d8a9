import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import ConfigurationError
from tests.training.conftest import toy_rows, write_lines
from training.data.formats import DocumentText, Example, read_examples
from training.mining import Candidate, MiningConfig, known_positions, mine, mine_file, rescored, select

_ANY = {"relative_margin": None}


def _candidates(*scores: float, positive: float = 10.0, teacher: str = "t") -> list[Candidate]:
    return [
        Candidate(document=index, teacher=teacher, rank=index + 1, score=score, positive_score=positive)
        for index, score in enumerate(scores)
    ]


def _select(
    candidates: list[Candidate], known: frozenset[int] = frozenset(), **knobs: Any
) -> tuple[list[int], dict[str, int]]:
    dropped: Counter[str] = Counter()
    taken = select(candidates, known, MiningConfig(**knobs), dropped, np.random.default_rng(0))
    return [each.document for each in taken], dict(dropped)


def test_select_never_takes_a_judged_positive() -> None:
    assert _select(_candidates(3, 2, 1), frozenset({0, 2}), **_ANY) == ([1], {"judged positive": 2})


def test_select_takes_the_window_of_ranks() -> None:
    taken, dropped = _select(_candidates(5, 4, 3, 2, 1), range_min=2, range_max=4, **_ANY)
    assert (taken, dropped) == ([1, 2, 3], {"outside the ranks": 2})


def test_select_relative_margin_keeps_what_scores_below_95_percent_of_the_positive() -> None:
    taken, dropped = _select(_candidates(11, 9.6, 9.5, 9.4), relative_margin=0.05)
    assert (taken, dropped) == ([3], {"relative margin": 3})


def test_select_relative_margin_of_a_negative_positive_score_lies_below_it() -> None:
    taken, _ = _select(_candidates(-9.0, -10.4, -10.6, positive=-10.0), relative_margin=0.05)
    assert taken == [2]


def test_select_absolute_margin_keeps_what_scores_clearly_below() -> None:
    taken, dropped = _select(_candidates(9.5, 8.0, 7.9), absolute_margin=2.0, **_ANY)
    assert (taken, dropped) == ([2], {"absolute margin": 2})


def test_select_takes_the_best_and_says_how_many_were_left() -> None:
    assert _select(_candidates(5, 4, 3), num_negatives=2, **_ANY) == ([0, 1], {"enough": 1})


def test_select_draws_at_random_where_asked() -> None:
    taken, _ = _select(_candidates(*range(50, 0, -1)), num_negatives=5, sampling_strategy="random", **_ANY)
    assert len(set(taken)) == 5
    assert taken != [0, 1, 2, 3, 4]


def test_select_joins_teachers_by_rank_and_takes_a_document_once() -> None:
    first, second = _candidates(5, 4, teacher="a"), _candidates(0.9, 0.8, 0.7, positive=1.0, teacher="b")
    taken, dropped = _select(first + second, **_ANY)
    assert (taken, dropped) == ([0, 1, 2], {"found by two teachers": 2})


def test_rescored_takes_the_judges_scores_and_its_lowest_positive() -> None:
    scores = np.array([0.5, 0.25, 1.0, 0.75], dtype=np.float32)
    judged = rescored(_candidates(9, 8), scores, frozenset({2, 3}))
    assert [(each.score, each.positive_score, each.rank) for each in judged] == [(0.5, 0.75, 1), (0.25, 0.75, 2)]


def test_known_positions_join_examples_of_one_query() -> None:
    examples = [Example(query="q", positives=(DocumentText("", text),)) for text in "ab"]
    assert known_positions(examples, {DocumentText("", "a"): 4, DocumentText("", "b"): 7}) == {"q": {4, 7}}


@pytest.mark.parametrize(
    "knobs",
    [
        {"teachers": ()},
        {"range_min": 0},
        {"range_min": 9, "range_max": 8},
        {"num_negatives": 0},
        {"seed": -1},
        {"absolute_margin": float("nan")},
    ],
)
def test_mining_config_nonsense_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        MiningConfig(**knobs)


def test_mining_bm25_finds_shared_words_but_no_answer_of_the_query() -> None:
    texts = ["red apple pie", "green apple pie", "blue whale", "an apple"]
    corpus = [DocumentText("", text) for text in texts]
    examples = [Example(query="red apple", positives=(corpus[0],)), Example(query="red apple", positives=(corpus[3],))]
    for _, negatives, _ in mine(examples, corpus, MiningConfig(num_negatives=1, **_ANY)):
        assert [document.text for document, _ in negatives] == ["green apple pie"]


@pytest.mark.parametrize("teacher", ["bm25", "dense", "both", "rescored"])
def test_mining_file_is_training_data_with_teacher_rank_and_score(
    tmp_path: Path, tiny_base: Path, teacher: str
) -> None:
    rows = [{key: value for key, value in row.items() if key != "negatives"} for row in toy_rows()]
    data = write_lines(tmp_path / "pairs.jsonl", rows)
    teachers = {"dense": (str(tiny_base),), "both": ("bm25", str(tiny_base))}.get(teacher, ("bm25",))
    config = MiningConfig(
        teachers=teachers, rescore=str(tiny_base) if teacher == "rescored" else None, num_negatives=3, range_max=20
    )
    report = mine_file(data, tmp_path / "mined.jsonl", config)
    mined = [json.loads(line) for line in (tmp_path / "mined.jsonl").read_text().splitlines()]
    negatives = [each for row in mined for each in row["negatives"]]
    assert [row["query"] for row in mined] == [row["query"] for row in rows]
    assert report.num_negatives == len(negatives) > 0
    assert {each["teacher"] for each in negatives} <= set(teachers)
    assert all(1 <= each["rank"] <= 20 and isinstance(each["score"], float) for each in negatives)
    assert report.dropped["judged positive"] > 0
    assert len(list(read_examples(tmp_path / "mined.jsonl"))) == len(rows)


def test_mining_file_counts_only_negatives_that_the_data_had_not(tmp_path: Path) -> None:
    report = mine_file(
        write_lines(tmp_path / "toy.jsonl", toy_rows()),
        tmp_path / "mined.jsonl",
        MiningConfig(num_negatives=1, range_max=5, **_ANY),
    )
    mined = [json.loads(line)["negatives"] for line in (tmp_path / "mined.jsonl").read_text().splitlines()]
    assert report.num_negatives == sum("teacher" in each for negatives in mined for each in negatives)
    assert report.dropped["a negative already"] > 0
    assert all(len({each["text"] for each in negatives}) == len(negatives) for negatives in mined)


@pytest.mark.parametrize(
    ("data", "output", "corpus", "reason"),
    [
        ("empty.jsonl", "out.jsonl", None, "holds no examples"),
        ("toy.jsonl", "no/such/out.jsonl", None, "no file can be written there"),
        ("toy.jsonl", "folder", None, "no file can be written there"),
        ("toy.jsonl", "out.jsonl", "bare.jsonl", r"bare\.jsonl:1: `text` must be a string"),
        ("toy.jsonl", "out.jsonl", "folder", "holds neither corpus"),
    ],
)
def test_mining_file_that_cannot_be_is_named(
    tmp_path: Path, data: str, output: str, corpus: str | None, reason: str
) -> None:
    write_lines(tmp_path / "toy.jsonl", toy_rows())
    write_lines(tmp_path / "empty.jsonl", [])
    write_lines(tmp_path / "bare.jsonl", [{"title": "no text"}])
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=reason):
        mine_file(tmp_path / data, tmp_path / output, MiningConfig(), corpus=corpus and tmp_path / corpus)
