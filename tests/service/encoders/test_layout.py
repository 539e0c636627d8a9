import json
from pathlib import Path

import pytest

from service.encoders.layout import add_closing_eos, config_for_every_reader, replaced_directory
from tests.checkpoints import byte_tokenizer, tiny_model, write_tiny_checkpoint


def test_config_names_the_rotary_base_for_old_and_new_readers() -> None:
    written = config_for_every_reader(
        tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5}).config
    )
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 5e5


def test_config_keeps_rope_scaling_for_old_readers() -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    written = config_for_every_reader(tiny_model("llama", rope_parameters=rope).config)
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_write_uses_the_names_that_every_reader_knows(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "tiny", default_instruction="Find it")
    types = [module["type"] for module in json.loads((path / "modules.json").read_text())]
    assert types == [f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize")]
    assert json.loads((path / "1_Pooling/config.json").read_text())["pooling_mode_lasttoken"] is True
    assert json.loads((path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    prompts = json.loads((path / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == {"query": "Instruct: Find it\nQuery: ", "document": ""}


def test_closing_eos_needs_the_token_in_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="<eos>"):
        add_closing_eos(byte_tokenizer(), "<eos>")


def test_closing_eos_ends_a_text_once() -> None:
    tokenizer = byte_tokenizer("$A")
    add_closing_eos(tokenizer, "</s>")
    assert tokenizer.encode("ab").tokens == ["a", "b", "</s>"]


def test_replaced_directory_failure_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "old").touch()

    def save_until_the_disk_is_full() -> None:
        with replaced_directory(target) as new:
            (new / "half").touch()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_until_the_disk_is_full()
    assert [entry.name for entry in target.iterdir()] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_replaced_directory_success_leaves_only_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "old").touch()
    with replaced_directory(target) as new:
        (new / "new").touch()
    assert [entry.name for entry in target.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
