"""One request to an app as a server would make it, with every message in the test's hands."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI

App = FastAPI | Callable[..., Awaitable[None]]


class Exchange:
    """A request under way: `feed` sends parts of its body, `hang_up` ends the connection."""

    def __init__(self, app: App, method: str, path: str, headers: dict[str, str] | None = None) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.num_received = 0
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
            "method": method, "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        }  # fmt: skip
        self.done = asyncio.ensure_future(app(scope, self._receive, self._send))

    def feed(self, part: bytes, *, more: bool = True) -> None:
        self.messages.put_nowait({"type": "http.request", "body": part, "more_body": more})

    def hang_up(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})

    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        found: dict[str, Any] = json.loads(self.body)
        return found

    async def _receive(self) -> dict[str, Any]:
        message = await self.messages.get()
        self.num_received += 1
        return message

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")
