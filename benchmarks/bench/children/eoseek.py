"""Ours, in process: token contract and encoder as the service's worker runs them."""

from typing import Any

from benchmarks.bench.children import serve
from service.encoders.checkpoint import load_checkpoint
from service.encoders.torch_loading import load_encoder


class Eoseek:
    """The torch encoder behind the contract's prompts."""

    def __init__(self, *, checkpoint: str, dtype: str, threads: int) -> None:
        import torch
        import transformers

        self._contract = load_checkpoint(checkpoint).contract
        self._encoder = load_encoder(checkpoint, dtype=dtype, threads=threads)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.versions = versions | {"eoseek's products in": self._encoder.dtype}

    def encode(self, texts: list[str], *, kind: str, instruction: str) -> Any:
        if kind == "query":
            tokenized = self._contract.queries(texts, instruction=instruction)
        else:
            tokenized = self._contract.documents([("", text) for text in texts])
        return self._encoder.encode(tokenized.token_ids)


if __name__ == "__main__":
    serve(Eoseek)
