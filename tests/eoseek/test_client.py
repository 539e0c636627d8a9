import httpx
import pytest

from eoseek.client import Client, EoseekClientError

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


def test_client_key_goes_with_every_call_and_nowhere_else():
    sent = []

    def answer(request):
        sent.append(request.headers.get("authorization"))
        return httpx.Response(401, json={"code": "unauthorized", "detail": "no"})

    for key in (KEY, None):
        with (
            Client(transport=httpx.MockTransport(answer), api_key=key) as client,
            pytest.raises(EoseekClientError, match="EOSEEK_API_KEY") as caught,
        ):
            client.info()
        assert KEY not in f"{client!r} {caught.value}"
    assert sent == [f"Bearer {KEY}", None]


@pytest.mark.parametrize("key", ["a b", "é", "a\nb"])
def test_client_key_that_cannot_stand_in_a_header_is_refused_and_not_shown(key):
    with pytest.raises(EoseekClientError) as caught:
        Client(api_key=key)
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


def test_client_answer_that_is_not_json_names_the_url():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>"))
    with Client(transport=transport) as client, pytest.raises(EoseekClientError, match="is this an EOSeek service"):
        client.info()


@pytest.mark.parametrize("call", ["info", "list_collections", "search", "embed", "ingest"])
def test_client_answer_of_another_service_is_named(call):
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=["hello"]))
    arguments = {"search": ["a"], "embed": [["a"]], "ingest": [LINE]}.get(call, [])
    with Client(transport=transport) as client, pytest.raises(EoseekClientError, match="is this an EOSeek service"):
        getattr(client, call)(*arguments)


@pytest.mark.parametrize(("query", "options"), [("\udcff", {}), ("a", {"filter": {"gt": float("nan")}})])
def test_client_what_json_cannot_hold_is_refused(client, query, options):
    with pytest.raises(EoseekClientError, match="this cannot be sent"):
        client.search(query, **options)


def test_client_waits_as_long_as_it_is_told(service, pauses):
    service.scripted = [(503, {"Retry-After": "60"}, {"code": "not_ready", "detail": "starting"})]
    with Client(transport=service.transport(), retry_seconds=120, sleep=pauses.append) as client:
        client.ingest(LINE)
    assert 60 <= pauses[0] <= 72


def test_client_error_without_problem_document_keeps_the_status():
    transport = httpx.MockTransport(lambda request: httpx.Response(502, text="<html>"))
    with Client(transport=transport) as client, pytest.raises(EoseekClientError, match="502 Bad Gateway") as caught:
        client.info()
    assert caught.value.status == 502


def test_client_overloaded_waits_as_told_and_succeeds(client, service, pauses):
    service.scripted = [OVERLOADED, OVERLOADED]
    assert client.ingest(LINE).indexed == 1
    assert [3 <= pause <= 3.6 for pause in pauses] == [True, True]


def test_client_overloaded_for_good_gives_up_within_its_budget(service, pauses):
    service.scripted = [OVERLOADED] * 10
    with (
        Client(transport=service.transport(), retry_seconds=10, sleep=pauses.append) as client,
        pytest.raises(EoseekClientError, match="full") as caught,
    ):
        client.ingest(LINE)
    assert caught.value.status == 429
    assert sum(pauses) <= 10


def test_client_never_reached_service_fails_at_once_and_says_how_to_start(service, pauses):
    service.scripted = [httpx.ConnectError("Connection refused")]
    with (
        Client(transport=service.transport(), sleep=pauses.append) as client,
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
def test_client_url_that_is_none_is_a_configuration_error(url):
    with pytest.raises(EoseekClientError) as caught:
        Client(url)
    assert caught.value.code == "configuration"
