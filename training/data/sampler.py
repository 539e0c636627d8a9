"""Which examples form the batch of a step: a pure function of (seed, step), so that resuming needs no state.

A batch comes from one set. Sets take turns by their ratios, always within one batch of the exact share; each set is
shuffled anew in every pass over it (its epoch), and a pass leaves out the remainder that fills no batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The examples of one batch."""

    set_index: int
    epoch: int  # passes over this set that were completed before
    example_indices: tuple[int, ...]


class Sampler:
    """Draws batches from sets of given sizes."""

    def __init__(
        self, sizes: Sequence[int], *, ratios: Sequence[float], batch_size: int, num_steps: int, seed: int
    ) -> None:
        """Plan which set each step draws from.

        Args:
            sizes: examples of each set.
            ratios: share of each set's batches, > 0, of any sum.
            batch_size: examples in a batch.
            num_steps: batches in all; a longer plan starts with the same steps.
            seed: decides every order.
        Raises:
            ValueError: a set smaller than one batch.
        """
        if min(sizes) < batch_size:
            raise ValueError(f"a set of {min(sizes)} examples fills no batch of {batch_size}")
        self._sizes = list(sizes)
        self._batch_size = batch_size
        self._seed = seed
        self._set_indices, self._ordinals = _turns(ratios, num_steps, seed)
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return len(self._set_indices)

    def draw(self, step: int) -> Draw:
        """The batch of `step`, 0-based."""
        set_index, ordinal = self._set_indices[step], self._ordinals[step]
        epoch, batch = divmod(ordinal, self._sizes[set_index] // self._batch_size)
        order = self._order(set_index, epoch)
        chosen = order[batch * self._batch_size : (batch + 1) * self._batch_size]
        return Draw(set_index=set_index, epoch=epoch, example_indices=tuple(chosen.tolist()))

    def _order(self, set_index: int, epoch: int) -> NDArray[np.int64]:
        cached = self._orders.get(set_index)
        if cached is None or cached[0] != epoch:
            generator = np.random.default_rng([self._seed, set_index, epoch])
            cached = self._orders[set_index] = epoch, generator.permutation(self._sizes[set_index])
        return cached[1]


def _turns(ratios: Sequence[float], num_steps: int, seed: int) -> tuple[list[int], list[int]]:
    """The set of each step, and how many batches that set gave before: the set furthest behind its share is next."""
    shares = np.asarray(ratios, dtype=np.float64) / float(sum(ratios))
    # a random head start keeps sets of equal share from following each other in one fixed cycle from step 0 on
    credit = np.random.default_rng([seed, len(shares)]).random(len(shares))
    counts = [0] * len(shares)
    set_indices, ordinals = [], []
    for _ in range(num_steps):
        credit += shares
        chosen = int(credit.argmax())
        credit[chosen] -= 1.0
        set_indices.append(chosen)
        ordinals.append(counts[chosen])
        counts[chosen] += 1
    return set_indices, ordinals
