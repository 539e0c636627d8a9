"""The embedded store's files: the lock of its path, and what a collection's directory says of itself.

`collections/<physical>/collection.json` names the directory of the shard beside it, and is replaced in one step.
"""

import fcntl
import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, StringConstraints, ValidationError

from service.errors import ConfigurationError
from service.paths import write_json
from service.store.points import PHYSICAL_PATTERN

FIRST_SHARD = "shard"
"""The directory of a collection's first shard; those that take its place have names that begin so."""


class Described(BaseModel):
    """What `collection.json` holds."""

    name: str
    fingerprint: str
    dimension: int
    shard: Annotated[str, StringConstraints(pattern=PHYSICAL_PATTERN)] = FIRST_SHARD  # its directory


def described(directory: Path) -> Described:
    """What the collection in `directory` is. Raises OSError, or ValueError in one line."""
    path = directory / "collection.json"
    try:
        return Described.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))} {first['msg']}") from error


def describe(directory: Path, collection: Described) -> None:
    """Let it be so from now on. Raises OSError, after which either may hold."""
    write_json(directory / "collection.json", collection.model_dump())


def check_segments(shard: Path) -> None:
    """Raise FileNotFoundError for a shard without segments. Edge would open it and find in it what little its log
    still has, or nothing; one that it made has a segment from the start."""
    if shard.is_dir() and not any((shard / "segments").glob("*/")):
        raise FileNotFoundError(f"{shard / 'segments'} is missing or empty, which held the documents")


def lock(path: Path) -> int:
    """A file descriptor that holds the path's lock until it is closed or the process ends."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigurationError(
            f"the store at {path} is open in another process; stop that one, set EOSEEK_STORE__PATH to another "
            f"directory, or run a Qdrant server (EOSEEK_STORE__KIND=qdrant) that many processes can share"
        ) from error
    return descriptor


def size_bytes(directory: Path) -> int:
    """Bytes on disk; files of a shard are sparse, so their lengths say nothing."""
    return sum(each.stat().st_blocks * 512 for each in directory.rglob("*") if each.is_file())
