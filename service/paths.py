"""Where EOSeek keeps what it can make again: pulled checkpoints, the default store, resume states."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/eoseek`, or `~/.cache/eoseek`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eoseek"
