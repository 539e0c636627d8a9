"""Tiny checkpoints with random weights, one a family, written in the layout that real ones have."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel

from service.encoders.base import Pooling
from service.encoders.card import CheckpointCard
from service.encoders.layout import write_checkpoint

_DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "eos_token_id": 2, "bos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
_BERT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0, "eos_token_id": 2}

# family: (config class, model class, arguments, pooling); windows are short, so that tests reach beyond them
FAMILIES: dict[str, tuple[str, str, dict[str, Any], Pooling]] = {
    "llama": ("LlamaConfig", "LlamaModel", _DECODER, "last_token"),
    "qwen2": ("Qwen2Config", "Qwen2Model", _DECODER, "last_token"),
    "qwen3": ("Qwen3Config", "Qwen3Model", _DECODER, "last_token"),
    "gemma": ("GemmaConfig", "GemmaModel", _DECODER, "last_token"),
    "gemma2": ("Gemma2Config", "Gemma2Model", _DECODER | {"sliding_window": 8}, "last_token"),
    "gemma3": ("Gemma3TextConfig", "Gemma3TextModel", _DECODER | {"sliding_window": 8}, "last_token"),
    "mistral": ("MistralConfig", "MistralModel", _DECODER | {"sliding_window": 8}, "last_token"),
    "phi": ("PhiConfig", "PhiModel", {**_DECODER, "num_key_value_heads": 4}, "last_token"),
    "bert": ("BertConfig", "BertModel", _BERT, "cls"),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", _BERT | {"pad_token_id": 1}, "cls"),
    "mpnet": ("MPNetConfig", "MPNetModel", _BERT | {"pad_token_id": 1}, "mean"),
    "t5": ("T5Config", "T5EncoderModel", _T5, "mean"),
}
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def byte_tokenizer(template: str = "$A </s>") -> Tokenizer:
    """One token a byte after the three special tokens; `template` as in TemplateProcessing."""
    specials = list(SPECIAL_TOKENS.values())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in specials]
    )
    return tokenizer


def tiny_model(family: str, **changes: Any) -> PreTrainedModel:
    """A model of this family with random weights, the same at every call."""
    config_class, model_class, arguments, _ = FAMILIES[family]
    config = getattr(transformers, config_class)(vocab_size=259, **(arguments | changes))
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, model_class)(config)
    # larger than the usual 0.02, so that a wrong mask shows
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def write_tiny_checkpoint(
    path: Path, family: str = "llama", *, model: PreTrainedModel | None = None, max_length: int = 100, **card: Any
) -> Path:
    """A whole checkpoint directory of this family, or of this model of it."""
    pooling = FAMILIES[family][3]
    write_checkpoint(
        path,
        model or tiny_model(family),
        byte_tokenizer("$A </s>" if pooling == "last_token" else "<s> $A </s>"),
        special_tokens=SPECIAL_TOKENS,
        pooling=pooling,
        max_length=max_length,
        card=CheckpointCard(
            **({"name": f"tiny-{family}", "is_tuned": False, "base": "random", "licence": "none"} | card)
        ),
    )
    return path
