"""Probe texts whose vectors travel with a checkpoint, so that whatever encodes with it can be held against them.

A tokenizer that lost its [EOS], another pooling, a rotary base that a reader ignored: each gives embeddings that look
like any others, and only a comparison with the vectors recorded at export shows it.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.encoders.base import Embeddings, Encoder, TokenIds
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


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Recorded texts as an encoder gets them, and what it must make of them: shape (len(texts), dimension)."""

    texts: Sequence[str]
    token_ids: Sequence[TokenIds]
    vectors: Embeddings

    def worst(self, encoded: Embeddings) -> tuple[str, float]:
        """The text that `encoded`, of the shape of `vectors`, embeds least as recorded, and its cosine."""
        cosines = (encoded * self.vectors).sum(axis=1)
        index = int(np.argmin(cosines))  # NaN is taken for the least
        return self.texts[index], float(cosines[index])


def read_probes(contract: TokenContract, recorded: Mapping[str, str], *, dimension: int) -> Probes:
    """Recorded vectors beside complete token ids. A text that a lower length limit cuts is left out.

    Raises:
        ConfigurationError: they cannot be read, or are of another dimension.
    """
    try:
        vectors = decode_probes(recorded)
    except ValueError as error:
        raise ConfigurationError(f"the vectors recorded in eoseek.json cannot be read: {error}") from error
    if any(vector.shape != (dimension,) for vector in vectors.values()):
        raise ConfigurationError(f"the vectors recorded in eoseek.json are not of {dimension} dimensions")
    tokenized = contract.documents([("", text) for text in vectors], truncate=True)
    # a text that is cut has another vector by right
    texts, cut = list(vectors), set(tokenized.truncated)
    kept = [index for index in range(len(texts)) if index not in cut]
    return Probes(
        texts=[texts[index] for index in kept],
        token_ids=[tokenized.token_ids[index] for index in kept],
        vectors=np.array([vectors[texts[index]] for index in kept], dtype=np.float32).reshape(-1, dimension),
    )


def check_probes(encoder: Encoder, contract: TokenContract, recorded: Mapping[str, str]) -> float:
    """Hold an encoder against recorded vectors; nothing recorded passes.

    Returns:
        The lowest cosine, 1.0 where nothing is recorded.
    Raises:
        ConfigurationError: a cosine under `MIN_COSINE`, or vectors that are broken or of another dimension.
    """
    probes = read_probes(contract, recorded, dimension=encoder.dimension)
    if not probes.texts:
        return 1.0
    text, cosine = probes.worst(encoder.encode(probes.token_ids))
    if not cosine >= MIN_COSINE:
        raise ConfigurationError(
            f"it embeds {text[:40]!r} with cosine {cosine:.3f} to the vector recorded when it was exported, "
            f"below {MIN_COSINE}: weights, tokenizer or pooling are not those of the export. Fetch or export it again"
        )
    return cosine


def _encode(encoder: Encoder, contract: TokenContract, texts: Sequence[str]) -> Embeddings:
    return encoder.encode(contract.documents([("", text) for text in texts], truncate=True).token_ids)
