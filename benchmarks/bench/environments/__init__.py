"""Virtual environments for the engines that ours is compared with, under `.bench/`, built once with pinned versions.

The pins are complete, so pip resolves nothing. Where there is a GPU, vLLM is its CUDA build with the dependencies that
it asks for. Ours runs in the environment that this runs in.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / ".bench"
PINS = Path(__file__).parent
OWN = "eoseek"
TORCH = "torch==2.13.0"
PEERS = ("sentence-transformers", "infinity", "vllm")


class InstallError(Exception):
    """An environment could not be built; says why."""


def interpreter(name: str) -> Path:
    """The Python of an engine's environment, whether it is there or not."""
    return Path(sys.executable) if name == OWN else FOLDER / name / "bin" / "python"


def build(name: str) -> None:
    """Build an environment unless it is there with these pins.

    Raises:
        InstallError: pip failed; the last line that it said, and the log that has all.
    """
    if name == OWN:
        return
    steps = _steps(name)
    stamp, wanted = FOLDER / name / "stamp", hashlib.sha256(repr(steps).encode() + pins(name).read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"building the environment of {name} in {FOLDER / name}, once; minutes", file=sys.stderr, flush=True)
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    log = FOLDER / "logs" / f"install-{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    _run([sys.executable, "-m", "venv", str(FOLDER / name)], log)
    for step in steps:
        _run([str(interpreter(name)), "-m", "pip", "install", "--no-input", *step], log)
    stamp.write_text(wanted)


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def pins(name: str) -> Path:
    """Of an engine's environment: exact versions, for pip."""
    return ROOT / "requirements-vllm.txt" if name == "vllm" else PINS / f"{name}.txt"  # what the tests of vLLM take


def _steps(name: str) -> list[list[str]]:
    """Arguments of `pip install`, one list a call."""
    if name == "vllm" and has_gpu():
        return [["vllm==0.32.0"]]
    # torch for itself: its CUDA build brings libraries along that the pins, made without a GPU, do not name
    return [[TORCH, "-c", str(pins(name))], ["--no-deps", "-r", str(pins(name))]]


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as output:
        code = subprocess.run(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL).returncode
    if code:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise InstallError(f"{' '.join(command[2:5])} ended with {code}: {(said or ['nothing'])[-1][:200]}; see {log}")
