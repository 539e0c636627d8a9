"""A checkpoint on disk: what it is, how it pools, and its fingerprint, read without torch.

Reads the sentence-transformers layout in its older and newer schema, and a plain transformers directory, whose pooling
then follows its family. Whatever would embed wrongly without an error is refused here, with the reason.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import Tokenizer

from service.encoders.base import Pooling
from service.encoders.card import CARD
from service.encoders.plain import is_plain_decoder
from service.encoders.prompt import DEFAULT_QUERY_TEMPLATE, Frame, TokenContract
from service.errors import ConfigurationError
from service.paths import cache_dir

DEFAULT_NAME = "eoseek-smollm2-135m"
BASE_NAME = "smollm2-135m-instruct"
"""What the default is tuned from: the language model as it is, pooled at [EOS]."""
BUILT = {"default": DEFAULT_NAME, DEFAULT_NAME: DEFAULT_NAME, BASE_NAME: BASE_NAME}
"""Checkpoints that are built here rather than fetched from a hub, by the names they go by."""

_POOLING_NAMES: dict[str, Pooling] = {
    "cls": "cls",
    "mean": "mean",
    "lasttoken": "last_token",
    # the long-standing schema: one boolean a mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last_token",
}
_CLS_FAMILIES = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "electra", "modernbert", "deberta-v2"}
)
T5_FAMILIES = frozenset({"t5", "mt5", "umt5"})
"""Families of which only the encoder is loaded."""
POSITIONS_AFTER_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
"""Families that count positions from the padding index on, so that many positions are lost."""
# what a transformers version or a user's taste writes and no vector depends on
_VOLATILE_CONFIG = frozenset(
    {
        "transformers_version",
        "dtype",
        "torch_dtype",
        "_name_or_path",
        "_model_name_or_path",
        "use_cache",
        "architectures",
    }
)
Digests: TypeAlias = dict[str, list[Any]]
"""Of the large files by their names: what the file system said of each, and its sha256. A worker is handed them, so
that it reads once more only what has changed."""
_PROMPTS = "config_sentence_transformers.json"
_SENTENCE_BERT = "sentence_bert_config.json"
_KINDS: dict[Any, str] = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    (int, float): "a number",
    dict: "an object",
}
_INSTRUCT_PROMPT = re.compile(r"Instruct: (?P<instruction>.+?)(?P<rest>\s?\n ?Query: ?)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A directory of weights and its token contract."""

    path: Path
    name: str
    fingerprint: str
    dimension: int
    max_length: int
    pooling: Pooling
    normalize: bool
    is_tuned: bool | None  # None: the checkpoint does not say
    instructions: dict[str, str]
    probes: dict[str, str]  # text to the vector recorded at export, see `service.encoders.probes`
    contract: TokenContract
    digests: Digests = field(default_factory=dict)

    @property
    def default_instruction(self) -> str:
        """The instruction of a query that names none."""
        return self.contract.frame.default_instruction


def load_checkpoint(
    name_or_path: str,
    *,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    digests: Digests | None = None,
) -> Checkpoint:
    """Open a checkpoint and check its contract.

    Args:
        name_or_path: `default`, a directory, or a hub name.
        max_length: limit in tokens instead of the checkpoint's own; at most what its positions reach.
        trust_remote_code: admit a checkpoint whose config names code of its own.
        digests: of a `Checkpoint` that was opened here before.
    Raises:
        ConfigurationError: missing, incomplete, or of a kind that would embed wrongly; says what to do.
    """
    path = locate(name_or_path)
    try:
        return _load(path, name_or_path, max_length, trust_remote_code, digests or {})
    except ConfigurationError as error:
        raise type(error)(f"checkpoint {path}: {error.detail}") from error


