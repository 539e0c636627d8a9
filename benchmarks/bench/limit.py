"""What a token costs in products with weights: the yardstick for documents/s."""

from typing import Any


def shapes(config: dict[str, Any]) -> list[tuple[int, int]]:
    """(inputs, outputs) of the products of one layer of a Llama-like decoder, from its config.json."""
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    keys = config.get("num_key_value_heads", heads) * head
    attention = [(width, heads * head), (width, keys), (width, keys), (heads * head, width)]
    return [*attention, (width, inner), (width, inner), (inner, width)]


def flop_per_token(config: dict[str, Any]) -> int:
    """Of all layers' products with weights; attention's own, a few per cent at usual lengths, are left out."""
    return 2 * config["num_hidden_layers"] * sum(inputs * outputs for inputs, outputs in shapes(config))
