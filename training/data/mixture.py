"""The training sets of a run: read, filtered, split into a training part and a held-out part, hashed.

What is held out is decided by a hash of the text, so it is the same in every run, whatever the seed and the order of
the lines; the queries of a held-out positive go with it, so training never sees the answer.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from training.config import SetConfig, TrainingConfig
from training.data.formats import DocumentText, Example, read_examples
from training.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Examples that share an instruction, lengths and a way to use negatives."""

    name: str
    examples: list[Example]
    instructions: tuple[str, ...]
    ratio: float  # share of batches, of any sum
    in_batch_negatives: bool
    follows_teacher: bool
    num_negatives: int
    query_length: int
    document_length: int
    # positives of queries that occur with more than one, so that none of them serves as a negative
    shared_positives: dict[str, frozenset[DocumentText]] = field(repr=False)

    def positives_of(self, example: Example) -> frozenset[DocumentText]:
        """All known positives of an example's query in this set."""
        return self.shared_positives.get(example.query) or frozenset(example.positives)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A small retrieval task made of held-out examples."""

    corpus: list[DocumentText]
    queries: dict[str, list[Example]]  # by set


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """All sets of a run, the held-out part and the hashes of the files."""

    sets: list[TrainingSet]
    held_out: HeldOut
    hashes: dict[str, str]  # path as configured to sha256


def load_mixture(config: TrainingConfig) -> Mixture:
    """Read the sets of a config.

    Raises:
        DataError: a malformed line, a missing file, a source that does not occur, a set too small for one batch.
    """
    read: dict[tuple[Path, str], list[Example]] = {}
    sets, held = [], {}
    for each in config.sets:
        key = config.data_path(each.path), each.split
        if key not in read:
            read[key] = list(read_examples(key[0], split=each.split))
        chosen = _of_sources(each, read[key])
        examples = _capped(chosen, each.max_examples)
        num_held = config.evaluation.held_out_queries if config.evaluation.every_steps else 0
        examples, held[each.name] = hold_out(examples, num_held)
        if len(examples) < config.batch_size:
            raise DataError(
                f"set {each.name}: {len(examples)} examples do not fill one batch of {config.batch_size}; join it with "
                f"another set or lower batch_size{f', or hold out fewer than {num_held}' if num_held else ''}"
            )
        if not each.in_batch_negatives and not any(example.negatives for example in examples):
            raise DataError(
                f"set {each.name}: no example has negatives, and without in-batch negatives there is nothing to "
                "contrast; mine some, or set in_batch_negatives: true"
            )
        queries = {example.query for example in examples}
        # lines that the cap left out answer their query all the same
        known = shared_positives(example for example in chosen if example.query in queries)
        sets.append(_training_set(each, examples, known, config))
    corpus = held_out_corpus(held.values(), (each.examples for each in sets), config.evaluation.corpus_size)
    hashes = {each.path: hash_data(config.data_path(each.path)) for each in config.sets}
    return Mixture(sets=sets, held_out=HeldOut(corpus=corpus, queries=held), hashes=hashes)


def _of_sources(config: SetConfig, examples: list[Example]) -> list[Example]:
    present = {each.source for each in examples}
    missing = [each for each in (*config.sources, *config.exclude_sources) if each not in present]
    if missing:
        raise DataError(f"set {config.name}: source {missing[0]!r} does not occur in {config.path}")
    if config.sources:
        examples = [each for each in examples if each.source in config.sources]
    return [each for each in examples if each.source not in config.exclude_sources]


def _capped(examples: list[Example], max_examples: int | None) -> list[Example]:
    if max_examples is None or len(examples) <= max_examples:
        return examples
    return sorted(examples, key=lambda each: _rank(each.query, each.positives[0].text))[:max_examples]


def _training_set(
    config: SetConfig,
    examples: list[Example],
    shared: dict[str, frozenset[DocumentText]],
    run: TrainingConfig,
) -> TrainingSet:
    return TrainingSet(
        name=config.name,
        examples=examples,
        instructions=config.instructions,
        ratio=config.weight * len(examples) ** run.size_exponent,
        in_batch_negatives=config.in_batch_negatives,
        follows_teacher=config.follows_teacher,
        num_negatives=run.num_negatives if config.num_negatives is None else config.num_negatives,
        query_length=config.query_length or run.query_length,
        document_length=config.document_length or run.document_length,
        shared_positives=shared,
    )


def shared_positives(examples: Iterable[Example]) -> dict[str, frozenset[DocumentText]]:
    """Positives by query text, of queries that have more than one, be it in one example or in several."""
    positives: dict[str, set[DocumentText]] = defaultdict(set)
    for each in examples:
        positives[each.query].update(each.positives)
    return {query: frozenset(known) for query, known in positives.items() if len(known) > 1}


def hold_out(examples: Sequence[Example], num_queries: int) -> tuple[list[Example], list[Example]]:
    """(rest, held out): about `num_queries` examples, and never a positive on both sides."""
    if num_queries == 0:
        return list(examples), []
    ranked = sorted(examples, key=lambda each: _rank(each.positives[0].text, each.query))
    held = ranked[:num_queries]
    answers = {positive for each in held for positive in each.positives}
    queries = {each.query for each in held}
    rest = [each for each in examples if each.query not in queries and not answers.intersection(each.positives)]
    # the hard negatives of others may hold a held-out answer: as a negative it would be learned as well
    return [_without(each, answers) for each in rest], held


def _without(example: Example, documents: set[DocumentText]) -> Example:
    if not documents.intersection(example.negatives):
        return example
    kept = [index for index, each in enumerate(example.negatives) if each not in documents]
    scores = example.negative_scores
    return replace(
        example,
        negatives=tuple(example.negatives[index] for index in kept),
        negative_scores=None if scores is None else tuple(scores[index] for index in kept),
    )


def held_out_corpus(
    held: Iterable[Sequence[Example]], training: Iterable[Sequence[Example]], size: int
) -> list[DocumentText]:
    """The held-out positives, filled up to `size` with positives of the training sets, evenly over them."""
    answers = [positive for examples in held for each in examples for positive in each.positives]
    if not answers:
        return []
    corpus = dict.fromkeys(answers)
    others = [
        sorted({each.positives[0] for each in examples}, key=lambda each: _rank(each.text))[:size]
        for examples in training
    ]
    for index in range(max(map(len, others))):
        for documents in others:
            if len(corpus) >= size:
                return list(corpus)
            if index < len(documents):
                corpus[documents[index]] = None
    return list(corpus)


def hash_data(path: Path) -> str:
    """sha256 of a file, or over the files of a folder in order of their names."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _rank(*texts: str) -> bytes:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=8).digest()
