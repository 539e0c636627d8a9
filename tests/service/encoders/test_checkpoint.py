import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from service.encoders.checkpoint import load_checkpoint
from service.errors import ConfigurationError
from service.frames import LENGTH, pack, unpack
from tests.checkpoints import FAMILIES, byte_tokenizer, write_tiny_checkpoint


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny", default_instruction="Find it", instructions={"code": "Find code"})


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_load_own_layout_tells_what_it_is(tiny: Path) -> None:
    checkpoint = load_checkpoint(str(tiny))
    assert (checkpoint.name, checkpoint.dimension, checkpoint.max_length) == ("tiny-llama", 32, 100)
    assert (checkpoint.pooling, checkpoint.normalize, checkpoint.is_tuned) == ("last_token", True, False)
    assert checkpoint.default_instruction == "Find it"
    assert checkpoint.instructions == {"code": "Find code"}


@pytest.mark.parametrize("family", FAMILIES)
def test_load_any_family_reads_its_pooling(family: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(write_tiny_checkpoint(tmp_path / family, family)))
    assert checkpoint.pooling == FAMILIES[family][3]
    assert checkpoint.dimension == 32


@pytest.mark.parametrize(
    ("written", "pooling"),
    [
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["lasttoken"]}, "last_token"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
    ],
)
def test_load_reads_both_pooling_schemas(tiny: Path, written: dict[str, Any], pooling: str) -> None:
    (tiny / "1_Pooling" / "config.json").write_text(json.dumps(written))
    assert load_checkpoint(str(tiny)).pooling == pooling


