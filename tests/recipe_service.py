"""A service for the recipes, run as a program: real sockets, an encoder without weights that finds shared words.

`python -m tests.recipe_service FILE [STORE]` prints its URL when it is ready and appends to FILE each text that it
encodes, as the model would see it, one JSON string a line. With STORE, a folder, it has the embedded store there and
passes for the checkpoint `default`, so that backups and re-indexes are as a real service's.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from service.app import create_app
from service.encoders.base import Embeddings, TokenIds
from service.encoders.checkpoint import load_checkpoint
from service.encoders.prompt import Frame, TokenContract
from service.encoders.worker import LocalEncoder
from service.server import serve
from service.settings import ApiSettings, BatchingSettings, Settings, StoreSettings
from tests.service.api.parts import byte_tokenizer, tiny_checkpoint

DIMENSION = 1024


class WordEncoder:
    """An `Encoder` that counts words; an embedding's place for a word is its bytes modulo a prime."""

    dimension = DIMENSION
    dtype = "float32"

    def __init__(self, seen: Path) -> None:
        self._tokenizer = byte_tokenizer()
        self._seen = seen

    def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        texts = self._tokenizer.decode_batch([list(ids) for ids in token_ids])
        with self._seen.open("a") as seen:
            seen.writelines(json.dumps(text) + "\n" for text in texts)
        return np.array([self._encode_one(text) for text in texts], dtype=np.float32).reshape(-1, DIMENSION)

    def _encode_one(self, text: str) -> Embeddings:
        counts = np.zeros(DIMENSION, dtype=np.float32)
        counts[-1] = 0.1  # a text without words has a direction too
        for word in text.lower().split():
            counts[int.from_bytes(word.encode()) % 1021] += 1
        return counts / np.linalg.norm(counts)


def main(seen: str, store: str | None = None) -> int:
    contract = TokenContract(byte_tokenizer(), Frame(), max_length=9000 if store else 2000, eos_ids=[256])
    kept = StoreSettings(kind="edge", path=Path(store)) if store else StoreSettings(kind="memory")
    settings = Settings(
        api=ApiSettings(port=0, drain_seconds=1),
        batching=BatchingSettings(cache_bytes=0),  # each recipe's query is seen
        store=kept,
    )
    passed_for = load_checkpoint("default") if store else tiny_checkpoint()
    app = create_app(
        settings,
        checkpoint=replace(
            passed_for, contract=contract, dimension=DIMENSION, max_length=contract.max_length, probes={}
        ),
        encoder=LocalEncoder(WordEncoder(Path(seen))),
    )
    return serve(app, settings.api, log_level="warning", on_ready=lambda url: os.write(1, f"{url}\n".encode()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
