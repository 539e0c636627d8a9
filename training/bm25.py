"""BM25 on bm25s, with a tokenizer that serves Chinese, Japanese and Korean: a teacher of the miner, and a baseline.

Words are lower-cased runs of letters and digits; text without spaces is cut into pairs of characters. No stop words and
no stemming, so that it is the same for every language; English loses a point or so of nDCG by that.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_SCRIPTS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_SCRIPTS}]+|[^\W_{_SCRIPTS}]+")
_FIRST = re.compile(rf"[{_SCRIPTS}]")


def words(text: str) -> list[str]:
    """The terms of a text; `検索語` gives `検索` and `索語`."""
    terms: list[str] = []
    for token in _TOKEN.findall(text.lower()):
        if len(token) > 1 and _FIRST.match(token):
            terms += [token[index : index + 2] for index in range(len(token) - 1)]
        else:
            terms.append(token)
    return terms


class Bm25:
    """An index over documents."""

    def __init__(self, documents: Iterable[str], *, k1: float = 1.5, b: float = 0.75) -> None:
        """Index documents, kept as numbers; raises ValueError if there is none."""
        import bm25s

        self._vocabulary: dict[str, int] = {}
        ids = [
            [self._vocabulary.setdefault(word, len(self._vocabulary)) for word in words(document)]
            for document in documents
        ]
        if not ids:
            raise ValueError("no documents to index")
        self._num_documents = len(ids)
        self._index = bm25s.BM25(k1=k1, b=b)
        # the empty word keeps documents without words in the index
        vocabulary = self._vocabulary | {"": len(self._vocabulary)}
        self._index.index((ids, vocabulary), show_progress=False)

    def scores(self, query: str) -> NDArray[np.float32]:
        """The score of every document."""
        known = [self._vocabulary[word] for word in words(query) if word in self._vocabulary]
        if not known:
            return np.zeros(self._num_documents, dtype=np.float32)
        scores: NDArray[np.float32] = self._index.get_scores_from_ids(known)
        return scores

    def search(self, query: str, *, top_k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and positions of the best documents, best first, equal scores by position."""
        return best(self.scores(query), top_k)


def best(scores: NDArray[np.float32], top_k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The highest scores and their positions, best first, equal scores by position."""
    if top_k < len(scores):
        # all that reach the last place are sorted, so that ties at the cut do not depend on the partition
        threshold = np.partition(scores, -top_k)[-top_k]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:top_k]
    return scores[order], order


def document_texts(documents: Sequence[tuple[str, str]]) -> list[str]:
    """Title and text joined, as they are indexed."""
    return [f"{title} {text}" if title else text for title, text in documents]
