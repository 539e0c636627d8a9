"""Folders that appear whole or not at all: a full disk or a kill leaves the checkpoint before intact."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import ConfigurationError
from training.errors import CheckpointSaveError

_PREFIX = "checkpoint-"
_STATE = "trainer_state.json"
_NEEDED = (_STATE, "optimizer*", "scheduler.pt", "rng_state*.pth")  # some have a file a process


@contextmanager
def whole_or_not(folder: Path, *, is_main: bool = True, wait: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """A fresh folder that takes the place of `folder` when the block ends without an error.

    Args:
        folder: to be written, or replaced.
        is_main: whether this process makes and moves the folder; the others only write into it.
        wait: returns when every process has called it.
    Raises:
        CheckpointSaveError: anything failed; `folder` is as it was.
    """
    new = folder.with_name(f".{folder.name}.new")
    try:
        if is_main:
            remove(new)
            new.mkdir(parents=True)
        wait()
        yield new
        wait()
        if is_main:
            _take_place(new, folder)
    except Exception as error:  # safetensors and torch raise kinds of their own for a full disk
        remove(new)
        raise CheckpointSaveError(
            f"{folder} could not be written ({error}); what was saved before is intact. Free some space and resume"
        ) from error


def checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [each for each in run_dir.glob(f"{_PREFIX}*") if each.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def check_complete(checkpoint: Path) -> None:
    """Refuse to go on from what lacks a file: transformers would start that part anew without a word.

    Raises:
        ConfigurationError: names the file and the way out.
    """
    for name in _NEEDED:
        if not any(checkpoint.glob(name)):
            raise unusable(checkpoint, f"{name} is missing")
    try:
        json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise unusable(checkpoint, f"{_STATE}: {error}") from error


def unusable(checkpoint: Path, reason: object) -> ConfigurationError:
    """The error of a checkpoint that training cannot go on from."""
    return ConfigurationError(
        f"{checkpoint} cannot be resumed from: {reason}; remove this folder to go on from the one before it"
    )


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run_dir / f"{_PREFIX}{step}"


def remove(folder: Path) -> None:
    """Delete a folder if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def _take_place(new: Path, folder: Path) -> None:
    for entry in [*new.rglob("*"), new]:
        _sync(entry)
    old = folder.with_name(f".{folder.name}.old")
    remove(old)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _sync(folder.parent)
    remove(old)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
