"""From runs to checkpoints that every reader loads: adapters merged, several averaged, vectors compared.

Everything is computed in float32 and written in the base's precision unless asked otherwise.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from service.encoders.adapter import merge_adapter, write_adapter
from service.encoders.card import CheckpointCard, read_card, write_card
from service.encoders.checkpoint import Checkpoint, load_checkpoint
from service.encoders.layout import replaced_directory, write_checkpoint
from service.encoders.probes import decode_probes, encode_probes
from service.encoders.torch_encoder import TorchEncoder
from service.encoders.torch_loading import load_encoder, load_model
from service.errors import ConfigurationError
from training.base import open_base
from training.config import TrainingConfig
from training.model import EmbeddingModel, apply_tuning, load_tuned
from training.run import RECORD, read_record, read_run_config
from training.saving import checkpoints
from training.trainer import BEST

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Tuned weights in float32, with all that is written beside them."""

    model: PreTrainedModel
    checkpoint: Checkpoint  # of the base, or the exported one: tokenizer and contract
    card: CheckpointCard


def load_tuned_model(source: Path) -> Tuned:
    """Read a run (its best checkpoint, else its newest), one checkpoint of a run, or an exported directory.

    Raises:
        ConfigurationError: it is none of these, or its weights do not load.
    """
    if (source / RECORD).exists():
        best = source / BEST
        return _from_run(source, best if best.exists() else _newest(source))
    if (source.parent / RECORD).exists() and not (source / "config.json").exists():
        return _from_run(source.parent, source)
    checkpoint = load_checkpoint(str(source))
    model = load_model(checkpoint, dtype=torch.float32, device="cpu", trust_remote_code=False)
    return Tuned(model=model, checkpoint=checkpoint, card=_card(checkpoint))


def _newest(run_dir: Path) -> Path:
    found = checkpoints(run_dir)
    if not found:
        raise ConfigurationError(f"{run_dir} holds no checkpoint yet")
    return found[-1]


def _from_run(run_dir: Path, folder: Path) -> Tuned:
    config = read_run_config(run_dir)
    base = open_base(config.base, run_dir / "base", trust_remote_code=config.trust_remote_code)
    model = load_model(base, dtype=torch.float32, device="cpu", trust_remote_code=config.trust_remote_code)
    apply_tuning(model, config.tuning)
    load_tuned(EmbeddingModel(model, pooling=base.pooling), folder, ignore=("alignment.",))
    _merge_lora(model)
    if config.pooling:
        base = replace(base, pooling=config.pooling)
    return Tuned(model=model, checkpoint=base, card=_run_card(config, base, run_dir, folder))


