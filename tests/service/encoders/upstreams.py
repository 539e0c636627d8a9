"""Real servers for the remote encoder, each in processes of its own on a free loopback port."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

KEY = "r" * 40
_END_SECONDS = 60


@contextmanager
def eoseek_served(checkpoint: Path, **settings: str) -> Iterator[str]:
    """`eoseek serve` with a key; its address. `settings` as `encoder__dtype="float32"`."""
    variables = {
        "EOSEEK_API__PORT": "0",
        "EOSEEK_API__KEYS": json.dumps([{"role": "read", "key": KEY}]),
        "EOSEEK_STORE__KIND": "memory",
        "EOSEEK_ENCODER__CHECKPOINT": str(checkpoint),
        **{f"EOSEEK_{name.upper()}": value for name, value in settings.items()},
    }
    with _process([sys.executable, "-m", "eoseek", "serve"], variables, r"ready on (http://\S+?),") as found:
        yield found[1]


@contextmanager
def vllm_served(checkpoint: Path, *, max_length: int) -> Iterator[str]:
    """vLLM's server, as docs/operations.md starts it, from this interpreter's environment; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the server of `vllm serve`, a command that builds for processors lack, being packaged under another name
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--runner", "pooling", "--convert", "embed", "--max-model-len", str(max_length)]
    command += ["--served-model-name", "embedder", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    with _process(command, vllm_variables(), "Application startup complete"):
        yield f"http://127.0.0.1:{port}"


def vllm_variables() -> dict[str, str]:
    """What vLLM wants on a small machine: 1 GiB of keys and values, and threads that are bound to no core."""
    return {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}


@contextmanager
def _process(command: Sequence[str], variables: dict[str, str], ready: str) -> Iterator[re.Match[str]]:
    """A process in a group of its own, once a line of its output matches `ready`; ended with all its children."""
    process = subprocess.Popen(
        command,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    # a pipe that nobody empties would stop it
    drain = threading.Thread(target=process.stdout.read)
    try:
        found = _wait_for(process, ready)
        drain.start()
        yield found
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if drain.ident is not None:
            drain.join()
        process.stdout.close()


def _wait_for(process: "subprocess.Popen[str]", ready: str) -> re.Match[str]:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(ready, line):
            return found
    raise AssertionError(f"{process.args} did not start:\n{''.join(lines[-60:])}")
