"""Stand-ins that fit on a screen: encoders without a model, handlers for child processes."""

import asyncio
import ctypes
import hashlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.encoders.base import Embeddings, PrefixFigures, TokenIds
from service.errors import ConfigurationError, EncoderError, NotFoundError

# a text that starts with one of these ids makes `FakeEncoder` misbehave
RAISE_ID, CRASH_ID, NAN_ID, DIE_ID, DIE_ONCE_ID, HANG_ID = range(1_000_001, 1_000_007)


def fake_embedding(token_ids: TokenIds, dimension: int = 8) -> Embeddings:
    """A unit vector that depends on every token id and on nothing else. Shape (dimension,)."""
    digest = hashlib.shake_256(np.asarray(token_ids, dtype="<i8").tobytes()).digest(2 * dimension)
    values = np.frombuffer(digest, dtype="<i2").astype(np.float32) + np.float32(0.5)  # never all zero
    return values / np.linalg.norm(values)


class FakeEncoder:
    """An `Encoder` whose embeddings are hashes of the token ids; records its batches."""

    def __init__(self, dimension: int = 8, die_once_path: str = "") -> None:
        """`die_once_path`: DIE_ONCE_ID kills the process unless this file is there, and creates it."""
        self.dimension = dimension
        self.dtype = "float32"
        self.batches: list[list[list[int]]] = []
        self._die_once_path = die_once_path

    def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        self.batches.append([list(ids) for ids in token_ids])
        embeddings = [self._encode_one(ids) for ids in token_ids]
        return np.array(embeddings, dtype=np.float32).reshape(len(token_ids), self.dimension)

    def _encode_one(self, ids: TokenIds) -> Embeddings:
        if ids[0] == RAISE_ID:
            raise EncoderError("asked to fail")
        if ids[0] == CRASH_ID:
            raise RuntimeError("asked to crash")
        if ids[0] == NAN_ID:
            return np.full(self.dimension, np.nan, dtype=np.float32)
        if ids[0] == HANG_ID:
            threading.Event().wait()
        if ids[0] == DIE_ID or (ids[0] == DIE_ONCE_ID and not os.path.exists(self._die_once_path)):
            if self._die_once_path:
                open(self._die_once_path, "w").close()
            os._exit(9)
        return fake_embedding(ids, self.dimension)


class FakeBackgroundEncoder(FakeEncoder):
    """Works on two batches at a time, where a test needs it to."""

    has_background = True

    def encode_in_background(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        return self.encode(token_ids)


def build_fake_background_encoder(**options: Any) -> FakeBackgroundEncoder:
    """As `build_fake_encoder`."""
    return FakeBackgroundEncoder(**options)


class FakePrefixEncoder(FakeEncoder):
    """Counts each text as one that continued, and holds ten tokens more with it."""

    _num_held = 0

    def take_prefix_figures(self) -> PrefixFigures:
        self._num_held += 10 * len(self.batches[-1])
        return PrefixFigures(hits=len(self.batches[-1]), held_tokens=self._num_held)


def build_fake_prefix_encoder(**options: Any) -> FakePrefixEncoder:
    """As `build_fake_encoder`."""
    return FakePrefixEncoder(**options)


def build_fake_encoder(dimension: int = 8, die_once_path: str = "", refuse: str = "", **unused: Any) -> FakeEncoder:
    """The factory for worker configs: `{"factory": "tests.fakes:build_fake_encoder"}`; `refuse` is why it fails."""
    if refuse:
        raise ConfigurationError(refuse)
    return FakeEncoder(dimension, die_once_path)


class GatedBatch:
    """One call that waits in a `GatedEncoder` until the test ends it."""

    def __init__(self, token_ids: Sequence[TokenIds], dimension: int) -> None:
        self.token_ids = [list(ids) for ids in token_ids]
        self.answer: asyncio.Future[Embeddings] = asyncio.get_running_loop().create_future()
        self._dimension = dimension

    def release(self, embeddings: Embeddings | None = None) -> None:
        if embeddings is None:
            embeddings = FakeEncoder(self._dimension).encode(self.token_ids)
        self.answer.set_result(embeddings)

    def fail(self, error: Exception) -> None:
        self.answer.set_exception(error)


class GatedEncoder:
    """An `AsyncEncoder` that answers a batch when the test says so."""

    is_ready = True

    def __init__(self, dimension: int = 8, num_parallel: int = 1) -> None:
        self.num_parallel = num_parallel
        self.dimension = dimension
        self.dtype = "float32"
        self.waiting: asyncio.Queue[GatedBatch] = asyncio.Queue()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        batch = GatedBatch(token_ids, self.dimension)
        self.waiting.put_nowait(batch)
        return await batch.answer


class GatedBackgroundEncoder(GatedEncoder):
    """The same, which keeps batches of the background apart."""

    has_background = True

    def __init__(self, dimension: int = 8) -> None:
        super().__init__(dimension)
        self.in_background: asyncio.Queue[GatedBatch] = asyncio.Queue()

    async def encode_in_background(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        batch = GatedBatch(token_ids, self.dimension)
        self.in_background.put_nowait(batch)
        return await batch.answer


class EchoHandler:
    """What a supervised child hosts in tests: echoes, fails and dies on request."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def echo(self, *values: Any) -> Any:
        return values

    def fail(self, code: str) -> None:
        raise {"not_found": NotFoundError, "configuration": ConfigurationError}[code](f"asked for {code}")

    def crash(self, detail: str) -> None:
        raise RuntimeError(detail)

    def unpackable(self, kind: str) -> Any:
        return {"object": object(), "surrogate": "\ud800", "huge": 2**70}[kind]

    def parent_pid(self) -> int:
        return os.getppid()

    def has_imported(self, module: str) -> bool:
        return module in sys.modules

    def exit(self, exit_code: int) -> None:
        os._exit(exit_code)

    def exit_once(self, path: str) -> str:
        """Die unless the file is there; leave it behind."""
        if os.path.exists(path):
            return "survived"
        open(path, "w").close()
        os._exit(9)

    def hang(self) -> None:
        threading.Event().wait()

    def hang_with_gil(self) -> None:
        ctypes.PyDLL(None).pause()


def build_echo(config: dict[str, Any]) -> EchoHandler:
    """Build, or `build`: "hang", "exit", "refuse", "crash"; a file at `unless` heals that. `pids`: a file to sign."""
    if "pids" in config:
        with open(config["pids"], "a") as pids:
            pids.write(f"{os.getpid()}\n")
    how = config.get("build")
    if how is None or os.path.exists(config.get("unless", "")):
        return EchoHandler(config)
    if how == "hang":
        threading.Event().wait()
    if how == "exit":
        os._exit(7)
    raise ConfigurationError("the config asks for it") if how == "refuse" else RuntimeError("first line\nsecond line")
