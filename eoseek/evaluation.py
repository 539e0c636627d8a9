"""Runs a BEIR-layout set through a service and judges what it finds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from eoseek.client import Client
from training.evaluation.beir import Query
from training.evaluation.metrics import DEFAULT_METRICS, drop_self, evaluate, evaluate_queries

_BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The means over judged queries, each query's values, the run, and what was left out or cut."""

    metrics: dict[str, float]
    per_query: dict[str, dict[str, float]]
    run: dict[str, dict[str, float]]
    num_missing_queries: int
    num_truncated_queries: int

    def as_json(self) -> dict[str, Any]:
        """All but the run, for a result file."""
        return {
            "metrics": self.metrics,
            "num_queries": len(self.per_query),
            "num_missing_queries": self.num_missing_queries,
            "num_truncated_queries": self.num_truncated_queries,
            "per_query": self.per_query,
        }


def evaluate_service(
    client: Client,
    queries: Mapping[str, Query],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    collection: str,
    top_k: int = 100,
    instruction: str | None = None,
    truncate: bool = False,
) -> Evaluation:
    """Searches every judged query and computes nDCG@10, MRR@10 and Recall@100.

    Args:
        client: of the service that holds the corpus.
        queries: by id; a judged query that is missing here counts as 0.
        qrels: judgements; only judged queries are searched.
        collection: where the corpus is.
        top_k: depth of the run. A query's own document (same id) is dropped before the cut.
        instruction: for queries that bring none of their own; None means the checkpoint's default.
        truncate: cut queries over the model's length instead of failing.
    """
    judged = [queries[query_id] for query_id in qrels if query_id in queries]
    run: dict[str, dict[str, float]] = {}
    num_truncated = 0
    for batch in _batches(judged):
        answer = client.search_batch(
            [query.text for query in batch],
            collection=collection,
            instruction=instruction if batch[0].instruction is None else batch[0].instruction,
            top_k=top_k + 1,
            with_text=False,
            truncate=truncate,
        )
        num_truncated += len(answer.truncated)
        for query, hits in zip(batch, answer.results, strict=True):
            run[query.query_id] = drop_self({hit.id: hit.score for hit in hits}, query.query_id, top_k=top_k)
    return Evaluation(
        metrics=evaluate(run, qrels, DEFAULT_METRICS),
        per_query=evaluate_queries(run, qrels, DEFAULT_METRICS),
        run=run,
        num_missing_queries=len(qrels) - len(judged),
        num_truncated_queries=num_truncated,
    )


def _batches(queries: Iterable[Query]) -> Iterable[list[Query]]:
    """Batches of queries that share their instruction, which a request carries once."""
    by_instruction = sorted(queries, key=lambda query: query.instruction or "")
    for _, group in groupby(by_instruction, key=lambda query: query.instruction):
        same = list(group)
        yield from (same[start : start + _BATCH_SIZE] for start in range(0, len(same), _BATCH_SIZE))
