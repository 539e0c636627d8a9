"""What `service.supervised` starts: builds a handler and executes its methods for the parent, call by call.

Calls run in order on the main thread, but those of the methods that a handler names in `background_methods` on another,
in order as well. A third thread reads, so that the parent never waits to send, and so that the end of the parent, even
by `kill -9`, ends this process. Requests are [call id, method, arguments], answers
[call id, "ok", result] or [call id, "error", code or None, detail]; first comes [target, config, log format], call 0.
"""

import ctypes
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
from typing import Any, BinaryIO, NoReturn, TypeAlias

from service.errors import EoseekError
from service.frames import LENGTH, pack, unpack
from service.logs import configure

log = logging.getLogger(__name__)

_Frames: TypeAlias = "queue.SimpleQueue[Any]"

_PR_SET_PDEATHSIG = 1


def main(fd: int) -> NoReturn:
    """Serve the parent at the other end of the socket until it is gone."""
    leave_the_end_to_the_parent()
    connection = socket.socket(fileno=fd)
    connection.set_inheritable(False)
    frames: _Frames = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection.makefile("rb"), frames), daemon=True).start()

    target, config, log_format = frames.get()
    configure("warning", log_format)
    handler, outcome = _build(target, config)
    answers = _Answers(connection)
    answers.send(0, outcome)
    background_methods = getattr(handler, "background_methods", ())
    background: _Frames = queue.SimpleQueue()
    if background_methods:
        threading.Thread(target=_execute, args=(handler, background, answers), daemon=True).start()
    while True:
        call_id, method, args = frames.get()
        if method in background_methods:
            background.put((call_id, method, args))
        else:
            answers.send(call_id, _call(handler, method, args))


def leave_the_end_to_the_parent() -> None:
    """Be ended by the parent only, and by its own end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        # a call that holds the GIL for long keeps the reading thread from seeing the end of the parent
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _read(stream: BinaryIO, frames: _Frames) -> None:
    """Queue requests until the parent is gone."""
    try:
        while header := stream.read(LENGTH.size):
            frames.put(unpack(stream.read(*LENGTH.unpack(header))))
    finally:
        os._exit(0)  # not sys.exit: the main thread may be in a call that never returns


def _execute(handler: Any, frames: _Frames, answers: "_Answers") -> NoReturn:
    while True:
        call_id, method, args = frames.get()
        answers.send(call_id, _call(handler, method, args))


def _build(target: str, config: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The handler (None when it could not be built) and the outcome."""
    module, _, function = target.partition(":")
    try:
        return getattr(importlib.import_module(module), function)(config), ["ok", None]
    except Exception as error:
        return None, _failure(error)


def _call(handler: Any, method: str, args: list[Any]) -> list[Any]:
    try:
        return ["ok", getattr(handler, method)(*args)]
    except Exception as error:
        if not isinstance(error, EoseekError):
            log.exception("unexpected error in %s", method)
        return _failure(error)


def _failure(error: Exception) -> list[Any]:
    if isinstance(error, EoseekError):
        return ["error", error.code, error.detail]
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return ["error", None, f"{type(error).__name__}: {first_line}"]


class _Answers:
    """The way back to the parent, for several threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, call_id: int, outcome: list[Any]) -> None:
        try:
            frame = pack([call_id, *outcome])
        except (EoseekError, TypeError) as error:
            frame = pack([call_id, "error", None, f"the answer cannot be carried: {str(error)!a}"])
        try:
            with self._lock:
                self._connection.sendall(frame)
        except OSError:
            os._exit(0)  # the parent is gone


if __name__ == "__main__":
    main(int(sys.argv[1]))
