"""Where EOSeek keeps what it can make again: pulled checkpoints, the default store; and what makes a rename last."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

_KEPT_FREE_BYTES = 2**26
_KEPT_FREE_SHARE = 20  # of a small disk a twentieth, where EoseekDiskFull has fired already


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/eoseek`, or `~/.cache/eoseek`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eoseek"


def writable_bytes(path: Path) -> int:
    """What may be written to the disk of `path`: what is free but for a rest, negative where that is touched.

    The engine maps its files into memory, holes in them included: on a disk without room a write is no error that could
    be caught, but the end of its process, which could not open the store again either. Raises OSError.
    """
    usage = shutil.disk_usage(path)
    return usage.free - min(_KEPT_FREE_BYTES, usage.total // _KEPT_FREE_SHARE)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: a file that was renamed into it may be gone after a crash else."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Replace a file in one step that also a power loss leaves whole. After an OSError it may have been replaced."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)
