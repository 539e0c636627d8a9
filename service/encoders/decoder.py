"""A decoder of the common families, read from safetensors into torch without transformers.

Importing transformers takes a core some 5 s, as long as all else from the command to the first answer. What a decoder
with RMS norms, rotary positions and a SiLU gate calculates is little, and the same in all its families; so the worker
reads those whose config asks for nothing else, if vectors that were recorded at their export by transformers' own code
are there for `probes` to compare (`checkpoint.is_plain`). All others are transformers'.

It stands where a model of transformers' does, in `packed_forward` and `FusedDecoder`; modules have the names that
checkpoints have.

Shapes: T tokens of the row, D hidden size, H heads, S size of a head.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from service.encoders.checkpoint import weight_files
from service.encoders.packed import Packing, packed_attention

# what a language model has beyond its states
_UNUSED = ("lm_head.weight", "rotary_emb.inv_freq")


class _Norm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        """In float32 or wider."""
        normed: Tensor = super().forward(x.float() if x.dtype == torch.bfloat16 else x)
        return normed


class _Rotary(nn.Module):
    inv_freq: Tensor

    def __init__(self, head_size: int, theta: float) -> None:
        super().__init__()
        exponents = torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size
        self.register_buffer("inv_freq", 1.0 / theta**exponents, persistent=False)

    def forward(self, x_1TD: Tensor, position_ids_1T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles, (1, T, S) in the format of x; both halves of a head turn by the same."""
        half = position_ids_1T[..., None].float() * self.inv_freq.float()
        angles_1TS = torch.cat((half, half), dim=-1)
        return angles_1TS.cos().to(x_1TD.dtype), angles_1TS.sin().to(x_1TD.dtype)


