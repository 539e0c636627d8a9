"""Embeddings of a corpus, kept on disk block by block, so that a long evaluation goes on where it stopped.

A block is found by its texts and by all that its vectors depend on; so another instruction on the queries, or another
depth, costs no second encoding of the documents.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from service.errors import ConfigurationError
from training.encoding import CheckpointEmbedder, Embedded


class KeptEmbeddings:
    """The documents' side of a `CheckpointEmbedder`, with a folder that remembers."""

    def __init__(self, embedder: CheckpointEmbedder, folder: Path) -> None:
        """Make the folder if it is missing. Raises ConfigurationError."""
        self._embedder = embedder
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"embeddings cannot be kept in {folder}: {error}") from error

    def embed_documents(
        self, documents: Sequence[tuple[str, str]], *, progress: Callable[[int], object] | None = None
    ) -> Embedded:
        """As `CheckpointEmbedder.embed_documents`; what cannot be read back is embedded anew.

        Raises ConfigurationError where the folder takes no more.
        """
        path = self._folder / f"{self._key(documents)}.npz"
        kept = _read(path)
        if kept is not None:
            if progress is not None:
                progress(len(documents))
            return kept
        embedded = self._embedder.embed_documents(documents, progress=progress)
        try:
            _write(path, embedded)
        except OSError as error:
            raise ConfigurationError(f"embeddings cannot be kept in {self._folder}: {error}") from error
        return embedded

    def _key(self, documents: Sequence[tuple[str, str]]) -> str:
        embedder = self._embedder
        parts = [embedder.fingerprint, embedder.max_length, embedder.dtype, [list(each) for each in documents]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(path: Path) -> Embedded | None:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return Embedded(embeddings=arrays["embeddings"], num_truncated=int(arrays["num_truncated"]))
    except (FileNotFoundError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _write(path: Path, embedded: Embedded) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, embeddings=embedded.embeddings, num_truncated=embedded.num_truncated)
    part.replace(path)
