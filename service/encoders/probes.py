"""Probe texts whose vectors travel with a checkpoint, so that whatever encodes with it can be held against them.

A tokenizer that lost its [EOS], another pooling, a rotary base that a reader ignored: each gives embeddings that look
like any others, and only a comparison with the vectors recorded at export shows it.
"""

import base64
from collections.abc import Mapping, Sequence

import numpy as np

from service.encoders.base import Embeddings, Encoder
from service.encoders.prompt import TokenContract
from service.errors import ConfigurationError

PROBES = (
    "a",
    "merge two sorted lists",
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b",
    "Title\n\nA text below its title, with two sentences. This is the second.",
    "检索 検索 검색",
    "naïve café, 1,234.5 €",
    " ".join(["word"] * 60),
)
"""Document texts; a checkpoint may have recorded others. None ends in a space: sentence-transformers 3 cuts it off."""

MIN_COSINE = 0.99
"""Rounding to bfloat16 stays above it, a broken contract far below."""


def encode_probes(encoder: Encoder, contract: TokenContract) -> dict[str, str]:
    """The vectors of `PROBES`, as `eoseek.json` keeps them: text to float32, little endian, base64."""
    encoded = zip(PROBES, _encode(encoder, contract, PROBES), strict=True)
    return {text: base64.b64encode(vector.astype("<f4").tobytes()).decode() for text, vector in encoded}


def decode_probes(recorded: Mapping[str, str]) -> dict[str, Embeddings]:
    """Vectors by text, from what `encode_probes` made."""
    return {text: np.frombuffer(base64.b64decode(vector), dtype="<f4") for text, vector in recorded.items()}


def check_probes(encoder: Encoder, contract: TokenContract, recorded: Mapping[str, str]) -> float:
    """Hold an encoder against recorded vectors; nothing recorded passes.

    Returns:
        The lowest cosine, 1.0 where nothing is recorded.
    Raises:
        ConfigurationError: a cosine under `MIN_COSINE`, or vectors of another dimension.
    """
    if not recorded:
        return 1.0
    vectors = decode_probes(recorded)
    # a text that a lower length limit cuts has another vector by right
    cut = set(contract.documents([("", text) for text in vectors], truncate=True).truncated)
    vectors = {text: vector for index, (text, vector) in enumerate(vectors.items()) if index not in cut}
    encoded = _encode(encoder, contract, list(vectors))
    if any(vector.shape != encoded.shape[1:] for vector in vectors.values()):
        raise ConfigurationError(f"the vectors recorded in eoseek.json are not of {encoded.shape[1]} dimensions")
    cosines = {text: float(own @ vector) for own, (text, vector) in zip(encoded, vectors.items(), strict=True)}
    worst = min(cosines, key=lambda text: cosines[text])
    if not cosines[worst] >= MIN_COSINE:
        raise ConfigurationError(
            f"it embeds {worst[:40]!r} with cosine {cosines[worst]:.3f} to the vector recorded when it was exported, "
            f"below {MIN_COSINE}: weights, tokenizer or pooling are not those of the export. Fetch or export it again"
        )
    return cosines[worst]


def _encode(encoder: Encoder, contract: TokenContract, texts: Sequence[str]) -> Embeddings:
    return encoder.encode(contract.documents([("", text) for text in texts], truncate=True).token_ids)