def load_served(
    name_or_path: str,
    *,
    max_length: int | None,
    trust_remote_code: bool,
    fingerprint: str | None,
    digests: Digests | None,
) -> Checkpoint:
    """As `load_checkpoint`, for a worker, whose vectors belong to `fingerprint`; None takes whatever is there.

    Raises:
        ConfigurationError: also if it is another checkpoint by now; a worker that restarts must not embed with it.
    """
    checkpoint = load_checkpoint(
        name_or_path, max_length=max_length, trust_remote_code=trust_remote_code, digests=digests
    )
    if fingerprint not in (None, checkpoint.fingerprint):
        raise ConfigurationError(
            f"checkpoint {checkpoint.path} has changed: its fingerprint is {checkpoint.fingerprint}, "
            f"the service started with {fingerprint}; put the old one back, or restart the service and re-index"
        )
    return checkpoint


def _load(path: Path, asked_name: str, max_length: int | None, trust_remote_code: bool, known: Digests) -> Checkpoint:
    config = _read_json(path / "config.json")
    if "auto_map" in config and not trust_remote_code:
        raise ConfigurationError(
            "its config names code of its own; set EOSEEK_ENCODER__TRUST_REMOTE_CODE=true only if you trust that code"
        )
    own = _read_json(path / CARD, optional=True)
    modules = _modules(path)
    pooling = _pooling(config, modules)
    frame = _frame(path, own)
    limit = _max_length(path, config, max_length)
    tokenizer = _tokenizer(path)
    eos_ids = _eos_ids(path, config, tokenizer) if pooling == "last_token" else None
    normalize = not modules or any(kind == "Normalize" for kind, _ in modules)
    is_path = Path(asked_name).expanduser().exists()
    digests = _digests(path, known)
    return Checkpoint(
        path=path,
        name=_value(CARD, own, "name", str, None) or (path.name if is_path else asked_name),
        fingerprint=_fingerprint(config, [pooling, normalize, frame.document_prefix, frame.lowercase], digests),
        dimension=_text_config(config)["hidden_size"],
        max_length=limit,
        pooling=pooling,
        normalize=normalize,
        is_tuned=_value(CARD, own, "is_tuned", bool, None),
        instructions=_strings(CARD, own, "instructions"),
        probes=_strings(CARD, own, "probes"),
        contract=TokenContract(tokenizer, frame, max_length=limit, eos_ids=eos_ids),
        digests=digests,
    )


def built_path(name: str) -> Path:
    """Where `eoseek model pull` keeps a checkpoint of `BUILT`."""
    return cache_dir() / "checkpoints" / BUILT[name]


def locate(name_or_path: str) -> Path:
    """The directory of a built checkpoint, a path, or a hub name, fetched if need be. Raises ConfigurationError."""
    if name_or_path in BUILT:
        path = built_path(name_or_path)
        if not path.is_dir():
            raise ConfigurationError(
                f"the checkpoint {name_or_path} is not at {path}; fetch it with: eoseek model pull {name_or_path}"
            )
        return path
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists() or path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") != 1:
        raise ConfigurationError(
            f"checkpoint {name_or_path!r} is no directory; give one, a hub name ORG/NAME, or `default`"
        )
    return _from_hub(name_or_path)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # safetensors only: the older pickled weights can run code while they load
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigurationError(
            f"checkpoint {name!r} is no directory here and the hub did not give it: {reason}"
        ) from error


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    content = _parse_json(path, optional=optional)
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path.name} holds no JSON object")
    return content


def _parse_json(path: Path, *, optional: bool) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise ConfigurationError(f"{path.name} is missing; is this a checkpoint directory?") from None
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{path.name} cannot be read: {error}") from error


def _value(file: str, content: dict[str, Any], key: str, kind: Any, default: Any) -> Any:
    """`content[key]`, or the default if there is none. Raises ConfigurationError unless it is of `kind`."""
    value = content.get(key, default)
    if key not in content or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    raise ConfigurationError(f"{file}: {key} is {json.dumps(value):.200}; expected {_KINDS[kind]}, or leave it out")


