"""Upstreams without a network: a transport for httpx that answers OpenAI's calls from hashes of the token ids."""

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from service.encoders.probes import encode_probes
from tests.fakes import FakeEncoder, fake_embedding
from tests.service.api.parts import DIMENSION, tiny_checkpoint

CHECKPOINT = replace(tiny_checkpoint(), probes=encode_probes(FakeEncoder(DIMENSION), tiny_checkpoint().contract))
NAN_ID = 7  # a text that starts with it has an embedding that is no number


class FakeUpstream:
    """A server whose model is a salt; `answer` replaces its answers, `is_up` its process, `gate` holds them back."""

    def __init__(self, *, salt: int = 0, models: tuple[str, ...] = ("tiny",), max_model_len: int | None = 100) -> None:
        self.salt = salt
        self.models = models
        self.max_model_len = max_model_len
        self.is_up = True
        self.has_base64 = True
        self.answer: Callable[[httpx.Request], httpx.Response | None] = lambda request: None
        self.gate: asyncio.Event | None = None
        self.requests: list[httpx.Request] = []
        self.inputs: list[list[list[int]]] = []
        self.num_waiting = 0

    async def handle(self, request: httpx.Request) -> httpx.Response:
        if not self.is_up:
            raise httpx.ConnectError("connection refused")
        self.requests.append(request)
        replaced = self.answer(request)
        if replaced is not None:
            return replaced
        if request.url.path.endswith("/models"):
            length = {} if self.max_model_len is None else {"max_model_len": self.max_model_len}
            return httpx.Response(200, json={"data": [{"id": name, **length} for name in self.models]})
        body = json.loads(request.content)
        self.inputs.append(body["input"])
        if self.gate is not None:
            self.num_waiting += 1
            await self.gate.wait()
            self.num_waiting -= 1
        if not self.is_up:
            raise httpx.ReadError("connection reset")
        return httpx.Response(200, json=self.embeddings(body))

    def embeddings(self, body: dict[str, Any]) -> dict[str, Any]:
        """OpenAI's answer, its rows in reversed order."""
        rows = [
            {"object": "embedding", "index": index, "embedding": self._shown(self.embed(ids))}
            for index, ids in enumerate(body["input"])
        ]
        num_tokens = sum(map(len, body["input"]))
        return {"data": rows[::-1], "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}}

    def embed(self, ids: list[int]) -> np.ndarray:
        if ids[0] == NAN_ID:
            return np.full(DIMENSION, np.nan, np.float32)
        return 3 * fake_embedding([*ids, self.salt] if self.salt else ids, DIMENSION)

    def _shown(self, vector: np.ndarray) -> Any:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if self.has_base64 else vector.tolist()


class FakeNetwork(httpx.AsyncBaseTransport):
    """Upstreams by host: `http://up0`, `http://up1` and so on."""

    def __init__(self, *upstreams: FakeUpstream) -> None:
        self.upstreams = upstreams
        self.urls = tuple(f"http://up{index}" for index in range(len(upstreams)))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self.upstreams[int(request.url.host.removeprefix("up"))].handle(request)
