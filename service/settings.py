"""All settings of the service, read once from `EOSEEK_*` at start.

Groups nest by `__`: `EOSEEK_STORE__KIND=qdrant`; an empty variable counts as unset, an unknown one is refused. A room
is handed its group and never reads the environment.
"""

import difflib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import ConfigurationError
from service.logs import LogFormat
from service.paths import cache_dir

_PREFIX = "EOSEEK_"
_OTHERS = frozenset({"EOSEEK_URL", "EOSEEK_API_KEY"})  # read by the client; one environment often serves both sides
_TESTS = "EOSEEK_TEST_"
# Kubernetes sets these in every pod beside a Service that is called eoseek or eoseek-something
_SERVICE_LINK = re.compile(r"EOSEEK_(\w+_)?((SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_\w+)=|PORT=\w+://).*")
MIN_KEY_CHARS = 32
Role = Literal["read", "write", "admin"]
_KEY = re.compile(rf"[A-Za-z0-9._~+/=-]{{{MIN_KEY_CHARS},512}}")


def _json_list(value: Any) -> Any:
    """A list as JSON, the one spelling of lists in the environment; empty means none. Errors do not show the value."""
    if not isinstance(value, str):
        return value
    try:
        listed = json.loads(value) if value.strip() else []
    except ValueError as error:
        raise ValueError(f"is not JSON ({error}); write a list, as in [...]") from None
    if not isinstance(listed, list):
        raise ValueError("is JSON but no list; write [...]")
    return tuple(listed)


