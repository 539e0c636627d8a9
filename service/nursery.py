"""Children that start at once: a process that has imported their libraries, and done nothing else, forks them.

Importing torch, and transformers where it is needed, takes a core some seconds, more than all else that a lost encoder
worker has to do again. The nursery has no thread of its own, no setting and no model, so what it forks is just past its
imports; its pages are shared with its children. Linux only: `Nursery.of` gives None elsewhere, and children are started
one by one.

A launch ahead of all else may ask for the first child too, which then builds what it is told while the parent imports.

To the nursery goes a byte with a child's socket; back come frames [process id, None] for a birth and [process id, exit
code] for a death. A dead child stays a zombie until the next birth, so that its id is no one else's before all know.
"""

import asyncio
import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from service import child
from service.frames import LENGTH, pack, unpack

_EXIT_SECONDS = 1.0  # from end of file to SIGKILL

# by their modules, until `of` takes them; the end of this process ends one that nobody took
_launched: dict[tuple[str, ...], "Nursery"] = {}


class Process(Protocol):
    """What is asked of a child's process, as `asyncio.subprocess.Process` has it."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        ...

    def kill(self) -> None:
        """Send SIGKILL."""
        ...

    async def wait(self) -> int:
        """The exit code, once there is one."""
        ...


class Nursery:
    """The parent's side, on one event loop. Launched with the first birth or before it, and again after its end."""

    def __init__(self, modules: Sequence[str]) -> None:
        """`modules` are imported before the first birth; one that cannot be is left for its child to complain of."""
        self._modules = modules
        self._birth = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._listener: asyncio.Task[None] | None = None
        self._awaited: deque[asyncio.Future[_Born]] = deque()  # births, in the order that they were asked for
        self._first: _First | None = None
        self._alive: dict[int, _Born] = {}

    @staticmethod
    def of(modules: Sequence[str]) -> "Nursery | None":
        """One for these modules, where there are some and the system can: that of `launch_early`, if there is one."""
        if not modules or not _has_pidfd():
            return None
        return _launched.pop(tuple(modules), None) or Nursery(modules)

    @staticmethod
    def launch_early(modules: Sequence[str]) -> None:
        """Begin with the imports of the next one for these modules, while this process goes on with its own.

        Repeating it before there is one does nothing.
        """
        nursery = None if tuple(modules) in _launched else Nursery.of(modules)
        if nursery is not None:
            # without memory for a process it is tried again, and told, when it is needed
            with contextlib.suppress(OSError):
                nursery._launch()
                _launched[tuple(modules)] = nursery

    @staticmethod
    def bear_early(modules: Sequence[str], hello: list[Any]) -> None:
        """Let what was launched early for these modules, if anything was, bear a child as soon as it has imported.

        It is the first one that `bear` gives, if that is then asked for with the same message.
        """
        nursery = _launched.get(tuple(modules))
        if nursery is not None and nursery._first is None:
            with contextlib.suppress(OSError):
                ours, theirs = socket.socketpair()
                with _closed_on_error(ours), theirs:
                    nursery._ask(theirs)
                nursery._first = _First(hello, ours)
                ours.sendall(pack(hello))

    async def bear(self, hello: list[Any]) -> tuple[Process, socket.socket]:
        """A child of `service.child` that is told this message, and the parent's end of its socket.

        Raises ConnectionError where the nursery ended before that.
        """
        async with self._birth:
            if self._listener is not None and self._listener.done():
                await self.close()
            if self._listener is None:
                await self._open()
            try:
                return await self._next(hello)
            except BaseException:
                await self.close()  # it may hang in its imports
                raise

    async def _next(self, hello: list[Any]) -> tuple[Process, socket.socket]:
        first, self._first = self._first, None
        if first is not None and first.hello == hello:
            with _closed_on_error(first.connection):
                return await self._awaited[0], first.connection
        if first is not None:
            first.connection.close()  # which ends it
            self._awaited[0].cancel()
        ours, theirs = socket.socketpair()
        with _closed_on_error(ours):
            with theirs:
                newborn: asyncio.Future[_Born] = asyncio.get_running_loop().create_future()
                self._awaited.append(newborn)
                self._ask(theirs)
                process = await newborn
            ours.setblocking(False)
            with contextlib.suppress(ConnectionError):  # it died just then, and its end is read as that of any other
                await asyncio.get_running_loop().sock_sendall(ours, pack(hello))
        return process, ours

    def _ask(self, theirs: socket.socket) -> None:
        """For a child at this socket."""
        assert self._connection is not None
        socket.send_fds(self._connection, [b"\0"], [theirs.fileno()])

    async def close(self) -> None:
        """End the nursery and with it what it bore. Repeating it does nothing."""
        if self._listener is not None:
            self._listener.cancel()  # which closes the socket
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None
        elif self._connection is not None:
            self._connection.close()
        self._connection = None
        first, self._first = self._first, None
        if first is not None:
            first.connection.close()
        self._awaited.clear()  # what nobody listened for
        process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(_end_process, process)

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command, options = invocation(__name__, theirs, *self._modules)
            try:
                self._process = subprocess.Popen(command, **options)
            except OSError:
                ours.close()
                raise
        self._connection = ours

    async def _open(self) -> None:
        if self._process is not None and self._process.poll() is not None:  # launched early, and gone since
            await self.close()
        if self._process is None:
            self._launch()
        if self._first is not None:
            self._awaited.append(asyncio.get_running_loop().create_future())
        reader, writer = await asyncio.open_unix_connection(sock=self._connection)
        self._listener = asyncio.create_task(self._listen(reader, writer), name="nursery")

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the nursery is gone, and its children with it."""
        try:
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                pid, exit_code = unpack(await reader.readexactly(length))
                if exit_code is not None:
                    self._alive.pop(pid).end(exit_code)
                    continue
                self._alive[pid] = _Born(pid)
                newborn = self._awaited.popleft()
                if not newborn.cancelled():
                    newborn.set_result(self._alive[pid])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            while self._alive:
                self._alive.popitem()[1].end(-signal.SIGKILL)
            while self._awaited:
                newborn = self._awaited.popleft()
                if not newborn.cancelled():
                    newborn.set_exception(ConnectionError("the nursery ended"))


def _has_pidfd() -> bool:
    """Linux from 5.3 on, where no sandbox forbids it."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class _First:
    """A child that was asked for ahead: what it was told, and the parent's end of its socket."""

    hello: list[Any]
    connection: socket.socket


