"""The training loop: transformers' `Trainer` with our batches, our step, our evaluation and our way to save.

Trainer drives (schedule, clipping, logging, resume); a step is `cached_step` on the whole batch. Several processes sum
their gradients here rather than in a wrapper, so chunks may differ in number. A checkpoint appears whole or not at all.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from service.errors import ConfigurationError
from training.config import TrainingConfig
from training.data.collator import Batch, Collator
from training.data.sampler import Sampler
from training.errors import TrainingDivergedError
from training.gradient_cache import add_gradients, cached_step, plan_chunks
from training.held_out import HeldOutTask
from training.loss import Objective, Targets
from training.model import EmbeddingModel, load_tuned, save_tuned
from training.optimizer import MasterAdamW
from training.progress import ProgressBar
from training.saving import checkpoint_dir, checkpoints, remove, unusable, whole_or_not

BEST = "best"


class Steps(Dataset[Batch]):
    """The batch of each step."""

    def __init__(self, sampler: Sampler, collator: Collator) -> None:
        self._sampler = sampler
        self._collator = collator

    def __len__(self) -> int:
        return len(self._sampler)

    def __getitem__(self, step: int) -> Batch:
        return self._collator(self._sampler.draw(step))


class EmbeddingTrainer(Trainer):
    """Trains an `EmbeddingModel` on `Steps`."""

    model: EmbeddingModel

    def __init__(
        self,
        model: EmbeddingModel,
        config: TrainingConfig,
        steps: Steps,
        *,
        objective: Objective,
        held_out: HeldOutTask | None,
        resumes: bool = False,
    ) -> None:
        """Take over what the run consists of.

        Args:
            model: at step 0; a checkpoint is loaded into it when training resumes.
            config: of the run.
            steps: its batches.
            objective: its loss.
            held_out: what is searched during training; None searches nothing.
            resumes: whether training goes on from a checkpoint.
        """
        self._config = config
        self._objective = objective
        self._held_out = held_out
        self._terms: dict[str, list[float]] = {}
        super().__init__(
            model,
            training_arguments(config, evaluates=held_out is not None, resumes=resumes),
            train_dataset=steps,
            eval_dataset=[] if held_out is not None else None,
        )
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(ProgressBar(name=config.name, metric=config.evaluation.metric))

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Step by step; every process draws the same step and keeps its share."""
        assert self.train_dataset is not None
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=_only)

    def get_batch_samples(
        self,
        epoch_iterator: Iterator[Batch],
        num_batches: int,
        device: torch.device,  # noqa: ARG002
    ) -> tuple[list[Batch], None]:
        """The next batch; a step is one batch, never several accumulated."""
        assert num_batches == 1
        return [next(epoch_iterator)], None

    def training_step(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: Batch,
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> Tensor:
        """Add the gradient of one batch to the parameters.

        Returns:
            The loss of the whole batch, the same in every process.
        Raises:
            TrainingDivergedError: it is not finite.
        """
        embed = self._embedder(model)
        embed.train()
        is_sharded = bool(self._config.fsdp)
        counts = [sum(each) for each in zip(inputs.query_counts, inputs.document_counts, strict=True)]
        loss = cached_step(
            inputs.queries + inputs.documents,
            embed=embed,
            loss=partial(self._loss, inputs),
            chunk_tokens=self._config.memory.chunk_tokens,
            kept_tokens=0 if is_sharded else self._config.memory.kept_tokens,
            counts=counts,
            num_chunks=self._common_chunks(inputs) if is_sharded else 0,
            scale=self.args.world_size if is_sharded else 1.0,
        )
        if not is_sharded:
            add_gradients(list(self.model.tuned_parameters().values()))
        return loss.to(self.args.device)

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Not counted: Trainer's estimate knows neither packing nor chunks."""
        return 0

    def _embedder(self, model: nn.Module) -> nn.Module:
        """FSDP's wrapper must be called; DDP's is passed by, as `add_gradients` does its work."""
        return model if self._config.fsdp else self.model

    def _common_chunks(self, batch: Batch) -> int:
        """Chunks of the process that has most: sharded weights are gathered in step."""
        lengths = [len(ids) for ids in batch.queries + batch.documents]
        most = torch.tensor(
            len(plan_chunks(lengths, chunk_tokens=self._config.memory.chunk_tokens)), device=self.args.device
        )
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most)

    def _loss(self, batch: Batch, gathered: Tensor) -> Tensor:
        queries, documents = split_gathered(gathered, batch.query_counts, batch.document_counts)
        device = gathered.device
        terms = self._objective(
            queries,
            documents,
            Targets(
                targets_B=batch.targets_B.to(device),
                masked_BN=batch.masked_BN.to(device),
                teacher_scores_BN=None if batch.teacher_scores_BN is None else batch.teacher_scores_BN.to(device),
                teacher_vectors=None if batch.teacher_vectors is None else batch.teacher_vectors.to(device),
            ),
        )
        values = {name: float(value.detach()) for name, value in terms.items()}
        if not math.isfinite(values["loss"]):
            raise TrainingDivergedError(
                f"step {self.state.global_step + 1}, set {batch.set_name}: the loss is {values['loss']} ({values}); "
                f"the last checkpoint in {self._config.run_dir} is good. "
                "Lower optimizer.learning_rate or look at the data"
            )
        for name, value in values.items():
            if name != "loss":
                self._terms.setdefault(name, []).append(value)
        self._terms.setdefault("truncated_texts", []).append(float(batch.num_truncated))
        return terms["loss"]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip, and refuse gradients that are not finite before they reach the weights."""
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if not math.isfinite(float(norm)):
            raise TrainingDivergedError(
                f"step {self.state.global_step + 1}: the gradient is not finite; "
                f"the last checkpoint in {self._config.run_dir} is good"
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of the loss's terms since the last log."""
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._terms.items()}
            self._terms.clear()
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW on float32 masters; vectors (norms, biases) do not decay."""
        if self.optimizer is None:
            config = self._config.optimizer
            tuned = [each for each in (model or self.model).parameters() if each.requires_grad]
            groups = [
                {"params": [each for each in tuned if each.ndim > 1], "weight_decay": config.weight_decay},
                {"params": [each for each in tuned if each.ndim <= 1], "weight_decay": 0.0},
            ]
            self.optimizer = MasterAdamW(
                [group for group in groups if group["params"]],
                lr=config.learning_rate,
                betas=config.betas,
                eps=config.epsilon,
            )
        return self.optimizer

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Search the held-out part; the best weights so far are kept in `best/`."""
        assert self._held_out is not None
        embed = self._embedder(self.model_wrapped)
        embed.eval()
        values = self._held_out.evaluate(embed)
        metrics = {f"eval_{name}": value for name, value in values.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._keep_best(values)
        return metrics

    def _keep_best(self, values: Mapping[str, float]) -> None:
        value = values[self._config.evaluation.metric]
        if self.state.best_metric is not None and value <= self.state.best_metric:
            return
        self.state.best_metric = value
        with self._whole_or_not(self._config.run_dir / BEST) as folder:
            self._save_weights(folder)
            if self.args.should_save:
                scores = {"step": self.state.global_step, "scores": dict(values)}
                (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ARG002
        """Write weights, optimizer, schedule, random state and log of this step, whole or not at all."""
        run_dir = self._config.run_dir
        with self._whole_or_not(checkpoint_dir(run_dir, self.state.global_step)) as folder:
            self._save_weights(folder)
            if self.args.should_save:
                self.state.save_to_json(str(folder / "trainer_state.json"))
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
        if self.args.should_save:
            for folder in checkpoints(run_dir)[: -self._config.saving.keep]:
                remove(folder)

    def _whole_or_not(self, folder: Path) -> AbstractContextManager[Path]:
        return whole_or_not(folder, is_main=self.args.should_save, wait=self.accelerator.wait_for_everyone)

    def _save_weights(self, folder: Path) -> None:
        state = self.accelerator.get_state_dict(self.model) if self._config.fsdp else None
        if self.args.should_save:
            save_tuned(self.model, folder, state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:  # noqa: ARG002
        try:
            load_tuned(self.model, Path(resume_from_checkpoint))
        except ConfigurationError as error:
            raise unusable(Path(resume_from_checkpoint), error) from error

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _naming(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _naming(checkpoint):
            super()._load_rng_state(checkpoint)


@contextmanager
def _naming(checkpoint: str | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch and pickle raise many kinds for a damaged file
        if checkpoint is None:
            raise
        raise unusable(Path(checkpoint), str(error).splitlines()[0][:200]) from error


def training_arguments(config: TrainingConfig, *, evaluates: bool, resumes: bool) -> TrainingArguments:
    """What Trainer is told; the rest of a run is decided elsewhere."""
    return TrainingArguments(
        output_dir=str(config.run_dir),
        max_steps=config.num_steps,
        per_device_train_batch_size=1,  # one of our batches
        lr_scheduler_type=config.optimizer.schedule,
        warmup_steps=round(config.optimizer.warmup * config.num_steps),
        learning_rate=config.optimizer.learning_rate,
        max_grad_norm=config.optimizer.max_grad_norm,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.saving.every_steps,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.evaluation.every_steps or None,
        eval_on_start=evaluates and config.evaluation.at_start and not resumes,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        fsdp="full_shard" if config.fsdp else None,
        fsdp_config=dict(config.fsdp) if config.fsdp else None,
    )


def split_gathered(
    gathered: Tensor, query_counts: Sequence[int], document_counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Queries and documents of the whole batch from (queries, documents) of each process in turn."""
    sizes = [size for pair in zip(query_counts, document_counts, strict=True) for size in pair]
    parts = torch.split(gathered, sizes)
    return torch.cat(parts[::2]), torch.cat(parts[1::2])


def _only(batches: list[Batch]) -> Batch:
    return batches[0]