def test_load_reads_newer_module_paths(tiny: Path) -> None:
    base = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    modules = [{"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]
    (tiny / "modules.json").write_text(json.dumps([*modules, {"path": "1_Pooling", "type": base}]))
    checkpoint = load_checkpoint(str(tiny))
    assert checkpoint.pooling == "last_token"
    assert not checkpoint.normalize


def test_load_plain_transformers_directory_pools_by_family(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "bert", "bert")
    for name in ("modules.json", "eoseek.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (path / name).unlink()
    checkpoint = load_checkpoint(str(path))
    assert (checkpoint.name, checkpoint.pooling, checkpoint.is_tuned) == ("bert", "cls", None)


@pytest.mark.parametrize(
    ("prompt", "template", "instruction"),
    [
        ("Instruct: Find papers\nQuery:", "Instruct: {instruction}\nQuery:{query}", "Find papers"),
        ("Instruct: Find papers\nQuery: ", "Instruct: {instruction}\nQuery: {query}", "Find papers"),
        ("query: ", "query: {query}", ""),
        ("", "Instruct: {instruction}\nQuery: {query}", ""),
    ],
)
def test_load_foreign_prompts_become_a_template(tiny: Path, prompt: str, template: str, instruction: str) -> None:
    (tiny / "eoseek.json").unlink()
    edit(tiny / "config_sentence_transformers.json", prompts={"query": prompt, "document": "passage: "})
    frame = load_checkpoint(str(tiny)).contract.frame
    assert (frame.query_template, frame.default_instruction) == (template, instruction)
    assert frame.document_prefix == "passage: "


def test_fingerprint_depends_on_what_a_vector_depends_on(tiny: Path) -> None:
    seen = {load_checkpoint(str(tiny)).fingerprint}

    def changed() -> bool:
        fingerprint = load_checkpoint(str(tiny)).fingerprint
        is_new = fingerprint not in seen
        seen.add(fingerprint)
        return is_new

    weights = load_file(tiny / "model.safetensors")
    save_file({key: value + 1e-3 for key, value in weights.items()}, tiny / "model.safetensors")
    assert changed()
    byte_tokenizer("<s> $A </s>").save(str(tiny / "tokenizer.json"))
    assert changed()
    (tiny / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    assert changed()
    edit(tiny / "config_sentence_transformers.json", prompts={"document": "passage: "})
    assert changed()
    edit(tiny / "config.json", rms_norm_eps=1e-3)
    assert changed()


def test_fingerprint_ignores_what_no_vector_depends_on(tiny: Path) -> None:
    before = load_checkpoint(str(tiny)).fingerprint
    edit(tiny / "eoseek.json", default_instruction="Find other things", name="renamed", instructions={})
    edit(tiny / "config_sentence_transformers.json", prompts={"query": "Instruct: x\nQuery: "})
    edit(tiny / "config.json", transformers_version="9.9", dtype="float16", use_cache=False)
    assert load_checkpoint(str(tiny), max_length=50).fingerprint == before
    assert load_checkpoint(str(tiny.rename(tiny.with_name("moved")))).fingerprint == before


def test_fingerprint_with_known_digests_reads_only_what_has_changed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    digest_of = hashlib.file_digest

    def file_digest(content: Any, kind: str) -> Any:
        read.append(Path(content.name).name)
        return digest_of(content, kind)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    first = load_checkpoint(str(tiny))
    assert read == ["tokenizer.json", "model.safetensors"]
    again = load_checkpoint(str(tiny), digests=unpack(pack(first.digests)[LENGTH.size :]))  # as a worker gets them
    assert (again.fingerprint, again.digests) == (first.fingerprint, first.digests)
    assert len(read) == 2

    weights = tiny / "model.safetensors"
    status, content = weights.stat(), weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))  # of the same size and date
    changed = load_checkpoint(str(tiny), digests=first.digests)
    assert read[2:] == ["model.safetensors"]
    assert changed.fingerprint == load_checkpoint(str(tiny)).fingerprint != first.fingerprint


def test_fingerprint_with_known_digests_of_another_checkpoint_is_its_own(tiny: Path, tmp_path: Path) -> None:
    other = load_checkpoint(str(write_tiny_checkpoint(tmp_path / "other", "mistral")))
    assert load_checkpoint(str(tiny), digests=other.digests).fingerprint == load_checkpoint(str(tiny)).fingerprint


def test_max_length_is_bounded_by_the_positions(tiny: Path) -> None:
    assert load_checkpoint(str(tiny), max_length=128).max_length == 128
    with pytest.raises(ConfigurationError, match="129 is over the 128 positions"):
        load_checkpoint(str(tiny), max_length=129)


def test_max_length_of_positions_after_padding_is_shorter(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "roberta", "xlm-roberta")
    (path / "sentence_bert_config.json").unlink()
    edit(path / "tokenizer_config.json", model_max_length=10**30)
    assert load_checkpoint(str(path)).max_length == 126


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "no JSON object"),
        ("config.json", "{}", "no hidden_size"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("model.safetensors", None, r"no \*.safetensors"),
        ("modules.json", '[{"type": "x.Dense", "path": ""}]', "module Dense is not supported"),
        ("modules.json", "[1]", "modules.json is not a list"),
        ("1_Pooling/config.json", '{"pooling_mode": "max"}', "pooling .* is not supported"),
        ("1_Pooling/config.json", '{"pooling_mode": "mean", "include_prompt": false}', "include_prompt"),
    ],
)
def test_load_broken_checkpoint_says_which_file_and_why(
    tiny: Path, file: str, content: str | None, message: str
) -> None:
    if content is None:
        (tiny / file).unlink()
    else:
        (tiny / file).write_text(content)
    with pytest.raises(ConfigurationError, match=message) as error:
        load_checkpoint(str(tiny))
    assert str(tiny) in error.value.detail


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("eoseek.json", "query_template", None),
        ("eoseek.json", "query_template", 5),
        ("eoseek.json", "query_template", "Query: "),
        ("eoseek.json", "query_template", "{query} {query}"),
        ("eoseek.json", "default_instruction", None),
        ("eoseek.json", "instructions", None),
        ("eoseek.json", "instructions", {"code": 5}),
        ("eoseek.json", "name", 5),
        ("eoseek.json", "is_tuned", "no"),
        ("sentence_bert_config.json", "max_seq_length", "512"),
        ("config.json", "max_position_embeddings", "2048"),
        ("config.json", "text_config", "x"),
        ("config.json", "hidden_size", "32"),
        ("config_sentence_transformers.json", "prompts", ["query"]),
        ("config_sentence_transformers.json", "prompts", {"query": 5}),
    ],
)
def test_load_value_of_another_kind_is_refused_with_file_key_and_value(
    tiny: Path, file: str, key: str, value: Any
) -> None:
    content = json.loads((tiny / file).read_text()) if (tiny / file).exists() else {}
    (tiny / file).write_text(json.dumps(content | {key: value}))
    with pytest.raises(ConfigurationError, match=re.escape(file)) as error:
        load_checkpoint(str(tiny))
    leaf = next(iter(value.values())) if isinstance(value, dict) else value
    assert key in error.value.detail
    assert json.dumps(leaf).strip('"') in error.value.detail


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("sentence_bert_config.json", "max_seq_length"),
        ("config.json", "text_config"),
        ("config_sentence_transformers.json", "prompts"),
    ],
)
def test_load_null_of_other_libraries_says_nothing(tiny: Path, file: str, key: str) -> None:
    content = json.loads((tiny / file).read_text()) if (tiny / file).exists() else {}
    (tiny / file).write_text(json.dumps(content | {key: None}))
    load_checkpoint(str(tiny))


def test_load_tokenizer_without_eos_is_refused_with_the_cure(tiny: Path) -> None:
    byte_tokenizer("$A").save(str(tiny / "tokenizer.json"))
    edit(tiny / "tokenizer_config.json", add_eos_token=True)
    with pytest.raises(ConfigurationError, match=r"exactly one \[EOS\].*add_eos_token"):
        load_checkpoint(str(tiny))


def test_load_eos_of_the_config_counts_too(tiny: Path) -> None:
    edit(tiny / "tokenizer_config.json", eos_token="<s>")
    edit(tiny / "config.json", eos_token_id=[7, 2])
    assert load_checkpoint(str(tiny)).pooling == "last_token"


def test_load_remote_code_is_refused_unless_allowed(tiny: Path) -> None:
    edit(tiny / "config.json", auto_map={"AutoModel": "modeling.Own"})
    with pytest.raises(ConfigurationError, match="TRUST_REMOTE_CODE"):
        load_checkpoint(str(tiny))
    assert load_checkpoint(str(tiny), trust_remote_code=True).name == "tiny-llama"


def test_load_missing_path_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no directory"):
        load_checkpoint(str(tmp_path / "absent"))


def test_load_default_before_the_pull_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match="eoseek model pull default"):
        load_checkpoint("default")
