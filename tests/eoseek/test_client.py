"""Both clients are held to one suite; the async one's calls are made to their end one by one."""

import asyncio
import subprocess
import sys

import httpx
import pytest

import eoseek
from eoseek.client import AsyncClient, Client, EoseekClientError
from tests.eoseek.conftest import BlockingClient


@pytest.fixture(params=[Client, BlockingClient], ids=["sync", "async"])
def build(request):
    return request.param


@pytest.fixture
def client(build, service, pauses):
    with build(transport=service.transport(), sleep=pauses.append) as client:
        yield client


def paused(pauses):
    """Pauses that take no time but on the clock."""
    return {"sleep": pauses.append, "clock": lambda: sum(pauses)}


OVERLOADED = (429, {"Retry-After": "3"}, {"code": "overloaded", "detail": "full"})
LINE = b'{"id": "a", "text": "one"}\n'


def test_client_stored_document_is_found_and_read_back(client):
    assert client.ingest(LINE).indexed == 1
    assert client.ingest(LINE).unchanged == 1
    (hit,) = client.search("one two")
    assert (hit.id, hit.score, hit.text) == ("a", 0.1, "one")
    assert client.get_document("a")["text"] == "one"


def test_client_id_with_slash_and_space_is_one_path_segment(client, service):
    client.ingest(b'{"id": "a/b c?", "text": "one"}')
    assert client.get_document("a/b c?")["id"] == "a/b c?"
    assert service.requests[-1][1] == "/documents/a%2Fb%20c%3F"


KEY = "key-0123456789abcdef0123456789abcdef"


def test_client_key_goes_with_every_call_and_nowhere_else(build):
    sent = []

    def answer(request):
        sent.append(request.headers.get("authorization"))
        return httpx.Response(401, json={"code": "unauthorized", "detail": "no"})

    for key in (KEY, None):
        with (
            build(transport=httpx.MockTransport(answer), api_key=key) as client,
            pytest.raises(EoseekClientError, match="EOSEEK_API_KEY") as caught,
        ):
            client.info()
        assert KEY not in f"{client!r} {caught.value}"
    assert sent == [f"Bearer {KEY}", None]


@pytest.mark.parametrize("key", ["a b", "é", "a\nb"])
def test_client_key_that_cannot_stand_in_a_header_is_refused_and_not_shown(build, key):
    with pytest.raises(EoseekClientError) as caught:
        build(api_key=key)
    assert caught.value.code == "configuration"
    assert key not in str(caught.value)


def test_client_options_left_out_are_not_sent(client, service):
    service.scripted = [(200, {}, {"indexed": 0, "unchanged": 0, "failed": [], "truncated": []})]
    client.ingest(LINE)
    assert service.requests[-1] == ("POST", "/documents", {})


def test_client_problem_document_becomes_error_with_status_and_code(client):
    with pytest.raises(EoseekClientError, match="nothing at documents/b") as caught:
        client.get_document("b")
    assert (caught.value.status, caught.value.code) == (404, "not_found")


def test_client_answer_that_is_not_json_names_the_url(build):
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>"))
    with build(transport=transport) as client, pytest.raises(EoseekClientError, match="is this an EOSeek service"):
        client.info()


@pytest.mark.parametrize("call", ["info", "list_collections", "search", "embed", "ingest"])
def test_client_answer_of_another_service_is_named(build, call):
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=["hello"]))
    arguments = {"search": ["a"], "embed": [["a"]], "ingest": [LINE]}.get(call, [])
    with build(transport=transport) as client, pytest.raises(EoseekClientError, match="is this an EOSeek service"):
        getattr(client, call)(*arguments)


@pytest.mark.parametrize(("query", "options"), [("\udcff", {}), ("a", {"filter": {"gt": float("nan")}})])
def test_client_what_json_cannot_hold_is_refused(client, query, options):
    with pytest.raises(EoseekClientError, match="this cannot be sent"):
        client.search(query, **options)


def test_client_waits_as_long_as_it_is_told(build, service, pauses):
    service.scripted = [(503, {"Retry-After": "60"}, {"code": "not_ready", "detail": "starting"})]
    with build(transport=service.transport(), retry_seconds=120, **paused(pauses)) as client:
        client.ingest(LINE)
    assert 60 <= pauses[0] <= 72


def test_client_error_without_problem_document_keeps_the_status(build):
    transport = httpx.MockTransport(lambda request: httpx.Response(502, text="<html>"))
    with build(transport=transport) as client, pytest.raises(EoseekClientError, match="502 Bad Gateway") as caught:
        client.info()
    assert caught.value.status == 502


def test_client_overloaded_waits_as_told_and_succeeds(client, service, pauses):
    service.scripted = [OVERLOADED, OVERLOADED]
    assert client.ingest(LINE).indexed == 1
    assert [3 <= pause <= 3.6 for pause in pauses] == [True, True]


def test_client_overloaded_for_good_gives_up_within_its_budget(build, service, pauses):
    service.scripted = [OVERLOADED] * 10
    with (
        build(transport=service.transport(), retry_seconds=10, **paused(pauses)) as client,
        pytest.raises(EoseekClientError, match="full") as caught,
    ):
        client.ingest(LINE)
    assert caught.value.status == 429
    assert sum(pauses) <= 10


TOO_SLOW = (503, {"Retry-After": "1"}, {"code": "deadline_exceeded", "detail": "the deadline passed"})


