"""Where EOSeek keeps what it can make again: pulled checkpoints, the default store; and what makes a rename last."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/eoseek`, or `~/.cache/eoseek`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eoseek"


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: a file that was renamed into it may be gone after a crash else."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
