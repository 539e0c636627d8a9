"""The vLLM encoder: the production engine on GPUs, inside the worker process.

vLLM is given complete token ids and is told how to pool; what it would make of the checkpoint by itself is never asked.
It batches by itself, so a whole batch is handed over at once.
"""

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.encoders.base import Embeddings, TokenIds
from service.encoders.checkpoint import Digests, load_served
from service.encoders.probes import check_probes
from service.errors import ConfigurationError, EncoderError

log = logging.getLogger(__name__)

_POOLING = {"last_token": "LAST", "mean": "MEAN", "cls": "CLS"}


class VllmEncoder:
    """An `Encoder` on a vLLM engine."""

    def __init__(self, engine: Any, *, dimension: int, dtype: str) -> None:
        """Take over a `vllm.LLM` that pools to unit length."""
        self._engine = engine
        self._dimension = dimension
        self._dtype = dtype

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self._dimension

    @property
    def dtype(self) -> str:
        """Number format of the weights."""
        return self._dtype

    def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """See `Encoder.encode`."""
        if not token_ids:
            return np.empty((0, self._dimension), dtype=np.float32)
        answers = self._engine.embed([{"prompt_token_ids": list(ids)} for ids in token_ids], use_tqdm=False)
        embeddings = np.asarray([each.outputs.embedding for each in answers], dtype=np.float32)
        if not np.isfinite(embeddings).all():
            raise EncoderError("the model gave an embedding that is not finite; the checkpoint or dtype does not fit")
        # vLLM normalises in the model's precision
        normalised: Embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        return normalised


def load_encoder(
    checkpoint_path: str,
    *,
    dtype: str = "auto",
    max_length: int | None = None,
    trust_remote_code: bool = False,
    fingerprint: str | None = None,
    digests: Digests | None = None,
    tensor_parallel: int = 1,
    memory_share: float = 0.9,
) -> VllmEncoder:
    """Load a checkpoint into vLLM and hold it against its recorded vectors.

    Args:
        checkpoint_path: as `load_checkpoint`.
        dtype: `auto`, `float32` or `bfloat16`; `auto` is bfloat16.
        max_length: as `load_checkpoint`.
        trust_remote_code: as `load_checkpoint`.
        fingerprint: what the caller's vectors belong to; None takes whatever is there.
        digests: of the checkpoint, as the caller has opened it.
        tensor_parallel: GPUs that share the model.
        memory_share: of a GPU's memory that vLLM may take; of the main memory where it runs on processors.
    Raises:
        ConfigurationError: vLLM is not installed, or the checkpoint cannot be served; says why.
    """
    if dtype == "int16":
        raise ConfigurationError(
            "EOSEEK_ENCODER__DTYPE is int16, which the vllm engine does not have; use auto, bfloat16 or float32"
        )
    checkpoint = load_served(
        checkpoint_path,
        max_length=max_length,
        trust_remote_code=trust_remote_code,
        fingerprint=fingerprint,
        digests=digests,
    )
    # this process is the worker already; a further one would outlive it when it is killed
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        from vllm import LLM
        from vllm.config import PoolerConfig
    except ImportError as error:
        raise ConfigurationError(f"the vLLM engine needs `pip install 'eoseek[vllm]'`: {error}") from error
    chosen = "bfloat16" if dtype == "auto" else dtype
    # named `normalize` up to vLLM 0.11
    names = {each.name for each in dataclasses.fields(PoolerConfig)}
    activation = "use_activation" if "use_activation" in names else "normalize"
    pooler = PoolerConfig(pooling_type=_POOLING[checkpoint.pooling], **{activation: True})
    try:
        engine = LLM(
            str(checkpoint.path),
            runner="pooling",
            convert="embed",
            pooler_config=pooler,
            dtype=chosen,
            max_model_len=checkpoint.max_length,
            trust_remote_code=trust_remote_code,
            tensor_parallel_size=tensor_parallel,
            gpu_memory_utilization=memory_share,
            enable_prefix_caching=checkpoint.pooling == "last_token",
            disable_log_stats=True,
        )
    except Exception as error:  # vLLM raises many kinds
        # its own advice names an option that is not ours
        advice = f"; EOSEEK_ENCODER__MEMORY_SHARE is {memory_share:g}" if "memory" in str(error).lower() else ""
        raise ConfigurationError(f"checkpoint {checkpoint.path}: vLLM cannot load it: {error}{advice}") from error
    encoder = VllmEncoder(engine, dimension=checkpoint.dimension, dtype=chosen)
    if not checkpoint.probes:
        log.warning(
            "%s records no vectors, so vLLM's are taken on trust; `eoseek export` records them", checkpoint.name
        )
    try:
        check_probes(encoder, checkpoint.contract, checkpoint.probes)
    except ConfigurationError as error:
        raise ConfigurationError(f"checkpoint {checkpoint.path}, in vLLM: {error.detail}") from error
    return encoder
