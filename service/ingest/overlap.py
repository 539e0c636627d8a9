"""How much of their best documents two checkpoints' collections of the same documents share."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from service.ingest.served import ServedCheckpoint
from service.store.base import SearchOptions, Store
from service.store.points import physical_name

_DEPTH = 10


@dataclass(frozen=True)
class Query:
    """A query text and its instruction, as a search has them."""

    text: str
    instruction: str | None = None


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What part of their ten best documents old and new share: the mean and the lowest of the queries."""

    num_queries: int
    mean: float
    lowest: float


async def measure_overlap(
    store: Store, collection: str, pair: Sequence[ServedCheckpoint], queries: Sequence[Query]
) -> Overlap:
    """Ask the collections of two checkpoints the same.

    Args:
        store: of both.
        collection: the public name.
        pair: two checkpoints, each of which has such a collection.
        queries: one or more.
    """
    first, second = [await _best(store, collection, served, queries) for served in pair]
    shares = [len(a & b) / max(len(a), len(b), 1) for a, b in zip(first, second, strict=True)]
    return Overlap(num_queries=len(queries), mean=sum(shares) / len(shares), lowest=min(shares))


async def _best(store: Store, collection: str, served: ServedCheckpoint, queries: Sequence[Query]) -> list[set[str]]:
    """The ids of the best documents for each query in the collection of this checkpoint."""
    best = []
    options = SearchOptions(top_k=_DEPTH, with_text=False)
    physical = physical_name(collection, served.checkpoint.fingerprint)
    for query in queries:
        sentence = served.checkpoint.instructions.get(query.instruction or "", query.instruction)
        contract = served.checkpoint.contract
        tokenize = partial(contract.queries, [query.text], instruction=sentence, truncate=True)
        tokenized = await asyncio.to_thread(tokenize)
        encoded = await served.batcher.submit(tokenized.token_ids, lane="query")
        hits = await store.search_batch(physical, encoded.embeddings, options)
        best.append({hit.document.id for hit in hits[0]})
    return best
