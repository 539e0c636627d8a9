"""A checkpoint as a function from texts to embeddings, offline: for teachers, mining and evaluation."""

from collections.abc import Sequence

from service.encoders.base import Embeddings
from service.encoders.checkpoint import load_checkpoint
from service.encoders.torch_encoder import load_encoder
from training.data.formats import DocumentText


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
        self._contract = loaded.contract.limited_to(limit)
        self._encoder = load_encoder(checkpoint, dtype=dtype)
        self._instruction = instruction

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self._encoder.dimension

    def queries(self, texts: Sequence[str]) -> Embeddings:
        """(len(texts), dimension), float32, unit length."""
        tokenized = self._contract.queries(texts, instruction=self._instruction, truncate=True)
        return self._encoder.encode(tokenized.token_ids)

    def documents(self, documents: Sequence[DocumentText]) -> Embeddings:
        """As `queries`."""
        return self._encoder.encode(self._contract.documents(documents, truncate=True).token_ids)
