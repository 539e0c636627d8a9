"""What runs in an engine's own environment: answers calls on stdin, a JSON object a line, on stdout.

Needs only numpy and the standard library, since an engine's environment holds nothing of ours. `encode` is timed here,
so that the way of the texts and vectors between the processes costs nothing.
"""

import base64
import contextlib
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Engine(Protocol):
    """An engine that is loaded."""

    versions: dict[str, str]

    def encode(self, texts: list[str], *, kind: str, instruction: str) -> Any:
        """Embeddings of shape (len(texts), dimension)."""
        ...


def serve(load: Callable[..., Any]) -> None:
    """Answer until stdin ends: `load` with its arguments first, then what it gave; `encode` as below."""
    # engines print to stdout whenever they like
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine: Any = None
    for line in sys.stdin:
        call = json.loads(line)
        name = call.pop("call")
        try:
            if name == "load":
                engine = load(**call)
                call, name = {}, "versions"
            answer = {"answer": _answer(name, engine, call)}
        except Exception as error:  # engines raise many kinds; the parent reports the row as not run
            first = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(name: str, engine: Any, call: dict[str, Any]) -> Any:
    if name == "versions":
        return engine.versions
    return encode(engine, **call) if name == "encode" else getattr(engine, name)(**call)


def encode(engine: Engine, *, texts: list[str], kind: str, instruction: str, one_by_one: bool) -> dict[str, Any]:
    """Embeddings, seconds of each call of the engine, memory before and at its peak."""
    reset_peak()
    before = memory_bytes("VmRSS")
    seconds, parts = [], []
    for part in [[text] for text in texts] if one_by_one else [texts]:
        start = time.perf_counter()
        parts.append(np.asarray(engine.encode(part, kind=kind, instruction=instruction), dtype=np.float32))
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "embeddings": base64.b64encode(np.concatenate(parts).tobytes()).decode(),
        "memory_bytes": before,
        "peak_bytes": memory_bytes("VmHWM"),
    }


def reset_peak() -> None:
    """Let VmHWM start anew from what is in use; without the right to, the peak is that of the whole life."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would be used again and seem to cost nothing
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_bytes(field: str) -> int:
    """A field of /proc/self/status that is in kB; 0 where there is none."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