def _digest(key: Any) -> bytes:
    if isinstance(key, bytes):  # pydantic-settings dumps a group that it is given, and reads it again
        return key
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(
            f"a key has {MIN_KEY_CHARS} to 512 letters, digits or `-._~+/=`; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return hashlib.sha256(key.encode()).digest()


def _upstream_url(url: str) -> str:
    """The address with its `/v1`, as OpenAI's clients take it. Errors do not show the value."""
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        is_usable = False
    if not is_usable or parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("is no address; write http://HOST:PORT or https://HOST, with a path if there is one")
    if "@" in parts.netloc:
        raise ValueError("holds a user or a password, which would be logged; set EOSEEK_ENCODER__API_KEY")
    base = url.rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"


def _header_value(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise ValueError("cannot stand in a header; write printable ASCII without spaces")
    return key


class Group(BaseModel):
    """A frozen group of settings; unknown names are refused so that a typing error is seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ApiKey(Group):
    """Who may call. Of the key its sha256 is kept, which is enough for one that nobody can guess."""

    role: Role
    key: Annotated[bytes, BeforeValidator(_digest)] = Field(repr=False)
    collections: frozenset[str] | None = None  # None: all of them
    requests_per_second: float | None = Field(None, gt=0)


class ApiSettings(Group):
    """The HTTP interface."""

    host: str = Field(
        "127.0.0.1", description="Address to bind. Others than loopback want a key, or `OPEN_TO_NETWORK_WITHOUT_KEYS`."
    )
    port: int = Field(8080, ge=0, le=65535, description="Port to bind; 0 takes a free one.")
    keys: Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(_json_list)] = Field(
        (),
        repr=False,
        description='Who may call, as JSON: `[{"role": "read", "key": "..."}]`; see README.md, Keys. None: everybody.',
    )
    keys_file: Path | None = Field(None, description="File that holds the same JSON, instead of the variable.")
    open_operations: bool = Field(
        True,
        description="Answer `/health/*` and `/metrics` without a key; false asks for one of any role, `/metrics` for "
        "all collections.",
    )
    open_to_network_without_keys: bool = Field(
        False, description="Listen beyond loopback though no key is set: whoever reaches the port may do everything."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_json_list)] = Field(
        (),
        description='Origins whose pages may call, as JSON: `["https://example.org"]`; `["*"]`: any. None by default.',
    )
    max_body_bytes: int = Field(
        64 * 2**20, gt=0, description="Largest JSON body, bytes. Too small refuses bulk loads; too large costs memory."
    )
    max_inputs: int = Field(
        2048, gt=0, description="Most texts or queries in one `/embed`, `/search` or `/v1/embeddings`."
    )
    max_documents: int = Field(
        10_000, gt=0, description="Most documents in one JSON `POST /documents`; NDJSON has no limit."
    )
    max_text_chars: int = Field(
        2_000_000, gt=0, description="Longest text, characters, before it is tokenized; guards the tokenizer's time."
    )
    max_top_k: int = Field(
        1000, gt=0, description="Largest `top_k` plus `offset`; also the largest batch of ids in one call."
    )
    max_results: int = Field(
        100_000, gt=0, description="Most results in one `/search`: queries times `top_k` plus `offset`; bounds memory."
    )
    max_metadata_bytes: int = Field(
        2**16, gt=0, description="Largest metadata of a document, bytes of JSON; each filter reads all of it."
    )
    request_timeout_seconds: float = Field(
        120.0, gt=0, description="Deadline of a request, seconds; work that nobody waits for is dropped."
    )
    drain_seconds: float = Field(20.0, ge=0, description="How long shutdown waits for admitted requests, seconds.")

    @model_validator(mode="before")
    @classmethod
    def _read_keys_file(cls, values: Any) -> Any:
        path = values.get("keys_file") if isinstance(values, dict) else None
        keys = values.get("keys") if path else None
        if not path or (keys and isinstance(keys, tuple)):  # no file, or read already
            return values
        if keys:
            raise ValueError("EOSEEK_API__KEYS and EOSEEK_API__KEYS_FILE are both set; leave one out")
        try:
            return values | {"keys": Path(path).read_text("utf-8")}
        except (OSError, ValueError) as error:
            raise ValueError(f"EOSEEK_API__KEYS_FILE={path} cannot be read: {error}") from error

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if len({each.key for each in self.keys}) < len(self.keys):
            raise ValueError("EOSEEK_API__KEYS: two entries have the same key; give each its own")
        if self.keys_file and not self.keys:
            raise ValueError(f"EOSEEK_API__KEYS_FILE={self.keys_file} holds no key")
        return self


class EncoderSettings(Group):
    """The checkpoint and what executes it."""

    backend: Literal["torch", "vllm", "remote"] = Field(
        "torch",
        description="Which engine encodes; `vllm` needs the extra `vllm` and pays off on GPUs, `remote` asks `URLS`.",
    )
    checkpoint: str = Field("default", description="`default`, a checkpoint directory, or a hub name.")
    dtype: Literal["auto", "float32", "bfloat16", "int16"] = Field(
        "auto",
        description="Arithmetic; `auto` is bfloat16 where the processor has it, on AVX2 alone int16 (the default "
        "checkpoint: cosine to float32 0.9997 and more), else float32.",
    )
    device: str = Field("auto", description="`cpu`, `cuda`, `cuda:1`; `auto` takes CUDA where there is one.")
    threads: int = Field(0, ge=0, description="CPU threads of the worker; 0 takes one a core.")
    tensor_parallel: int = Field(1, gt=0, description="GPUs that share the model; vLLM only.")
    memory_share: float = Field(
        0.9, gt=0, le=1, description="Share of a GPU's memory that vLLM may take; on processors, of the main memory."
    )
    max_length: int | None = Field(
        None, gt=1, description="Longest text in tokens, [EOS] included; default is the checkpoint's own."
    )
    trust_remote_code: bool = Field(
        False, description="Run code that a checkpoint brings along. Off unless you wrote it."
    )
    prefix_cache_tokens: int = Field(
        2048,
        ge=0,
        description="Tokens of instructions and other shared openings whose states the torch worker keeps; 0 for none. "
        "Too few calculate instructions anew; one takes 23 KB for the default checkpoint, 115 KB for "
        "Qwen3-Embedding-0.6B.",
    )
    start_timeout_seconds: float = Field(
        600.0, gt=0, description="Limit for loading the checkpoint, or for the first upstream to be up, seconds."
    )
    urls: Annotated[
        tuple[Annotated[str, AfterValidator(_upstream_url)], ...], NoDecode, BeforeValidator(_json_list)
    ] = Field(
        (),
        description='OpenAI-compatible upstreams of `remote`, as JSON: `["http://gpu-1:8000"]`; see '
        "docs/operations.md.",
    )
    url_model: str | None = Field(
        None, min_length=1, description="Name of the model at the upstreams; default is the only one that they list."
    )
    api_key: Annotated[SecretStr, AfterValidator(_header_value)] | None = Field(
        None, description="Key of the upstreams, sent as bearer."
    )
    url_timeout_seconds: float = Field(
        30.0, gt=0, description="Limit of one call to an upstream, seconds; then another one is asked."
    )
    url_batches: int = Field(
        2, gt=0, description="Batches under way at one upstream. One leaves it idle in between; many make queries wait."
    )
    trust_urls: bool = Field(
        False,
        description="Serve upstreams unproven, where the checkpoint records no vectors to hold them against: what the "
        "first one answers is then held against the others, and against later answers.",
    )

    @model_validator(mode="after")
    def _check_urls(self) -> Self:
        if (self.backend == "remote") != bool(self.urls):
            raise ValueError("EOSEEK_ENCODER__BACKEND=remote and EOSEEK_ENCODER__URLS go together; set both or neither")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("EOSEEK_ENCODER__URLS names an address twice; write each once")
        return self


class BatchingSettings(Group):
    """What is put together into one forward."""

    max_batch_tokens: int = Field(
        16384, gt=0, description="Most tokens in one batch. Raised to the model's length, so every legal text fits."
    )
    max_batch_texts: int = Field(512, gt=0, description="Most texts in one batch.")
    max_queue_tokens: int = Field(
        262_144, gt=0, description="Most tokens waiting in a lane; more is answered 429. Too large means long waits."
    )
    batch_target_ms: float = Field(
        250.0,
        gt=0,
        description="Longest a document batch may take, ms: what a query waits at most. Too small costs throughput. "
        "Torch on a processor encodes documents beside queries, at low priority, and needs no such limit.",
    )
    document_max_wait_ms: float = Field(
        2000.0,
        gt=0,
        description="Age at which a waiting document batch goes before queries, so that ingestion never starves.",
    )
    cache_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Memory for embeddings of recent queries, bytes; 64 MiB hold 25,000 of 576 numbers. 0 encodes "
        "every query, also one that is under way already.",
    )


class StoreSettings(Group):
    """Where vectors are kept."""

    kind: Literal["edge", "qdrant", "memory"] = Field(
        "edge", description="`edge`: embedded, no server; `qdrant`: a server or cluster; `memory`: exact, gone at exit."
    )
    path: Path = Field(default_factory=lambda: cache_dir() / "store", description="Directory of the embedded store.")
    url: str = Field(
        "http://127.0.0.1:6333", description="Qdrant server for kind `qdrant`; `:memory:` is the client's local mode."
    )
    api_key: SecretStr | None = Field(None, description="Key of the Qdrant server.")
    grpc: bool = Field(True, description="Speak gRPC to the Qdrant server rather than HTTP.")
    grpc_port: int = Field(6334, gt=0, le=65535, description="gRPC port of the Qdrant server.")
    timeout_seconds: float = Field(30.0, gt=0, description="Limit of one call to the store, seconds.")
    index_threshold: int = Field(
        50_000,
        ge=0,
        description="Documents outside an index that start the building of one in the embedded store, in the "
        "background; 0 builds none. Few cost builds that save little, many slow searches, which scan what is outside.",
    )
    quantization: Literal["none", "scalar"] = Field(
        "none",
        description="Vectors as the next index of the embedded store is built: `scalar` keeps 8 bits a number in "
        "memory and reads the originals from disk for the best ones.",
    )
    collection: str = Field("default", description="Collection used when a request names none; created at start.")


class Settings(BaseSettings):
    """Everything that can be set, checked at start."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
        hide_input_in_errors=True,  # it may be a key
    )

    api: ApiSettings = Field(default_factory=ApiSettings)
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    batching: BatchingSettings = Field(default_factory=BatchingSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )
    log_format: LogFormat = Field(
        "text", description="`text` for people; `json`: an object a line, and a line for each request."
    )
    tracing: bool = Field(
        False, description="Send OpenTelemetry traces, see docs/operations.md; needs the extra `otel`."
    )

    @model_validator(mode="before")
    @classmethod
    def _knows_every_variable(cls, values: Any) -> Any:
        # a misspelt one below a group is refused there; without this a misspelt group would be ignored, and so would
        # what is below a setting that is no group
        known = variables(cls)

        def below(name: str) -> bool:
            """Whether a setting that is no group stands before a `__` in it."""
            return any(name.startswith(f"{variable}__") for variable in known)

        for name, value in sorted((name.upper(), value) for name, value in os.environ.items()):
            field = name.removeprefix(_PREFIX).partition("__")[0].lower()
            is_known = name in _OTHERS or name.startswith(_TESTS) or (field in cls.model_fields and not below(name))
            if name.startswith(_PREFIX) and not is_known and not _SERVICE_LINK.fullmatch(f"{name}={value}"):
                nearest = difflib.get_close_matches(name, [*known, *_OTHERS], n=1, cutoff=0)[0]
                raise ConfigurationError(f"{name} is no setting; the nearest one is {nearest}")
        return values


def variables(group: type[BaseModel] = Settings, prefix: str = _PREFIX) -> dict[str, FieldInfo]:
    """All variables of a group by name, its groups' included; in the order of the code."""
    found: dict[str, FieldInfo] = {}
    for name, field in group.model_fields.items():
        variable, kind = f"{prefix}{name.upper()}", field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= variables(kind, f"{variable}__")
        else:
            found[variable] = field
    return found
