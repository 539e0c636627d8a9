from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.conftest import write_lines
from training.config import TrainingConfig
from training.data.formats import DocumentText, Example
from training.data.mixture import hold_out, load_mixture, shared_positives
from training.errors import DataError


def _example(query: str, positive: str, *negatives: str) -> Example:
    return Example(
        query=query,
        positives=(DocumentText("", positive),),
        negatives=tuple(DocumentText("", each) for each in negatives),
    )


def test_hold_out_leaves_no_held_answer_in_training() -> None:
    examples = [_example(f"q{index}", f"p{index % 10}", f"p{(index + 1) % 10}") for index in range(40)]
    rest, held = hold_out(examples, 5)
    answers = {positive for each in held for positive in each.positives}
    assert len(held) == 5
    assert rest
    assert not any(answers & set(each.positives + each.negatives) for each in rest)
    assert not {each.query for each in held} & {each.query for each in rest}


def test_hold_out_does_not_depend_on_the_order_of_lines() -> None:
    examples = [_example(f"q{index}", f"p{index}") for index in range(40)]
    assert hold_out(examples, 5)[1] == hold_out(examples[::-1], 5)[1]


def test_hold_out_drops_the_scores_of_dropped_negatives() -> None:
    plain = [_example("a", "p"), _example("b", "r")]
    answer = hold_out(plain, 1)[1][0].positives[0].text
    other = next(each.positives[0].text for each in plain if each.positives[0].text != answer)
    # this query sorts last among those of its positive, so it is not the one held out
    scored = replace(_example("z", other, "n", answer, "m"), negative_scores=(1.0, 2.0, 3.0))
    rest, _ = hold_out([*plain, scored], 1)
    (left,) = [each for each in rest if each.query == "z"]
    assert [each.text for each in left.negatives] == ["n", "m"]
    assert left.negative_scores == (1.0, 3.0)


def test_shared_positives_join_the_lines_of_one_query() -> None:
    shared = shared_positives([_example("q", "p"), _example("q", "r"), _example("x", "y")])
    assert shared == {"q": {DocumentText("", "p"), DocumentText("", "r")}}


def test_mixture_knows_answers_of_lines_that_were_not_chosen(
    tmp_path: Path, make_config: Callable[..., TrainingConfig]
) -> None:
    rows = [{"query": f"q{index % 20}", "positive": f"p{index}"} for index in range(40)]
    write_lines(tmp_path / "two.jsonl", rows)
    sets = [{"name": "two", "path": "two.jsonl", "max_examples": 10}]
    (two,) = load_mixture(make_config(sets=sets)).sets
    for each in two.examples:
        number = int(each.query[1:])
        assert two.positives_of(each) == {DocumentText("", f"p{number}"), DocumentText("", f"p{number + 20}")}


def test_mixture_ratio_follows_weight_and_size(tmp_path: Path, make_config: Callable[..., TrainingConfig]) -> None:
    rows = [{"query": f"q{index}", "positive": f"p{index}", "source": "ab"[index > 15]} for index in range(80)]
    write_lines(tmp_path / "two.jsonl", rows)
    sets = [
        {"name": "a", "path": "two.jsonl", "sources": ["a"], "weight": 3.0},
        {"name": "b", "path": "two.jsonl", "exclude_sources": ["a"]},
    ]
    mixture = load_mixture(make_config(sets=sets, size_exponent=0.5))
    assert [len(each.examples) for each in mixture.sets] == [16, 64]
    assert [each.ratio for each in mixture.sets] == [12.0, 8.0]
    assert list(mixture.hashes) == ["two.jsonl"]


def test_mixture_unknown_source_is_refused(make_config: Callable[..., TrainingConfig]) -> None:
    with pytest.raises(DataError, match="source 'none' does not occur"):
        load_mixture(make_config(sets=[{"name": "a", "path": "toy.jsonl", "sources": ["none"]}]))


def test_mixture_set_smaller_than_a_batch_is_refused(make_config: Callable[..., TrainingConfig]) -> None:
    with pytest.raises(DataError, match="set toy: 40 examples do not fill one batch of 64"):
        load_mixture(make_config(batch_size=64))


def test_mixture_held_out_corpus_holds_every_answer(make_config: Callable[..., TrainingConfig]) -> None:
    evaluation = {"every_steps": 1, "held_out_queries": 6, "corpus_size": 20}
    held_out = load_mixture(make_config(evaluation=evaluation)).held_out
    assert len(held_out.queries["toy"]) == 6
    assert len(held_out.corpus) == len(set(held_out.corpus)) == 20
    assert all(positive in held_out.corpus for each in held_out.queries["toy"] for positive in each.positives)


def test_mixture_set_with_nothing_to_contrast_is_refused(
    tmp_path: Path, make_config: Callable[..., TrainingConfig]
) -> None:
    write_lines(tmp_path / "bare.jsonl", [{"query": f"q{index}", "positive": f"p{index}"} for index in range(20)])
    with pytest.raises(DataError, match="no example has negatives"):
        load_mixture(make_config(sets=[{"name": "a", "path": "bare.jsonl", "in_batch_negatives": False}]))
