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

# runs in foreign environments, so it uses nothing of ours; the answer is the last line, whatever is printed before.
# Each reader gets texts and finds out by itself how to tokenize and pool them: that is what is to be proven.
_READERS = """
import importlib.util, json, os, sys
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
request = json.load(sys.stdin)
answers = []
if importlib.util.find_spec("sentence_transformers"):
    import sentence_transformers
    model = sentence_transformers.SentenceTransformer(request["path"], device="cpu").float()
    rows = model.encode(request["texts"], batch_size=1, normalize_embeddings=True, show_progress_bar=False)
    answers.append(("sentence-transformers " + sentence_transformers.__version__, rows.tolist()))
if importlib.util.find_spec("vllm"):
    import vllm
    model = vllm.LLM(request["path"], runner="pooling", convert="embed", dtype="bfloat16",
                     enforce_eager=True)
    rows = [each.outputs.embedding for each in model.embed(request["texts"], use_tqdm=False)]
    answers.append(("vllm " + vllm.__version__ + " bfloat16", rows))
print()
print(json.dumps(answers))
"""


def foreign_vectors(
    path: Path, texts: Sequence[str], pythons: Sequence[str] = ()
) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    """(name and version, vectors) of each reader that these interpreters have, and this one.

    Readers are sentence-transformers in float32 and vLLM in bfloat16.

    Raises:
        ConfigurationError: an interpreter that has none, or could not read the checkpoint.
    """
    own = [sys.executable] if importlib.util.find_spec("sentence_transformers") else []
    for python in [*pythons, *own]:
        try:
            done = subprocess.run(
                [python, "-c", _READERS],
                input=json.dumps({"path": str(path), "texts": list(texts)}),
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise ConfigurationError(f"--python {python}: {error.strerror}; name an interpreter") from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ConfigurationError(f"{python} could not read {path}: {reason}")
        answers = json.loads(done.stdout.splitlines()[-1])
        if not answers:
            raise ConfigurationError(f"{python} has neither sentence-transformers nor vLLM")
        for name, rows in answers:
            yield name, np.asarray(rows, dtype=np.float32)
