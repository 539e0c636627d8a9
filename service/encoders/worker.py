"""The encoder worker: an `Encoder` in a child process of its own, and the `AsyncEncoder` that speaks to it.

A CUDA fault, an out-of-memory kill or a stuck forward ends the worker, not the API. This module imports no torch; only
the child loads the engine.
"""

import asyncio
import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.encoders.base import (
    BackgroundEncoder,
    Embeddings,
    Encoder,
    PrefixEncoder,
    PrefixFigures,
    TokenIds,
)
from service.encoders.checkpoint import BUILT, Checkpoint, is_plain, load_checkpoint, locate
from service.errors import ConfigurationError, DeadlineExceededError, EncoderError, NotReadyError
from service.logs import LogFormat
from service.nursery import Nursery
from service.supervised import ChildDiedError, Supervised

if TYPE_CHECKING:  # the child has no settings of its own
    from service.settings import EncoderSettings

_BUILD = f"{__name__}:build"
_TORCH = "service.encoders.torch_loading:load_encoder"


class Worker:
    """What the child hosts: an encoder behind arrays, the cheapest form for its calls."""

    background_methods = ("encode_in_background",)

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def describe(self) -> dict[str, Any]:
        """What the parent needs to know of the encoder."""
        return {
            "dimension": self._encoder.dimension,
            "dtype": self._encoder.dtype,
            "has_background": isinstance(self._encoder, BackgroundEncoder) and self._encoder.has_background,
        }

    def encode(
        self, lengths: NDArray[np.int32], flat_ids: NDArray[np.int32]
    ) -> tuple[Embeddings, dict[str, int] | None]:
        """See `Encoder.encode`; the texts' token ids lie end to end in `flat_ids`.

        Returns:
            The embeddings, and what became of shared openings, as `PrefixFigures`, where the encoder counts that.
        """
        return self._encode(self._encoder.encode, lengths, flat_ids)

    def encode_in_background(
        self, lengths: NDArray[np.int32], flat_ids: NDArray[np.int32]
    ) -> tuple[Embeddings, dict[str, int] | None]:
        """As `encode`, beside it."""
        assert isinstance(self._encoder, BackgroundEncoder)
        return self._encode(self._encoder.encode_in_background, lengths, flat_ids)

    def _encode(
        self, encode: Callable[[list[TokenIds]], Embeddings], lengths: NDArray[np.int32], flat_ids: NDArray[np.int32]
    ) -> tuple[Embeddings, dict[str, int] | None]:
        ids = flat_ids.tolist()
        stops = np.cumsum(lengths).tolist()
        embeddings = encode([ids[stop - length : stop] for stop, length in zip(stops, lengths, strict=True)])
        counts = self._encoder if isinstance(self._encoder, PrefixEncoder) else None
        return embeddings, asdict(counts.take_prefix_figures()) if counts else None


def build(config: dict[str, Any]) -> Worker:
    """Build the encoder in the child: `config["factory"]` ("module:function"), called with the other keys."""
    options = dict(config)
    module, _, function = options.pop("factory", _TORCH).partition(":")
    return Worker(getattr(importlib.import_module(module), function)(**options))


def worker_options(settings: "EncoderSettings", checkpoint: Checkpoint) -> dict[str, Any]:
    """What a `WorkerEncoder` is to load."""
    options: dict[str, Any] = {
        "checkpoint_path": str(checkpoint.path),
        "dtype": settings.dtype,
        "max_length": settings.max_length,
        "trust_remote_code": settings.trust_remote_code,
        "fingerprint": checkpoint.fingerprint,
        "digests": checkpoint.digests,
    }
    if settings.backend == "vllm":
        return options | {
            "factory": "service.encoders.vllm_encoder:load_encoder",
            "tensor_parallel": settings.tensor_parallel,
            "memory_share": settings.memory_share,
        }
    return options | {
        "device": settings.device,
        "threads": settings.threads,
        "prefix_cache_tokens": settings.prefix_cache_tokens,
    }


def load_early(settings: "EncoderSettings", log_format: LogFormat) -> Checkpoint | None:
    """Begin to load the worker of a checkpoint on this machine, while this process goes on with its own imports.

    Returns:
        The checkpoint, None where it is left to the service's start: with another engine, code of its own, a fetch
        from the hub, or something wrong that the start then tells.
    """
    name = settings.checkpoint
    is_here = name in BUILT or Path(name).expanduser().is_dir()
    if settings.backend != "torch" or not is_here:
        return None
    try:
        modules = _modules(str(locate(name)))
        Nursery.launch_early(modules)
        if settings.trust_remote_code:
            return None
        checkpoint = load_checkpoint(name, max_length=settings.max_length)  # while the nursery imports
    except ConfigurationError:
        return None
    Nursery.bear_early(modules, [_BUILD, worker_options(settings, checkpoint), log_format])
    return checkpoint


def _modules(checkpoint_path: str) -> tuple[str, ...]:
    """What a worker on torch imports for a checkpoint; not transformers for one that cannot be read."""
    own = (_TORCH.partition(":")[0], __name__)
    try:
        return own if is_plain(Path(checkpoint_path)) else (*own, "transformers.models.auto.modeling_auto")
    except ConfigurationError:
        return own


