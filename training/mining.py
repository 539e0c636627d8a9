"""Hard negatives: what a teacher ranks high for a query and what is no answer to it.

Teachers are BM25 and any checkpoint. A candidate must stand in the rank window and score clearly below the positive,
as most documents that score above it are unmarked answers. Every negative keeps its teacher, rank and score, and each
rule counts what it dropped. Memory: the texts, one block of queries against the corpus, and vectors in a mapped file.
"""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from training.bm25 import Bm25, best, document_texts
from training.data.formats import DocumentText, Example, read_document, read_examples, read_rows
from training.errors import DataError
from training.evaluation import beir
from training.search import blocks

Progress = Callable[[int, int], None]
Vectors = NDArray[np.float32]
_BLOCK_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Which candidates become negatives."""

    teachers: tuple[str, ...] = ("bm25",)  # `bm25`, or checkpoints
    rescore: str | None = None  # a stronger checkpoint whose scores the margins are measured in
    instruction: str | None = None  # of the queries, for checkpoints; None is each checkpoint's own
    range_min: int = 1  # best rank that is taken, 1 is the first
    range_max: int = 100  # worst rank
    absolute_margin: float | None = None  # keep if score < positive - margin
    relative_margin: float | None = 0.05  # keep if score < positive - |positive| * margin
    num_negatives: int = 7
    sampling_strategy: Literal["top", "random"] = "top"
    seed: int = 17

    def __post_init__(self) -> None:
        if not self.teachers:
            raise ConfigurationError("mining needs a teacher: bm25 or a checkpoint")
        if not 1 <= self.range_min <= self.range_max:
            raise ConfigurationError(f"ranks {self.range_min} to {self.range_max} are no window; the first rank is 1")
        if self.num_negatives < 1:
            raise ConfigurationError(f"num_negatives {self.num_negatives} must be at least 1")
        if self.seed < 0:
            raise ConfigurationError(f"seed {self.seed} must be at least 0")
        for margin in (self.absolute_margin, self.relative_margin):
            if margin is not None and not math.isfinite(margin):
                raise ConfigurationError(f"margin {margin} must be a finite number")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A document that a teacher found for a query."""

    document: int
    teacher: str
    rank: int  # 1 is best
    score: float
    positive_score: float  # of the query's lowest-scored positive, by the same teacher


@dataclass(kw_only=True)
class MiningReport:
    """What came of a mining run."""

    num_queries: int = 0
    num_negatives: int = 0
    num_without: int = 0  # queries that got none
    dropped: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """One line."""
        rules = ", ".join(f"{rule} {count:,}" for rule, count in self.dropped.most_common()) or "nothing"
        return (
            f"{self.num_negatives:,} negatives for {self.num_queries:,} queries, {self.num_without:,} got none; "
            f"dropped: {rules}"
        )


