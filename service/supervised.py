"""A child process that is restarted when it dies: hosts what may crash, hang or hold the GIL (encoder worker, store).

This is the parent's side; `service.child` is what it starts. A call whose child dies is not repeated here: only the
caller knows whether repeating it is safe.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from service.errors import ConfigurationError, DeadlineExceededError, EoseekError, NotReadyError, error_from_code
from service.frames import LENGTH, pack, unpack
from service.logs import current_format
from service.nursery import Nursery, Process, invocation

log = logging.getLogger(__name__)

_READ_LIMIT = 2**24  # bytes; asyncio's default of 64 KiB would pause the socket hundreds of times per frame
_FIRST_BACKOFF_SECONDS = 0.1
_PROVEN_SECONDS = 1.0  # of answers: whoever dies of its first calls is not to be started over and over
_EXIT_SECONDS = 2.0  # from end of file to SIGKILL; a child that does not hold the GIL needs milliseconds


class ChildDiedError(NotReadyError):
    """The child died before it answered, or is not up; whether the call had an effect is unknown."""

    code = "child_died"
    title = "Child process died"


class Supervised:
    """A handler object in a child process, called by method name, restarted until `stop`, with back-off if need be."""

    def __init__(
        self,
        target: str,
        config: dict[str, Any],
        *,
        name: str,
        start_timeout_seconds: float,
        max_backoff_seconds: float = 5.0,
        hang_seconds: float | None = None,
        failure: type[EoseekError] = NotReadyError,
        on_event: Callable[[str], None] | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        """Nothing runs before `start`.

        Args:
            target: "module:function"; in the child `function(config)` builds the handler.
            config: plain values, see `frames.pack`.
            name: what messages and logs call the child.
            start_timeout_seconds: limit from `start`, or a restart, until the handler is built.
            max_backoff_seconds: longest pause between restarts; a child that lived longer, or had answered calls for a
                second, is restarted at once.
            hang_seconds: a child that has answered nothing for so long while calls wait is killed, and started again;
                None leaves that to the caller.
            failure: what an exception that is no EoseekError arrives as.
            on_event: told "died", "restarted" and "restart_failed", on the event loop.
            preload: modules that a process imports once, which then forks the children; see `service.nursery`.
        """
        self._hello = [target, config]
        self._name = name
        self._start_timeout_seconds = start_timeout_seconds
        self._max_backoff_seconds = max_backoff_seconds
        self._hang_seconds = hang_seconds
        self._failure = failure
        self._on_event = on_event or (lambda _: None)
        self._nursery = Nursery.of(preload)
        self._child: _Child | None = None
        self._ready = asyncio.Event()
        self._is_stopped = False
        self._watch: asyncio.Task[None] | None = None
        self._call_ids = itertools.count(1)
        self.num_restarts = 0

    @property
    def is_ready(self) -> bool:
        """Whether a call now would be executed rather than refused."""
        return self._ready.is_set() and not self._is_stopped

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return self._child.process.pid if self._child else None

    async def start(self) -> None:
        """Spawn the child and wait until its handler is built.

        Raises:
            ConfigurationError: building failed or took too long, or the child died of it; the detail is one line.
        """
        try:
            child = await self._spawn()
        except BaseException:
            await self._close_nursery()
            raise
        self._is_stopped = False
        self._adopt(child)
        self._watch = asyncio.create_task(self._keep_alive(child), name=f"supervise {self._name}")

    async def wait_ready(self, timeout: float) -> None:
        """Return when calls are taken. Raises NotReadyError after `timeout` seconds, or when stopped."""
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError:
            raise NotReadyError(f"{self._name} was not ready again within {timeout:g} s; retry later") from None
        if self._is_stopped:
            raise NotReadyError(f"{self._name} is stopped")

    async def call(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        """Execute a method of the handler in the child, after the calls made before; see `service.child`.

        A call that is cancelled or times out is forgotten here; the child may still execute it.

        Args:
            method: public method of the handler.
            args: positional arguments, see `frames.pack`.
            timeout: seconds to wait for the answer, the time behind earlier calls included.
        Raises:
            EoseekError: what the handler raised, of its class; `failure` for exceptions of other kinds.
            ChildDiedError: the child died before it answered, or is being restarted.
            DeadlineExceededError: no answer within the timeout.
            InvalidInputError: an argument that cannot be carried.
        """
        child = self._child
        if child is None or not self.is_ready:
            raise ChildDiedError(f"{self._name} is not up; retry in a moment")
        call_id = next(self._call_ids)
        try:
            async with asyncio.timeout(timeout):
                status, *answer = await child.request(call_id, method, args)
        except TimeoutError:
            raise DeadlineExceededError(f"{self._name} did not answer {method} within {timeout:g} s") from None
        if status == "ok":
            return answer[0]
        code, detail = answer
        if code is not None:
            raise error_from_code(code, detail)
        # an unforeseen message may hold paths, and this one goes to whoever made the request
        log.warning("%s failed in %s: %s", self._name, method, detail)
        raise self._failure(f"{self._name} failed in {method} ({detail.partition(':')[0]}); the service's log has more")

    def kill(self) -> None:
        """End a child that hangs; it is started again."""
        if self._child is not None:
            self._child.kill()

    async def stop(self, drain_seconds: float = 5.0) -> None:
        """Refuse new calls, wait for those under way, then end the child. Repeating it does nothing."""
        self._is_stopped = True
        if self._child is not None and self._child.pending:
            await asyncio.wait(self._child.pending.values(), timeout=drain_seconds)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        self._ready.set()  # whoever waits for it learns that there is no more
        child, self._child = self._child, None
        if child is not None:
            await child.end()
        await self._close_nursery()

    async def _close_nursery(self) -> None:
        if self._nursery is not None:
            await self._nursery.close()

    async def _spawn(self) -> "_Child":
        """A child whose handler is built. Raises ConfigurationError; leaves no process behind when it fails."""
        child = None
        try:
            async with asyncio.timeout(self._start_timeout_seconds):
                hello = [*self._hello, current_format()]
                child = await _Child.spawn(hello, self._name, self._hang_seconds, self._nursery)
                status, *answer = await child.outcome()
        except TimeoutError:
            if child is not None:
                await child.end(grace_seconds=0)
            raise ConfigurationError(
                f"{self._name} did not start within {self._start_timeout_seconds:g} s; raise its start timeout"
            ) from None
        except (asyncio.IncompleteReadError, ConnectionError):
            with_code = f" with exit code {await child.end()}" if child is not None else ""
            raise ConfigurationError(f"{self._name} ended{with_code} while it started") from None
        except BaseException:
            if child is not None:
                await child.end(grace_seconds=0)
            raise
        if status == "ok":
            return child
        await child.end()
        code, detail = answer
        raise ConfigurationError(detail if code == ConfigurationError.code else f"{self._name} cannot start: {detail}")

    def _adopt(self, child: "_Child") -> None:
        self._child = child
        self._ready.set()

    async def _keep_alive(self, child: "_Child") -> None:
        """Wait for the child's death and replace it, for ever."""
        backoff_seconds = 0.0
        while True:
            born = time.monotonic()
            await child.dispatch()
            self._ready.clear()
            self._child = None
            log.warning("%s ended with exit code %s; it is started again", self._name, await child.end())
            self._on_event("died")
            lived = time.monotonic() - born
            if lived > self._max_backoff_seconds or (child.has_answered and lived > _PROVEN_SECONDS):
                backoff_seconds = 0.0
            child, backoff_seconds = await self._respawn(backoff_seconds)
            self.num_restarts += 1
            self._adopt(child)
            self._on_event("restarted")

    async def _respawn(self, backoff_seconds: float) -> tuple["_Child", float]:
        """A new child and the pause before the next one; tries until it succeeds."""
        while True:
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = min(max(2 * backoff_seconds, _FIRST_BACKOFF_SECONDS), self._max_backoff_seconds)
            try:
                return await self._spawn(), backoff_seconds
            except (ConfigurationError, OSError) as error:
                log.warning("%s did not start again, next try in %.1f s: %s", self._name, backoff_seconds, error)
                self._on_event("restart_failed")


