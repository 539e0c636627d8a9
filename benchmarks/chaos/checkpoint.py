"""A checkpoint that costs nothing: one layer, random weights, a word a token, the mean of all.

Without positions the vector is a random projection of a text's words, so shared words bring texts nearer than chance
does, and a lost or wrong vector can show in nDCG.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from benchmarks.running import real_texts
from service.encoders.card import CheckpointCard
from service.encoders.layout import write_checkpoint

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
MAX_LENGTH = 512


def write_random_checkpoint(path: Path, seed: int = 0) -> Path:
    """The whole directory; another seed gives other vectors of the same dimension, and another fingerprint."""
    tokenizer = word_tokenizer(real_texts())
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=128, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=MAX_LENGTH, pad_token_id=0,
    )  # fmt: skip
    model = BertModel(config).eval()
    torch.nn.init.zeros_(model.embeddings.position_embeddings.weight)
    write_checkpoint(
        path,
        model,
        tokenizer,
        special_tokens=SPECIAL_TOKENS,
        pooling="mean",
        max_length=MAX_LENGTH,
        card=CheckpointCard(name=f"random-{seed}", is_tuned=False, base="random", licence="none"),
    )
    return path


def word_tokenizer(texts: list[str]) -> Tokenizer:
    """A token for each word that comes twice or more."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=20_000, min_frequency=2, special_tokens=[*SPECIAL_TOKENS.values()])
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    )
    return tokenizer
