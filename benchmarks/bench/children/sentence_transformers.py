"""sentence-transformers, in process: its own batches of 32 by length; long texts one by one, which is its fastest."""

from typing import Any

import sentence_transformers
import torch
import transformers

from benchmarks.bench.children import serve

LONG_CHARS = 4000


class SentenceTransformers:
    """A `SentenceTransformer`; `dtype` `auto` is its default, float32."""

    def __init__(self, *, checkpoint: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        options = {"dtype": getattr(torch, "float32" if dtype == "auto" else dtype)}
        self._model = sentence_transformers.SentenceTransformer(checkpoint, model_kwargs=options)
        self.versions = {
            "sentence-transformers": sentence_transformers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def encode(self, texts: list[str], *, kind: str, instruction: str) -> Any:  # noqa: ARG002
        size = 1 if max(map(len, texts)) > LONG_CHARS else 32
        return self._model.encode(texts, batch_size=size, show_progress_bar=False, normalize_embeddings=True)


if __name__ == "__main__":
    serve(SentenceTransformers)
