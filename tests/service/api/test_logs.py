"""Log lines for machines: what they hold, and what they never do."""

import json
import logging
import sys

import pytest

from service.errors import StoreError
from service.logs import JsonFormatter, configure
from service.store.memory import MemoryStore


@pytest.fixture
def start_log(capsys):
    """Set logging up as a new process does; what comes back gives the lines written since its last call."""
    root = logging.getLogger()
    names = ("uvicorn.error", "httpx", "httpx2", "eoseek.requests")
    handlers, level, levels = root.handlers[:], root.level, [logging.getLogger(name).level for name in names]

    def start(level, form):
        root.handlers.clear()  # pytest's own
        configure(level, form)
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # the test's client is no part of the service
        return lambda: capsys.readouterr().err.splitlines()

    yield start
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(before)


def record(message, *arguments, **extra):
    made = logging.LogRecord("eoseek.api", logging.WARNING, __file__, 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


def test_json_line_has_time_level_logger_message_and_fields():
    text = JsonFormatter().format(record("%d \u00e9\n", 3, created=0.25, fields={"code": "internal"}))

    assert text.isascii()
    assert json.loads(text) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "warning",
        "logger": "eoseek.api",
        "message": "3 \u00e9\n",
        "code": "internal",
    }


@pytest.mark.parametrize(
    ("put_in", "written"),
    [
        ("a\n2026-01-01 ERROR forged", r"a\n2026-01-01 ERROR forged"),
        ("\x1b[2J\u2028\x85", r"\x1b[2J\u2028\x85"),
        ("é", "é"),
    ],
)
def test_text_line_holds_no_control_character(start_log, put_in, written):
    lines = start_log("info", "text")
    logging.getLogger("eoseek.api").warning("GET %s failed", put_in)

    (line,) = lines()
    assert line.endswith(f" WARNING eoseek.api: GET {written} failed")


def test_text_traceback_cannot_be_taken_for_a_line_of_the_log(start_log):
    lines = start_log("info", "text")
    try:
        raise ValueError("first\nsecond \x1b[2J")
    except ValueError:
        logging.getLogger("eoseek.api").exception("failed")

    first, *traceback = lines()
    assert first.endswith("ERROR   eoseek.api: failed")
    assert traceback[-2:] == ["  ValueError: first", r"  second \x1b[2J"]
    assert all(line.startswith("  ") for line in traceback)


def test_json_line_of_an_exception_is_one_line():
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        text = JsonFormatter().format(record("failed", exc_info=sys.exc_info()))

    assert "\n" not in text
    assert "ValueError: first\nsecond" in json.loads(text)["exception"]


def test_request_line_has_route_status_seconds_and_id_and_no_text(start_log, make_client):
    client = make_client()
    secret = {"query": "my secret", "filter": {"must": [{"key": "secret", "match": {"value": "secret"}}]}}
    lines = start_log("info", "json")

    client.post("/search", json=secret, headers={"X-Request-Id": "find-me", "api-key": "secret"})
    client.get("/documents/secret")
    client.get("/health/ready")

    search, document = map(json.loads, lines())
    assert 0 < search.pop("seconds") < 60
    del search["time"]
    assert search == {
        "level": "info",
        "logger": "eoseek.requests",
        "message": "POST /search 200",
        "request_id": "find-me",
        "method": "POST",
        "route": "/search",
        "status": 200,
    }
    assert (document["route"], document["status"], document["code"]) == (
        "/documents/{document_id:path}",
        404,
        "not_found",
    )
    assert "secret" not in json.dumps([search, document])


class BrokenStore(MemoryStore):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def search_batch(self, collection, embeddings, options):
        raise self._error


@pytest.mark.parametrize(("error", "code"), [(StoreError("away"), "store_unavailable"), (KeyError("x"), "internal")])
def test_request_line_and_the_line_of_its_fault_share_id_and_code(start_log, make_client, error, code):
    client = make_client(store=BrokenStore(error))
    lines = start_log("info", "json")

    client.post("/search", json={"query": "a"}, headers={"X-Request-Id": "find-me"})

    fault, request = map(json.loads, lines())
    assert fault["request_id"] == request["request_id"] == "find-me"
    assert request["code"] == code
    assert request["status"] >= 500
    assert fault.get("code", "internal") == code


KEY = "r-" + "0123456789" * 4


@pytest.mark.parametrize(
    ("key", "method", "path", "code"),
    [
        (None, "GET", "/info", "unauthorized"),
        (KEY[:-1], "GET", "/info", "unauthorized"),
        (KEY, "PUT", "/collections/c", "forbidden"),
        (KEY, "GET", "/no/such/path", "not_found"),
        (KEY, "GET", "/search", "method_not_allowed"),
    ],
)
def test_request_line_of_a_refusal_has_its_code_and_no_key(start_log, make_client, key, method, path, code):
    client = make_client(keys=json.dumps([{"role": "read", "key": KEY}]))
    lines = start_log("debug", "json")

    client.request(method, path, headers={"authorization": f"Bearer {key}"} if key else {})

    written = lines()
    (request,) = [each for each in map(json.loads, written) if each["logger"] == "eoseek.requests"]
    assert request["code"] == code
    assert KEY[:-1] not in "".join(written)


@pytest.mark.parametrize(
    ("level", "form", "is_logged"), [("info", "text", False), ("debug", "text", True), ("warning", "json", False)]
)
def test_request_line_is_for_json_and_for_debugging(start_log, make_client, level, form, is_logged):
    lines = start_log(level, form)

    make_client().get("/info")

    assert any("GET /info 200" in line for line in lines()) == is_logged
