"""A restored store, opened as a service would, in a process of its own: what a damaged or forged shard does to the
engine, which maps its files into memory, is then that process's end and not the caller's.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import EoseekError
from service.store.base import SearchOptions


class UnusableError(ValueError):
    """What was restored cannot be opened or searched; one line."""


def try_out(path: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the store at `path` says of its collections, once each was searched. Raises UnusableError."""
    command = [sys.executable, "-P", "-m", "service.store.trial", str(path), *names]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False)
    try:
        found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise UnusableError(f"opening it ended a process with code {done.returncode}: {lines[-1]:.300}") from None
    if error := found.get("error"):
        raise UnusableError(str(error))
    return found


def _describe(path: Path, names: Sequence[str]) -> dict[str, Any]:
    from service.store.edge_shards import EdgeShards

    try:
        shards = EdgeShards(path)
        found = {name: shards.describe(name) for name in names}
        for name, described in found.items():
            # refused by the engine where its vectors have another dimension
            shards.search(name, np.zeros((1, described["dimension"]), np.float32), asdict(SearchOptions(top_k=1)))
        shards.close()
    except EoseekError as error:
        reason = error.__cause__ or error  # the detail tells how to mend a store in place, which this one is not
        return {"error": str(reason).splitlines()[0][:300]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]:.300}"}
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_describe(Path(sys.argv[1]), sys.argv[2:])))
