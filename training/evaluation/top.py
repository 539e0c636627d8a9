"""Exact search over a corpus that comes in blocks: only each query's best documents are kept.

Equal scores are ordered by document id also at the cut, which a search by position does not do; the ids of the whole
corpus are therefore ranked beforehand.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Ranks = NDArray[np.int64]


class TopDocuments:
    """The best documents of each query among the blocks seen so far."""

    def __init__(self, document_ids: Sequence[str], *, num_queries: int, top_k: int) -> None:
        """Rank the ids.

        Args:
            document_ids: of the corpus, in its order, each once.
            num_queries: rows of the scores to come.
            top_k: documents kept for each.
        """
        order = np.array(sorted(range(len(document_ids)), key=lambda index: document_ids[index]), dtype=np.int64)
        self._ids = [document_ids[index] for index in order]
        self._rank_of = np.empty(len(order), dtype=np.int64)
        self._rank_of[order] = np.arange(len(order))
        self._top_k = top_k
        self._best: list[tuple[Scores, Ranks]] = [
            (np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)) for _ in range(num_queries)
        ]
        self._start = 0

    def add(self, scores: Scores) -> None:
        """Take the scores of the next documents of the corpus, (queries, documents)."""
        ranks = self._rank_of[self._start : self._start + scores.shape[1]]
        self._start += scores.shape[1]
        for index, row in enumerate(scores):
            self._best[index] = merge_best(self._best[index], (row, ranks), self._top_k)

    def add_query(self, index: int, scores: Scores) -> None:
        """Take one query's scores of the whole corpus, (documents,)."""
        self._best[index] = merge_best(self._best[index], (scores, self._rank_of), self._top_k)

    def results(self) -> list[dict[str, float]]:
        """`{document_id: score}` of each query, best first."""
        return [{self._ids[rank]: float(score) for score, rank in zip(*best, strict=True)} for best in self._best]


def merge_best(left: tuple[Scores, Ranks], right: tuple[Scores, Ranks], top_k: int) -> tuple[Scores, Ranks]:
    """The `top_k` best of both, by descending score, equal scores by ascending rank."""
    scores, ranks = np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]])
    if len(scores) > top_k:
        # all that reach the last place are sorted, so that ties at the cut do not depend on the partition
        is_in_reach = scores >= np.partition(scores, -top_k)[-top_k]
        scores, ranks = scores[is_in_reach], ranks[is_in_reach]
    order = np.lexsort((ranks, -scores))[:top_k]
    return scores[order], ranks[order]