def _strings(file: str, content: dict[str, Any], key: str) -> dict[str, str]:
    """`content[key]`, an object of strings; empty if there is none."""
    values = _value(file, content, key, dict, {})
    return {name: _value(f"{file}: {key}", values, name, str, "") for name in values}


def _without_null(content: dict[str, Any]) -> dict[str, Any]:
    """What other libraries write, to whom null says what an absent key says."""
    return {key: value for key, value in content.items() if value is not None}


def _modules(path: Path) -> list[tuple[str, Path]]:
    """(class name, directory) of each module; empty for a plain transformers directory."""
    if not (path / "modules.json").exists():
        return []
    listed = _parse_json(path / "modules.json", optional=False)
    try:
        # module paths differ by version of sentence-transformers, class names do not
        modules = [(entry["type"].rsplit(".", 1)[-1], path / entry["path"]) for entry in listed]
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(f"modules.json is not a list of modules with type and path ({error!r})") from error
    unknown = [kind for kind, _ in modules if kind not in {"Transformer", "Pooling", "Normalize"}]
    if unknown:
        raise ConfigurationError(f"module {unknown[0]} is not supported (only Transformer, Pooling, Normalize)")
    return modules


def _pooling(config: dict[str, Any], modules: list[tuple[str, Path]]) -> Pooling:
    directories = [directory for kind, directory in modules if kind == "Pooling"]
    if not directories:
        return family_pooling(config.get("model_type", ""))
    written = _read_json(directories[0] / "config.json")
    if written.get("include_prompt") is False:
        raise ConfigurationError("pooling without the prompt's tokens (include_prompt: false) is not supported")
    if "pooling_mode" in written:
        mode = written["pooling_mode"]
        modes = mode if isinstance(mode, list) else [mode]
    else:
        modes = [key for key, value in written.items() if key.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in _POOLING_NAMES:
        raise ConfigurationError(f"pooling {modes} is not supported; one of cls, mean, lasttoken is")
    return _POOLING_NAMES[modes[0]]


def family_pooling(model_type: str) -> Pooling:
    """Pooling of a plain transformers directory: `cls` for BERT-like, `mean` for T5, else `last_token`."""
    if model_type in _CLS_FAMILIES:
        return "cls"
    return "mean" if model_type in T5_FAMILIES else "last_token"


def _frame(path: Path, own: dict[str, Any]) -> Frame:
    prompts = _prompts(path)
    template, default = _query_template(prompts.get("query", ""))
    query_template = _value(CARD, own, "query_template", str, template)
    if query_template.count("{query}") != 1:
        raise ConfigurationError(f"{CARD}: query_template {query_template!r:.200} must hold {{query}} exactly once")
    return Frame(
        query_template=query_template,
        default_instruction=_value(CARD, own, "default_instruction", str, default),
        document_prefix=prompts.get("document") or prompts.get("passage") or "",
        lowercase=bool(_read_json(path / _SENTENCE_BERT, optional=True).get("do_lower_case")),
    )


def _prompts(path: Path) -> dict[str, str]:
    written = _without_null(_read_json(path / _PROMPTS, optional=True))
    prompts = _without_null(_value(_PROMPTS, written, "prompts", dict, {}))
    return _strings(_PROMPTS, {"prompts": prompts}, "prompts")


def _query_template(prompt: str) -> tuple[str, str]:
    """(template, default instruction) from the query prompt that sentence-transformers puts before a query."""
    if not prompt:
        return DEFAULT_QUERY_TEMPLATE, ""
    if match := _INSTRUCT_PROMPT.fullmatch(prompt):
        return "Instruct: {instruction}" + match["rest"] + "{query}", match["instruction"]
    return prompt + "{query}", ""


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of the config, with `hidden_size` under that name."""
    text = _value("config.json", _without_null(config), "text_config", dict, None) or config
    key = "hidden_size" if text.get("hidden_size") else "d_model"
    hidden_size = _value("config.json", _without_null(text), key, int, None)
    if not hidden_size:
        raise ConfigurationError("config.json names no hidden_size")
    return text | {"hidden_size": hidden_size}


def _max_length(path: Path, config: dict[str, Any], asked: int | None) -> int:
    text = _text_config(config)
    positions = _value("config.json", _without_null(text), "max_position_embeddings", int, None)
    if positions is not None and config.get("model_type") in POSITIONS_AFTER_PADDING:
        positions -= _value("config.json", _without_null(text), "pad_token_id", int, 0) + 1
    own = None
    for file, key in ((_SENTENCE_BERT, "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        own = own or _value(file, _without_null(_read_json(path / file, optional=True)), key, (int, float), None)
    # transformers writes 1e30 where a tokenizer has no limit
    own = int(own) if own and own < 10**9 else None
    if asked is not None and positions is not None and asked > positions:
        raise ConfigurationError(f"max_length {asked} is over the {positions} positions of this model")
    limits = [limit for limit in (asked or own, positions) if limit is not None]
    if not limits:
        return 512 if config.get("model_type") in T5_FAMILIES else 8192
    return min(limits)


def _tokenizer(path: Path) -> Tokenizer:
    file = path / "tokenizer.json"
    if file.exists():
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception
            raise ConfigurationError(f"tokenizer.json cannot be read: {error}") from error
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(path))
        backend: Tokenizer = loaded.backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"no tokenizer.json, and none can be made: {str(error).splitlines()[0]}") from error
    return backend


def _eos_ids(path: Path, config: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    """Ids that count as [EOS]: the tokenizer's eos_token and the config's eos_token_id."""
    token = _read_json(path / "tokenizer_config.json", optional=True).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    listed = _text_config(config).get("eos_token_id")
    candidates = [tokenizer.token_to_id(token) if token else None, *(listed if isinstance(listed, list) else [listed])]
    eos_ids = [candidate for candidate in candidates if candidate is not None]
    if not eos_ids:
        raise ConfigurationError(
            "neither tokenizer_config.json nor config.json names an EOS token, where the embedding is read"
        )
    return eos_ids


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ConfigurationError("no *.safetensors; pickled weights are not loaded, convert them with transformers")
    return files


def is_plain(path: Path) -> bool:
    """Whether a worker reads a checkpoint without transformers: see `service.encoders.plain`.

    Raises:
        ConfigurationError: its files cannot be read.
    """
    config = _without_null(_read_json(path / "config.json"))
    own = _read_json(path / CARD, optional=True)
    return bool(own.get("probes")) and _pooling(config, _modules(path)) == "last_token" and is_plain_decoder(config)


def _digests(path: Path, known: Digests) -> Digests:
    """Of the tokenizer's files and the weights, in the order in which the fingerprint has them."""
    tokenizer_files = [path / "tokenizer.json"] if (path / "tokenizer.json").exists() else sorted(path.glob("*.txt"))
    digests: Digests = {}
    for file in [*tokenizer_files, *weight_files(path)]:
        with file.open(
            "rb"
        ) as content:  # a network's file system asks anew what it knows of a file when that is opened
            status = os.fstat(content.fileno())
            stamp = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            *known_stamp, digest = known.get(file.name, [None])
            if known_stamp != stamp:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        digests[file.name] = [*stamp, digest]
    return digests


def _fingerprint(config: dict[str, Any], settings: list[Any], digests: Digests) -> str:
    """sha256 over all that a stored vector depends on, and nothing that it does not."""
    digest = hashlib.sha256()
    # a key set to null says what an absent one says
    stable = {key: value for key, value in config.items() if key not in _VOLATILE_CONFIG and value is not None}
    digest.update(json.dumps([settings, stable], sort_keys=True).encode())
    for each in digests.values():
        digest.update(bytes.fromhex(each[-1]))
    return digest.hexdigest()
