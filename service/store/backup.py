"""Backups of the embedded store: a zip file whose last member is a manifest with the sha256 of all others.

A cut-off file lacks the directory at its end, and a damaged one fails its sums: either is refused before anything is
put in place. Deflate at its fastest level, since a shard's files are mostly holes; they are holes again when restored.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from service.errors import ConfigurationError
from service.paths import sync_directory
from service.store.base import CollectionInfo

MEDIA_TYPE = "application/zip"
_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 2**26
_BLOCK = 2**20
_HOLE = bytes(_BLOCK)
# no part may begin with a dot, so none leads out of the directory
_FileName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$", max_length=1000)
]
Progress = Callable[[int], None]


class SavedCollection(BaseModel):
    """A collection in a backup."""

    name: str
    physical_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
    fingerprint: str
    dimension: int
    num_documents: int


class Manifest(BaseModel):
    """What a backup holds; `files` are sha256 sums by path, as `<physical name>/...`."""

    format: Literal["eoseek-backup-1"] = "eoseek-backup-1"
    collections: list[SavedCollection]
    files: dict[_FileName, Annotated[str, Field(min_length=64, max_length=64)]]


def copy_directory(source: Path, target: Path) -> None:
    """Copy the files below `source`, holes as holes. Raises OSError."""
    for path in _files(source):
        _write(target / path.relative_to(source), _blocks(path))


def pack(directory: Path, collections: Iterable[CollectionInfo]) -> Iterator[bytes]:
    """The backup of a copy: `directory` has a subdirectory for each physical name."""
    sink = _Sink()
    manifest = Manifest(
        collections=[SavedCollection.model_validate(each, from_attributes=True) for each in collections], files={}
    )
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in _files(directory):
            name, digest = path.relative_to(directory).as_posix(), hashlib.sha256()
            with archive.open(name, "w", force_zip64=True) as member:
                for block in _blocks(path):
                    digest.update(block)
                    member.write(block)
                    if taken := sink.take():
                        yield taken
            manifest.files[name] = digest.hexdigest()
        archive.writestr(_MANIFEST, manifest.model_dump_json(indent=1))
    yield sink.take()


def num_bytes(file: Path) -> int:
    """Bytes of all files in a backup, holes included. Raises ConfigurationError as `check`."""
    with _opened(file) as archive:
        return sum(each.file_size for each in archive.infolist())


def check(file: Path, on_read: Progress = lambda _: None) -> Manifest:
    """Read a backup to its end and compare all sums.

    Args:
        file: a backup.
        on_read: told the bytes of each block.
    Raises:
        ConfigurationError: not a backup, cut off or damaged; one line.
    """
    with _opened(file) as archive:
        manifest = _manifest(archive)
        for name, digest in manifest.files.items():
            for block in _verified(archive, name, digest):
                on_read(len(block))
    return manifest


def restore(
    file: Path, target: Path, *, fingerprint: str | None, on_read: Progress = lambda _: None
) -> list[SavedCollection]:
    """Make the store directory `target` from a backup, in one step after everything in it was checked.

    Args:
        file: a backup.
        target: must not be there, or be empty.
        fingerprint: the checkpoint's that will serve; None takes collections of any.
        on_read: told the bytes of each block.
    Returns:
        The collections that are there now.
    Raises:
        ConfigurationError: a store is there already, a collection of another checkpoint, a file that is no whole
            backup, no space; `target` is as it was.
    """
    _check_free(target)
    with _opened(file) as archive:
        manifest = _manifest(archive)
        if fingerprint is not None:
            _check_fingerprints(file, manifest, fingerprint)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=f".{target.name}-restoring-", dir=target.parent))
        except OSError as error:
            raise ConfigurationError(f"{target.parent} cannot be written: {error.strerror}") from error
        try:
            for name, digest in manifest.files.items():
                _write(made / "collections" / name, _counted(_verified(archive, name, digest), on_read), sync=True)
            _try_out(made, manifest)
            made.rename(target)
            sync_directory(target.parent)
        except OSError as error:
            raise ConfigurationError(
                f"{target} cannot be restored: {error.strerror}; nothing was put in place"
            ) from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return manifest.collections


def _check_free(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigurationError(
            f"there is a store at {target} already; stop what uses it and move it away, or restore to another "
            "directory by EOSEEK_STORE__PATH"
        )


def _check_fingerprints(file: Path, manifest: Manifest, fingerprint: str) -> None:
    for each in manifest.collections:
        if each.fingerprint != fingerprint:
            raise ConfigurationError(
                f"collection {each.name!r} of {file} holds vectors of checkpoint {each.fingerprint}, this service runs "
                f"{fingerprint}: name the other one by EOSEEK_ENCODER__CHECKPOINT, or restore with --any-checkpoint "
                "and leave such collections closed"
            )


def _try_out(made: Path, manifest: Manifest) -> None:
    """Open what was restored as a service would and compare it with the manifest."""
    from service.store.edge_shards import EdgeShards  # opens shards in this process: only for a moment, and only here

    aliases = {each.name: each.physical_name for each in manifest.collections}
    (made / "collections").mkdir(exist_ok=True)
    (made / "aliases.json").write_text(json.dumps(aliases, indent=2), encoding="utf-8")
    shards = EdgeShards(made)
    try:
        for each in manifest.collections:
            found = shards.describe(each.name)
            if any(found[key] != value for key, value in each.model_dump().items()):
                raise ConfigurationError(f"collection {each.name!r} of the backup is not what its manifest says")
    finally:
        shards.close()
    for path in made.rglob("*"):
        if path.is_dir():
            sync_directory(path)


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; what goes wrong in reading it becomes one line."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except FileNotFoundError as error:
        if error.filename is None or Path(error.filename) != file:
            raise
        raise ConfigurationError(f"{file}: no such file") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ConfigurationError(
            f"{file} is no whole backup ({str(error).strip('.')}): it is cut off, damaged or something else; "
            "take another"
        ) from error


def _manifest(archive: zipfile.ZipFile) -> Manifest:
    info = archive.getinfo(_MANIFEST)
    if info.file_size > _MAX_MANIFEST_BYTES:
        raise zipfile.BadZipFile(f"its manifest has {info.file_size:,} bytes")
    try:
        manifest = Manifest.model_validate_json(archive.read(info))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise zipfile.BadZipFile(f"its manifest is refused at {first['loc']}: {first['msg']}") from error
    members = sorted(set(archive.namelist()) - {_MANIFEST})
    if members != sorted(manifest.files) or len(archive.namelist()) != len(members) + 1:
        raise zipfile.BadZipFile("its files are not those of its manifest")
    physical = {each.physical_name for each in manifest.collections}
    if {name.partition("/")[0] for name in manifest.files} != physical:
        raise zipfile.BadZipFile("its files are not those of its collections")
    return manifest


def _verified(archive: zipfile.ZipFile, name: str, digest: str) -> Iterator[bytes]:
    found = hashlib.sha256()
    with archive.open(name) as member:
        while block := member.read(_BLOCK):
            found.update(block)
            yield block
    if found.hexdigest() != digest:
        raise zipfile.BadZipFile(f"the checksum of {name} is wrong")


def _counted(blocks: Iterable[bytes], on_read: Progress) -> Iterator[bytes]:
    for block in blocks:
        yield block
        on_read(len(block))


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _write(path: Path, blocks: Iterable[bytes], *, sync: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for block in blocks:
            if block == _HOLE[: len(block)]:
                file.seek(len(block), os.SEEK_CUR)
            else:
                file.write(block)
        file.truncate()
        if sync:
            file.flush()
            os.fsync(file.fileno())


class _Sink(io.RawIOBase):
    """What zipfile writes to; it is taken away block by block."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, part: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        self._parts.append(bytes(part))
        return len(part)

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
