"""Stand-ins that fit on a screen: handlers for child processes."""

import ctypes
import os
import threading
from typing import Any

from service.errors import ConfigurationError, NotFoundError


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
    """Build, or `build`: "hang", "exit", "refuse", "crash"; a file at `unless` heals that."""
    how = config.get("build")
    if how is None or os.path.exists(config.get("unless", "")):
        return EchoHandler(config)
    if how == "hang":
        threading.Event().wait()
    if how == "exit":
        os._exit(7)
    raise ConfigurationError("the config asks for it") if how == "refuse" else RuntimeError("first line\nsecond line")
