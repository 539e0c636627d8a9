"""docs/training.md: its recipe is one; its commands run one after the other, on a tiny model and in this process."""

import json
import os
import sys
from pathlib import Path

import pytest

from eoseek.cli import main
from tests.pages import blocks, read, shell_commands, words
from tests.workspace import write_data, write_small_recipe
from training.config import load_config
from training.data.formats import read_examples

BLOCKS = blocks(read("docs/training.md"))
NOT_RUN = {
    "torchrun --nproc-per-node 8 -m eoseek train answers.yaml --set name=on-eight": "test_processes.py has two",
    "eoseek export checkpoints/answers --verify": "tests/test_readme.py verifies, in processes of other readers",
    "EOSEEK_ENCODER__CHECKPOINT=checkpoints/answers eoseek serve": "tests/test_readme.py serves",
}
COMMANDS = [command for block in BLOCKS if block.language == "sh" for command in shell_commands(block.text)]


def only(language: str) -> str:
    (text,) = [block.text for block in BLOCKS if block.language == language]
    return text


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "page.yaml"
    path.write_text(only("yaml"))
    return path


def test_page_example_line_is_training_data(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(only("json"))
    (example,) = read_examples(tmp_path / "pairs.jsonl")
    assert (example.source, len(example.negatives)) == ("pets", 1)


def test_page_recipe_is_one(recipe: Path) -> None:
    assert load_config(recipe).name == "answers"


def test_page_commands_run_one_after_the_other(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path)
    write_small_recipe(recipe, tmp_path / "answers.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EOSEEK_URL", raising=False)
    for command in [each for each in COMMANDS if each not in NOT_RUN]:
        program, *arguments = words(command)
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (program, ended.value.code or 0) == ("eoseek", 0), (command, capsys.readouterr().err)
    for name in ("answers", "soup", "between"):
        assert json.loads((tmp_path / "checkpoints" / name / "eoseek.json").read_text())["name"] == "answers"
    assert {"scifact.answers.run", "scifact.default.jsonl"} <= set(os.listdir(tmp_path / "results"))


def test_page_commands_that_are_not_run_are_there() -> None:
    assert set(NOT_RUN) <= set(COMMANDS)