def _merge_lora(model: PreTrainedModel) -> None:
    """Put tuned linear layers where layers with adapters were."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in [each for each in model.named_modules() if isinstance(each[1], BaseTunerLayer)]:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def _run_card(config: TrainingConfig, base: Checkpoint, run_dir: Path, folder: Path) -> CheckpointCard:
    record = read_record(run_dir)
    scores = folder / "scores.json"
    # where files lay on the machine that trained says nothing to others
    recipe = {key: value for key, value in record["config"].items() if key not in ("output", "data_root")}
    training: dict[str, Any] = {"recipe": recipe, "data": record["data"], "versions": record["versions"]}
    training["checkpoint"] = json.loads(scores.read_text()) if scores.exists() else {"step": folder.name}
    base_card = _card(base)
    return CheckpointCard(
        name=config.name,
        is_tuned=True,
        base=base_card.base or base.name,
        licence=config.base_licence or base_card.licence,
        default_instruction=config.default_instruction,
        query_template=base.contract.frame.query_template,
        instructions={each.name: each.instructions[0] for each in config.sets if each.instructions[0]},
        training=training,
    )


def _card(checkpoint: Checkpoint) -> CheckpointCard:
    path = checkpoint.path / "eoseek.json"
    if not path.exists():
        frame = checkpoint.contract.frame
        return CheckpointCard(
            name=checkpoint.name,
            is_tuned=False,
            base=checkpoint.name,
            licence="",
            default_instruction=frame.default_instruction,
            query_template=frame.query_template,
        )
    return read_card(path.parent)


def average(tuned: Sequence[Tuned], *, weights: Sequence[float] | None = None) -> Tuned:
    """The weighted mean of several tunings of one base; the first one's contract. Source: arXiv:2203.05482.

    Raises:
        ConfigurationError: their weights differ in name or shape, or nothing is to be taken of them.
    """
    shares = np.asarray(weights if weights is not None else [1.0] * len(tuned), dtype=np.float64)
    if not (np.isfinite(shares).all() and shares.sum() > 0):
        raise ConfigurationError(f"weights {shares.tolist()} must be finite and of a sum above 0")
    shares = shares / shares.sum()
    states = _matching_states(tuned)
    mean = {
        name: sum(
            (share * state[name] for share, state in zip(shares.tolist(), states, strict=True)), torch.tensor(0.0)
        )
        for name in states[0]
    }
    return _combined(tuned, mean, {"average": [float(share) for share in shares]})


def slerp(tuned: Sequence[Tuned], *, share: float) -> Tuned:
    """Each weight of two tunings turned from the first (share 0) to the second (share 1) along the great circle.

    Raises:
        ConfigurationError: not two, or their weights differ in name or shape.
    """
    if len(tuned) != 2:
        raise ConfigurationError(f"slerp joins two checkpoints, not {len(tuned)}")
    first, second = _matching_states(tuned)
    turned = {name: _slerp(first[name], second[name], share) for name in first}
    return _combined(tuned, turned, {"slerp": share})


def _slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    cosine = torch.nn.functional.cosine_similarity(first.flatten().double(), second.flatten().double(), dim=0)
    angle = torch.arccos(cosine.clamp(-1.0, 1.0))
    if angle < 1e-4:  # parallel: the limit is the straight line
        return first + share * (second - first)
    parts = torch.sin((1 - share) * angle) * first.double() + torch.sin(share * angle) * second.double()
    return (parts / torch.sin(angle)).to(first.dtype)


def _matching_states(tuned: Sequence[Tuned]) -> list[dict[str, Tensor]]:
    states = [each.model.state_dict() for each in tuned]
    kinds = [
        (each.model.config.model_type, {name: tensor.shape for name, tensor in state.items()})
        for each, state in zip(tuned, states, strict=True)
    ]
    if any(kind != kinds[0] for kind in kinds):
        raise ConfigurationError("these checkpoints have different weights; only tunings of one base can be joined")
    return states


def _combined(tuned: Sequence[Tuned], state: dict[str, Tensor], how: dict[str, Any]) -> Tuned:
    first = tuned[0]
    first.model.load_state_dict(state)
    training = how | {"of": [dict(each.card.training) for each in tuned]}
    return replace(first, card=replace(first.card, training=training, probes={}))


def export(tuned: Tuned, path: Path, *, dtype: Literal["auto", "float32", "bfloat16"] = "auto") -> None:
    """Write a checkpoint directory with the vectors of its probe texts recorded in it.

    Args:
        tuned: weights and card; the model is left in the written precision.
        path: is replaced.
        dtype: `auto` keeps the precision of the base's files.
    """
    written = _stored_dtype(tuned.checkpoint) if dtype == "auto" else getattr(torch, dtype)
    _convert(tuned.model, written)
    vectors = _probe_vectors(tuned.model, tuned.checkpoint)
    _convert(tuned.model, written)
    write_checkpoint(
        path,
        tuned.model,
        Tokenizer.from_file(str(tuned.checkpoint.path / "tokenizer.json")),
        special_tokens=_special_tokens(tuned.checkpoint.path),
        pooling=tuned.checkpoint.pooling,
        max_length=tuned.checkpoint.max_length,
        card=replace(tuned.card, probes=vectors),
    )


def _probe_vectors(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, str]:
    """Of rounded weights, in float32: what a reader with exact arithmetic computes. Leaves the model in float32."""
    _convert(model, torch.float32)
    module: nn.Module = model
    module.eval()
    encoder = TorchEncoder(model, pooling=checkpoint.pooling, dimension=checkpoint.dimension, row_tokens=1024)
    return encode_probes(encoder, checkpoint.contract)


def _convert(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """What is written, and no buffers: a reader computes rotary frequencies anew, in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Of the weights themselves: what config.json says need not be true."""
    from safetensors import safe_open

    with safe_open(min(checkpoint.path.glob("*.safetensors")), "pt") as weights:
        dtype: torch.dtype = weights.get_tensor(next(iter(weights.keys()))).dtype
    return dtype


def _special_tokens(path: Path) -> dict[str, str]:
    settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens = {name: settings.get(name) for name in _SPECIAL_TOKENS}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items() if token}


def export_adapter(tuned: Tuned, base: str, path: Path, *, rank: int) -> float:
    """Write the difference to a base as a low-rank adapter, with the card beside it.

    Args:
        tuned: float32, of a run with `rank` or less exactly, of full tuning as near as the rank allows.
        base: `default`, a directory or a hub name.
        path: is replaced.
        rank: of every layer.
    Returns:
        Share of the difference's squared norm that the adapter keeps.
    Raises:
        ConfigurationError: nothing differs, or the base has other weights.
    """
    checkpoint = load_checkpoint(base)
    before = load_model(checkpoint, dtype=torch.float32, device="cpu", trust_remote_code=False).state_dict()
    after = {name: each.float() for name, each in tuned.model.state_dict().items()}
    if {name: each.shape for name, each in before.items()} != {name: each.shape for name, each in after.items()}:
        raise ConfigurationError(f"{base} has other weights than the tuned model")
    changed = [name for name in after if not torch.equal(before[name], after[name])]
    factors, kept, total = {}, 0.0, 0.0
    for name in (each for each in changed if after[each].ndim == 2):
        if "embed" in name:  # has no place in an adapter, and is not kept
            total += float((after[name] - before[name]).square().sum())
        else:
            left, values, right = torch.linalg.svd(after[name] - before[name], full_matrices=False)
            root = values[:rank].sqrt()
            factors[name.removesuffix(".weight")] = left[:, :rank] * root, root[:, None] * right[:rank]
            kept, total = kept + float(values[:rank].square().sum()), total + float(values.square().sum())
    if not factors:
        raise ConfigurationError("no linear layer differs from the base, so there is no adapter to write")
    vectors = {name: after[name] for name in changed if after[name].ndim == 1}
    with replaced_directory(path) as new:
        write_adapter(new, factors, vectors, base=_card(checkpoint).base)
        write_card(new, replace(tuned.card, probes=_merged_probes(checkpoint, new)))
    return kept / total


def _merged_probes(base: Checkpoint, adapter: Path) -> dict[str, str]:
    """Vectors of the merged weights as they will be written, so that whoever merges them can check the result."""
    merged = load_model(base, dtype=torch.float32, device="cpu", trust_remote_code=False)
    _convert(merged, _stored_dtype(base))  # as `eoseek model pull` reads the base
    merge_adapter(merged, adapter)
    return _probe_vectors(merged, base)


def verify(path: Path, *, pythons: Sequence[str] = ()) -> dict[str, float]:
    """Lowest cosine to the recorded vectors by reader: ours in both precisions, sentence-transformers, vLLM.

    Args:
        path: an exported directory.
        pythons: further interpreters whose sentence-transformers and vLLM are asked.
    Raises:
        ConfigurationError: the directory records no vectors, or an interpreter could not read it.
    """
    from training.readers import foreign_vectors

    checkpoint = load_checkpoint(str(path))
    recorded = decode_probes(checkpoint.probes)
    if not recorded:
        raise ConfigurationError(f"{path} records no vectors; export it again")
    texts, vectors = list(recorded), np.stack(list(recorded.values()))
    token_ids = checkpoint.contract.documents([("", text) for text in texts], truncate=True).token_ids
    cosines = {}
    for dtype in ("float32", "bfloat16"):
        encoded = load_encoder(str(path), dtype=dtype, device="cpu").encode(token_ids)
        cosines[f"eoseek {dtype}"] = float((encoded * vectors).sum(axis=1).min())
    for name, read in foreign_vectors(checkpoint.path, texts, pythons):  # of a name, the directory
        cosines[name] = float((read * vectors).sum(axis=1).min())
    return cosines