def test_client_slow_attempts_count_and_the_last_one_begins_within_the_limit(build, service):
    now, began = [0.0], []
    respond = service.transport().handler

    def answer(request):
        began.append(now[0])
        now[0] += 20
        return respond(request)

    service.scripted = [TOO_SLOW] * 10
    with (
        build(
            transport=httpx.MockTransport(answer),
            retry_seconds=50,
            sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
            clock=lambda: now[0],
        ) as client,
        pytest.raises(EoseekClientError, match="the deadline passed"),
    ):
        client.ingest(LINE)
    assert len(began) == 4  # at 0, and at about 21, 42 and 63, which is within 50 of the first failure at 20


@pytest.mark.parametrize("call", ["search", "embed"])
def test_client_deadline_that_passed_is_an_error_at_once_where_somebody_waits(build, pauses, call):
    asked = []

    def answer(request):
        asked.append(request.url.path)
        return httpx.Response(TOO_SLOW[0], headers=TOO_SLOW[1], json=TOO_SLOW[2])

    with (
        build(transport=httpx.MockTransport(answer), **paused(pauses)) as client,
        pytest.raises(EoseekClientError, match="the deadline passed"),
    ):
        getattr(client, call)("a" if call == "search" else ["a"])
    assert (asked, pauses) == ([f"/{call}"], [])


def test_client_tells_of_each_pause_and_why(build, service, pauses):
    told = []
    service.scripted = [OVERLOADED, TOO_SLOW]
    tell = lambda seconds, error: told.append((seconds, error.code))  # noqa: E731
    with build(transport=service.transport(), on_wait=tell, **paused(pauses)) as client:
        client.ingest(LINE)
    assert told == list(zip(pauses, ["overloaded", "deadline_exceeded"], strict=True))


def test_client_never_reached_service_fails_at_once_and_says_how_to_start(build, service, pauses):
    service.scripted = [httpx.ConnectError("Connection refused")]
    with (
        build(transport=service.transport(), sleep=pauses.append) as client,
        pytest.raises(EoseekClientError, match=r"127\.0\.0\.1:8080 \(Connection refused\); start .*eoseek serve"),
    ):
        client.ingest(LINE)
    assert pauses == []


def test_client_lost_connection_is_retried_with_growing_pauses(client, service, pauses):
    client.create_collection("c")
    service.scripted = [httpx.ConnectError("gone"), httpx.ReadError("gone"), httpx.ReadTimeout("gone")]
    assert client.ingest(LINE).indexed == 1
    assert pauses == sorted(pauses)
    assert len(pauses) == 3


@pytest.mark.parametrize("status", [400, 409, 413, 422, 500])
def test_client_error_that_time_does_not_heal_is_not_retried(client, service, pauses, status):
    service.scripted = [(status, {}, {"code": "x", "detail": "no"})]
    with pytest.raises(EoseekClientError):
        client.ingest(LINE)
    assert pauses == []


def test_client_closed_while_waiting_raises_rather_than_waits_on(service):
    client = Client(transport=service.transport(), sleep=lambda _: client.close())
    service.scripted = [OVERLOADED] * 3
    with pytest.raises(EoseekClientError):
        client.ingest(LINE)


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://[::1"])
def test_client_url_that_is_none_is_a_configuration_error(build, url):
    with pytest.raises(EoseekClientError) as caught:
        build(url)
    assert caught.value.code == "configuration"


def test_async_client_closed_while_waiting_raises_at_once():
    async def close_meanwhile():
        asked = asyncio.Event()

        async def answer(request):
            asked.set()
            return httpx.Response(429, headers={"Retry-After": "30"}, json=OVERLOADED[2])

        client = AsyncClient(transport=httpx.MockTransport(answer), retry_seconds=100)
        call = asyncio.create_task(client.ingest(LINE))
        async with asyncio.timeout(5):
            await asked.wait()
            await client.close()
            await call

    with pytest.raises(EoseekClientError):
        asyncio.run(close_meanwhile())


def test_client_collections_are_created_listed_described_and_dropped(build):
    asked = []

    def answer(request):
        asked.append(f"{request.method} {request.url.path}")
        if request.method == "DELETE":
            return httpx.Response(204)
        return httpx.Response(200, json={"collections": [{"name": "c"}]} if request.url.path == "/collections" else {})

    with build(transport=httpx.MockTransport(answer)) as client:
        client.create_collection("c")
        client.describe_collection("c")
        assert client.list_collections() == [{"name": "c"}]
        assert client.drop_collection("c") is None
        assert client.delete_document("a", collection="c") is None
    paths = ["PUT /collections/c", "GET /collections/c", "GET /collections", "DELETE /collections/c"]
    assert asked == [*paths, "DELETE /documents/a"]


def test_async_client_backup_gives_its_blocks_or_the_service_s_refusal():
    async def save(response):
        client = AsyncClient(transport=httpx.MockTransport(lambda request: response))
        async with client, client.backup() as blocks:
            return b"".join([block async for block in blocks])

    assert asyncio.run(save(httpx.Response(200, content=b"zip"))) == b"zip"
    with pytest.raises(EoseekClientError, match="no backups here"):
        asyncio.run(save(httpx.Response(501, json={"code": "not_implemented", "detail": "no backups here"})))


def test_clients_have_the_same_public_methods():
    public = [{name for name in vars(each) if not name.startswith("_")} for each in (Client, AsyncClient)]
    assert public[0] == public[1]


def test_import_eoseek_loads_httpx_with_the_first_name_and_torch_never():
    code = (
        "import sys, eoseek; before = 'httpx' in sys.modules; from eoseek import AsyncClient, Client; "
        "print(before, 'httpx' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def test_import_eoseek_every_name_is_there_and_another_is_not():
    assert [name for name in eoseek.__all__ if getattr(eoseek, name).__name__ != name] == []
    with pytest.raises(AttributeError, match="no attribute 'client2'"):
        eoseek.client2  # noqa: B018
