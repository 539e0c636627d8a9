import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.training import two_processes
from training.config import TrainingConfig, config_as_dict
from training.model import WEIGHTS
from training.run import train
from training.saving import checkpoints

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def _launch(module: str, *arguments: str) -> None:
    """Run a module in two processes; the launcher takes a free port."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*command, module, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    loss, expected = two_processes.gradient([5], [7], 0)
    _launch(two_processes.__name__, str(tmp_path))
    for process in (0, 1):
        shared = load_file(tmp_path / f"{process}.safetensors")
        torch.testing.assert_close(shared.pop("loss"), loss, rtol=1e-5, atol=1e-5)
        assert shared.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(shared[name], gradient, rtol=1e-5, atol=1e-5)


def _logged(run_dir: Path, *names: str) -> list[list[float]]:
    state: dict[str, Any] = json.loads((checkpoints(run_dir)[-1] / "trainer_state.json").read_text())
    return [[each[name] for name in names] for each in state["log_history"] if "loss" in each]


def test_two_processes_train_as_one_and_resume(tmp_path: Path, make_config: Callable[..., TrainingConfig]) -> None:
    changes: dict[str, Any] = {"num_steps": 4, "tuning": {"method": "full"}}
    changes |= {"evaluation": {"every_steps": 4, "held_out_queries": 4, "corpus_size": 20, "at_start": False}}
    one, two = make_config(name="one", **changes), make_config(name="two", **changes)
    train(one)
    recipe = tmp_path / "two.yaml"
    recipe.write_text(yaml.safe_dump(config_as_dict(two)))
    _launch("eoseek", "train", str(recipe))
    torch.testing.assert_close(
        torch.tensor(_logged(two.run_dir, "loss", "grad_norm")),
        torch.tensor(_logged(one.run_dir, "loss", "grad_norm")),
        rtol=1e-4,
        atol=1e-4,
    )
    whole = load_file(checkpoints(two.run_dir)[-1] / WEIGHTS)
    # as if the launcher had been killed after the second step
    checkpoints(two.run_dir)[-1].rename(tmp_path / "lost")
    _launch("eoseek", "train", str(recipe), "--resume")
    again = load_file(checkpoints(two.run_dir)[-1] / WEIGHTS)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
