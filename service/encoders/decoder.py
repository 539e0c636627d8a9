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
from service.encoders.plain import rope_theta

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
        self.q_norm, self.k_norm = (
            _norm(tensors, f"{name}.{each}_norm", config.rms_norm_eps) if config.has_head_norms else None
            for each in ("q", "k")
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
            ValueError: some are missing, of another shape than the config has, or of no part of this model.
        """
        super().__init__()
        family = config["model_type"]
        self.config = SimpleNamespace(**{key: value for key, value in config.items() if value is not None})
        self.config.head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        self.config.sliding_window = None  # one that is named is not used
        self.config.has_head_norms = family == "qwen3"
        # which of a layer's products have a bias: transformers' code of each family says it
        self.config.attention_biases = {"qwen2": "qkv", "mistral": ""}.get(
            family, "qkvo" if config.get("attention_bias") else ""
        )
        self.config.has_gate_biases = family == "llama" and bool(config.get("mlp_bias"))
        tensors = {name: tensor for name, tensor in tensors.items() if name not in _UNUSED}
        _check_shapes(tensors, self.config)
        num_layers, eps = config["num_hidden_layers"], config["rms_norm_eps"]
        embeddings = tensors["embed_tokens.weight"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"], _weight=embeddings)
        self.layers = nn.ModuleList(_Layer(self.config, tensors, f"layers.{i}") for i in range(num_layers))
        self.norm = _norm(tensors, "norm", eps)
        theta = rope_theta(config)
        assert theta is not None, "it is plain"
        self.rotary_emb = _Rotary(self.config.head_dim, theta)

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


def _check_shapes(tensors: dict[str, Tensor], config: Any) -> None:
    """Raises ValueError unless these are exactly the weights of such a model."""
    size, gate_size = config.hidden_size, config.intermediate_size
    query_size, key_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    products = {
        "self_attn.q_proj": (query_size, size),
        "self_attn.k_proj": (key_size, size),
        "self_attn.v_proj": (key_size, size),
        "self_attn.o_proj": (size, query_size),
        "mlp.gate_proj": (gate_size, size),
        "mlp.up_proj": (gate_size, size),
        "mlp.down_proj": (size, gate_size),
    }
    layer: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in products.items()}
    with_bias = [f"self_attn.{each}_proj" for each in config.attention_biases]
    if config.has_gate_biases:
        with_bias += [name for name in products if name.startswith("mlp.")]
    layer |= {f"{name}.bias": products[name][:1] for name in with_bias}
    layer |= {f"{name}.weight": (size,) for name in ("input_layernorm", "post_attention_layernorm")}
    if config.has_head_norms:
        layer |= {f"self_attn.{each}_norm.weight": (config.head_dim,) for each in ("q", "k")}
    expected: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, size), "norm.weight": (size,)}
    for i in range(config.num_hidden_layers):
        expected |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'no such weight')}")


def read_decoder(path: Path, *, dtype: torch.dtype) -> Decoder:
    """The decoder of a checkpoint for which `checkpoint.is_plain` holds, for inference.

    Args:
        path: its directory.
        dtype: of the products; where it is that of the files, weights are pages of theirs. Norms are float32.
    Raises:
        ValueError: weights that do not fit the config; safetensors and the file system have errors of their own.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        for full_name, tensor in load_file(file).items():
            name = full_name.removeprefix("model.")
            if name in tensors:
                raise ValueError(f"{name} is there twice")
            tensors[name] = tensor.to(torch.float32 if name.endswith("norm.weight") else dtype)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return Decoder(config, tensors).requires_grad_(False).eval()


def _linear(tensors: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _norm(tensors: dict[str, Tensor], name: str, eps: float) -> _Norm:
    weight = tensors[f"{name}.weight"]
    norm = _Norm(len(weight), eps, device="meta")
    norm.weight = nn.Parameter(weight, requires_grad=False)
    return norm


def _rotate(x_1HTS: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = (each.unsqueeze(1) for each in angles)
    low, high = x_1HTS.chunk(2, dim=-1)
    return x_1HTS * cosine + torch.cat((-high, low), dim=-1) * sine
