"""Retrieval on the held-out part during training: nDCG@10 of each set and their mean, in bounded memory."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from service.encoders.prompt import TokenContract
from training.config import HELD_OUT_TOP_K, TrainingConfig
from training.data.formats import DocumentText
from training.data.mixture import HeldOut
from training.evaluation.metrics import evaluate
from training.gradient_cache import Embed, plan_chunks
from training.search import by_query, top_documents

Embeddings = NDArray[np.float32]
_BLOCK_SIZE = 512


class HeldOutTask:
    """A retrieval task over all sets' held-out queries and one corpus."""

    def __init__(self, held_out: HeldOut, contract: TokenContract, config: TrainingConfig) -> None:
        """Take over the texts; each set's queries get its first instruction."""
        self._corpus = held_out.corpus
        self._queries = held_out.queries
        self._contract = contract
        self._config = config
        self._by_name = {each.name: each for each in config.sets}

    def evaluate(self, embed: Embed) -> dict[str, float]:
        """`{metric: mean over sets, "<set>/<metric>": value}`."""
        metric = self._config.evaluation.metric
        names = [name for name, queries in self._queries.items() if queries]
        embeddings = np.concatenate([self._embed_queries(name, embed) for name in names])
        scores, positions = top_documents(
            embeddings, self._corpus, embed=self._document_embedder(embed), top_k=HELD_OUT_TOP_K, block_size=_BLOCK_SIZE
        )
        document_ids = [str(index) for index in range(len(self._corpus))]
        positions_of = {document: str(index) for index, document in enumerate(self._corpus)}
        values, start = {}, 0
        for name in names:
            rows = slice(start, start + len(self._queries[name]))
            start = rows.stop
            query_ids = [str(index) for index in range(len(self._queries[name]))]
            run = by_query(query_ids, document_ids, scores[rows], positions[rows])
            qrels = {
                query_id: {positions_of[positive]: 1 for positive in example.positives}
                for query_id, example in zip(query_ids, self._queries[name], strict=True)
            }
            values[f"{name}/{metric}"] = evaluate(run, qrels, [metric])[metric]
        return {metric: sum(values.values()) / len(values), **values}

    def _embed_queries(self, name: str, embed: Embed) -> Embeddings:
        own = self._by_name[name]
        contract = self._contract.limited_to(own.query_length or self._config.query_length)
        examples = self._queries[name]
        token_ids: list[list[int]] = []
        for each in examples:
            instruction = own.instructions[0] if each.instruction is None else each.instruction
            token_ids += contract.queries([each.query], instruction=instruction, truncate=True).token_ids
        return embed_all(token_ids, embed, chunk_tokens=self._config.memory.chunk_tokens)

    def _document_embedder(self, embed: Embed) -> Callable[[list[DocumentText]], Embeddings]:
        contract = self._contract.limited_to(self._config.document_length)

        def embed_documents(documents: list[DocumentText]) -> Embeddings:
            token_ids = contract.documents(documents, truncate=True).token_ids
            return embed_all(token_ids, embed, chunk_tokens=self._config.memory.chunk_tokens)

        return embed_documents


def embed_all(token_ids: Sequence[list[int]], embed: Embed, *, chunk_tokens: int) -> Embeddings:
    """Embeddings of all texts, chunk by chunk, without gradient."""
    chunks = plan_chunks([len(ids) for ids in token_ids], chunk_tokens=chunk_tokens)
    with torch.no_grad():
        parts = [embed([token_ids[index] for index in chunk.indices]).float().cpu().numpy() for chunk in chunks]
    embeddings = np.empty((len(token_ids), parts[0].shape[1]), dtype=np.float32)
    for chunk, part in zip(chunks, parts, strict=True):
        embeddings[chunk.indices] = part
    return embeddings