class WorkerEncoder:
    """An `AsyncEncoder` in a supervised child process."""

    num_parallel = 1

    def __init__(
        self,
        options: dict[str, Any],
        *,
        start_timeout_seconds: float,
        restart_wait_seconds: float = 60.0,
        hang_seconds: float = 300.0,
        on_event: Callable[[str], None] | None = None,
        on_prefixes: Callable[[PrefixFigures], None] | None = None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            options: arguments of `torch_loading.load_encoder`, or of the "factory" named in them.
            start_timeout_seconds: limit for loading the checkpoint.
            restart_wait_seconds: how long a batch waits for a lost worker to be back.
            hang_seconds: a batch that takes longer, the one before it included, ends the worker.
            on_event: see `Supervised`.
            on_prefixes: told with each batch what became of shared openings, `held_tokens` as the change since then;
                what a worker held is gone with it.
        """
        self._on_event = on_event or (lambda _: None)
        self._on_prefixes = on_prefixes or (lambda _: None)
        self._held_tokens = 0
        self._child = Supervised(
            _BUILD,
            options,
            name="the encoder worker",
            start_timeout_seconds=start_timeout_seconds,
            failure=EncoderError,
            on_event=self._note_event,
            preload=() if "factory" in options else _modules(options["checkpoint_path"]),
        )
        self._restart_wait_seconds = restart_wait_seconds
        self._hang_seconds = hang_seconds
        self._dimension = 0
        self._dtype = ""
        self._has_background = False

    @property
    def dimension(self) -> int:
        """Length of an embedding; 0 before `start`."""
        return self._dimension

    @property
    def dtype(self) -> str:
        """Number format of the weights; empty before `start`."""
        return self._dtype

    @property
    def has_background(self) -> bool:
        """See `AsyncBackgroundEncoder.has_background`."""
        return self._has_background

    @property
    def is_ready(self) -> bool:
        """Whether a call now would be executed rather than wait for a (re)start."""
        return self._child.is_ready

    @property
    def pid(self) -> int | None:
        """Process id of the worker; None while there is none."""
        return self._child.pid

    async def start(self) -> None:
        """See `AsyncEncoder.start`."""
        await self._child.start()
        described = await self._child.call("describe")
        self._dimension, self._dtype = described["dimension"], described["dtype"]
        self._has_background = described["has_background"]

    async def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """See `AsyncEncoder.encode`. Encoding has no effects, so a batch whose worker died is sent once more."""
        return await self._encode("encode", token_ids)

    async def encode_in_background(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """See `AsyncBackgroundEncoder.encode_in_background`; as `encode` otherwise."""
        return await self._encode("encode_in_background", token_ids)

    async def stop(self) -> None:
        """See `AsyncEncoder.stop`."""
        await self._child.stop(drain_seconds=0)
        self._note_prefixes(PrefixFigures())

    def _note_event(self, event: str) -> None:
        if event == "died":
            self._note_prefixes(PrefixFigures())
        self._on_event(event)

    def _note_prefixes(self, figures: PrefixFigures) -> None:
        change, self._held_tokens = figures.held_tokens - self._held_tokens, figures.held_tokens
        self._on_prefixes(replace(figures, held_tokens=change))

    async def _encode(self, method: str, token_ids: Sequence[TokenIds]) -> Embeddings:
        lengths = np.fromiter(map(len, token_ids), np.int32, len(token_ids))
        flat_ids = np.fromiter(chain.from_iterable(token_ids), np.int32, int(lengths.sum()))
        try:
            return await self._call(method, lengths, flat_ids)
        except ChildDiedError:
            return await self._retry(method, lengths, flat_ids)

    async def _call(self, method: str, lengths: NDArray[np.int32], flat_ids: NDArray[np.int32]) -> Embeddings:
        try:
            answer = await self._child.call(method, lengths, flat_ids, timeout=self._hang_seconds)
        except DeadlineExceededError as error:
            self._child.kill()
            raise EncoderError(f"the encoder worker hung for {self._hang_seconds:g} s and is restarted") from error
        embeddings: Embeddings = answer[0]
        if answer[1] is not None:
            self._note_prefixes(PrefixFigures(**answer[1]))
        return embeddings

    async def _retry(self, method: str, lengths: NDArray[np.int32], flat_ids: NDArray[np.int32]) -> Embeddings:
        try:
            await self._child.wait_ready(self._restart_wait_seconds)
        except NotReadyError as error:
            raise EncoderError(error.detail) from error
        try:
            return await self._call(method, lengths, flat_ids)
        except ChildDiedError as error:
            raise EncoderError("the encoder worker died twice under the same batch; retry in a moment") from error


class LocalEncoder:
    """An `AsyncEncoder` on a thread of this process, for tests and offline use."""

    num_parallel = 1

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._executor: ThreadPoolExecutor | None = None

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self._encoder.dimension

    @property
    def dtype(self) -> str:
        """Number format of the weights."""
        return self._encoder.dtype

    @property
    def is_ready(self) -> bool:
        """Whether it is started."""
        return self._executor is not None

    async def start(self) -> None:
        """Start the thread."""
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")

    async def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """See `AsyncEncoder.encode`."""
        if self._executor is None:
            raise EncoderError("the encoder is not started")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._encoder.encode, token_ids)

    async def stop(self) -> None:
        """Let the calls under way finish and end the thread."""
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.to_thread(executor.shutdown)
