"""A run from its config: data, model and trainer put together, its record written, resumed where asked."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from service.encoders.checkpoint import Checkpoint, load_checkpoint
from service.encoders.torch_loading import choose_device
from service.errors import ConfigurationError
from training.base import open_base
from training.config import TrainingConfig, config_as_dict, config_from, versions
from training.data.collator import Collator
from training.data.mixture import Mixture, load_mixture
from training.data.sampler import Sampler
from training.data.teacher import TeacherVectors
from training.held_out import HeldOutTask
from training.loss import Objective
from training.model import build_model
from training.saving import check_complete, checkpoints, step_of
from training.trainer import EmbeddingTrainer, Steps

RECORD = "run.json"
# what may differ between a run and its continuation: none of it changes what a step computes, beyond rounding
_MAY_CHANGE = frozenset({"num_steps", "output", "data_root", "logging_steps", "saving", "memory", "fsdp"})


def train(config: TrainingConfig, *, resume: bool = False) -> Path:
    """Train, in one process or in each process of a launcher such as torchrun.

    Args:
        config: of the run.
        resume: go on from the newest checkpoint of `config.run_dir`.
    Returns:
        The newest checkpoint.
    Raises:
        ConfigurationError: nothing to resume, a run that is already there, another config or other data than its.
        DataError: training data that cannot be used.
        TrainingDivergedError: a loss or gradient that is not finite.
        CheckpointSaveError: a checkpoint that could not be written.
    """
    newest = _newest(config, resume)
    mixture = load_mixture(config)
    state = PartialState(cpu=not torch.cuda.is_available())
    _check_processes(config, state.num_processes)
    if state.is_main_process:
        _write_record(config, mixture, resume)
    state.wait_for_everyone()
    trainer = _trainer(config, mixture, state, resumes=resume)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    return checkpoints(config.run_dir)[-1]


def end_processes() -> None:
    """Part the processes of a launcher, once all are done; the last that a program does with them.

    Left to the interpreter's end, Gloo's threads now and then abort a run that is done (pytorch issue 190489). Not for
    a run that failed, whose processes may still wait for one another.
    """
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()


def _trainer(config: TrainingConfig, mixture: Mixture, state: PartialState, *, resumes: bool) -> EmbeddingTrainer:
    base = _base(config, state)
    _check_lengths(mixture, base)
    _check_dimensions(config, base)
    _check_teacher(config, mixture)
    vectors = config.distillation.vectors
    teacher = TeacherVectors(config.data_path(vectors)) if vectors and config.distillation.is_on else None
    model = build_model(
        base, config, device=choose_device("auto"), teacher_dimension=None if teacher is None else teacher.dimension
    )
    sampler = Sampler(
        [len(each.examples) for each in mixture.sets],
        ratios=[each.ratio for each in mixture.sets],
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        seed=config.seed,
    )
    collator = Collator(
        mixture.sets,
        base.contract,
        seed=config.seed,
        teacher=teacher,
        process=state.process_index,
        num_processes=state.num_processes,
    )
    return EmbeddingTrainer(
        model,
        config,
        Steps(sampler, collator),
        objective=Objective(config.loss, config.distillation, alignment=model.alignment),
        held_out=HeldOutTask(mixture.held_out, base.contract, config) if mixture.held_out.corpus else None,
        resumes=resumes,
    )


def _base(config: TrainingConfig, state: PartialState) -> Checkpoint:
    """Completed by the first process alone, as a copy that several write would be moved away under a reader."""
    paths: list[str | None] = [None]
    if state.is_main_process:
        base = open_base(config.base, config.run_dir / "base", trust_remote_code=config.trust_remote_code)
        paths = [str(base.path)]
    broadcast_object_list(paths)
    if not state.is_main_process:
        base = load_checkpoint(str(paths[0]), trust_remote_code=config.trust_remote_code)
    return base


def _check_dimensions(config: TrainingConfig, base: Checkpoint) -> None:
    for size in config.loss.matryoshka:
        if size >= base.dimension:
            raise ConfigurationError(
                f"loss.matryoshka {size}: the base has {base.dimension} dimensions, trained anyway; name fewer"
            )


def _check_lengths(mixture: Mixture, base: Checkpoint) -> None:
    for each in mixture.sets:
        longest = max(each.query_length, each.document_length)
        if longest > base.max_length:
            raise ConfigurationError(
                f"set {each.name}: texts of {longest} tokens are over the {base.max_length} of the base; "
                "lower query_length or document_length"
            )


def _check_teacher(config: TrainingConfig, mixture: Mixture) -> None:
    if not config.distillation.is_on or config.distillation.vectors:
        return
    followed = [example for each in mixture.sets if each.follows_teacher for example in each.examples]
    if all(each.positive_scores is None for each in followed):
        raise ConfigurationError(
            "distillation has nothing to follow: no example has positive_scores, and distillation.vectors names no "
            "teacher's vectors; write them with: eoseek teach"
        )


def _check_processes(config: TrainingConfig, num_processes: int) -> None:
    if config.batch_size < num_processes:
        raise ConfigurationError(
            f"batch_size {config.batch_size} is less than the {num_processes} processes that share it; raise it"
        )
    if config.fsdp and num_processes == 1:
        raise ConfigurationError(
            "fsdp shards a model over several processes; start them with torchrun, or leave it out"
        )


def _newest(config: TrainingConfig, resume: bool) -> Path | None:
    found = checkpoints(config.run_dir)
    if resume and not found:
        raise ConfigurationError(f"{config.run_dir} holds no checkpoint to resume from")
    if found and not resume:
        raise ConfigurationError(
            f"{config.run_dir} holds {found[-1].name}: resume that run, or give this one another name or output"
        )
    if resume:
        check_complete(found[-1])
    if resume and (done := step_of(found[-1])) > config.num_steps:
        raise ConfigurationError(f"{found[-1]} is beyond num_steps {config.num_steps}; give more than {done} to go on")
    return found[-1] if resume else None


def read_record(run_dir: Path) -> dict[str, Any]:
    """`config`, `data` (sha256 by path), `versions` of a run. Raises ConfigurationError."""
    try:
        record: dict[str, Any] = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
        if not (isinstance(record["config"], dict) and isinstance(record["data"], dict)):
            raise TypeError("`config` and `data` must be objects")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{run_dir / RECORD}: {error!s}; is this the directory of a run?") from error
    return record


def read_run_config(run_dir: Path) -> TrainingConfig:
    """The config that a run was started with. Raises ConfigurationError."""
    return config_from(read_record(run_dir)["config"], str(run_dir / RECORD))


def _write_record(config: TrainingConfig, mixture: Mixture, resume: bool) -> None:
    plain = config_as_dict(config)
    if resume:
        before = read_record(config.run_dir)
        different = [key for key in plain if key not in _MAY_CHANGE and before["config"].get(key) != plain[key]]
        if (before["config"].get("memory") or {}).get("precision") != plain["memory"]["precision"]:
            different.append("memory.precision")
        if different:
            raise ConfigurationError(f"{config.run_dir} was trained with another {', '.join(different)}")
        changed = [path for path, sha256 in mixture.hashes.items() if before["data"].get(path) != sha256]
        if changed:
            raise ConfigurationError(f"{changed[0]} is not the file that {config.run_dir} was trained on")
    record = {"config": plain, "data": mixture.hashes, "versions": versions()}
    part = config.run_dir / f".{RECORD}.new"
    try:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(config.run_dir / RECORD)  # without its record a run can neither go on nor be exported
    except OSError as error:
        raise ConfigurationError(f"{config.run_dir} cannot be written ({error}); give another output") from error
