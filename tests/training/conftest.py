import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import write_tiny_checkpoint
from training.config import TrainingConfig, config_from

_ADJECTIVES = ("red", "green", "blue", "small", "large", "old", "new", "warm", "cold", "round")
_NOUNS = ("apple", "bridge", "candle", "drum")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def toy_rows() -> list[dict[str, Any]]:
    """40 queries with one positive and two negatives each."""
    kinds = [(adjective, noun) for adjective in _ADJECTIVES for noun in _NOUNS]
    return [
        {
            "query": f"a {adjective} {noun}?",
            "positive": f"the {noun} is {adjective}",
            "negatives": [f"no {noun} is {adjective}", f"the {noun} of {adjective}ness"],
        }
        for adjective, noun in kinds
    ]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def make_config(tmp_path: Path, tiny_base: Path) -> Callable[..., TrainingConfig]:
    """A run of a few steps on toy data; keyword arguments change it."""

    def make(**changes: Any) -> TrainingConfig:
        write_lines(tmp_path / "toy.jsonl", toy_rows())
        content = {
            "name": "toy",
            "base": str(tiny_base),
            "output": str(tmp_path / "runs"),
            "data_root": str(tmp_path),
            "num_steps": 4,
            "batch_size": 8,
            "num_negatives": 1,
            "query_length": 64,
            "document_length": 64,
            "sets": [{"name": "toy", "path": "toy.jsonl", "instructions": ["Find it", ""]}],
            "tuning": {"rank": 4},
            "memory": {"chunk_tokens": 128, "precision": "float32"},
            "logging_steps": 1,
            "saving": {"every_steps": 2, "keep": 2},
        }
        return config_from(content | changes)

    return make
