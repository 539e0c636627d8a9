"""All settings of the service, read once from `EOSEEK_*` at start.

Groups nest by `__`: `EOSEEK_STORE__KIND=qdrant`. A room is handed its group and never reads the environment.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.logs import LogFormat
from service.paths import cache_dir


class Group(BaseModel):
    """A frozen group of settings; unknown names are refused so that a typing error is seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ApiSettings(Group):
    """The HTTP interface."""

    host: str = Field("127.0.0.1", description="Address to bind. Loopback unless told otherwise.")
    port: int = Field(8080, ge=0, le=65535, description="Port to bind; 0 takes a free one.")
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
    request_timeout_seconds: float = Field(
        120.0, gt=0, description="Deadline of a request, seconds; work that nobody waits for is dropped."
    )
    drain_seconds: float = Field(20.0, ge=0, description="How long shutdown waits for admitted requests, seconds.")


class EncoderSettings(Group):
    """The checkpoint and what executes it."""

    backend: Literal["torch"] = Field("torch", description="Which engine encodes.")
    checkpoint: str = Field("default", description="`default`, a checkpoint directory, or a hub name.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic; `auto` is bfloat16 where the processor has it, else float32."
    )
    device: str = Field("auto", description="`cpu`, `cuda`, `cuda:1`; `auto` takes CUDA where there is one.")
    threads: int = Field(0, ge=0, description="CPU threads of the worker; 0 takes one a core.")
    max_length: int | None = Field(
        None, gt=1, description="Longest text in tokens, [EOS] included; default is the checkpoint's own."
    )
    trust_remote_code: bool = Field(
        False, description="Run code that a checkpoint brings along. Off unless you wrote it."
    )
    start_timeout_seconds: float = Field(600.0, gt=0, description="Limit for loading the checkpoint, seconds.")


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
        description="Longest a document batch may take, ms: what a query waits at most. Too small costs throughput.",
    )
    document_max_wait_ms: float = Field(
        2000.0,
        gt=0,
        description="Age at which a waiting document batch goes before queries, so that ingestion never starves.",
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
    api_key: str | None = Field(None, description="Key of the Qdrant server.")
    grpc: bool = Field(True, description="Speak gRPC to the Qdrant server rather than HTTP.")
    grpc_port: int = Field(6334, gt=0, le=65535, description="gRPC port of the Qdrant server.")
    timeout_seconds: float = Field(30.0, gt=0, description="Limit of one call to the store, seconds.")
    collection: str = Field("default", description="Collection used when a request names none; created at start.")


class Settings(BaseSettings):
    """Everything that can be set, checked at start."""

    model_config = SettingsConfigDict(
        env_prefix="EOSEEK_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
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