class _Child:
    """One process and its socket, from spawn to exit."""

    def __init__(
        self,
        name: str,
        process: Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        hang_seconds: float | None,
    ) -> None:
        self.name = name
        self.process = process
        self.pending: dict[int, asyncio.Future[list[Any]]] = {}
        self.has_answered = False
        self._hang_seconds = hang_seconds
        self._num_unanswered = 0  # those that were given up included: a hung child outlasts every deadline
        self._alarm: asyncio.TimerHandle | None = None
        self._reader = reader
        self._writer = writer

    @classmethod
    async def spawn(cls, hello: list[Any], name: str, hang_seconds: float | None, nursery: Nursery | None) -> "_Child":
        """A child that has been sent target, config and log format."""
        if nursery is not None:
            born, connection = await nursery.bear(hello)
            try:
                reader, writer = await asyncio.open_unix_connection(sock=connection, limit=_READ_LIMIT)
            except BaseException:
                connection.close()
                born.kill()
                raise
            return cls(name, born, reader, writer, hang_seconds)
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_READ_LIMIT)
            try:
                writer.write(pack(hello))
                command, options = invocation("service.child", theirs)
                process = await asyncio.create_subprocess_exec(*command, **options)
            except BaseException:
                writer.close()
                raise
        return cls(name, process, reader, writer, hang_seconds)

    async def outcome(self) -> list[Any]:
        """Of the build."""
        _, *outcome = await self._receive()
        return outcome

    async def request(self, call_id: int, method: str, args: tuple[Any, ...]) -> list[Any]:
        """Send a call; returns its outcome. Raises ChildDiedError."""
        frame = pack([call_id, method, args])
        if self._writer.is_closing():
            raise self._death()
        self.pending[call_id] = asyncio.get_running_loop().create_future()
        try:
            # not drained: the child's reader thread takes frames at once, so they wait in the child's queue
            self._writer.write(frame)
            self._num_unanswered += 1
            if self._alarm is None:
                self._set_alarm()
            return await self.pending[call_id]
        finally:
            self.pending.pop(call_id, None)

    async def dispatch(self) -> None:
        """Hand outcomes to their calls until the child is gone."""
        try:
            while True:
                call_id, *outcome = await self._receive()
                self.has_answered |= outcome[0] == "ok"
                self._num_unanswered -= 1
                self._set_alarm()
                future = self.pending.get(call_id)
                if future is not None and not future.done():
                    future.set_result(outcome)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except Exception:
            log.exception("%s sent what cannot be read; it is ended", self.name)

    async def end(self, *, grace_seconds: float | None = None) -> int:
        """Fail pending calls; end the child by closing its socket, or kill it. Returns the exit code."""
        for future in self.pending.values():
            if not future.done():
                future.set_exception(self._death())
        self._num_unanswered = 0
        self._set_alarm()
        self._writer.close()
        try:
            async with asyncio.timeout(_EXIT_SECONDS if grace_seconds is None else grace_seconds):
                await self.process.wait()
        except TimeoutError:
            log.debug("%s did not end by itself", self.name)
        finally:
            self.kill()
            exit_code = await self.process.wait()
        return exit_code

    def kill(self) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    def _set_alarm(self) -> None:
        """Count the time without an answer from now on, if one is due."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._hang_seconds is not None and self._num_unanswered:
            self._alarm = asyncio.get_running_loop().call_later(self._hang_seconds, self._kill_hung)

    def _kill_hung(self) -> None:
        log.warning("%s has answered nothing for %g s and is killed", self.name, self._hang_seconds)
        self.kill()

    async def _receive(self) -> list[Any]:
        (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        message: list[Any] = unpack(await self._reader.readexactly(length))
        return message

    def _death(self) -> ChildDiedError:
        return ChildDiedError(f"{self.name} died before it answered; retry in a moment")
