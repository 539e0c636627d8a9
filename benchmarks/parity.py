"""Parity with sentence-transformers in float32, one text at a time, on real texts of 1 to 2,000 tokens.

    python -m benchmarks.parity [--texts 200] [--checkpoint default] [--json FILE]

Floors: cosine 0.99999 for our float32 and 0.995 for our bfloat16; in float32 a text's vector does not depend on its
batch mates beyond 1e-5. Exit code 1 when one is missed. About ten minutes on two cores for 200 texts.
"""

import argparse
import math
import random
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.running import texts_of_lengths, write_json
from service.encoders.checkpoint import Checkpoint, load_checkpoint
from service.encoders.fused import has_integer_products
from service.encoders.torch_loading import load_encoder

MAX_TOKENS = 2000
FLOORS = {"float32": 0.99999, "bfloat16": 0.995, "int16": 0.999}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    texts = mixed_texts(checkpoint, arguments.texts)
    token_ids = checkpoint.contract.documents([("", text) for text in texts]).token_ids
    print(f"{len(texts)} texts of {min(map(len, token_ids))} to {max(map(len, token_ids))} tokens")
    expected = reference(checkpoint, texts)
    result: dict[str, dict[str, float]] = {}
    ok = True
    for dtype, floor in FLOORS.items():
        if dtype == "int16" and not has_integer_products():
            continue
        encoder = load_encoder(str(checkpoint.path), dtype=dtype, device="cpu")
        batched = encoder.encode(token_ids)
        cosines = (batched * expected).sum(axis=1)
        result[dtype] = {
            "min": float(cosines.min()),
            "p1": float(np.quantile(cosines, 0.01)),
            "median": float(np.median(cosines)),
        }
        ok &= verdict(f"{dtype}: lowest cosine {cosines.min():.6f}, floor {floor}", bool(cosines.min() >= floor))
        if dtype == "float32":
            single = np.concatenate([encoder.encode([ids]) for ids in token_ids])
            difference = float(np.abs(batched - single).max())
            result["batch mates"] = {"max_difference": difference}
            ok &= verdict(f"float32: batch mates change a vector by {difference:.1e}, limit 1e-5", difference <= 1e-5)
    write_json(arguments.json, result)
    return 0 if ok else 1


def mixed_texts(checkpoint: Checkpoint, count: int) -> list[str]:
    """Lengths spread evenly on a logarithmic scale, from one word up."""
    longest = min(MAX_TOKENS, checkpoint.max_length)
    generator = random.Random(7)
    # about 1.6 tokens a word in scientific text; what is still too long is cut by words
    num_words = [max(1, round(math.exp(generator.uniform(0, math.log(longest / 1.6))))) for _ in range(count)]
    texts = texts_of_lengths(num_words, seed=7)
    for index, text in enumerate(texts):
        while len(checkpoint.contract.documents([("", text)], truncate=True).token_ids[0]) >= longest:
            text = text.rsplit(" ", max(1, text.count(" ") // 20))[0]
        texts[index] = text
    return texts


def reference(checkpoint: Checkpoint, texts: list[str]) -> np.ndarray:
    """sentence-transformers, float32, one at a time. Shape (texts, dimension)."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(checkpoint.path), device="cpu", model_kwargs={"dtype": torch.float32})
    return np.concatenate([model.encode([text], show_progress_bar=False) for text in texts])


def verdict(text: str, ok: bool) -> bool:
    print(("PASS  " if ok else "FAIL  ") + text, flush=True)
    return ok


if __name__ == "__main__":
    sys.exit(main())
