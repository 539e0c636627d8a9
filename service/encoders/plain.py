"""Which decoders a worker reads without transformers: those whose config asks for nothing but what `decoder` does.

Without torch, as the service asks it before there is a worker.
"""

from typing import Any

DECODER_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Families of decoders with RMS norms, rotary positions and a SiLU gate; see `fused` and `decoder`."""
# transformers has other defaults for each family
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def is_plain_decoder(config: dict[str, Any]) -> bool:
    """Whether a config, without its nulls, asks for nothing that `Decoder` does not do."""
    family = config.get("model_type")
    slides = config.get("sliding_window") and (
        not str(family).startswith("qwen") or config.get("use_sliding_window", True)
    )
    sizes = [config.get(key) for key in _SIZES]
    return (
        family in DECODER_FAMILIES
        and config.get("hidden_act") == "silu"
        and config.get("is_causal", True) is True
        and not {"auto_map", "quantization_config", "partial_rotary_factor"} & config.keys()
        and not slides
        and set(config.get("layer_types") or ["full_attention"]) == {"full_attention"}
        and all(isinstance(size, int) and size > 0 for size in [*sizes, config.get("head_dim", 1)])
        and isinstance(config.get("rms_norm_eps"), float)
        and rope_theta(config) is not None
    )


def rope_theta(config: dict[str, Any]) -> float | None:
    """The base of rotary positions; None where they are scaled, or where the config does not tell it in one way."""
    bases = {config["rope_theta"]} if isinstance(config.get("rope_theta"), int | float) else set()
    for key in ("rope_parameters", "rope_scaling"):
        rope = {} if config.get(key) is None else config[key]
        if not isinstance(rope, dict) or not rope.keys() <= {"rope_theta", "rope_type", "type"}:
            return None
        if [rope.get("rope_type", "default"), rope.get("type", "default")] != ["default"] * 2:
            return None
        if "rope_theta" in rope:
            bases.add(rope["rope_theta"] if isinstance(rope["rope_theta"], int | float) else None)
    (base,) = bases if len(bases) == 1 else (None,)
    return base
