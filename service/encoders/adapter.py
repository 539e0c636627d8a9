"""A tuned difference in peft's file format, added to a base model without peft: what the repository ships.

`adapter_model.safetensors` holds `lora_A` and `lora_B` of linear layers and whole tensors of what is small (norms).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.encoders.card import ADAPTER_WEIGHTS
from service.errors import ConfigurationError

CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], float]:
    """An adapter's tensors by name within the model, and what the product of `lora_B` and `lora_A` is multiplied by.

    Raises:
        ConfigurationError: a file missing or broken.
    """
    from safetensors.torch import load_file

    try:
        config: Mapping[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = {name.removeprefix(_PREFIX): each for name, each in load_file(folder / ADAPTER_WEIGHTS).items()}
        return weights, config["lora_alpha"] / config["r"]
    except Exception as error:  # safetensors raises a kind of its own
        raise ConfigurationError(f"adapter {folder}: {error}") from error


def merge_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Add an adapter to the weights of a model, in place, in float32.

    Args:
        model: the base that the adapter was made for.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
    Raises:
        ConfigurationError: a file missing or broken, or weights that the model does not have.
    """
    weights, scaling = read_adapter(folder)
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        if name.endswith(_B):
            continue
        target = parameters.get(name.replace(_A, ".weight"))
        up = weights.get(name.replace(_A, _B)) if name.endswith(_A) else None
        shape = tuple(weight.shape) if up is None else (up.shape[0], weight.shape[1])
        if target is None or shape != tuple(target.shape):
            raise ConfigurationError(f"adapter {folder}: {name} fits no weight of this base")
        with torch.no_grad():
            target.copy_(weight if up is None else target.float() + scaling * (up.float() @ weight.float()))


def write_adapter(
    folder: Path, differences: Mapping[str, tuple[Tensor, Tensor]], replaced: Mapping[str, Tensor], *, base: str
) -> None:
    """Write what `merge_adapter` and peft read, in bfloat16.

    Args:
        folder: exists.
        differences: (lora_B, lora_A) by the name of a layer, all of one rank; their product is the difference.
        replaced: whole tensors by the name of the weight.
        base: name of the base model.
    """
    from safetensors.torch import save_file

    rank = next(iter(differences.values()))[1].shape[0]
    weights = {f"{_PREFIX}{name}": tensor for name, tensor in replaced.items()}
    for name, (up, down) in differences.items():
        weights |= {f"{_PREFIX}{name}{_A}": down, f"{_PREFIX}{name}{_B}": up}
    save_file(
        {name: each.to(torch.bfloat16).contiguous() for name, each in weights.items()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    (folder / ADAPTER_WEIGHTS).chmod(0o644)  # safetensors writes 0600
    config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in differences}),
        "modules_to_save": sorted({name.split(".")[-2] for name in replaced}) or None,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