class _Attention(nn.Module):
    is_causal = True

    def __init__(self, config: Any, tensors: dict[str, Tensor], name: str) -> None:
        super().__init__()
        self._head_size: int = config.head_dim
        self.scaling: float = config.head_dim**-0.5
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            _linear(tensors, f"{name}.{each}_proj") for each in ("q", "k", "v", "o")
        )
        has_norms = f"{name}.q_norm.weight" in tensors
        self.q_norm, self.k_norm = (
            _norm(tensors, f"{name}.{each}_norm", config.rms_norm_eps) if has_norms else None for each in ("q", "k")
        )

    def forward(self, x_1TD: Tensor, angles: tuple[Tensor, Tensor], packing: Packing) -> Tensor:
        query, key, value = (
            product(x_1TD).unflatten(-1, (-1, self._head_size)) for product in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (x_1THS.transpose(1, 2) for x_1THS in (query, key, value))
        attended, _ = packed_attention(
            self, _rotate(query, angles), _rotate(key, angles), value, None, packing=packing, scaling=self.scaling
        )
        attended_1TD: Tensor = self.o_proj(attended.flatten(2))
        return attended_1TD


class _Gate(nn.Module):
    def __init__(self, tensors: dict[str, Tensor], name: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            _linear(tensors, f"{name}.{each}_proj") for each in ("gate", "up", "down")
        )

    def forward(self, x_1TD: Tensor) -> Tensor:
        gated: Tensor = self.down_proj(functional.silu(self.gate_proj(x_1TD)) * self.up_proj(x_1TD))
        return gated


class _Layer(nn.Module):
    def __init__(self, config: Any, tensors: dict[str, Tensor], name: str) -> None:
        super().__init__()
        self.input_layernorm = _norm(tensors, f"{name}.input_layernorm", config.rms_norm_eps)
        self.self_attn = _Attention(config, tensors, f"{name}.self_attn")
        self.post_attention_layernorm = _norm(tensors, f"{name}.post_attention_layernorm", config.rms_norm_eps)
        self.mlp = _Gate(tensors, f"{name}.mlp")

    def forward(self, x_1TD: Tensor, angles: tuple[Tensor, Tensor], packing: Packing) -> Tensor:
        x_1TD = x_1TD + self.self_attn(self.input_layernorm(x_1TD), angles, packing)
        changed_1TD: Tensor = x_1TD + self.mlp(self.post_attention_layernorm(x_1TD))
        return changed_1TD


class Decoder(nn.Module):
    """The layers of a checkpoint for which `checkpoint.is_plain` holds."""

    is_packed_only = True  # see `packed.is_packed_only`

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take over the tensors of a checkpoint, in one number format.

        Raises:
            ValueError: one of another shape than the config has, or one that no part of this model takes.
            KeyError: one that is missing.
        """
        super().__init__()
        theta = (config.get("rope_parameters") or {}).get("rope_theta") or config["rope_theta"]
        head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        self.config = SimpleNamespace(**config | {"head_dim": head_size})
        left = dict(tensors)
        for name in _UNUSED:
            left.pop(name, None)
        size, num_layers = config["hidden_size"], config["num_hidden_layers"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], size, _weight=left.pop("embed_tokens.weight"))
        self.layers = nn.ModuleList(_Layer(self.config, left, f"layers.{i}") for i in range(num_layers))
        self.norm = _norm(left, "norm", config["rms_norm_eps"])
        self.rotary_emb = _Rotary(head_size, theta)
        if left:
            raise ValueError(f"{len(left)} weights are of no part of this model, {min(left)} first")
        self._check_shapes()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.embed_tokens.weight.device

    def get_input_embeddings(self) -> nn.Embedding:
        """As of a model of transformers'."""
        return self.embed_tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor,
        packing: Packing,
        use_cache: bool = False,  # noqa: ARG002  (`packed_forward` passes it to models that have one)
    ) -> Any:
        """Last hidden states, (1, T, D) under `last_hidden_state`, of a row of ids or of their embeddings."""
        x_1TD: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        angles = self.rotary_emb(x_1TD, position_ids)
        for layer in self.layers:
            x_1TD = layer(x_1TD, angles, packing)
        return SimpleNamespace(last_hidden_state=self.norm(x_1TD))

    def _check_shapes(self) -> None:
        config: Any = self.config
        size, gate_size = config.hidden_size, config.intermediate_size
        query_size, key_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        expected = {
            "embed_tokens.weight": (config.vocab_size, size),
            "q_proj.weight": (query_size, size),
            "k_proj.weight": (key_size, size),
            "v_proj.weight": (key_size, size),
            "o_proj.weight": (size, query_size),
            "gate_proj.weight": (gate_size, size),
            "up_proj.weight": (gate_size, size),
            "down_proj.weight": (size, gate_size),
        }
        for name, parameter in self.named_parameters():
            shape = expected.get(".".join(name.split(".")[-2:]))
            if shape is not None and parameter.shape != shape:
                raise ValueError(f"{name} is of shape {tuple(parameter.shape)}, the config says {shape}")


def read_decoder(path: Path, *, dtype: torch.dtype) -> Decoder:
    """The decoder of a checkpoint for which `checkpoint.is_plain` holds, for inference.

    Args:
        path: its directory.
        dtype: of the products; where it is that of the files, weights are pages of theirs. Norms are float32.
    Raises:
        ValueError, KeyError, SafetensorError: weights that do not fit the config, or files that are broken.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        for name, tensor in load_file(file).items():
            is_norm = name.endswith("norm.weight")
            tensors[name.removeprefix("model.")] = tensor.to(torch.float32 if is_norm else dtype)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return Decoder(config, tensors).requires_grad_(False).eval()


def _linear(tensors: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias", None)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _norm(tensors: dict[str, Tensor], name: str, eps: float) -> _Norm:
    weight = tensors.pop(f"{name}.weight")
    norm = _Norm(len(weight), eps, device="meta")
    norm.weight = nn.Parameter(weight, requires_grad=False)
    return norm


def _rotate(x_1HTS: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = (each.unsqueeze(1) for each in angles)
    low, high = x_1HTS.chunk(2, dim=-1)
    return x_1HTS * cosine + torch.cat((-high, low), dim=-1) * sine
