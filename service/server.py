"""One application on one socket: from an address to an exit code.

The lifespan runs outside uvicorn, so that a configuration error ends in one line instead of a traceback. Signals are
ours too: uvicorn would raise them again before the parts are stopped.
"""

import asyncio
import contextlib
import ipaddress
import logging
import resource
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Iterator

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from service import logs
from service.api.problems import respond
from service.errors import ConfigurationError, MalformedInputError
from service.settings import ApiSettings

log = logging.getLogger("eoseek.server")

_INTERRUPTED = 130
_LAST_ANSWER_SECONDS = 2.0  # for requests that outlast the drain to be answered; they need milliseconds
_MAX_HEAD_BYTES = 2**16
_HEAD_SECONDS = 30.0  # for first line and headers to come; no deadline of a request runs before they are there
_KEEP_IDLE_SECONDS = 75  # clients and balancers that keep theirs for up to a minute then never meet a closing one
_MAX_DESCRIPTORS = 2**16
_WANTED = f"Send HTTP/1.1 whose first line and headers have at most {_MAX_HEAD_BYTES:,} bytes."
OnReady = Callable[[str], None]
OnStop = Callable[[], None]


class _Protocol(H11Protocol):
    """HTTP/1.1 by h11: about 0.1 ms a request more than by httptools, which gathers a head without limit, and drops the
    body of a request that offers to upgrade, as Java's client does with every one.

    uvicorn waits for ever for a head that does not end, so that idle connections could take all descriptors."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's; a head has to come."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's; what comes of a head does not prolong its time."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._forget_head()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._forget_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing to warn of: an offer may be left unanswered."""

    def send_400_response(self, msg: str) -> None:
        """As every other error, a problem document; then the end of the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = respond(uuid.uuid4().hex, MalformedInputError(f"{msg} {_WANTED}"))
            headers = [*answer.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=answer.status_code, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn that leaves signals alone, says when it listens, and answers what outlasts the drain."""

    def __init__(self, config: uvicorn.Config, *, drain_seconds: float, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing to capture: `_Running` has them."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then tell."""
        await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; then the requests that are left are cancelled, which the application answers by 503."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                await super().shutdown(sockets)
        tasks = set(self.server_state.tasks)
        if not tasks:
            return
        why = (
            "a second signal came"
            if self.force_exit
            else f"the drain limit of {self._drain_seconds:g} s (EOSEEK_API__DRAIN_SECONDS) passed"
        )
        log.warning("%s: requests still under way: %d, answered 503", why, len(tasks))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_LAST_ANSWER_SECONDS)


def serve(
    app: FastAPI,
    settings: ApiSettings,
    *,
    log_level: str,
    log_format: logs.LogFormat = "text",
    on_ready: OnReady | None = None,
    on_stop: OnStop | None = None,
) -> int:
    """Run `app` until SIGINT or SIGTERM, drain, stop.

    Args:
        app: its lifespan may raise ConfigurationError.
        settings: address and drain time.
        log_level: least severe line that is written to stderr.
        log_format: see `Settings`.
        on_ready: called once with the service's URL, on the event loop when it listens; must return at once.
        on_stop: called when a signal ends the service, before it drains, on the event loop; must return at once.
    Returns:
        Exit code: 0 after an orderly end, 2 with one line on stderr if it could not start, 130 if interrupted at start.
    """
    logs.configure(log_level, log_format)
    _raise_descriptors()
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        http=_Protocol,
        ws="none",
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        timeout_keep_alive=_KEEP_IDLE_SECONDS,
    )
    try:
        with (
            _bind(settings) as listener,
            asyncio.Runner(loop_factory=config.get_loop_factory()) as runner,
        ):
            server = _Server(
                config,
                drain_seconds=settings.drain_seconds,
                on_started=lambda: on_ready(_url(listener)) if on_ready else None,
            )
            return runner.run(_serve(app, server, listener, on_stop))
    except ConfigurationError as error:
        sys.stderr.write(f"eoseek: {error.detail}\n")
        return 2


def _raise_descriptors() -> None:
    """Let the process open as many files and connections as it may: 1,024 are the default of many systems, which a
    thousand idle clients take. A child process inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _bind(settings: ApiSettings) -> socket.socket:
    """A bound socket that does not listen yet: clients are refused, not kept waiting, until all parts are ready."""
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        _check_reach(str(address[0]), settings)
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _unusable(host, port, error) from error
    try:
        # a port left behind in TIME_WAIT is free; one that somebody listens on stays refused
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _unusable(host, port, error) from error
    return listener


def _check_reach(address: str, settings: ApiSettings) -> None:
    """Refuse to let the network in without a key, unless told to in so many words."""
    if settings.keys or ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return
    if not settings.open_to_network_without_keys:
        raise ConfigurationError(
            f"EOSEEK_API__HOST={settings.host} is reached from the network and there is no key: set EOSEEK_API__KEYS "
            "or EOSEEK_API__KEYS_FILE, listen on 127.0.0.1, or, where something else decides who gets through, set "
            "EOSEEK_API__OPEN_TO_NETWORK_WITHOUT_KEYS=true"
        )
    log.warning("no key is set: whoever reaches %s may read, write and delete everything", settings.host)


def _unusable(host: str, port: int, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot listen on {host}:{port}: {error.strerror or error}; "
        "stop what uses it, or set EOSEEK_API__HOST and EOSEEK_API__PORT (0 takes a free port)"
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


async def _serve(app: FastAPI, server: _Server, listener: socket.socket, on_stop: OnStop | None) -> int:
    starting = asyncio.current_task()
    is_interrupted = False

    def interrupt() -> None:
        nonlocal is_interrupted
        if server.started:
            if on_stop and not server.should_exit:
                on_stop()
            server.force_exit = server.should_exit
            server.should_exit = True
        elif starting and not is_interrupted:
            is_interrupted = True
            starting.cancel()

    with _on_signals(interrupt):
        try:
            async with app.router.lifespan_context(app):
                await _listen(server, listener)
        except asyncio.CancelledError:
            if is_interrupted:
                return _INTERRUPTED
            raise
    return 0


async def _listen(server: _Server, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    try:
        await server.serve(sockets=[listener])
    except OSError as error:
        # two processes may both bind before the first one listens
        raise _unusable(host, port, error) from error


@contextlib.contextmanager
def _on_signals(handle: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for each in signals:
        loop.add_signal_handler(each, handle)
    try:
        yield
    finally:
        for each in signals:
            loop.remove_signal_handler(each)
