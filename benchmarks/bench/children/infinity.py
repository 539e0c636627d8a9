"""Infinity, in process: its engine for Python, which sorts and batches by itself."""

import asyncio
from importlib.metadata import version
from typing import Any

from infinity_emb import AsyncEngineArray, EngineArgs

from benchmarks.bench.children import serve


class Infinity:
    """An `AsyncEmbeddingEngine` that runs until the process ends."""

    def __init__(self, *, checkpoint: str, dtype: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        arguments = EngineArgs(
            model_name_or_path=checkpoint,
            engine="torch",
            dtype=dtype,
            bettertransformer=False,  # knows no decoder
            model_warmup=False,  # measures batches of 512 tokens a text first, which takes minutes here
            lengths_via_tokenize=True,
        )
        self._loop = asyncio.new_event_loop()
        self._engine = AsyncEngineArray.from_args([arguments])[0]
        self._loop.run_until_complete(self._engine.astart())
        self.versions = {name: version(name) for name in ("infinity-emb", "torch", "transformers")}

    def encode(self, texts: list[str], *, kind: str, instruction: str) -> Any:  # noqa: ARG002
        embeddings, _ = self._loop.run_until_complete(self._engine.embed(sentences=texts))
        return embeddings


if __name__ == "__main__":
    serve(Infinity)
