"""A teacher's vectors of every text that a recipe can draw: what `distillation.vectors` names."""

from collections.abc import Callable
from pathlib import Path

from training.config import TrainingConfig
from training.data.mixture import load_mixture
from training.data.teacher import write_teacher_vectors
from training.encoding import CheckpointEmbedder


def teach(
    config: TrainingConfig, teacher: str, folder: Path, *, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write the vectors of all training texts of a recipe; returns how many.

    Args:
        config: of the run that is to follow the teacher; texts are cut at its document length.
        teacher: a checkpoint.
        folder: is replaced.
        progress: told texts done and in all.
    Raises:
        DataError: data that cannot be used.
        ConfigurationError: the teacher does not load.
    """
    sets = [each for each in load_mixture(config).sets if each.follows_teacher]
    examples = [example for each in sets for example in each.examples]
    # queries get the teacher's own instruction, so one vector serves whatever instruction the student is given
    embedder = CheckpointEmbedder(teacher, max_length=config.document_length)
    return write_teacher_vectors(
        folder,
        teacher=teacher,
        queries=(each.query for each in examples),
        documents=(document for each in examples for document in (*each.positives, *each.negatives)),
        encode_queries=embedder.queries,
        encode_documents=embedder.documents,
        progress=progress,
    )
