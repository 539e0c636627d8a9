import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from service.errors import ConfigurationError
from tests.training.conftest import toy_rows, write_lines
from training.cli import app
from training.config import TrainingConfig, config_as_dict
from training.data.teacher import TeacherVectors


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture
def recipe(tmp_path: Path, make_config: Callable[..., TrainingConfig]) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config_as_dict(make_config(num_steps=2))))
    return path


def test_train_then_export_gives_a_checkpoint(tmp_path: Path, recipe: Path) -> None:
    trained = _run("train", recipe, "--set", "name=short", "--set", "tuning.rank=2")
    assert trained.stdout.strip() == str(tmp_path / "runs" / "short" / "checkpoint-2")
    exported = _run("export", tmp_path / "runs" / "short", "--output", tmp_path / "out")
    assert exported.exit_code == 0
    assert json.loads((tmp_path / "out" / "eoseek.json").read_text())["name"] == "short"


def test_train_resume_goes_on(tmp_path: Path, recipe: Path) -> None:
    _run("train", recipe)
    longer = _run("train", recipe, "--resume", "--set", "num_steps=4")
    assert longer.stdout.strip().endswith("checkpoint-4")


def test_export_of_several_sources_is_their_average(tmp_path: Path, recipe: Path, tiny_base: Path) -> None:
    _run("train", recipe)
    _run("export", tmp_path / "runs" / "toy", tiny_base, "--weight", 3, "--weight", 1, "--output", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "eoseek.json").read_text())
    assert card["training"]["average"] == [0.75, 0.25]


def test_export_adapter_says_what_it_keeps(tmp_path: Path, recipe: Path, tiny_base: Path) -> None:
    _run("train", recipe)
    arguments = ("--adapter-rank", 4, "--base", tiny_base, "--output", tmp_path / "adapter")
    exported = _run("export", tmp_path / "runs" / "toy", *arguments)
    assert "of the difference's squared norm" in exported.stderr
    assert (tmp_path / "adapter" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "--output names the directory"),
        (("--output", "x", "--weight", 1, "--weight", 2), "2 --weight for 1 sources"),
        (("--output", "x", "--adapter-rank", 4, "--verify"), "reads a whole checkpoint"),
        (("--output", "x", "--slerp", 0.5, "--weight", 1), "give one of them"),
    ],
)
def test_export_contradictions_are_refused(tiny_base: Path, arguments: tuple[object, ...], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        _run("export", tiny_base, *arguments)


def test_train_override_without_value_is_refused(recipe: Path) -> None:
    with pytest.raises(ConfigurationError, match="give NAME=VALUE"):
        _run("train", recipe, "--set", "num_steps")


def test_mine_writes_negatives_and_says_what_was_dropped(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "toy.jsonl", toy_rows())
    mined = _run("mine", data, "--output", tmp_path / "mined.jsonl", "--num-negatives", 2)
    assert "negatives for 40 queries" in mined.stderr
    assert "dropped: " in mined.stderr
    assert len((tmp_path / "mined.jsonl").read_text().splitlines()) == 40


def test_teach_writes_vectors_of_every_text(tmp_path: Path, recipe: Path, tiny_base: Path) -> None:
    taught = _run("teach", recipe, "--teacher", tiny_base, "--output", tmp_path / "teacher")
    assert taught.exit_code == 0
    vectors = TeacherVectors(tmp_path / "teacher")
    assert vectors.queries([row["query"] for row in toy_rows()]).shape == (40, 32)


@pytest.mark.parametrize("command", ["export", "teach"])
def test_output_that_holds_something_else_is_not_replaced(
    tmp_path: Path, recipe: Path, tiny_base: Path, command: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    given = {"export": (tiny_base,), "teach": (recipe, "--teacher", tiny_base)}[command]
    with pytest.raises(ConfigurationError, match="so it is not replaced"):
        _run(command, *given, "--output", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_export_replaces_what_it_wrote(tmp_path: Path, tiny_base: Path) -> None:
    for _ in range(2):
        assert _run("export", tiny_base, "--output", tmp_path / "out").exit_code == 0
