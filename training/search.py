"""Exact search in bounded memory: documents are embedded and compared block by block, only the best are kept."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
_T = TypeVar("_T")


def blocks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block


def top_documents(
    queries: Embeddings,
    documents: Iterable[_T],
    *,
    embed: Callable[[list[_T]], Embeddings],
    top_k: int,
    block_size: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best documents of each query by inner product.

    Args:
        queries: (q, dimension).
        documents: read once.
        embed: (n, dimension) for n documents.
        top_k: documents kept for each query.
        block_size: documents embedded and compared at once.
    Returns:
        Scores and positions in `documents`, both (q, min(top_k, documents)), best first, equal scores by position.
    """
    scores = np.empty((len(queries), 0), dtype=np.float32)
    positions = np.empty((len(queries), 0), dtype=np.int64)
    start = 0
    for block in blocks(documents, block_size):
        fresh = queries @ embed(block).T
        own = np.broadcast_to(np.arange(start, start + len(block)), fresh.shape)
        scores, positions = np.concatenate([scores, fresh], axis=1), np.concatenate([positions, own], axis=1)
        scores, positions = _best(scores, positions, top_k)
        start += len(block)
    return scores, positions


def _best(
    scores: NDArray[np.float32], positions: NDArray[np.int64], top_k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    # stable, and columns are in order of position among equals
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)


def by_query(
    query_ids: Sequence[str], document_ids: Sequence[str], scores: NDArray[np.float32], positions: NDArray[np.int64]
) -> dict[str, dict[str, float]]:
    """A run `{query_id: {document_id: score}}` of what `top_documents` returned."""
    return {
        query_id: {document_ids[position]: float(score) for score, position in zip(row, best, strict=True)}
        for query_id, row, best in zip(query_ids, scores, positions, strict=True)
    }
