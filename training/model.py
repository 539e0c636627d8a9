"""What is tuned: a transformers model in its packed forward, pooled, with adapters or with its own weights free.

The forward is the service's, so a text gets in training the vector that it gets in serving (which calculates texts of
at most four tokens a precision higher on top). Tuned weights keep the model's dtype and collect their gradients in
float32; the optimizer holds their float32 masters.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from service.encoders.adapter import read_adapter
from service.encoders.base import Pooling
from service.encoders.checkpoint import Checkpoint
from service.encoders.packed import enable_packing, packed_forward, padded_forward
from service.encoders.pooling import pool
from service.encoders.torch_loading import choose_dtype, load_model
from service.errors import ConfigurationError
from training.alignment import Alignment
from training.config import TrainingConfig, TuningConfig

WEIGHTS = "tuned.safetensors"


class EmbeddingModel(nn.Module):
    """Token ids to embeddings, differentiable."""

    def __init__(self, backbone: PreTrainedModel, *, pooling: Pooling, alignment: Alignment | None = None) -> None:
        """Take over a backbone.

        Args:
            backbone: in its dtype; adapters, if any, are inside.
            pooling: from token states to an embedding.
            alignment: with a teacher's vectors; saved along, not part of the exported model.
        """
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.alignment = alignment
        self._forward = packed_forward if enable_packing(backbone) else padded_forward

    def forward(self, token_ids: list[list[int]]) -> Tensor:
        """(len(token_ids), dimension), float32, rows of unit length."""
        hidden_TD = self._forward(self.backbone, token_ids)
        return pool(hidden_TD, [len(ids) for ids in token_ids], self.pooling)

    def tuned_parameters(self) -> dict[str, nn.Parameter]:
        """What is tuned, by name, in a fixed order."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad}

    def saved_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint of a run holds, by name: the tuned parameters, and what the alignment has gathered."""
        alignment = self.alignment.state_dict(prefix="alignment.") if self.alignment is not None else {}
        return self.tuned_parameters() | alignment


def build_model(
    checkpoint: Checkpoint, config: TrainingConfig, *, device: str, teacher_dimension: int | None = None
) -> EmbeddingModel:
    """The model of a run at step 0.

    Args:
        checkpoint: the base.
        config: of the run; its seed decides the adapter's first weights.
        device: `cpu`, `cuda`, ...
        teacher_dimension: of the vectors to match, if any are.
    Raises:
        ConfigurationError: weights that do not load, or no weight of the given names to tune.
    """
    # accelerate shards float32 weights and lowers their precision itself
    precision = "float32" if config.fsdp else config.memory.precision
    dtype = choose_dtype(precision, device)
    backbone = load_model(checkpoint, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code)
    torch.manual_seed(config.seed)
    apply_tuning(backbone, config.tuning)
    if config.tuning.adapter:
        start_from_adapter(backbone, Path(config.tuning.adapter), config.tuning)
    if config.memory.gradient_checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    alignment = None
    if config.distillation.vector_weight and teacher_dimension:
        alignment = Alignment(checkpoint.dimension, teacher_dimension).to(device)
    model = EmbeddingModel(backbone, pooling=config.pooling or checkpoint.pooling, alignment=alignment)
    for parameter in model.tuned_parameters().values():
        parameter.grad_dtype = torch.float32
    return model


def apply_tuning(backbone: PreTrainedModel, tuning: TuningConfig) -> None:
    """Free the weights that are tuned and freeze the others; adapters go into the backbone."""
    if tuning.method == "full":
        frozen = backbone.get_input_embeddings() if tuning.freeze_embeddings else None
        for parameter in backbone.parameters():
            parameter.requires_grad_(True)
        if frozen is not None:
            frozen.requires_grad_(False)
        return
    from peft import inject_adapter_in_model

    dtype = backbone.dtype
    try:
        inject_adapter_in_model(lora_config(tuning), backbone)
    except ValueError as error:
        raise ConfigurationError(f"tuning.targets {list(tuning.targets)}: {error}") from error
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)


def start_from_adapter(backbone: PreTrainedModel, folder: Path, tuning: TuningConfig) -> None:
    """Give the adapters of a backbone the weights of an exported one.

    Raises:
        ConfigurationError: unreadable, or of other layers or another rank than `tuning` names.
    """
    weights, scaling = read_adapter(folder)
    own = {name.replace(".default.", "."): each for name, each in backbone.named_parameters() if "lora_" in name}
    fits = {name: each.shape for name, each in own.items()} == {name: each.shape for name, each in weights.items()}
    if not fits:
        raise ConfigurationError(f"tuning.adapter {folder}: other layers or another rank than this run's {tuning.rank}")
    factor = scaling * tuning.rank / tuning.alpha
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name] * factor if "lora_B" in name else weights[name])


def lora_config(tuning: TuningConfig) -> Any:
    """The adapter as peft describes it."""
    from peft import LoraConfig

    return LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=list(tuning.targets),
        task_type="FEATURE_EXTRACTION",
    )


def save_tuned(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the tuned weights and the alignment; `state` instead of the model's own where they are sharded."""
    from safetensors.torch import save_file

    own = cast(EmbeddingModel, model).saved_tensors()
    state = own if state is None else {name: state[name] for name in own}
    save_file({name: each.detach().contiguous().cpu() for name, each in state.items()}, folder / WEIGHTS)


def load_tuned(model: EmbeddingModel, folder: Path, *, ignore: tuple[str, ...] = ()) -> None:
    """Read what `save_tuned` wrote.

    Args:
        model: of the same configuration.
        folder: where it was written.
        ignore: beginnings of names to leave out.
    Raises:
        ConfigurationError: missing, or the weights of another configuration.
    """
    from safetensors.torch import load_file

    try:
        saved = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises a kind of its own
        raise ConfigurationError(f"{folder / WEIGHTS}: {error}") from error
    state = {name: each for name, each in saved.items() if not name.startswith(ignore)}
    own = model.saved_tensors()
    if state.keys() != own.keys():
        different = sorted(state.keys() ^ own.keys())
        raise ConfigurationError(f"{folder}: tuned weights of another configuration, {different[0]} first")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
