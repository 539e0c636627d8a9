"""Writes a checkpoint that every reader reads: ours, sentence-transformers 3 to 6, transformers 4 and 5, vLLM.

Long-standing names are used throughout, because newer readers know the old schema and older ones fall back on the new
one without a word: module paths and pooling booleans of sentence-transformers before 6, `rope_theta` beside
`rope_parameters`, `PreTrainedTokenizerFast`.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PretrainedConfig, PreTrainedModel

from service.encoders.base import Pooling
from service.encoders.card import CheckpointCard, write_card

_POOLING_KEYS: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last_token": "pooling_mode_lasttoken",
}


def add_closing_eos(tokenizer: Tokenizer, eos_token: str) -> None:
    """Make [EOS] end every text, once, where every reader looks for it: in the post-processor of tokenizer.json.

    Raises:
        ValueError: the token is not in the vocabulary.
    """
    eos_id = tokenizer.token_to_id(eos_token)
    if eos_id is None:
        raise ValueError(f"EOS token {eos_token!r} is not in the tokenizer's vocabulary")
    # readers that follow transformers 4 set truncation and padding themselves
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos_token}", pair=f"$A {eos_token} $B:1 {eos_token}:1", special_tokens=[(eos_token, eos_id)]
    )


def write_checkpoint(
    path: Path,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    *,
    special_tokens: Mapping[str, str],
    pooling: Pooling,
    max_length: int,
    card: CheckpointCard,
) -> None:
    """Write the whole layout, atomically: a reader sees the old directory, none, or the complete new one.

    Args:
        path: the checkpoint directory; an existing one is replaced.
        model: the base model (no language-model head), in the dtype to be written.
        tokenizer: with its closing [EOS] (see `add_closing_eos`) where pooling is `last_token`.
        special_tokens: `eos_token`, `pad_token`, ... to their strings.
        pooling: from token states to an embedding.
        max_length: tokens of a text at most.
        card: what `eoseek.json` says.
    """
    from safetensors.torch import save_model

    with replaced_directory(path) as new:
        # save_model rather than save_file: it writes tied weights once
        save_model(model, str(new / "model.safetensors"), metadata={"format": "pt"}, force_contiguous=True)
        (new / "model.safetensors").chmod(
            0o644
        )  # safetensors writes 0600, which a service under another user cannot read
        _write_json(
            new / "config.json", config_for_every_reader(model.config) | {"architectures": [type(model).__name__]}
        )
        tokenizer.save(str(new / "tokenizer.json"))
        _write_json(new / "special_tokens_map.json", dict(special_tokens))
        _write_json(
            new / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": max_length,
                "clean_up_tokenization_spaces": False,
                **special_tokens,
            },
        )
        _write_sentence_transformers(new, model.config.hidden_size, pooling, max_length, card)
        write_card(new, card)


def _write_sentence_transformers(
    path: Path, dimension: int, pooling: Pooling, max_length: int, card: CheckpointCard
) -> None:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    _write_json(
        path / "modules.json",
        [
            {"idx": index, "name": str(index), "path": where, "type": f"sentence_transformers.models.{kind}"}
            for index, (where, kind) in enumerate(modules)
        ],
    )
    (path / "1_Pooling").mkdir()
    (path / "2_Normalize").mkdir()
    modes = {key: mode == pooling for mode, key in _POOLING_KEYS.items()}
    _write_json(
        path / "1_Pooling" / "config.json", {"word_embedding_dimension": dimension, **modes, "include_prompt": True}
    )
    _write_json(path / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    default = card.default_instruction
    query = card.query_template.replace("{instruction}", default).replace("{query}", "") if default else ""
    _write_json(
        path / "config_sentence_transformers.json",
        {"prompts": {"query": query, "document": ""}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def config_for_every_reader(config: PretrainedConfig) -> dict[str, Any]:
    """config.json with the rotary base under both names: transformers 4 ignores `rope_parameters`, without an error."""
    written: dict[str, Any] = config.to_dict()
    written.pop("quantization_config", None)
    written.pop("_model_name_or_path", None)
    rope = written.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        written["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            written["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return written


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """A fresh directory beside `path` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    new.mkdir()
    try:
        yield new
        _sync_tree(new)
        old = path.with_name(new.name.replace(".new", ".old"))
        if path.exists():
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _sync_tree(path: Path) -> None:
    for entry in [*path.rglob("*"), path]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
