"""From drawn examples to one batch: distinct documents, token ids, and which document must not count as a negative.

A document that several queries share is encoded once. The whole batch is planned alike in every process; each tokenizes
and encodes only its share, so masks are right across processes and two processes compute what one does.

Shapes: B queries and N distinct documents of the whole batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from service.encoders.prompt import TokenContract
from training.data.formats import DocumentText, Example
from training.data.mixture import TrainingSet
from training.data.sampler import Draw
from training.data.teacher import TeacherVectors

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's texts of this process, and what is known about all texts of the step."""

    set_name: str
    queries: list[list[int]]  # token ids of this process's share
    documents: list[list[int]]
    query_counts: list[int]  # by process; they add up to B
    document_counts: list[int]  # they add up to N
    targets_B: Tensor  # int64, the document that answers each query
    masked_BN: Tensor  # bool, True where a document is no negative of a query
    teacher_scores_BN: Tensor | None  # float32, NaN where unknown
    teacher_vectors: Tensor | None  # float32 (B + N, teacher's dimension), queries first
    num_truncated: int  # texts of this process that were cut


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One query of a batch with what was drawn for it."""

    example: Example
    instruction: str
    positive: int
    negatives: list[int]


class Collator:
    """Builds batches."""

    def __init__(
        self,
        sets: Sequence[TrainingSet],
        contract: TokenContract,
        *,
        seed: int,
        teacher: TeacherVectors | None = None,
        process: int = 0,
        num_processes: int = 1,
    ) -> None:
        """Take over sets and contract.

        Args:
            sets: as the sampler's.
            contract: of the checkpoint; each set cuts texts at its own lengths.
            seed: decides which positive, negatives and instruction a query gets in an epoch.
            teacher: vectors of all texts, for distillation.
            process: index of this process.
            num_processes: processes among which a batch is shared.
        """
        self._sets = list(sets)
        lengths = {length for each in sets for length in (each.query_length, each.document_length)}
        self._contracts: Mapping[int, TokenContract] = {each: contract.limited_to(each) for each in lengths}
        self._seed = seed
        self._teacher = teacher
        self._process = process
        self._num_processes = num_processes

    def __call__(self, draw: Draw) -> Batch:
        """The batch of a draw; a pure function of it."""
        training_set = self._sets[draw.set_index]
        rows = [self._row(draw, index) for index in draw.example_indices]
        documents: dict[DocumentText, int] = {}
        for row in rows:
            for document in self._documents(row):
                documents.setdefault(document, len(documents))
        query_counts = _shares(len(rows), self._num_processes)
        document_counts = _shares(len(documents), self._num_processes)
        queries, truncated_queries = self._tokenized_queries(_own(rows, query_counts, self._process), training_set)
        contract = self._contracts[training_set.document_length]
        tokenized = contract.documents(_own(list(documents), document_counts, self._process), truncate=True)
        follows = self._teacher is not None and training_set.follows_teacher
        vectors = self._teacher_vectors(rows, documents) if follows else None
        return Batch(
            set_name=training_set.name,
            queries=queries,
            documents=tokenized.token_ids,
            query_counts=query_counts,
            document_counts=document_counts,
            targets_B=torch.tensor([documents[row.example.positives[row.positive]] for row in rows]),
            masked_BN=_masked(rows, documents, training_set),
            teacher_scores_BN=self._teacher_scores(rows, documents, training_set, vectors),
            teacher_vectors=vectors,
            num_truncated=truncated_queries + len(tokenized.truncated),
        )

    def _teacher_scores(
        self,
        rows: Sequence[_Row],
        documents: Mapping[DocumentText, int],
        training_set: TrainingSet,
        vectors: Tensor | None,
    ) -> Tensor | None:
        if vectors is not None:
            return _cosines(vectors, len(rows))
        return _scores(rows, documents) if training_set.follows_teacher else None

    def _row(self, draw: Draw, index: int) -> _Row:
        training_set = self._sets[draw.set_index]
        example = training_set.examples[index]
        generator = np.random.default_rng([self._seed, draw.set_index, draw.epoch, index])
        count = min(training_set.num_negatives, len(example.negatives))
        instruction = training_set.instructions[generator.integers(len(training_set.instructions))]
        return _Row(
            example=example,
            instruction=instruction if example.instruction is None else example.instruction,
            positive=int(generator.integers(len(example.positives))),
            negatives=generator.choice(len(example.negatives), count, replace=False).tolist() if count else [],
        )

    def _documents(self, row: _Row) -> list[DocumentText]:
        example = row.example
        return [example.positives[row.positive], *(example.negatives[each] for each in row.negatives)]

    def _tokenized_queries(self, rows: Sequence[_Row], training_set: TrainingSet) -> tuple[list[list[int]], int]:
        contract = self._contracts[training_set.query_length]
        token_ids: list[list[int]] = [[]] * len(rows)
        num_truncated = 0
        for instruction in {row.instruction for row in rows}:
            indices = [index for index, row in enumerate(rows) if row.instruction == instruction]
            texts = [rows[index].example.query for index in indices]
            tokenized = contract.queries(texts, instruction=instruction, truncate=True)
            num_truncated += len(tokenized.truncated)
            for index, ids in zip(indices, tokenized.token_ids, strict=True):
                token_ids[index] = ids
        return token_ids, num_truncated

    def _teacher_vectors(self, rows: Sequence[_Row], documents: Mapping[DocumentText, int]) -> Tensor:
        assert self._teacher is not None
        queries = self._teacher.queries([row.example.query for row in rows])
        return torch.from_numpy(np.concatenate([queries, self._teacher.documents(list(documents))]))


def _masked(rows: Sequence[_Row], documents: Mapping[DocumentText, int], training_set: TrainingSet) -> Tensor:
    """True where a document is a known positive of the query beside its target, or foreign where that is excluded."""
    masked_BN = torch.zeros(len(rows), len(documents), dtype=torch.bool)
    if not training_set.in_batch_negatives:
        masked_BN[:] = True
        for index, row in enumerate(rows):
            masked_BN[index, [documents[row.example.negatives[each]] for each in row.negatives]] = False
    for index, row in enumerate(rows):
        for positive in training_set.positives_of(row.example):
            if positive in documents:
                masked_BN[index, documents[positive]] = True
        masked_BN[index, documents[row.example.positives[row.positive]]] = False
    return masked_BN


def _scores(rows: Sequence[_Row], documents: Mapping[DocumentText, int]) -> Tensor | None:
    """Scores that the data gives for a query's own documents; None where no query has any."""
    scores_BN = torch.full((len(rows), len(documents)), float("nan"))
    for index, row in enumerate(rows):
        example = row.example
        if example.positive_scores is None or (row.negatives and example.negative_scores is None):
            continue
        scores_BN[index, documents[example.positives[row.positive]]] = example.positive_scores[row.positive]
        for each in row.negatives:
            assert example.negative_scores is not None
            scores_BN[index, documents[example.negatives[each]]] = example.negative_scores[each]
    return None if bool(scores_BN.isnan().all()) else scores_BN


def _cosines(vectors: Tensor, num_queries: int) -> Tensor:
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    return unit[:num_queries] @ unit[num_queries:].T


def _shares(count: int, num_processes: int) -> list[int]:
    small, rest = divmod(count, num_processes)
    return [small + (index < rest) for index in range(num_processes)]


def _own(items: Sequence[_T], counts: Sequence[int], process: int) -> Sequence[_T]:
    start = sum(counts[:process])
    return items[start : start + counts[process]]
