"""Parts of an app that need no weights."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from service.encoders.base import Embeddings, TokenIds
from service.encoders.checkpoint import Checkpoint
from service.encoders.prompt import Frame, TokenContract

DIMENSION = 32
MAX_LENGTH = 64


def byte_tokenizer() -> Tokenizer:
    """One token a byte, then [EOS]."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)} | {"</s>": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return tokenizer


def tiny_checkpoint(*, fingerprint: str = "f" * 64) -> Checkpoint:
    contract = TokenContract(byte_tokenizer(), Frame(), max_length=MAX_LENGTH, eos_ids=[256])
    return Checkpoint(
        path=Path("/checkpoints/tiny"),
        name="tiny",
        fingerprint=fingerprint,
        dimension=DIMENSION,
        max_length=MAX_LENGTH,
        pooling="last_token",
        normalize=True,
        is_tuned=False,
        instructions={"code": "Find the function"},
        contract=contract,
    )


class HashEncoder:
    """A unit vector drawn from the hash of the ids: equal texts get equal embeddings."""

    dimension = DIMENSION
    is_ready = True

    def __init__(self) -> None:
        self.num_texts = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        self.num_texts += len(token_ids)
        rows = [_direction(ids) for ids in token_ids]
        return np.array(rows, dtype=np.float32).reshape(len(rows), DIMENSION)


def _direction(ids: TokenIds) -> Embeddings:
    seed = hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=8).digest()
    row = np.random.default_rng(int.from_bytes(seed)).standard_normal(DIMENSION)
    return np.asarray(row / np.linalg.norm(row), dtype=np.float32)
