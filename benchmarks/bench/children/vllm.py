"""vLLM, in process: its offline engine, given texts."""

from typing import Any

import torch
import vllm

from benchmarks.bench.children import serve


class Vllm:
    """A pooling `vllm.LLM`; `dtype` `auto` is that of the checkpoint's weights."""

    def __init__(self, *, checkpoint: str, dtype: str, threads: int) -> None:  # noqa: ARG002
        self._engine = vllm.LLM(
            checkpoint,
            runner="pooling",
            convert="embed",
            dtype=dtype,
            # compiled for a processor it was not ready after ten minutes on a busy machine
            enforce_eager=not torch.cuda.is_available(),
            disable_log_stats=True,
        )
        self.versions = {"vllm": vllm.__version__, "torch": torch.__version__}

    def encode(self, texts: list[str], *, kind: str, instruction: str) -> Any:  # noqa: ARG002
        return [each.outputs.embedding for each in self._engine.embed(texts, use_tqdm=False)]


if __name__ == "__main__":
    serve(Vllm)
