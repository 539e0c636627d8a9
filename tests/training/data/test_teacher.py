from pathlib import Path

import numpy as np
import pytest

from training.data.formats import DocumentText
from training.data.teacher import TeacherVectors, write_teacher_vectors
from training.errors import DataError


def _write(folder: Path) -> int:
    return write_teacher_vectors(
        folder,
        teacher="lengths",
        queries=["a", "bb", "a"],
        documents=[DocumentText("", "a"), DocumentText("t", "ccc")],
        encode_queries=lambda texts: np.array([[len(text), 0] for text in texts], dtype=np.float32),
        encode_documents=lambda texts: np.array([[len(each.text), 1] for each in texts], dtype=np.float32),
        block_size=3,
    )


def test_teacher_vectors_are_found_by_role_and_text(tmp_path: Path) -> None:
    assert _write(tmp_path / "teacher") == 4
    vectors = TeacherVectors(tmp_path / "teacher")
    assert vectors.queries(["bb", "a"]).tolist() == [[2, 0], [1, 0]]
    assert vectors.documents([DocumentText("t", "ccc"), DocumentText("", "a")]).tolist() == [[3, 1], [1, 1]]
    assert (vectors.dimension, vectors.teacher) == (2, "lengths")


def test_teacher_vectors_unknown_text_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "teacher")
    with pytest.raises(DataError, match="none for 'ccc'"):
        TeacherVectors(tmp_path / "teacher").documents([DocumentText("", "ccc")])


def test_teacher_vectors_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="teacher vectors"):
        TeacherVectors(tmp_path / "none")
