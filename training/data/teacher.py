"""A teacher's vectors of all training texts, computed once and read by text: what distillation follows.

A folder of `keys.npy` (sorted 16-byte hashes of role and text) and `vectors.npy` (float16, memory-mapped), so that
a million texts cost a look-up and no memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.formats import DocumentText
from training.errors import DataError

Vectors = NDArray[np.float32]
_KEY = np.dtype("S16")


class TeacherVectors:
    """Vectors by text."""

    def __init__(self, folder: Path) -> None:
        """Open a folder that `write_teacher_vectors` wrote.

        Raises:
            DataError: it is not there or incomplete.
        """
        try:
            self._keys = np.load(folder / "keys.npy")
            self._vectors = np.load(folder / "vectors.npy", mmap_mode="r")
            self.teacher: str = json.loads((folder / "teacher.json").read_text())["teacher"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"teacher vectors {folder}: {error}") from error
        self._folder = folder

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self._vectors.shape[1])

    def queries(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), dimension), float32. Raises DataError for a text that the teacher has not seen."""
        return self._lookup([query_key(text) for text in texts], list(texts))

    def documents(self, documents: Sequence[DocumentText]) -> Vectors:
        """As `queries`."""
        return self._lookup([document_key(each) for each in documents], [each.text for each in documents])

    def _lookup(self, keys: list[bytes], texts: list[str]) -> Vectors:
        wanted = np.array(keys, dtype=_KEY)
        rows = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        missing = np.flatnonzero(self._keys[rows] != wanted)
        if len(missing):
            raise DataError(f"teacher vectors {self._folder}: none for {texts[missing[0]][:80]!r}; write them anew")
        vectors: Vectors = self._vectors[rows].astype(np.float32)
        return vectors


def write_teacher_vectors(
    folder: Path,
    *,
    teacher: str,
    queries: Iterable[str],
    documents: Iterable[DocumentText],
    encode_queries: Callable[[list[str]], Vectors],
    encode_documents: Callable[[list[DocumentText]], Vectors],
    block_size: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Encode every distinct text and write the folder; returns how many there are.

    Args:
        folder: is replaced.
        teacher: its name, kept with the vectors.
        queries: without instruction or template.
        documents: title and text.
        encode_queries: (n, dimension) float32 for n texts.
        encode_documents: likewise.
        block_size: texts encoded at once.
        progress: told texts done and in all.
    Raises:
        DataError: there is no text.
    """
    from service.encoders.layout import replaced_directory

    by_key: dict[bytes, str | DocumentText] = {query_key(text): text for text in queries}
    by_key |= {document_key(each): each for each in documents}
    keys = sorted(by_key)
    if not keys:
        raise DataError("no texts to write vectors of")
    with replaced_directory(folder) as new:
        vectors: np.memmap[Any, np.dtype[np.float16]] | None = None
        for start in range(0, len(keys), block_size):
            texts = [by_key[key] for key in keys[start : start + block_size]]
            encoded = _encode(texts, encode_queries, encode_documents)
            if vectors is None:
                shape = len(keys), encoded.shape[1]
                vectors = np.lib.format.open_memmap(new / "vectors.npy", mode="w+", dtype=np.float16, shape=shape)
            vectors[start : start + len(encoded)] = encoded
            if progress is not None:
                progress(start + len(encoded), len(keys))
        assert vectors is not None
        vectors.flush()
        np.save(new / "keys.npy", np.array(keys, dtype=_KEY))
        (new / "teacher.json").write_text(json.dumps({"teacher": teacher, "num_texts": len(keys)}) + "\n")
    return len(keys)


def query_key(text: str) -> bytes:
    """The key of a query's vector."""
    return _key(b"query", text)


def document_key(document: DocumentText) -> bytes:
    """The key of a document's vector."""
    return _key(b"document", document.title, document.text)


def _key(role: bytes, *texts: str) -> bytes:
    return hashlib.blake2b(b"\0".join([role, *(text.encode() for text in texts)]), digest_size=_KEY.itemsize).digest()


def _encode(
    texts: Sequence[str | DocumentText],
    encode_queries: Callable[[list[str]], Vectors],
    encode_documents: Callable[[list[DocumentText]], Vectors],
) -> Vectors:
    queries = [each for each in texts if isinstance(each, str)]
    documents = [each for each in texts if isinstance(each, DocumentText)]
    parts = iter(encode_queries(queries) if queries else ()), iter(encode_documents(documents) if documents else ())
    return np.stack([next(parts[isinstance(each, DocumentText)]) for each in texts])