class _Born:
    """A child of the nursery."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._is_over = asyncio.Event()

    def kill(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        await self._is_over.wait()
        assert self.returncode is not None
        return self.returncode

    def end(self, exit_code: int) -> None:
        self.returncode = exit_code
        self._is_over.set()


def invocation(module: str, connection: socket.socket, *arguments: str) -> tuple[list[str], dict[str, Any]]:
    """Command and options of a process for `python -m module FD ARGUMENTS` with the descriptor of this socket."""
    return [sys.executable, "-P", "-m", module, str(connection.fileno()), *arguments], {
        "pass_fds": (connection.fileno(),),
        "stdin": subprocess.DEVNULL,
        "env": os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        "start_new_session": True,  # Ctrl-C in a terminal reaches the parent only, which decides
    }


@contextlib.contextmanager
def _closed_on_error(connection: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _end_process(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:  # it imports
        process.kill()
        process.wait()


def main(fd: int, modules: Sequence[str]) -> NoReturn:
    """Import, then fork a child for each socket that comes, until the parent is gone."""
    child.leave_the_end_to_the_parent()
    connection = socket.socket(fileno=fd)
    connection.set_inheritable(False)
    gc.disable()  # it would look for garbage that imports do not leave
    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.enable()
    gc.freeze()  # else the collector writes to the pages that are shared
    running: dict[int, int] = {}  # process ids by a descriptor that is readable when the process is over
    dead: list[int] = []
    with contextlib.suppress(ConnectionError):  # the parent left before it had read all
        while True:
            readable, _, _ = select.select([fd, *running], [], [])
            for each in readable:
                if each != fd:
                    pid = running.pop(each)
                    os.close(each)
                    over = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                    assert over is not None
                    dead.append(pid)
                    code = over.si_status if over.si_code == os.CLD_EXITED else -over.si_status
                    connection.sendall(pack([pid, code]))
                    continue
                asked, fds, _, _ = socket.recv_fds(connection, 1, 1)
                if not asked:
                    raise ConnectionResetError
                while dead:
                    os.waitpid(dead.pop(), 0)
                pid = os.fork()
                if pid == 0:
                    _be_born(fds[0], [connection.detach(), *running])
                os.close(fds[0])
                running[os.pidfd_open(pid)] = pid
                connection.sendall(pack([pid, None]))
    _end(running.values(), dead)


def _end(running: Iterable[int], dead: Iterable[int]) -> NoReturn:
    """With all children, none of which is left as a zombie to a first process that may reap none."""
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    for pid in (*running, *dead):
        os.waitpid(pid, 0)
    os._exit(0)


def _be_born(fd: int, inherited: Sequence[int]) -> NoReturn:
    """What is the nursery's alone is closed; its own is one socket, as if started by itself."""
    for each in inherited:
        os.close(each)
    try:
        child.main(fd)
    finally:
        os._exit(1)  # never back into the nursery's loop


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
