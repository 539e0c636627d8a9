"""The demo's process beside a service: it ends at once, in the middle of a request, without a traceback."""

import socket

from eoseek.companion import DemoCompanion


def test_companion_interrupted_within_a_request_ends_without_an_answer(capfd):
    companion = DemoCompanion()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        companion.start(f"http://127.0.0.1:{silent.getsockname()[1]}")
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(65536).startswith(b"PUT /collections/demo")
            companion.interrupt()
            # nothing more comes but the end of the connection, though the request was never answered
            assert connection.recv(65536) == b""
            assert companion.stop() == 130
    assert "Traceback" not in capfd.readouterr().err


def test_companion_interrupted_while_it_starts_ends_silently(capfd):
    companion = DemoCompanion()
    companion.start("http://127.0.0.1:9")
    companion.interrupt()
    assert companion.stop()
    assert capfd.readouterr().err == ""


def test_companion_that_never_started_stops():
    companion = DemoCompanion()
    companion.interrupt()
    assert companion.stop() is None
