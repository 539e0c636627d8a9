"""Backups of the embedded store: a zip file whose last member is a manifest with the sha256 of all others.

A cut-off file lacks the directory at its end, and a damaged one fails its sums: either is refused before anything is
put in place. Deflate at its fastest level, since a shard's files are mostly holes; they are holes again when restored.
A restore trusts nothing that the file says of itself: sizes are those found, and what is no hole must fit the disk.
"""

import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from service.errors import ConfigurationError
from service.paths import sync_directory
from service.store.base import CollectionInfo
from service.store.points import MAX_NAME_CHARS, NAME_PATTERN
from service.store.trial import UnusableError, try_out

MEDIA_TYPE = "application/zip"
_MANIFEST = "manifest.json"
_UNFINISHED = "tmp-"
_MAX_MANIFEST_BYTES = 2**26
_LEFT_FREE_BYTES = 2**28  # for what else is written to the same disk meanwhile
_MAX_DIMENSION = 2**16
_BLOCK = 2**20
_HOLE = bytes(_BLOCK)
# no part may begin with a dot, so none leads out of the directory
_FileName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$", max_length=1000)
]
Progress = Callable[[int], None]


class SavedCollection(BaseModel):
    """A collection in a backup."""

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN, min_length=1, max_length=MAX_NAME_CHARS)]
    physical_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", max_length=200)]
    fingerprint: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+$", max_length=64)]
    dimension: Annotated[int, Field(gt=0, le=_MAX_DIMENSION)]
    num_documents: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """What a backup holds; `files` are sha256 sums by path, as `<physical name>/...`."""

    format: Literal["eoseek-backup-1"] = "eoseek-backup-1"
    collections: list[SavedCollection]
    files: dict[_FileName, Annotated[str, Field(min_length=64, max_length=64)]]


def copy_directory(source: Path, target: Path) -> None:
    """Copy the files below `source`, a collection at rest, holes as holes. Raises OSError."""
    for path in _files(source):
        # the engine makes the next, empty file of its log ahead of need, on a thread of its own, and renames it then;
        # it does without
        if path.name.startswith(_UNFINISHED):
            continue
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
            backup, more than the disk has room for; one line, and `target` is as it was.
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
            room = _Room(file, made)
            for name, digest in manifest.files.items():
                with closing(_verified(archive, name, digest)) as blocks:
                    _write(made / "collections" / name, room.taken_by(_counted(blocks, on_read)), sync=True)
            _try_out(made, file, manifest)
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


class _Room:
    """What a restore may write: it ends before the disk is full, whatever sizes the file claims."""

    def __init__(self, file: Path, directory: Path) -> None:
        free = shutil.disk_usage(directory).free
        self._file, self._directory = file, directory
        self._limit = self._left = free - min(_LEFT_FREE_BYTES, free // 10)

    def taken_by(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass `blocks` on. Raises ConfigurationError at the first that is too much; holes take nothing."""
        for block in blocks:
            self._left -= 0 if _is_hole(block) else len(block)
            if self._left < 0:
                raise ConfigurationError(
                    f"{self._file} unpacks to more than the {self._limit:,} bytes that may be written at "
                    f"{self._directory.parent}: make room there, or restore to another disk by EOSEEK_STORE__PATH; "
                    "nothing was put in place"
                )
            yield block


def _try_out(made: Path, file: Path, manifest: Manifest) -> None:
    """Open what was restored as a service would and compare it with the manifest."""
    aliases = {each.name: each.physical_name for each in manifest.collections}
    (made / "collections").mkdir(exist_ok=True)
    (made / "aliases.json").write_text(json.dumps(aliases, indent=2), encoding="utf-8")
    try:
        found = try_out(made, list(aliases))
    except UnusableError as error:
        reason = str(error).replace(f"{made}/collections/", "")
        raise ConfigurationError(f"what {file} holds cannot be opened ({reason}); take another backup") from error
    for each in manifest.collections:
        if any(found[each.name][key] != value for key, value in each.model_dump().items()):
            raise ConfigurationError(f"collection {each.name!r} of {file} is not what its manifest says")
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
    _check_members(archive, manifest)
    return manifest


def _check_members(archive: zipfile.ZipFile, manifest: Manifest) -> None:
    """What the archive lists is what the manifest does, each once, and each a file with a place of its own."""
    members = archive.infolist()
    names = [info.filename for info in members]
    if sorted(names) != sorted([_MANIFEST, *manifest.files]):
        raise zipfile.BadZipFile("its files are not those of its manifest")
    _check_distinct("path", [name.casefold() for name in names])  # for disks that do not tell A from a
    _check_distinct("collection", [each.name for each in manifest.collections])
    _check_distinct("directory", [each.physical_name.casefold() for each in manifest.collections])
    if {name.partition("/")[0] for name in manifest.files} != {each.physical_name for each in manifest.collections}:
        raise zipfile.BadZipFile("its files are not those of its collections")
    directories = {str(parent) for name in names for parent in PurePosixPath(name.casefold()).parents}
    for info in members:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.filename.casefold() in directories:
            raise zipfile.BadZipFile(f"{info.filename} is no file")
        # other methods pack far more into a byte
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile(f"{info.filename} is packed by method {info.compress_type}")
    # members that share their bytes let a small file unpack to any size
    if sum(info.compress_size for info in members) > Path(archive.filename or "").stat().st_size:
        raise zipfile.BadZipFile("its files overlap")


def _check_distinct(what: str, values: Sequence[str]) -> None:
    for value, number in Counter(values).items():
        if number > 1:
            raise zipfile.BadZipFile(f"it has the {what} {value} {number} times")


def _verified(archive: zipfile.ZipFile, name: str, digest: str) -> Generator[bytes, None, None]:
    found, num_bytes = hashlib.sha256(), 0
    with archive.open(name) as member:
        while block := member.read(_BLOCK):
            found.update(block)
            num_bytes += len(block)
            yield block
    claimed = archive.getinfo(name).file_size
    if num_bytes != claimed:
        raise zipfile.BadZipFile(f"{name} has {num_bytes:,} bytes, not the {claimed:,} it claims")
    if found.hexdigest() != digest:
        raise zipfile.BadZipFile(f"the checksum of {name} is wrong")


def _counted(blocks: Iterable[bytes], on_read: Progress) -> Iterator[bytes]:
    for block in blocks:
        yield block
        on_read(len(block))


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _is_hole(block: bytes) -> bool:
    return block == _HOLE[: len(block)]


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _write(path: Path, blocks: Iterable[bytes], *, sync: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for block in blocks:
            if _is_hole(block):
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
