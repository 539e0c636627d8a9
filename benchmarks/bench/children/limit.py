"""The machine's own limit: the matrix products of the model, one after the other, and nothing between them.

Every layer has weights of its own, as the model has.
"""

import json
import time
from pathlib import Path

import torch

from benchmarks.bench.children import serve
from benchmarks.bench.limit import flop_per_token, shapes

ROW_TOKENS = 1024


class Limit:
    """Weights of the model's shapes, with random values."""

    def __init__(self, *, checkpoint: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        config = json.loads((Path(checkpoint) / "config.json").read_text())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options = {"dtype": getattr(torch, dtype), "device": device}
        layers = range(config["num_hidden_layers"])
        self._weights = [torch.randn(outs, ins, **options) for _ in layers for ins, outs in shapes(config)]
        self._rows = {ins: torch.randn(ROW_TOKENS, ins, **options) for ins, _ in shapes(config)}
        self._pass_flop = ROW_TOKENS * flop_per_token(config)
        self.versions = {"torch": torch.__version__}

    def measure(self, *, seconds: float) -> float:
        """GFLOP/s."""
        self._pass()
        passes, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            self._pass()
            passes += 1
        return passes * self._pass_flop / (time.perf_counter() - start) / 1e9

    def _pass(self) -> None:
        with torch.inference_mode():
            for weight in self._weights:
                torch.nn.functional.linear(self._rows[weight.shape[1]], weight)
        if self._weights[0].is_cuda:
            torch.cuda.synchronize()


if __name__ == "__main__":
    serve(Limit)
