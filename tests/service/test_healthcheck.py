"""The image's check of health, against a server that answers as the service does."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from service import healthcheck

KEY = "k-" + "0123456789" * 4


@contextmanager
def fake_service(answer):
    """Its port; `answer` gives the status for what the Authorization header says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/health/ready"
            self.send_response(answer(self.headers.get("Authorization")))
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield str(server.server_port)
        finally:
            server.shutdown()
            thread.join()


def closed(header):
    return 200 if header == f"Bearer {KEY}" else 401


@pytest.mark.parametrize(
    ("answer", "key", "code"),
    [
        (lambda header: 200 if header is None else 500, None, 0),
        (lambda header: 503, None, 1),
        (closed, KEY, 0),
        (closed, "another", 1),
        (closed, None, 0),  # it answers, and more cannot be known without a key
        (closed, f"{KEY}\n", 1),  # no header can hold it
    ],
)
def test_healthcheck_says_whether_the_service_is_ready(monkeypatch, answer, key, code):
    with fake_service(answer) as port:
        monkeypatch.setenv("EOSEEK_API__PORT", port)
        monkeypatch.delenv("EOSEEK_API_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("EOSEEK_API_KEY", key)

        assert healthcheck.main() == code


def test_healthcheck_of_a_service_that_is_away_fails(monkeypatch, capsys):
    with fake_service(closed) as port:
        pass
    monkeypatch.setenv("EOSEEK_API__PORT", port)

    assert healthcheck.main() == 1
    assert "refused" in capsys.readouterr().out
