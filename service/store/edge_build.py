"""Builds the index of a copied collection: a process of its own at the lowest priority, as Edge's calls hold the GIL.

Its end, whatever it dies of, leaves the copy alone in doubt, which nobody has open and nobody names.
"""

import os
import sys
from pathlib import Path

from service.child import leave_the_end_to_the_parent
from service.paths import sync_directory
from service.store.edge_files import described
from service.store.edge_index import build

_NICENESS = 19
_CORES_PER_THREAD = 4


def main(directory: Path, quantization: str) -> None:
    """Index the collection in `directory`, and make every file of it durable."""
    leave_the_end_to_the_parent()
    os.nice(_NICENESS)
    collection = described(directory)
    build(
        directory / collection.shard,
        dimension=collection.dimension,
        is_quantized=quantization == "scalar",
        num_threads=max(1, (os.cpu_count() or 1) // _CORES_PER_THREAD),
    )
    for path in directory.rglob("*"):
        sync_directory(path)  # a file as well: the copy was not written durably


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
