"""Parts of an app that need no weights."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from service.encoders.checkpoint import Checkpoint
from service.encoders.prompt import Frame, TokenContract

DIMENSION = 32
MAX_LENGTH = 100


def byte_tokenizer() -> Tokenizer:
    """One token a byte, then [EOS]."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)} | {"</s>": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return tokenizer


def tiny_checkpoint(
    *, fingerprint: str = "f" * 64, name: str = "tiny", dimension: int = DIMENSION, max_length: int = MAX_LENGTH
) -> Checkpoint:
    contract = TokenContract(byte_tokenizer(), Frame(), max_length=max_length, eos_ids=[256])
    return Checkpoint(
        path=Path("/checkpoints", name),
        name=name,
        fingerprint=fingerprint,
        dimension=dimension,
        max_length=max_length,
        pooling="last_token",
        normalize=True,
        is_tuned=False,
        instructions={"code": "Find the function"},
        probes={},
        contract=contract,
    )
