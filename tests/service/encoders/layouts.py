"""Public layouts of a checkpoint that is none of ours, with tiny random weights; each returns how its texts are pooled.

None pools as its family would by itself, so that a reader which overlooks what is written gives other vectors.
"""

import json
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from service.encoders.base import Pooling
from tests.checkpoints import SPECIAL_TOKENS, byte_tokenizer, tiny_model


def plain(path: Path) -> Pooling:
    """What transformers saves, beside a `modules.json` and a pooling that were written by hand."""
    _save_transformers(path, "bert")
    _write_modules(path, "sentence_transformers.models", {"pooling_mode_mean_tokens": True}, is_normalized=False)
    return "mean"


def older(path: Path) -> Pooling:
    """As sentence-transformers before 6 saved it."""
    _save_transformers(path, "bert")
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 100, "do_lower_case": false}')
    modes = {"cls_token": False, "mean_tokens": True, "max_tokens": False, "lasttoken": False}
    pooling = {f"pooling_mode_{mode}": value for mode, value in modes.items()} | {"include_prompt": True}
    _write_modules(path, "sentence_transformers.models", pooling, is_normalized=True)
    return "mean"


def newer(path: Path) -> Pooling:
    """As the sentence-transformers that is installed saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    source = path.with_name(f"{path.name}-source")
    _save_transformers(source, "bert")
    transformer = Transformer(str(source), max_seq_length=100)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").save(str(path))
    return "mean"


LAYOUTS: dict[str, Callable[[Path], Pooling]] = {"older": older, "newer": newer, "plain": plain}


def _save_transformers(path: Path, family: str) -> None:
    tiny_model(family, hidden_size=64, num_attention_heads=2, max_position_embeddings=128).save_pretrained(path)
    PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer("<s> $A </s>"), model_max_length=100, **SPECIAL_TOKENS
    ).save_pretrained(path)


def _write_modules(path: Path, package: str, pooling: dict[str, bool], *, is_normalized: bool) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")][: 3 if is_normalized else 2]
    modules = [
        {"idx": index, "name": str(index), "path": where, "type": f"{package}.{kind}"}
        for index, (where, kind) in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **pooling}))
