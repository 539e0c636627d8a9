"""The service on a real socket, in this process: `on_ready` makes the requests and ends it by a signal."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import threading
import time

import httpx
import numpy as np
import pytest

from service.app import create_app, run
from service.encoders.worker import LocalEncoder
from service.server import serve
from service.settings import ApiSettings, EncoderSettings, Settings, StoreSettings
from service.store.base import Document, Point
from service.store.memory import MemoryStore
from tests.fakes import FakeEncoder, GatedEncoder
from tests.service.api.parts import DIMENSION, tiny_checkpoint


def settings(**api):
    return Settings(api=ApiSettings(**{"port": 0, "drain_seconds": 1, **api}), store=StoreSettings(kind="memory"))


def make_app(settings, store=None):
    encoder = LocalEncoder(FakeEncoder(DIMENSION))
    return create_app(settings, checkpoint=tiny_checkpoint(), encoder=encoder, store=store or MemoryStore())


class Visitor:
    """Calls the service from a thread once it is ready, then ends it."""

    def __init__(self, visit, end=signal.SIGTERM):
        self._visit, self._end = visit, end
        self.result = None

    def on_ready(self, url):
        self._thread = threading.Thread(target=self._run, args=(url,))
        self._thread.start()

    def _run(self, url):
        try:
            with httpx.Client(base_url=url, timeout=10) as http:
                self.result = self._visit(http)
        finally:
            os.kill(os.getpid(), self._end)

    def join(self):
        self._thread.join()
        return self.result


def visit(visit, end=signal.SIGTERM, **api):
    visitor = Visitor(visit, end)
    chosen = settings(**api)
    code = serve(make_app(chosen), chosen.api, log_level="warning", on_ready=visitor.on_ready)
    return code, visitor.join()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_server_answers_and_ends_in_order(end):
    code, status = visit(lambda http: http.get("/health/ready").status_code, end)

    assert (code, status) == (0, 200)


def test_server_answers_413_while_the_client_still_sends():
    def send_too_much(http):
        response = http.post("/embed", content=b"x" * 3_000_000, headers={"content-type": "application/json"})
        return response.status_code, response.json()["code"]

    assert visit(send_too_much, max_body_bytes=1000) == (0, (413, "body_too_large"))


def test_server_answers_413_to_a_body_without_length():
    def send_chunks(http):
        chunks = (b"x" * 1000 for _ in range(3000))
        return http.post("/embed", content=chunks, headers={"content-type": "application/json"}).status_code

    assert visit(send_chunks, max_body_bytes=1000) == (0, 413)


def test_server_takes_a_stream_in_chunks():
    def send_lines(http):
        lines = (f'{{"id": "{number}", "text": "text {number}"}}\n'.encode() for number in range(2000))
        return http.post("/documents", content=lines, headers={"content-type": "application/x-ndjson"}).json()

    assert visit(send_lines)[1]["indexed"] == 2000


def test_server_port_taken_is_one_line_and_code_2(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code = serve(make_app(settings(port=port)), settings(port=port).api, log_level="warning")

    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"127.0.0.1:{port}" in error
    assert "EOSEEK_API__PORT" in error


KEYS = json.dumps([{"role": "read", "key": "0123456789abcdef" * 2}])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_server_beyond_loopback_without_keys_is_one_line_and_code_2(capsys, host):
    chosen = settings(host=host)

    assert serve(make_app(chosen), chosen.api, log_level="warning") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for way_out in ("EOSEEK_API__KEYS", "127.0.0.1", "EOSEEK_API__OPEN_TO_NETWORK_WITHOUT_KEYS=true"):
        assert way_out in error


@pytest.mark.parametrize("api", [{"keys": KEYS}, {"open_to_network_without_keys": True}], ids=["keys", "told to"])
def test_server_beyond_loopback_with_keys_or_when_told_to_answers(api, caplog):
    assert visit(lambda http: http.get("/health/live").status_code, host="0.0.0.0", **api) == (0, 200)
    assert ("no key is set" in caplog.text) is ("keys" not in api)


def test_server_unknown_host_is_one_line_and_code_2(capsys):
    chosen = settings(host="256.0.0.1")

    assert serve(make_app(chosen), chosen.api, log_level="warning") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_server_answers_head_as_get_without_the_body():
    def ask_both(http):
        return [http.get("/health/live"), http.head("/health/live"), http.head("/documents/none"), http.head("/search")]

    found, head, missing, wrong = visit(ask_both)[1]

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == found.headers["content-length"]
    assert (missing.status_code, missing.content) == (404, b"")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


UPGRADE = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQAAP__"}


def test_server_offer_to_upgrade_is_declined_and_the_body_read(caplog):
    def ask_twice(http):
        return [http.post("/search", json={"query": "a"}, headers=UPGRADE).status_code for _ in range(2)]

    assert visit(ask_twice)[1] == [200, 200]
    assert caplog.records == []


def say(http, data):
    """All that is answered to these bytes, until the server closes the connection."""
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=10) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 no HTTP\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Endless: " + b"x" * 70_000,
        b"POST /embed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
    ],
    ids=["no HTTP", "endless head", "bad chunk"],
)
def test_server_unreadable_request_gets_a_problem_document(data):
    head, _, body = visit(lambda http: say(http, data))[1].partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == "malformed_input"


def connect(http):
    return socket.create_connection((http.base_url.host, http.base_url.port), timeout=10)


@pytest.mark.parametrize("beginning", [b"", b"POST /embed HTTP/1.1\r\nHost: a\r\n"], ids=["silent", "half a head"])
def test_server_connection_whose_head_does_not_come_is_closed(monkeypatch, beginning):
    monkeypatch.setattr("service.server._HEAD_SECONDS", 0.2)

    assert visit(lambda http: say(http, beginning))[1] == b""


def test_server_head_that_drips_is_closed_all_the_same(monkeypatch):
    monkeypatch.setattr("service.server._HEAD_SECONDS", 0.3)

    def drip(http):
        with connect(http) as connection, contextlib.suppress(ConnectionError):
            for number in range(100):
                connection.sendall(b"GET / HTTP/1.1\r\nX: " if number == 0 else b"x")
                time.sleep(0.05)
            return number
        return number

    assert visit(drip)[1] < 60


def test_server_second_head_of_a_kept_connection_has_to_come_too(monkeypatch):
    monkeypatch.setattr("service.server._HEAD_SECONDS", 0.3)

    def ask_and_stop(http):
        with connect(http) as connection:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            first = connection.recv(65536)
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost:")
            return first, b"".join(iter(lambda: connection.recv(65536), b""))

    first, second = visit(ask_and_stop)[1]
    assert first.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP" not in second


@pytest.mark.parametrize(("kept_seconds", "is_answered"), [(None, True), (1, False)], ids=["as it comes", "shorter"])
def test_server_keeps_an_idle_connection(monkeypatch, kept_seconds, is_answered):
    """For longer than clients keep theirs, which is five seconds for many: what one sends just as it ends is lost."""
    if kept_seconds is not None:
        monkeypatch.setattr("service.server._KEEP_IDLE_SECONDS", kept_seconds)

    def ask_twice(http):
        with connect(http) as connection, contextlib.suppress(ConnectionError):
            for pause_seconds in (0, 6 if kept_seconds is None else 1.5):
                time.sleep(pause_seconds)
                connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
                answer = connection.recv(65536)
            return answer.startswith(b"HTTP/1.1 200 ")
        return False

    assert visit(ask_twice)[1] == is_answered


def test_server_body_and_answer_may_take_longer_than_the_head(monkeypatch):
    monkeypatch.setattr("service.server._HEAD_SECONDS", 0.1)

    def send_slowly(http):
        body = b'{"query": "a"}'
        head = f"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with connect(http) as connection:
            for part in (head, body[:5], body[5:]):
                connection.sendall(part)
                time.sleep(0.2)
            return connection.recv(65536)

    assert visit(send_slowly)[1].startswith(b"HTTP/1.1 200 ")


def test_server_opens_as_many_files_as_it_may():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert visit(lambda http: resource.getrlimit(resource.RLIMIT_NOFILE)[0])[1] == min(hard, 2**16)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Outlasting(GatedEncoder):
    """Has the service stopped while a request is with it, and answers none."""

    def __init__(self, num_signals=1):
        super().__init__(DIMENSION)
        self._num_signals = num_signals

    async def encode(self, token_ids):
        for number in range(self._num_signals):
            # uvicorn looks ten times a second whether it should stop
            asyncio.get_running_loop().call_later(number / 2, os.kill, os.getpid(), signal.SIGTERM)
        return await super().encode(token_ids)


def outlast(encoder, *, on_stop=None, **api):
    """What a client gets whose request is under way when the drain ends."""
    chosen = settings(**api)
    app = create_app(chosen, checkpoint=tiny_checkpoint(), encoder=encoder, store=MemoryStore())
    answers, threads = [], []

    def ask(url):
        with httpx.Client(base_url=url, timeout=10) as http:
            answers.append(http.post("/search", json={"query": "a"}))

    def on_ready(url):
        threads.append(threading.Thread(target=ask, args=(url,)))
        threads[0].start()

    code = serve(app, chosen.api, log_level="warning", on_ready=on_ready, on_stop=on_stop)
    threads[0].join()
    return code, answers[0]


def test_server_request_that_outlasts_the_drain_gets_503_and_one_log_line(caplog):
    code, answer = outlast(Outlasting(), drain_seconds=0.3)

    assert (code, answer.status_code, answer.json()["code"]) == (0, 503, "shutting_down")
    assert int(answer.headers["retry-after"]) >= 1
    assert [record.getMessage() for record in caplog.records] == [
        "the drain limit of 0.3 s (EOSEEK_API__DRAIN_SECONDS) passed: requests still under way: 1, answered 503"
    ]


def test_server_second_signal_ends_the_drain(caplog):
    started = time.monotonic()
    code, answer = outlast(Outlasting(num_signals=2), drain_seconds=60)

    assert (code, answer.json()["code"]) == (0, "shutting_down")
    assert time.monotonic() - started < 30
    assert "a second signal came" in caplog.text


def test_server_tells_of_the_stop_before_it_drains():
    encoder = Outlasting()

    # the request is answered because `on_stop` lets it through: it was under way when that was called
    code, answer = outlast(encoder, on_stop=lambda: encoder.waiting.get_nowait().release(), drain_seconds=5)

    assert (code, answer.status_code) == (0, 200)


class OldStore(MemoryStore):
    async def start(self):
        await self.create_collection("default", fingerprint="e" * 64, dimension=DIMENSION)
        document, embedding = Document(id="a", text="t"), np.eye(DIMENSION, dtype=np.float32)[0]
        await self.upsert("default", [Point(document=document, embedding=embedding)])


def test_server_store_of_another_checkpoint_is_one_line_and_code_2(capsys):
    chosen = settings()

    assert serve(make_app(chosen, OldStore()), chosen.api, log_level="warning") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "eeee" in error
    assert "ffff" in error


def test_server_checkpoint_missing_is_one_line_and_code_2(capsys, tmp_path):
    encoder = EncoderSettings(checkpoint=str(tmp_path / "none"))

    code = run(Settings(api=ApiSettings(port=0), encoder=encoder, store=StoreSettings(kind="memory")))

    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert "none" in error


def test_server_remote_code_that_is_trusted_is_named_loudly(caplog, tmp_path):
    encoder = EncoderSettings(checkpoint=str(tmp_path / "own-code"), trust_remote_code=True)

    run(Settings(api=ApiSettings(port=0), encoder=encoder, store=StoreSettings(kind="memory")))

    (record,) = (each for each in caplog.records if each.name == "eoseek.app")
    assert record.levelname == "WARNING"
    assert "EOSEEK_ENCODER__TRUST_REMOTE_CODE is on" in record.getMessage()
    assert "own-code" in record.getMessage()


class InterruptedStore(MemoryStore):
    async def start(self):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()


def test_server_interrupted_while_starting_ends_at_once():
    chosen = settings()

    assert serve(make_app(chosen, InterruptedStore()), chosen.api, log_level="warning") == 130
