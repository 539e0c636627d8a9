"""A service over two upstreams: one is killed under load, both, and one comes back with another model.

    python -m benchmarks.fleet --engine vllm --python VLLM_ENVIRONMENT/bin/python [--json FILE]

Wants both built checkpoints (`eoseek model pull default`, `eoseek model pull smollm2-135m-instruct`); `--engine eoseek`
needs no vLLM. Prints a line a step and fails at the first that does not go as docs/operations.md says.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx

from benchmarks.running import running_service, write_json
from service.encoders.checkpoint import BASE_NAME, DEFAULT_NAME, built_path

MAX_LENGTH = 512
TEXTS = ["merge two sorted lists", "The quick brown fox jumps over the lazy dog.", "def add(a, b): return a + b"]


class Upstream:
    """A server on a port of its own, which can be killed and started again with any checkpoint."""

    def __init__(self, engine: str, python: str, log: Path) -> None:
        self._engine, self._python, self._log = engine, python, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, checkpoint: str) -> None:
        path = str(built_path(checkpoint))
        if self._engine == "vllm":
            # the server of `vllm serve`, a command that builds for processors lack, being packaged under another name
            command = [self._python, "-m", "vllm.entrypoints.openai.api_server", "--model", path]
            command += ["--runner", "pooling", "--convert", "embed", "--max-model-len", str(MAX_LENGTH)]
            command += ["--served-model-name", "embedder", "--enforce-eager", "--host", "127.0.0.1"]
            command += ["--port", str(self.port)]
        else:
            command = [sys.executable, "-m", "eoseek", "serve"]
        variables = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "EOSEEK_API__PORT": str(self.port),
            "EOSEEK_STORE__KIND": "memory",
            "EOSEEK_ENCODER__CHECKPOINT": path,
            "EOSEEK_ENCODER__MAX_LENGTH": str(MAX_LENGTH),
        }
        # a group of its own, so that its children die with it
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | variables, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, limit_seconds: float) -> float:
        """Seconds until it answers."""
        start = time.perf_counter()
        while time.perf_counter() - start < limit_seconds:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/v1/models", timeout=5).status_code == 200:
                    return time.perf_counter() - start
            time.sleep(0.2)
        raise SystemExit(f"FAIL {self.url} did not come up, see {self._log}")

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Load:
    """Threads that embed short texts for ever and count how that ends."""

    def __init__(self, url: str, num_threads: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.details: Counter[str] = Counter()
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(num_threads)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=130) as http:
            while not self._stop.is_set():
                response = http.post("/embed", json={"inputs": TEXTS, "kind": "document"})
                self.statuses[response.status_code] += 1
                if response.status_code != 200:
                    self.details[response.json()["detail"]] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["vllm", "eoseek"], default="eoseek")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment that holds vLLM")
    parser.add_argument("--threads", type=int, default=4, help="clients")
    parser.add_argument("--seconds", type=float, default=10, help="of load on either side of a kill")
    parser.add_argument("--start-seconds", type=float, default=300, help="that an upstream may take to start")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        logs = [Path(directory) / f"upstream{index}.log" for index in range(2)]
        upstreams = [Upstream(options.engine, options.python, log) for log in logs]
        try:
            result = walk(upstreams, options)
        finally:
            for upstream in upstreams:
                upstream.kill()
    write_json(options.json, {"engine": options.engine, **result})
    return 0


def walk(upstreams: list[Upstream], options: argparse.Namespace) -> dict[str, object]:
    """All steps; what was measured."""
    first, second = upstreams
    for upstream in upstreams:
        upstream.start(DEFAULT_NAME)
    for upstream in upstreams:
        upstream.wait(options.start_seconds)
    settings = front_settings(upstreams)
    with running_service(**settings) as front:
        with Load(front.url, options.threads) as load:
            time.sleep(options.seconds)
            answered = answers(front.url)
            first.kill()
            time.sleep(options.seconds)
        check("one of two killed under load: no failed request", load.statuses.keys() == {200}, dict(load.statuses))
        check("both upstreams had their share before", len(answered) == 2 and min(answered) > 0, answered)

        second.kill()
        gone = wait_for(lambda: not front.is_ready(), 60)
        refused = embed(front.url)
        check(
            "both killed: 503 with the cause, and not ready",
            refused.status_code == 503 and refused.json()["detail"].count("cannot be reached") == 2,
            f"after {gone:.1f} s: {refused.json()['detail']}",
        )

        second.start(DEFAULT_NAME)
        second.wait(options.start_seconds)
        back = wait_for(front.is_ready, 60)
        check("one is back: it serves by itself", embed(front.url).status_code == 200, f"after {back:.1f} s")

        second.kill()
        second.start(BASE_NAME)
        second.wait(options.start_seconds)
        found = [embed(front.url)]
        while found[-1].status_code == 503 and "serves another model" not in found[-1].text and len(found) < 120:
            time.sleep(0.5)
            found.append(embed(front.url))
        check(
            "it comes back with another model: refused, and at no time served",
            {each.status_code for each in found} == {503} and "serves another model" in found[-1].text,
            found[-1].json()["detail"],
        )
    done = subprocess.run(
        [sys.executable, "-m", "eoseek", "serve"],
        env=os.environ | {f"EOSEEK_{name.upper()}": value for name, value in front_settings([second]).items()}
        | {"EOSEEK_API__PORT": "0", "EOSEEK_STORE__KIND": "memory"},
        capture_output=True,
        text=True,
        timeout=options.start_seconds,
    )  # fmt: skip
    said = done.stderr.strip().splitlines()[-1]
    check("another model at start: refused", done.returncode == 2 and "serves another model" in said, said)
    return {"requests": load.statuses.total(), "not_ready_after_seconds": gone, "ready_after_seconds": back}


def front_settings(upstreams: list[Upstream]) -> dict[str, str]:
    return {
        "encoder__backend": "remote",
        "encoder__urls": json.dumps([upstream.url for upstream in upstreams]),
        "encoder__max_length": str(MAX_LENGTH),
        "encoder__url_timeout_seconds": "60",
    }


def answers(url: str) -> list[int]:
    """Batches that each upstream has answered, by its place."""
    text = httpx.get(f"{url}/metrics", timeout=30).text
    found = re.findall(r'eoseek_upstream_calls_total\{outcome="answered",upstream="(\d)"\} (\S+)', text)
    return [int(float(number)) for _, number in sorted(found)]


def embed(url: str) -> httpx.Response:
    return httpx.post(f"{url}/embed", json={"inputs": TEXTS, "kind": "document"}, timeout=130)


def wait_for(condition: Callable[[], bool], limit_seconds: float) -> float:
    """Seconds until it holds."""
    start = time.perf_counter()
    while not condition():
        if time.perf_counter() - start > limit_seconds:
            raise SystemExit(f"FAIL waited {limit_seconds:g} s in vain")
        time.sleep(0.05)
    return time.perf_counter() - start


def check(step: str, is_right: bool, found: object) -> None:
    print("PASS" if is_right else "FAIL", f"{step}: {found}", flush=True)
    if not is_right:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
