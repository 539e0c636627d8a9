"""Engines seen from here: a process each, called over pipes or HTTP, stopped by a signal while it is not its turn."""

import base64
import contextlib
import ctypes
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.bench.environments import FOLDER, OWN, ROOT, has_gpu, interpreter

CALL_SECONDS = 1800.0
START_SECONDS = 600.0
_PR_SET_PDEATHSIG = 1
Embeddings = NDArray[np.float32]


class EngineError(Exception):
    """An engine did not start, died or failed a call; its row is `not run`, with this as the reason."""


@dataclass(frozen=True)
class Spec:
    """An engine as it is compared: `name` is its column, `environment` where it lives and what `--engines` calls it."""

    name: str
    environment: str
    dtype: str = "auto"

    @property
    def frames_prompts(self) -> bool:
        """Whether it puts instructions around queries by itself; else it is sent whole prompts."""
        return self.environment == OWN


@dataclass(frozen=True)
class Encoded:
    """What an engine made of some texts: seconds of each of its calls, embeddings, memory before and at the peak."""

    seconds: list[float]
    embeddings: Embeddings
    memory_bytes: int
    peak_bytes: int


class Process:
    """An engine's process and its children: started, suspended, resumed and ended together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.log = FOLDER / "logs" / f"{name.replace(' ', '-')}.txt"
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self, command: Sequence[str], variables: dict[str, str], **pipes: Any) -> "subprocess.Popen[bytes]":
        self.log.parent.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("EOSEEK_")}
        with self.log.open("wb") as log:
            options = {"stdin": subprocess.DEVNULL, "stdout": log} | pipes
            self._process = subprocess.Popen(
                command,
                env=inherited | variables,
                cwd=ROOT,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
                **options,
            )
        return self._process

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def family(self) -> list[psutil.Process]:
        """The process and all below it; none when it is gone."""
        try:
            top = psutil.Process(self._process.pid) if self._process else None
            return [top, *top.children(recursive=True)] if top else []
        except psutil.NoSuchProcess:
            return []

    def suspend(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def memory_mib(self) -> float:
        """Proportional set size of all its processes: what would be free without them."""
        return sum(each.memory_full_info().pss for each in self.family()) / 2**20

    def stop(self) -> None:
        """SIGTERM, and what is left after a while SIGKILL."""
        family = self.family()
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        _, left = psutil.wait_procs(family, timeout=20)
        for process in left:
            process.kill()
        if self._process:
            self._process.wait()
            for pipe in filter(None, (self._process.stdin, self._process.stdout)):
                with contextlib.suppress(OSError):  # what a dead engine did not take
                    pipe.close()

    def last_words(self) -> str:
        """The last line of its log that looks like an error, else the last one."""
        try:
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            return "it left no log"
        errors = [line for line in lines if "Error" in line] or lines or ["it said nothing"]
        return f"{errors[-1][-200:]}; see {self.log.relative_to(ROOT)}"

    def _signal(self, number: signal.Signals) -> None:
        for process in self.family():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


def _end_with_parent() -> None:
    """An engine that is suspended would not see the end of its input, and stay for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child(Process):
    """A process that answers calls over pipes, see `benchmarks.bench.children`."""

    def __init__(self, name: str, module: str, python: Path, threads: int, **load: Any) -> None:
        super().__init__(name)
        self._command = [str(python), "-m", f"benchmarks.bench.children.{module}"]
        self._threads = threads
        self._load = load | {"threads": threads}

    def start(self) -> None:
        in_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # so that its memory is the process's own
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._pipes = self.launch(self._command, variables(self._threads) | in_process, **pipes)
        self.versions: dict[str, str] = self.call("load", **self._load)

    def call(self, name: str, **arguments: Any) -> Any:
        """Raises EngineError when it fails, dies or does not answer within half an hour."""
        assert self._pipes.stdin is not None
        assert self._pipes.stdout is not None
        try:
            self._pipes.stdin.write(json.dumps({"call": name, **arguments}).encode() + b"\n")
            self._pipes.stdin.flush()
            if not select.select([self._pipes.stdout], [], [], CALL_SECONDS)[0]:
                raise EngineError(f"no answer to {name} within {CALL_SECONDS:.0f} s")
            line = self._pipes.stdout.readline()
        except OSError:
            line = b""
        if not line:
            raise EngineError(f"its process ended: {self.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer["answer"]


class Offline(Child):
    """An engine called in its own process, without HTTP."""

    def __init__(self, spec: Spec, checkpoint: Path, threads: int) -> None:
        self.spec = spec
        module = spec.environment.replace("-", "_")
        super().__init__(
            f"{spec.name} offline",
            module,
            interpreter(spec.environment),
            threads,
            checkpoint=str(checkpoint),
            dtype=spec.dtype,
        )

    def encode(
        self, texts: list[str], *, kind: str = "document", instruction: str = "", one_by_one: bool = False
    ) -> Encoded:
        answer = self.call("encode", texts=texts, kind=kind, instruction=instruction, one_by_one=one_by_one)
        answer["embeddings"] = from_base64(answer["embeddings"]).reshape(len(texts), -1)
        return Encoded(**answer)


class Server(Process):
    """An engine behind OpenAI's embeddings call on a port of its own."""

    def __init__(self, spec: Spec, checkpoint: Path, threads: int, store: Path) -> None:
        """`store` is the folder of ours."""
        super().__init__(f"{spec.name} HTTP")
        self.spec = spec
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._command = _server_command(spec, checkpoint, self.port)
        self._health = "/health/ready" if spec.environment == OWN else "/v1/models"
        self._variables = variables(threads) | {
            "EOSEEK_API__PORT": str(self.port),
            "EOSEEK_STORE__PATH": str(store),
            "EOSEEK_ENCODER__CHECKPOINT": str(checkpoint),
            "EOSEEK_ENCODER__THREADS": str(threads),
        }
        self.start_seconds = 0.0

    def start(self) -> None:
        start = time.perf_counter()
        process = self.launch(self._command, self._variables)
        while not self._is_ready():
            if process.poll() is not None:
                raise EngineError(f"its server ended with {process.returncode}: {self.last_words()}")
            if time.perf_counter() - start > START_SECONDS:
                raise EngineError(f"its server was not ready after {START_SECONDS:.0f} s: {self.last_words()}")
            time.sleep(0.05)
        self.start_seconds = time.perf_counter() - start

    def _is_ready(self) -> bool:
        # not httpx, which reads the system's certificates for each call, on a core that the start needs
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", self._health)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def body(self, texts: list[str], *, kind: str = "document", instruction: str = "") -> bytes:
        """A request's body; only ours is told the kind and frames by itself."""
        request: dict[str, Any] = {"model": "embedder", "input": texts, "encoding_format": "base64"}
        if self.spec.frames_prompts:
            request |= {"kind": kind, "instruction": instruction} if kind == "query" else {"kind": kind}
        return json.dumps(request).encode()


def _server_command(spec: Spec, checkpoint: Path, port: int) -> list[str]:
    python = interpreter(spec.environment)
    address = ["--host", "127.0.0.1", "--port", str(port)]
    if spec.environment == OWN:
        return [str(python), "-m", "eoseek", "serve"]
    if spec.environment == "vllm":
        # what `vllm serve` runs, a command that the build for processors lacks
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
        command += ["--runner", "pooling", "--convert", "embed", "--served-model-name", "embedder"]
        command += [] if has_gpu() else ["--enforce-eager"]  # see children/vllm.py
        return [*command, "--dtype", spec.dtype, *address]
    command = [str(python.parent / "infinity_emb"), "v2", "--model-id", str(checkpoint), "--engine", "torch"]
    command += ["--served-model-name", "embedder", "--url-prefix", "/v1", "--dtype", spec.dtype]
    # BetterTransformer knows no decoder; the warm-up of its own takes minutes, and ours follows
    return [*command, "--no-bettertransformer", "--no-model-warmup", "--lengths-via-tokenize", *address]


def variables(threads: int) -> dict[str, str]:
    """The same for every engine: threads, no hub, no telemetry; and what vLLM needs on a processor."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


def from_base64(text: str) -> Embeddings:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")
