"""The model that training starts from, its token contract completed where it lacks the closing [EOS].

A plain language model's tokenizer seldom ends a text in [EOS]. Training then works on a folder of its own that links
the base's files and holds the completed tokenizer, so that everything behind it loads one kind of checkpoint.
"""

from pathlib import Path

from service.encoders.checkpoint import Checkpoint, load_checkpoint, locate
from service.encoders.prompt import MissingEosError
from service.errors import ConfigurationError


def open_base(name_or_path: str, folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint to start from.

    Args:
        name_or_path: `default`, a directory, or a hub name.
        folder: where a completed copy goes if one is needed.
        trust_remote_code: as `load_checkpoint`.
    Raises:
        ConfigurationError: not a checkpoint, or a decoder whose tokenizer names no EOS token.
    """
    try:
        return load_checkpoint(name_or_path, trust_remote_code=trust_remote_code)
    except MissingEosError:
        return _with_closing_eos(locate(name_or_path), folder, trust_remote_code)


def _with_closing_eos(path: Path, folder: Path, trust_remote_code: bool) -> Checkpoint:
    from transformers import AutoTokenizer

    from service.encoders.layout import add_closing_eos, replaced_directory

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token is None or not hasattr(tokenizer, "backend_tokenizer"):
        raise ConfigurationError(
            f"base {path}: its tokenizer names no EOS token, where the embedding is read; add one to its vocabulary"
        )
    add_closing_eos(tokenizer.backend_tokenizer, tokenizer.eos_token)
    with replaced_directory(folder) as new:
        for entry in path.iterdir():
            if entry.name != "tokenizer.json":
                (new / entry.name).symlink_to(entry.resolve())
        tokenizer.backend_tokenizer.save(str(new / "tokenizer.json"))
    return load_checkpoint(str(folder), trust_remote_code=trust_remote_code)
