"""What is evaluated offline: a checkpoint with exact search, and BM25; both give a run of a judged set.

The corpus is read in blocks and only each query's best documents are kept, so a corpus needs not fit in memory (BM25's
index has to). `eoseek.evaluation` holds the third system, a running service.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from service.encoders.base import Embeddings
from training.bm25 import Bm25, document_texts, english_words
from training.encoding import CheckpointEmbedder
from training.evaluation.base import Found, by_instruction
from training.evaluation.beir import JudgedSet, Query, read_corpus, read_document_ids
from training.evaluation.kept import KeptEmbeddings
from training.evaluation.metrics import drop_self
from training.evaluation.top import TopDocuments
from training.search import blocks

Progress = Callable[[int, int], None]
_BLOCK_SIZE = 512  # documents whose texts are in memory, among which lengths are sorted, and that are kept together


class CheckpointSystem:
    """A checkpoint, encoding in this process; texts over its length are cut and counted."""

    def __init__(
        self,
        embedder: CheckpointEmbedder,
        *,
        name: str,
        top_k: int,
        instruction: str | None = None,
        keep: Path | None = None,
        progress: Progress = lambda *_: None,
    ) -> None:
        """Take over a loaded checkpoint.

        Args:
            embedder: the checkpoint.
            name: of the system in tables and files.
            top_k: depth of the run.
            instruction: of queries that bring none of their own; None is the checkpoint's.
            keep: folder that keeps the documents' embeddings; None keeps none.
            progress: told documents done and in all.
        """
        self.name = name
        self._embedder = embedder
        self._documents = embedder if keep is None else KeptEmbeddings(embedder, keep)
        self._top_k = top_k
        self._instruction = instruction
        self._progress = progress

    def search(self, judged: JudgedSet) -> Found:
        """See `System.search`."""
        document_ids = read_document_ids(judged.folder)
        queries = judged.judged
        vectors, num_truncated_queries, num_ignored = self._queries(queries)
        top = TopDocuments(document_ids, num_queries=len(queries), top_k=self._top_k + 1)
        done = num_truncated = 0
        self._progress(0, len(document_ids))

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._progress(done, len(document_ids))

        for block in blocks(read_corpus(judged.folder), _BLOCK_SIZE):
            embedded = self._documents.embed_documents([(each.title, each.text) for each in block], progress=advance)
            num_truncated += embedded.num_truncated
            top.add(vectors @ embedded.embeddings.T)
        return Found(
            run=_without_self(queries, top, self._top_k),
            top_k=self._top_k,
            num_truncated_queries=num_truncated_queries,
            num_truncated_documents=num_truncated,
            num_ignored_instructions=num_ignored,
            fingerprint=self._embedder.fingerprint,
            max_length=self._embedder.max_length,
        )

    def _queries(self, queries: list[Query]) -> tuple[Embeddings, int, int]:
        """Embeddings in order, how many queries were cut, and how many brought an instruction that has no place."""
        vectors = np.empty((len(queries), self._embedder.dimension), dtype=np.float32)
        num_truncated = num_ignored = 0
        for own, indices in by_instruction(queries):
            has_place = not own or self._embedder.takes_instruction
            num_ignored += 0 if has_place else len(indices)
            embedded = self._embedder.embed_queries(
                [queries[index].text for index in indices],
                instruction=self._instruction if own is None else own if has_place else None,
            )
            vectors[indices] = embedded.embeddings
            num_truncated += embedded.num_truncated
        return vectors, num_truncated, num_ignored


class Bm25System:
    """BM25 over title and text, English stop words and stems; documents that share no term are not found."""

    name = "bm25"

    def __init__(self, *, top_k: int) -> None:
        """Keep the depth of the run."""
        self._top_k = top_k

    def search(self, judged: JudgedSet) -> Found:
        """See `System.search`."""
        document_ids = read_document_ids(judged.folder)
        texts = document_texts([(each.title, each.text) for each in read_corpus(judged.folder)])
        index = Bm25(texts, analyze=english_words())
        queries = judged.judged
        top = TopDocuments(document_ids, num_queries=len(queries), top_k=self._top_k + 1)
        for number, query in enumerate(queries):
            top.add_query(number, index.scores(query.text))
        run = _without_self(queries, top, self._top_k)
        return Found(
            run={
                query_id: {each: score for each, score in scores.items() if score > 0}
                for query_id, scores in run.items()
            },
            top_k=self._top_k,
        )


def _without_self(queries: list[Query], top: TopDocuments, top_k: int) -> dict[str, dict[str, float]]:
    pairs = zip(queries, top.results(), strict=True)
    return {query.query_id: drop_self(scores, query.query_id, top_k=top_k) for query, scores in pairs}
