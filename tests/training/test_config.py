from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigurationError
from training.config import TrainingConfig, config_as_dict, config_from, load_config

_MINIMAL: dict[str, Any] = {"name": "run", "num_steps": 3, "sets": [{"name": "a", "path": "a.jsonl"}]}
RECIPES = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.yaml"))


def test_config_written_and_read_is_the_same(make_config: Callable[..., TrainingConfig]) -> None:
    config = make_config(loss={"matryoshka": [64, 32]}, optimizer={"learning_rate": 1e-4})
    assert config_from(config_as_dict(config)) == config


def test_config_overrides_reach_into_groups(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: run\nnum_steps: 3\nsets: [{name: a, path: a.jsonl}]\ntuning: {rank: 8}\n")
    config = load_config(path, {"tuning.rank": "32", "loss.temperature": "0.05", "num_steps": "7"})
    assert (config.tuning.rank, config.loss.temperature, config.num_steps) == (32, 0.05, 7)


def test_config_override_of_each_entry_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: run\nnum_steps: 3\nsets: [{name: a, path: a.jsonl}, {name: b, path: b.jsonl}]\n")
    config = load_config(path, {"sets.*.max_examples": "5"})
    assert [each.max_examples for each in config.sets] == [5, 5]
    with pytest.raises(ConfigurationError, match=r"sets is a list; write sets\.\* for its entries"):
        load_config(path, {"sets.max_examples": "5"})


@pytest.mark.parametrize("place", [{}, {"optimizer": {}}, {"memory": {}}])
def test_config_gradient_accumulation_as_batch_size_is_refused(place: dict[str, Any]) -> None:
    wrong: dict[str, Any] = {"gradient_accumulation_steps": 4}
    content = _MINIMAL | (dict.fromkeys(place, wrong) or wrong)
    with pytest.raises(ConfigurationError, match=r"accumulating is not a larger batch.*whole batch_size"):
        config_from(content)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batchsize": 3}, "batchsize"),
        ({"batch_size": 1}, "batch_size: .*greater than 1"),
        ({"num_steps": "many"}, "num_steps: .*integer"),
        ({"loss": {"temperature": 0}}, r"loss\.temperature: .*greater than 0"),
        ({"sets": []}, "sets is empty"),
        ({"sets": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}, "two sets share a name"),
        ({"sets": [{"name": "a", "path": "x", "instructions": []}]}, "instructions is empty"),
        ({"sets": [{"name": "a", "path": "x", "sources": ["s"], "exclude_sources": ["t"]}]}, "not both"),
        (
            {"sets": [{"name": "a", "path": "x", "in_batch_negatives": False, "num_negatives": 0}]},
            "nothing to contrast",
        ),
        ({"distillation": {"vector_weight": 1.0}}, "needs distillation.vectors"),
        ({"name": "../elsewhere"}, "must be the name of a folder"),
        ({"name": ""}, "must be the name of a folder"),
        ({"num_steps": 10**20}, "num_steps: .*less than or equal to 10000000"),
        ({"seed": -1}, "seed: .*greater than or equal to 0"),
        ({"optimizer": {"betas": [0.9, 1.5]}}, r"optimizer\.betas\.1: .*less than 1"),
        ({"evaluation": {"metric": "foo"}}, "unknown metric 'foo'"),
        ({"evaluation": {"metric": "recall@1000"}}, "looks deeper than the 100 documents"),
        ({"evaluation": {"every_steps": 5, "held_out_queries": 0}}, "leaves nothing to search"),
    ],
)
def test_config_what_would_train_wrongly_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        config_from(_MINIMAL | changes)


def test_config_unreadable_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: [")
    with pytest.raises(ConfigurationError, match=r"recipe\.yaml"):
        load_config(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_config_our_recipes_are_valid(path: Path) -> None:
    assert load_config(path).name


def test_config_override_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: run\nnum_steps: 3\nsets: [{name: a, path: a.jsonl}]\n")
    with pytest.raises(ConfigurationError, match=r"override name=\[: no YAML value"):
        load_config(path, {"name": "["})
