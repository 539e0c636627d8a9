"""`eoseek.json`: what a checkpoint, or the adapter to one, says of itself beyond its weights."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from service.encoders.prompt import DEFAULT_QUERY_TEMPLATE
from service.errors import ConfigurationError

CARD = "eoseek.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class CheckpointCard:
    """What `eoseek.json` says beyond the weights."""

    name: str
    is_tuned: bool
    base: str
    licence: str
    default_instruction: str = ""
    query_template: str = DEFAULT_QUERY_TEMPLATE
    instructions: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)  # recipe, data hashes, scores
    probes: Mapping[str, str] = field(default_factory=dict)  # document text to its embedding, float32, base64


def write_card(path: Path, card: CheckpointCard) -> None:
    """Write `eoseek.json` into a directory."""
    content = json.dumps(asdict(card), indent=2, ensure_ascii=False)
    (path / CARD).write_text(content + "\n", encoding="utf-8")


def read_card(path: Path) -> CheckpointCard:
    """Read what `write_card` wrote. Raises ConfigurationError."""
    try:
        return CheckpointCard(**json.loads((path / CARD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{path / CARD}: {error}") from error
