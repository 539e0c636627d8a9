"""A run judged: the means with an interval, each query's values, the table, and the files of a result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.evaluation.base import Found
from training.evaluation.beir import JudgedSet
from training.evaluation.metrics import Qrels, Run, drop_self, evaluate_queries
from training.evaluation.runs import holds_values, read_run, read_values, write_run, write_values
from training.evaluation.significance import LEVEL, Comparison, bootstrap_interval, compare

MAIN_METRIC = "ndcg@10"
METRICS = {
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "recall@10": "R@10",
    "recall@100": "R@100",
    "recall@1000": "R@1000",
}
"""What is reported, with the heads of the table's columns."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A system on a set: means over all judged queries, and each query's values.

    Metrics that look deeper than the run went are left out.
    """

    data: str
    split: str
    system: str
    found: Found
    metrics: dict[str, float]
    interval: tuple[float, float]
    per_query: dict[str, dict[str, float]]
    num_missing_queries: int

    def as_json(self) -> dict[str, Any]:
        """All but the run, for a result file."""
        return {
            "data": self.data,
            "split": self.split,
            "system": self.system,
            "fingerprint": self.found.fingerprint,
            "max_length": self.found.max_length,
            "top_k": self.found.top_k,
            "metrics": self.metrics,
            "interval": {"metric": MAIN_METRIC, "level": LEVEL, "low": self.interval[0], "high": self.interval[1]},
            "num_queries": len(self.per_query),
            "num_missing_queries": self.num_missing_queries,
            "num_truncated_queries": self.found.num_truncated_queries,
            "num_truncated_documents": self.found.num_truncated_documents,
            "num_ignored_instructions": self.found.num_ignored_instructions,
            "per_query": self.per_query,
        }

    def summary(self) -> str:
        """What the means are over, and what was missing, cut or left out."""
        counts = {
            "{} of them have no text and count as 0": self.num_missing_queries,
            "{} queries were cut": self.found.num_truncated_queries,
            "{} documents were cut": self.found.num_truncated_documents,
            "{} queries' own instructions were left out, for which the checkpoint has no place": (
                self.found.num_ignored_instructions
            ),
        }
        said = [text.format(f"{count:,}") for text, count in counts.items() if count]
        limit = f" (limit {self.found.max_length:,} tokens)" if self.found.max_length else ""
        place = f"{self.data}, {self.system}{limit}"
        return "; ".join([f"{place}: mean over {len(self.per_query):,} judged queries of {self.split}", *said])


def judge(found: Found, judged: JudgedSet, *, system: str) -> Evaluation:
    """Metrics of what a system found for a set."""
    names = [name for name in METRICS if int(name.partition("@")[2]) <= found.top_k]
    # an interval and a comparison want nDCG@10 even of a shallower run
    per_query = evaluate_queries(found.run, judged.qrels, names if MAIN_METRIC in names else [MAIN_METRIC, *names])
    means = {name: sum(values[name] for values in per_query.values()) / len(per_query) for name in names}
    return Evaluation(
        data=judged.name,
        split=judged.split,
        system=system,
        found=found,
        metrics=means,
        interval=bootstrap_interval([values[MAIN_METRIC] for values in per_query.values()]),
        per_query=per_query,
        num_missing_queries=len(judged.qrels) - len(judged.judged),
    )


def table(results: Sequence[Evaluation]) -> str:
    """One line a set and system, sets together, aligned for reading."""
    rows = [["set", "system", "queries", *METRICS.values(), "nDCG@10, 95 % interval"]]
    sets = list(dict.fromkeys(each.data for each in results))
    for each in sorted(results, key=lambda each: sets.index(each.data)):
        values = [f"{each.metrics[name]:.4f}" if name in each.metrics else "-" for name in METRICS]
        low, high = each.interval
        rows.append([each.data, each.system, f"{len(each.per_query):,}", *values, f"{low:.4f} to {high:.4f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def write_files(result: Evaluation, folder: Path) -> None:
    """Writes `SET.SYSTEM.jsonl`, each query's metrics, and `SET.SYSTEM.run`. Raises ValueError as `write_run`."""
    stem = f"{result.data}.{result.system}".replace("/", "_")
    write_values(result.per_query, folder / f"{stem}.jsonl")
    write_run(result.found.run, folder / f"{stem}.run", tag=result.system)


def compare_files(a: Path, b: Path, qrels: Qrels, *, tell: Callable[[str], object] = lambda _: None) -> Comparison:
    """Two files of `write_files`, or TREC runs of any program, by nDCG@10 over all judged queries.

    Args:
        a: a file.
        b: another of the same set.
        qrels: judgements of the set.
        tell: told of a file that lacks some of the judged queries, which count as 0.
    Raises:
        ValueError: a malformed file, one that knows none of the judged queries, or fewer than two judged queries.
    """
    return compare(_values(a, qrels, tell), _values(b, qrels, tell))


def comparison_lines(comparison: Comparison, names: tuple[str, str]) -> str:
    """The comparison for reading."""
    low, high = comparison.interval
    rows = [
        (f"nDCG@10 of A, {names[0]}", f"{comparison.mean_a:.4f}"),
        (f"nDCG@10 of B, {names[1]}", f"{comparison.mean_b:.4f}"),
        ("difference, A - B", f"{comparison.difference:+.4f}"),
        ("95 % interval, bootstrap", f"{low:+.4f} to {high:+.4f}"),
        ("p, paired t-test", f"{comparison.t_test_p:.4g}"),
        ("p, randomisation", f"{comparison.randomisation_p:.4g}"),
        ("queries", f"{comparison.num_queries:,}"),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    # names to the left, numbers to the right
    names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
    return "  ".join([*names, *(cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))])


def _values(path: Path, qrels: Qrels, tell: Callable[[str], object]) -> dict[str, float]:
    if holds_values(path):
        values = read_values(path, MAIN_METRIC)
    else:
        run: Run = {query: drop_self(scores, query, top_k=len(scores)) for query, scores in read_run(path).items()}
        values = {query: each[MAIN_METRIC] for query, each in evaluate_queries(run, qrels, [MAIN_METRIC]).items()}
        values = {query: value for query, value in values.items() if query in run}
    if not values.keys() & qrels.keys():
        raise ValueError(f"{path}: holds none of the judged queries; is it of another set or split?")
    if missing := len(qrels.keys() - values.keys()):
        tell(f"{path}: lacks {missing:,} of the {len(qrels):,} judged queries, which count as 0")
    return {query: values.get(query, 0.0) for query in qrels}
