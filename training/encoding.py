"""A checkpoint as a function from texts to embeddings, offline: for teachers, mining and evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from service.encoders.base import Embeddings, Encoder, TokenIds
from service.encoders.checkpoint import load_checkpoint
from service.encoders.prompt import Tokenized
from service.encoders.torch_loading import load_encoder
from training.data.formats import DocumentText

_PIECE = 256  # texts between two calls of `progress`


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Embeddings of some texts, (texts, dimension), and how many of the texts were cut."""

    embeddings: Embeddings
    num_truncated: int


class CheckpointEmbedder:
    """Embeds queries and documents in this process; texts over the checkpoint's length are cut."""

    def __init__(
        self, checkpoint: str, *, instruction: str | None = None, max_length: int | None = None, dtype: str = "auto"
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: a directory, a hub name or `default`.
            instruction: of queries; None is the checkpoint's own.
            max_length: tokens at which texts are cut, where the checkpoint's own limit does not cut them before.
            dtype: as `load_encoder`.
        Raises:
            ConfigurationError: as `load_checkpoint`.
        """
        loaded = load_checkpoint(checkpoint)
        limit = loaded.max_length if max_length is None else min(max_length, loaded.max_length)
        self.fingerprint = loaded.fingerprint
        self.max_length = limit
        self._contract = loaded.contract.limited_to(limit)
        self._encoder = load_encoder(checkpoint, dtype=dtype)
        self._instruction = instruction

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self._encoder.dimension

    @property
    def dtype(self) -> str:
        """Number format of the products."""
        return self._encoder.dtype

    @property
    def takes_instruction(self) -> bool:
        """Whether the checkpoint's frame has a place for an instruction."""
        return "{instruction}" in self._contract.frame.query_template

    def queries(self, texts: Sequence[str]) -> Embeddings:
        """(len(texts), dimension), float32, unit length."""
        return self.embed_queries(texts, instruction=self._instruction).embeddings

    def documents(self, documents: Sequence[DocumentText]) -> Embeddings:
        """As `queries`."""
        return self.embed_documents(documents).embeddings

    def embed_queries(self, texts: Sequence[str], *, instruction: str | None) -> Embedded:
        """As `queries`, under one instruction; None is the checkpoint's own, not the embedder's."""
        return self._embed(self._contract.queries(texts, instruction=instruction, truncate=True), None)

    def embed_documents(
        self, documents: Sequence[tuple[str, str]], *, progress: Callable[[int], object] | None = None
    ) -> Embedded:
        """Embed (title, text) pairs, longest first, in pieces of similar length; the result is in input order.

        Args:
            documents: held as token ids at once, so give a block of them.
            progress: told how many more are done.
        """
        return self._embed(self._contract.documents(documents, truncate=True), progress)

    def _embed(self, tokenized: Tokenized, progress: Callable[[int], object] | None) -> Embedded:
        embeddings = encode_by_length(self._encoder, tokenized.token_ids, progress=progress)
        return Embedded(embeddings=embeddings, num_truncated=len(tokenized.truncated))


def encode_by_length(
    encoder: Encoder, token_ids: Sequence[TokenIds], *, progress: Callable[[int], object] | None = None
) -> Embeddings:
    """Embeddings in input order, (len(token_ids), dimension), made in pieces of similar length.

    Args:
        encoder: as the contract says.
        token_ids: complete ids of each text.
        progress: told how many more are done.
    Raises:
        EncoderError: as `Encoder.encode`.
    """
    # longest first: what does not fit in memory fails at once
    order = sorted(range(len(token_ids)), key=lambda index: -len(token_ids[index]))
    embeddings = np.empty((len(token_ids), encoder.dimension), dtype=np.float32)
    for start in range(0, len(order), _PIECE):
        piece = order[start : start + _PIECE]
        embeddings[piece] = encoder.encode([token_ids[index] for index in piece])
        if progress is not None:
            progress(len(piece))
    return embeddings
