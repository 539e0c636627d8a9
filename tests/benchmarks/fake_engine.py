"""A fake engine for `benchmarks.bench.engines.Child`: tells letters from each other, and fails when it is asked to."""

import os
import sys

import numpy as np

from benchmarks.bench.children import serve


class FakeEngine:
    """Embeds a text as its number of letters and 1, scaled to unit length."""

    def __init__(self, *, threads, refuses=False):
        if refuses:
            raise RuntimeError("no such model\nand a second line")
        sys.stdout.write("chatter on stdout\n")
        self.versions = {"fake": "1"}

    def encode(self, texts, *, kind, instruction):
        rows = np.array([[len(text), 1.0] for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def end(self):
        os._exit(3)


if __name__ == "__main__":
    serve(FakeEngine)
