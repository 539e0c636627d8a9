"""The encoder contract: complete token ids in, unit-length float32 embeddings out, in input order.

Two faces of one thing: `Encoder` runs inside the worker process and blocks; `AsyncEncoder` is what the batcher drives
from the event loop. Token ids are complete: BOS, template, truncation and the closing [EOS] are already in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
TokenIds = Sequence[int]
Pooling = Literal["cls", "mean", "last_token"]


@runtime_checkable
class Encoder(Protocol):
    """What turns token ids into embeddings, in one process, blocking."""

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        ...

    @property
    def dtype(self) -> str:
        """Number format of the products: `float32`, `bfloat16`, `int16`."""
        ...

    def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """Embed texts given as complete token ids.

        Args:
            token_ids: one non-empty sequence of ids per text; [EOS] included.
        Returns:
            Shape (len(token_ids), dimension), float32, rows of unit length, in input order.
            An empty list gives shape (0, dimension).
        Raises:
            EncoderError: the engine failed, or an embedding is not finite.
        """
        ...


@runtime_checkable
class BackgroundEncoder(Encoder, Protocol):
    """An encoder that can work on two batches at a time, one of which gives way to the other."""

    @property
    def has_background(self) -> bool:
        """Whether it can here."""
        ...

    def encode_in_background(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """As `encode`, beside calls of it, and slowed by them rather than slowing them. One call at a time."""
        ...


@dataclass(kw_only=True)
class PrefixFigures:
    """What became of openings that texts share; counts since they were last taken, and the level now."""

    hits: int = 0  # texts that continued from kept states
    misses: int = 0  # texts calculated whole, so that the states of their opening were there for others
    evictions: int = 0
    saved_tokens: int = 0
    held_tokens: int = 0  # the level


@runtime_checkable
class PrefixEncoder(Encoder, Protocol):
    """An encoder that may keep states of shared openings, and counts what became of them."""

    def take_prefix_figures(self) -> PrefixFigures:
        """What happened since the last call."""
        ...


@runtime_checkable
class AsyncEncoder(Protocol):
    """An encoder behind the boundary of a process or a network; safe to call while another call is under way."""

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        ...

    @property
    def dtype(self) -> str:
        """Number format of the products; empty before `start`."""
        ...

    @property
    def num_parallel(self) -> int:
        """How many calls it executes side by side, at least 1; more wait behind them. May change while it runs."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a call now would be executed rather than wait for a (re)start."""
        ...

    async def start(self) -> None:
        """Load the checkpoint; returns when ready. Raises ConfigurationError if it never can be."""
        ...

    async def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """As `Encoder.encode`. Raises EncoderError when the worker was lost and the one retry failed."""
        ...

    async def stop(self) -> None:
        """End the worker. Calls still under way raise EncoderError."""
        ...


@runtime_checkable
class AsyncBackgroundEncoder(AsyncEncoder, Protocol):
    """The same of `BackgroundEncoder`."""

    @property
    def has_background(self) -> bool:
        """As `BackgroundEncoder.has_background`; known once it is started."""
        ...

    async def encode_in_background(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """As `encode`, beside calls of it, and giving way to them."""
        ...
