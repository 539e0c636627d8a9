"""Other readers of an exported checkpoint, each in a process of its own, so that versions do not meet."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import ConfigurationError

# runs in foreign environments, so it uses nothing of ours; the answer is the last line, whatever is printed before
_SENTENCE_TRANSFORMERS = """
import json, sys
import sentence_transformers
from sentence_transformers import SentenceTransformer
request = json.load(sys.stdin)
model = SentenceTransformer(request["path"], device="cpu")
vectors = model.float().encode(request["texts"], batch_size=1, normalize_embeddings=True, show_progress_bar=False)
print()
print(json.dumps({"version": sentence_transformers.__version__, "vectors": vectors.tolist()}))
"""


def sentence_transformers_vectors(
    path: Path, texts: Sequence[str], pythons: Sequence[str] = ()
) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    """(name and version, vectors) of this environment's sentence-transformers, where it is, and of others'.

    Raises:
        ConfigurationError: an interpreter that could not read the checkpoint.
    """
    own = [sys.executable] if importlib.util.find_spec("sentence_transformers") else []
    for python in [*pythons, *own]:
        done = subprocess.run(
            [python, "-c", _SENTENCE_TRANSFORMERS],
            input=json.dumps({"path": str(path), "texts": list(texts)}),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ConfigurationError(f"{python} could not read {path}: {reason}")
        answer = json.loads(done.stdout.splitlines()[-1])
        yield f"sentence-transformers {answer['version']}", np.asarray(answer["vectors"], dtype=np.float32)
