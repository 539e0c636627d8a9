"""The contract of what is evaluated: a judged set in, a run out, with what was cut or left out on the way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from training.evaluation.beir import JudgedSet, Query
from training.evaluation.metrics import Run


@dataclass(frozen=True, kw_only=True)
class Found:
    """A run and what was done to get it."""

    run: Run
    top_k: int
    num_truncated_queries: int = 0
    num_truncated_documents: int = 0
    num_ignored_instructions: int = 0
    fingerprint: str | None = None
    max_length: int | None = None


class System(Protocol):
    """What finds documents for the queries of a set."""

    name: str

    def search(self, judged: JudgedSet) -> Found:
        """The run of all judged queries that have a text; a query's own document is dropped before the cut."""
        ...


def by_instruction(queries: Sequence[Query]) -> Iterator[tuple[str | None, list[int]]]:
    """Each own instruction, None where there is none, with the positions of the queries that share it."""

    def key(index: int) -> tuple[bool, str]:
        return queries[index].instruction is not None, queries[index].instruction or ""

    for _, group in groupby(sorted(range(len(queries)), key=key), key=key):
        indices = list(group)
        yield queries[indices[0]].instruction, indices