class Teacher(Protocol):
    """What scores the corpus for a block of queries."""

    name: str

    def scores(self, queries: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """The scores of all documents, (documents,), for each query in turn."""
        ...


class Bm25Teacher:
    """Scores by shared words."""

    name = "bm25"

    def __init__(self, corpus: Sequence[DocumentText]) -> None:
        self._index = Bm25(document_texts(corpus))

    def scores(self, queries: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """See `Teacher.scores`."""
        return (self._index.scores(query) for query in queries)


class DenseTeacher:
    """Scores by cosine of a checkpoint's embeddings; the corpus is embedded once into a file."""

    def __init__(
        self,
        checkpoint: str,
        corpus: Sequence[DocumentText],
        folder: Path,
        *,
        instruction: str | None,
        progress: Progress,
    ) -> None:
        """Embed the corpus.

        Args:
            checkpoint: a directory, a hub name or `default`.
            corpus: its documents are cut at the checkpoint's length.
            folder: takes the file of vectors, two bytes a dimension.
            instruction: of the queries; left out where the checkpoint has no place for one.
            progress: told documents done and in all.
        """
        from training.encoding import CheckpointEmbedder

        self.name = checkpoint
        self._embedder = CheckpointEmbedder(checkpoint, instruction=instruction)
        shape = (len(corpus), self._embedder.dimension)
        self._vectors = np.lib.format.open_memmap(
            folder / f"{len(list(folder.iterdir()))}.npy", mode="w+", dtype=np.float16, shape=shape
        )
        start = 0
        for block in blocks(corpus, _BLOCK_SIZE):
            self._vectors[start : start + len(block)] = self._embedder.documents(block)
            start += len(block)
            progress(start, len(corpus))

    def scores(self, queries: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """See `Teacher.scores`."""
        embeddings = self._embedder.queries(queries)
        scores = np.empty((len(queries), len(self._vectors)), dtype=np.float32)
        step = 16384  # documents at once: mapped float16 rows are copied to float32 to be multiplied
        for start in range(0, len(self._vectors), step):
            block = self._vectors[start : start + step].astype(np.float32)
            scores[:, start : start + len(block)] = embeddings @ block.T
        return iter(scores)


def mine(
    examples: Sequence[Example],
    corpus: Sequence[DocumentText],
    config: MiningConfig,
    *,
    progress: Progress = lambda *_: None,
) -> Iterator[tuple[Example, list[tuple[DocumentText, Candidate]], MiningReport]]:
    """Negatives for each example, in order.

    Args:
        examples: with their known positives; their own negatives are left alone.
        corpus: distinct documents, all positives among them.
        config: which candidates are taken.
        progress: told queries done and in all, and documents while teachers embed.
    Yields:
        The example, its negatives, and the report so far.
    """
    positions = {document: index for index, document in enumerate(corpus)}
    known = known_positions(examples, positions)
    report = MiningReport()
    with tempfile.TemporaryDirectory(prefix="eoseek-mining-") as folder:
        teachers = [_teacher(name, corpus, Path(folder), config, progress) for name in config.teachers]
        judge = None if config.rescore is None else _teacher(config.rescore, corpus, Path(folder), config, progress)
        for block in blocks(range(len(examples)), _BLOCK_SIZE):
            queries = [examples[index].query for index in block]
            found = [_ranked(teacher, queries, [known[query] for query in queries], config) for teacher in teachers]
            judged = [None] * len(block) if judge is None else judge.scores(queries)
            for row, (index, scores) in enumerate(zip(block, judged, strict=True)):
                example = examples[index]
                candidates = [candidate for each in found for candidate in each[row]]
                if scores is not None:
                    candidates = rescored(candidates, scores, known[example.query])
                generator = np.random.default_rng([config.seed, index])
                candidates = _without_own(example, positions, candidates, report.dropped)
                taken = select(candidates, known[example.query], config, report.dropped, generator)
                report.num_queries += 1
                report.num_negatives += len(taken)
                report.num_without += not taken
                yield example, [(corpus[each.document], each) for each in taken], report
            progress(block[-1] + 1, len(examples))


def _without_own(
    example: Example, positions: Mapping[DocumentText, int], candidates: Sequence[Candidate], dropped: Counter[str]
) -> list[Candidate]:
    """What the example has as a negative already is not taken once more, and does not take a place."""
    own = {positions[each] for each in example.negatives if each in positions}
    fresh = [each for each in candidates if each.document not in own]
    if len(fresh) < len(candidates):
        dropped["a negative already"] += len(candidates) - len(fresh)
    return fresh


def known_positions(examples: Iterable[Example], positions: Mapping[DocumentText, int]) -> dict[str, frozenset[int]]:
    """Positions of all positives of each query text, over all examples that share it."""
    known: dict[str, set[int]] = {}
    for example in examples:
        known.setdefault(example.query, set()).update(positions[each] for each in example.positives)
    return {query: frozenset(each) for query, each in known.items()}


def _teacher(
    name: str, corpus: Sequence[DocumentText], folder: Path, config: MiningConfig, progress: Progress
) -> Teacher:
    if name == Bm25Teacher.name:
        return Bm25Teacher(corpus)
    return DenseTeacher(name, corpus, folder, instruction=config.instruction, progress=progress)


def _ranked(
    teacher: Teacher, queries: Sequence[str], known: Sequence[frozenset[int]], config: MiningConfig
) -> list[list[Candidate]]:
    rows = []
    for scores, own in zip(teacher.scores(queries), known, strict=True):
        # positives take places in the list, which must not shorten the window
        top_scores, documents = best(scores, config.range_max + len(own))
        lowest = float(min(scores[each] for each in own))
        pairs = zip(documents.tolist(), top_scores.tolist(), strict=True)
        rows.append(
            [
                Candidate(document=document, teacher=teacher.name, rank=rank, score=score, positive_score=lowest)
                for rank, (document, score) in enumerate(pairs, start=1)
            ]
        )
    return rows


def rescored(candidates: Sequence[Candidate], scores: NDArray[np.float32], known: frozenset[int]) -> list[Candidate]:
    """The candidates with a judge's scores in place of their teacher's."""
    lowest = float(min(scores[each] for each in known))
    return [
        Candidate(
            document=each.document,
            teacher=each.teacher,
            rank=each.rank,
            score=float(scores[each.document]),
            positive_score=lowest,
        )
        for each in candidates
    ]


def select(
    candidates: Sequence[Candidate],
    known: frozenset[int],
    config: MiningConfig,
    dropped: Counter[str],
    generator: np.random.Generator,
) -> list[Candidate]:
    """The negatives of one query; adds to `dropped` how many each rule refused.

    Args:
        candidates: of all teachers, each teacher's best first.
        known: documents that answer the query.
        config: the rules.
        dropped: counts by rule.
        generator: draws, where drawing is asked for.
    """
    kept: dict[int, Candidate] = {}
    for each in candidates:
        rule = _rule_against(each, known, config)
        if rule is None and each.document in kept:
            rule = "found by two teachers"
        if rule is None:
            kept[each.document] = each
        else:
            dropped[rule] += 1
    # by rank, teachers in turn: their scores are on different scales
    passed = sorted(kept.values(), key=lambda each: each.rank)
    if config.sampling_strategy == "random" and len(passed) > config.num_negatives:
        drawn = generator.choice(len(passed), config.num_negatives, replace=False)
        taken = [passed[index] for index in sorted(drawn.tolist())]
    else:
        taken = passed[: config.num_negatives]
    if len(passed) > len(taken):
        dropped["enough"] += len(passed) - len(taken)
    return taken


def _rule_against(candidate: Candidate, known: frozenset[int], config: MiningConfig) -> str | None:
    positive = candidate.positive_score
    if candidate.document in known:
        return "judged positive"
    if not config.range_min <= candidate.rank <= config.range_max:
        return "outside the ranks"
    if config.absolute_margin is not None and candidate.score >= positive - config.absolute_margin:
        return "absolute margin"
    if config.relative_margin is not None and candidate.score >= positive - abs(positive) * config.relative_margin:
        return "relative margin"
    return None


def read_corpus(path: Path) -> list[DocumentText]:
    """Distinct documents of a BEIR folder or of `title`/`text` lines. Raises DataError."""
    if path.is_dir():
        try:
            return list(dict.fromkeys(DocumentText(each.title, each.text) for each in beir.read_corpus(path)))
        except OSError as error:
            raise DataError(str(error)) from error
    return list(dict.fromkeys(read_document(row, "text", place) for row, place in read_rows(path)))


def mine_file(
    data: Path, output: Path, config: MiningConfig, *, corpus: Path | None = None, progress: Progress = lambda *_: None
) -> MiningReport:
    """Mine for every example of a file or folder and write one line each, readable as training data.

    Args:
        data: as `read_examples`.
        output: `.jsonl`; appears when it is complete.
        config: which candidates are taken.
        corpus: what is searched beside the data's own positives and negatives.
        progress: told queries done and in all.
    Raises:
        DataError: data that cannot be read, or is empty.
        ConfigurationError: an output that cannot be written.
    """
    if output.is_dir() or not output.absolute().parent.is_dir():  # before hours of work
        raise ConfigurationError(f"{output}: no file can be written there; name one in a folder that is there")
    examples = list(read_examples(data))
    if not examples:
        raise DataError(f"{data}: holds no examples")
    own = (document for each in examples for document in (*each.positives, *each.negatives))
    documents = list(dict.fromkeys([*own, *(read_corpus(corpus) if corpus else [])]))
    report = MiningReport()
    partial = output.with_name(output.name + ".partial")
    with partial.open("w", encoding="utf-8") as lines:
        for example, negatives, report in mine(examples, documents, config, progress=progress):  # noqa: B007
            lines.write(json.dumps(_row(example, negatives), ensure_ascii=False) + "\n")
    partial.replace(output)
    return report


def _row(example: Example, mined: Sequence[tuple[DocumentText, Candidate]]) -> dict[str, Any]:
    row: dict[str, Any] = {"query": example.query, "positive": [_text(each) for each in example.positives]}
    row["negatives"] = [_text(each) for each in example.negatives]
    row["negatives"] += [
        {**_text(document), "teacher": each.teacher, "rank": each.rank, "score": round(each.score, 5)}
        for document, each in mined
    ]
    if example.source:
        row["source"] = example.source
    if example.instruction is not None:
        row["instruction"] = example.instruction
    return row


def _text(document: DocumentText) -> dict[str, str]:
    return {"title": document.title, "text": document.text} if document.title else {"text": document.text}
