"""The folder of vectors: a manifest of what they depend on, and a Parquet file for each part, whole or not there.

Columns: `id`, `embedding` (float32, fixed length), `truncated`. The name of a part says its place in the corpus, so a
restart sees what is missing, and a part that is written twice is the same file.
"""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

from eoseek.corpus.documents import Part
from eoseek.corpus.inputs import InputFile
from service.encoders.base import Embeddings
from service.errors import ConfigurationError
from service.paths import sync_directory

_MANIFEST = "manifest.json"
_NUM_TRUNCATED = b"eoseek.num_truncated"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that the vectors depend on beside the documents, and how these are cut into parts."""

    fingerprint: str
    backend: str
    dtype: str
    max_length: int
    truncate: bool
    part_size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder holds or will hold."""

    checkpoint: str
    dimension: int
    recipe: Recipe
    inputs: Sequence[InputFile]


class Output:
    """The folder. A kill at any moment leaves whole parts, and temporary files that the next run removes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other runs out. Raises ConfigurationError, also where it cannot be made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise ConfigurationError(f"{self.folder}: {error.strerror}; give another --output") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"{self.folder}: another run writes here; let it finish, or give another --output"
                ) from None
            for stale in self.folder.glob(".*.tmp"):
                stale.unlink(missing_ok=True)
            yield

    def read_manifest(self) -> Manifest | None:
        """None where the folder is new. Raises ConfigurationError for a folder of something else."""
        path = self.folder / _MANIFEST
        try:
            content = json.loads(path.read_bytes())
            inputs = [InputFile(**each) for each in content.pop("inputs")]
            return Manifest(recipe=Recipe(**content.pop("recipe")), inputs=inputs, **content)
        except FileNotFoundError:
            foreign = [each.name for each in self.folder.iterdir() if not each.name.startswith(".")]
            if foreign:
                raise ConfigurationError(
                    f"{self.folder} holds {foreign[0]} but no {_MANIFEST}; give an empty or new --output"
                ) from None
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(
                f"{path} cannot be read: {error}; give another --output, or delete {self.folder}"
            ) from error

    def write_manifest(self, manifest: Manifest) -> None:
        """Raises OSError."""
        self._write(_MANIFEST, lambda file: file.write(json.dumps(asdict(manifest), indent=1).encode() + b"\n"))

    def continued(self, begun: Recipe, wanted: Recipe) -> Recipe:
        """The recipe to go on with: only `truncate` may be switched on, since what is done had no text to cut.

        Raises:
            ConfigurationError: vectors of two recipes would be mixed; says both values.
        """
        allowed = replace(begun, truncate=begun.truncate or wanted.truncate)
        for field in fields(Recipe):
            before, now = getattr(allowed, field.name), getattr(wanted, field.name)
            if before != now:
                raise ConfigurationError(
                    f"{self.folder} was begun with {field.name} {before}, and this would be {now}; "
                    "go on as it was begun, give another --output, or delete it"
                )
        return allowed

    def path(self, number: int) -> Path:
        """Where a part is, or will be."""
        return self.folder / f"part-{number:06}.parquet"

    def is_done(self, part: Part) -> bool:
        """Whether the part is there and can be read; by its footer, so that a damaged disk is seen."""
        import pyarrow.parquet as pq

        try:
            return bool(pq.read_metadata(self.path(part.number)).num_rows == part.num_documents)
        except (OSError, ValueError):
            return False

    def write_part(self, number: int, ids: Sequence[str], embeddings: Embeddings, truncated: Sequence[int]) -> None:
        """Writes a part whole or not at all.

        Args:
            number: of the part.
            ids: of its documents.
            embeddings: (len(ids), dimension), float32.
            truncated: indices of the documents that were cut.
        Raises:
            OSError: a full disk, for one.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        is_cut = [False] * len(ids)
        for index in truncated:
            is_cut[index] = True
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
        table = pa.table({"id": pa.array(ids, pa.string()), "embedding": vectors, "truncated": is_cut})
        table = table.replace_schema_metadata({_NUM_TRUNCATED: str(len(truncated)).encode()})
        # no dictionaries: neither ids nor floats repeat, and building them costs time
        self._write(self.path(number).name, lambda file: pq.write_table(table, file, use_dictionary=False))

    def count(self, num_parts: int) -> tuple[int, int]:
        """(documents, truncated ones) of all parts, from their footers. Raises OSError or ValueError."""
        import pyarrow.parquet as pq

        metadata = [pq.read_metadata(self.path(number)) for number in range(num_parts)]
        return sum(each.num_rows for each in metadata), sum(int(each.metadata[_NUM_TRUNCATED]) for each in metadata)

    def _write(self, name: str, write: Callable[[IO[bytes]], Any]) -> None:
        # the machine in the name: actors of several may share the folder
        new = self.folder / f".{name}.{socket.gethostname()}.{os.getpid()}.tmp"
        try:
            with new.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.folder / name)
        finally:
            new.unlink(missing_ok=True)
        sync_directory(self.folder)
