"""Ranking metrics of a run against judgements: pure, on ir-measures (trec_eval's own code).

Gains are linear. Equal scores are ordered by document id, ascending, before anything is computed: the measuring
programs break ties in ways of their own, which differ between metrics.
"""

from collections.abc import Mapping, Sequence

import ir_measures

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]

DEFAULT_METRICS = ("ndcg@10", "mrr@10", "recall@100")
_MEASURES = {"ndcg": ir_measures.nDCG, "mrr": ir_measures.RR, "recall": ir_measures.R, "map": ir_measures.AP}


def ranking(scores: Mapping[str, float], *, top_k: int | None = None) -> list[str]:
    """Document ids by descending score, equal scores by id; cut to `top_k`."""
    ranked = sorted(scores, key=lambda document_id: (-scores[document_id], document_id))
    return ranked[:top_k]


def drop_self(scores: Mapping[str, float], query_id: str, *, top_k: int) -> dict[str, float]:
    """Scores without the query's own document, as where queries are documents too; then the best `top_k`."""
    others = {document_id: score for document_id, score in scores.items() if document_id != query_id}
    return {document_id: others[document_id] for document_id in ranking(others, top_k=top_k)}


def evaluate_queries(run: Run, qrels: Qrels, metrics: Sequence[str] = DEFAULT_METRICS) -> dict[str, dict[str, float]]:
    """The metrics of each judged query, `{query_id: {metric: value}}`, in the order of the judgements.

    Args:
        run: higher scores are better. Queries without judgements are ignored.
        qrels: grades; a document counts as relevant from 1 on. A judged query that is not in the run counts as 0.
        metrics: `ndcg@k`, `mrr@k`, `recall@k`, `map@k`.
    Raises:
        ValueError: an unknown metric.
    """
    measures = {_measure(name): name for name in metrics}
    values = {query_id: dict.fromkeys(metrics, 0.0) for query_id in qrels}
    judged = [ir_measures.Qrel(query_id, *each) for query_id, grades in qrels.items() for each in grades.items()]
    for metric in ir_measures.iter_calc(list(measures), judged, _scored(run, qrels)):
        values[metric.query_id][measures[metric.measure]] = float(metric.value)
    return values


def evaluate(run: Run, qrels: Qrels, metrics: Sequence[str] = DEFAULT_METRICS) -> dict[str, float]:
    """The mean of each metric over all judged queries; arguments as in `evaluate_queries`.

    Raises:
        ValueError: an unknown metric, or no judged query.
    """
    values = evaluate_queries(run, qrels, metrics)
    if not values:
        raise ValueError("no query is judged, so there is nothing to average")
    return {name: sum(each[name] for each in values.values()) / len(values) for name in metrics}


def check_metric(name: str, *, deepest: int) -> None:
    """Raises ValueError for an unknown metric, or for one that looks deeper than `deepest` documents."""
    if _measure(name).params["cutoff"] > deepest:
        raise ValueError(f"metric {name!r} looks deeper than the {deepest} documents that are found")


def _measure(name: str) -> ir_measures.measures.Measure:
    kind, at, cutoff = name.partition("@")
    if kind not in _MEASURES or not at or not cutoff.isdecimal() or int(cutoff) == 0:
        raise ValueError(f"unknown metric {name!r}; known are {', '.join(f'{each}@k' for each in _MEASURES)}")
    return _MEASURES[kind] @ int(cutoff)


def _scored(run: Run, qrels: Qrels) -> list[ir_measures.ScoredDoc]:
    """Ranks as scores: whole numbers, so that no two are equal and none is rounded."""
    scored = []
    for query_id in run.keys() & qrels.keys():
        ranked = ranking(run[query_id])
        scored += [ir_measures.ScoredDoc(query_id, each, float(len(ranked) - i)) for i, each in enumerate(ranked)]
    return scored
