"""Streaming ingest of both clients; how batches are cut and what a window is, `test_ingest.py` has."""

import asyncio
import datetime
import json

import httpx
import pytest

from eoseek.client import AsyncClient, Client, EoseekClientError
from eoseek.ingest import Counts, DocumentFailure
from tests.eoseek.conftest import BlockingClient

OK = {"indexed": 1, "unchanged": 0, "failed": [], "truncated": []}


@pytest.fixture(params=[Client, BlockingClient], ids=["sync", "async"])
def client(request, service, pauses):
    with request.param(transport=service.transport(), sleep=pauses.append) as client:
        yield client


def document(number):
    return {"id": str(number), "text": f"text {number}"}


def test_stream_mappings_and_lines_of_json_arrive(client, service):
    given = [
        document("\u00e9"),
        b'{"_id": "b", "title": "B", "text": "x"}\r\n',
        '{"id": "c", "text": "x"}',
        b"\n",
        b'{\n "id": "d",\n "text": "x"}',
    ]
    report = client.ingest_stream(given)
    assert report.counts == Counts(read=4, indexed=4)
    assert report.failures == []
    assert sorted(service.collections["default"]) == ["b", "c", "d", "\u00e9"]


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (b"{", "malformed_input", "not JSON"),
        (b'{"id": "\xff"}', "malformed_input", "not UTF-8 at byte 8"),
        (b"{}\n{}", "malformed_input", "Extra data"),
        ({"id": "x", "text": datetime.date(2000, 1, 1)}, "malformed_input", "date is not JSON"),
        ({"id": "x", "text": float("nan")}, "malformed_input", "not JSON"),
        ({"id": "x", "text": "\ud800"}, "malformed_input", "not JSON"),
        ({"text": "x"}, "invalid_input", "needs `id`"),
        ([1], "invalid_input", "not a JSON object"),
        (None, "invalid_input", "not a JSON object"),
        ({"id": "x", "text": ""}, "invalid_input", "text is empty"),
    ],
)
def test_stream_refused_document_is_reported_by_position_and_the_others_arrive(client, service, bad, code, words):
    report = client.ingest_stream([document(0), bad, document(2)], batch_size=2)
    (failure,) = report.failures
    assert (failure.position, failure.code) == (1, code)
    assert words in failure.detail
    assert report.counts == Counts(read=3, indexed=2, failed=1)
    assert sorted(service.collections["default"]) == ["0", "2"]


def test_stream_failures_of_many_batches_keep_their_positions_and_order(client):
    given = [{"id": str(number), "text": "x" if number % 3 else ""} for number in range(10)]
    report = client.ingest_stream(given, batch_size=2, concurrency=3)
    assert report.failures == [
        DocumentFailure(position=position, code="invalid_input", detail="text is empty") for position in (0, 3, 6, 9)
    ]


def test_stream_same_id_the_last_wins(client, service):
    client.ingest_stream([{"id": "a", "text": text} for text in ("first", "second", "third")], batch_size=1)
    assert service.collections["default"]["a"]["text"] == "third"


def test_stream_reads_no_further_than_it_sends_and_tells_its_progress(client):
    taken, told = [], []

    def many():
        for number in range(100):
            taken.append(number)
            yield document(number)

    def on_progress(counts):
        told.append(counts.read)
        assert len(taken) - counts.read <= 4 * (2 + 1)

    report = client.ingest_stream(many(), batch_size=4, concurrency=2, on_progress=on_progress)
    assert told == list(range(4, 101, 4))
    assert report.counts.indexed == 100


def test_stream_overloaded_service_is_waited_for(client, service, pauses):
    service.scripted = [(429, {"Retry-After": "3"}, {"code": "overloaded", "detail": "full"})]
    assert client.ingest_stream([document(1)], collection="default").counts.indexed == 1
    assert 3 <= pauses[0] <= 3.6


def test_stream_options_go_with_each_request(client, service):
    service.scripted = [(200, {}, OK)]
    client.ingest_stream([document(1)], collection="c", truncate=True)
    assert service.requests[-1] == ("POST", "/documents", {"collection": "c", "truncate": "true"})


def test_stream_refused_request_raises_and_leaves_the_client_open(client, service):
    service.scripted = [(409, {}, {"code": "fingerprint_mismatch", "detail": "other checkpoint"})]
    with pytest.raises(EoseekClientError, match="other checkpoint"):
        client.ingest_stream(map(document, range(10)), batch_size=1, concurrency=1)
    assert client.ingest_stream([document(1)]).counts.indexed == 1


def test_stream_error_of_the_documents_is_raised_as_it_is(client):
    def broken():
        yield document(1)
        raise LookupError("the source is gone")

    with pytest.raises(LookupError, match="the source is gone"):
        client.ingest_stream(broken(), batch_size=1)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"concurrency": 0}])
def test_stream_option_below_one_is_refused(client, options):
    with pytest.raises(ValueError, match="=0: at least 1"):
        client.ingest_stream([], **options)


@pytest.mark.parametrize("one", [document(1), b"{}", "{}"])
def test_stream_one_document_in_the_place_of_many_is_refused(client, one):
    with pytest.raises(ValueError, match="give an iterable"):
        client.ingest_stream(one)


class Gate:
    """A service that answers nothing until so many requests are under way; counts these, and what was given up."""

    def __init__(self, opens_at):
        self._opens_at = opens_at
        self._open = asyncio.Event()
        self.under_way = self.most = self.given_up = 0

    async def __call__(self, request):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if json.loads(request.content)["id"] == "bad":
                return httpx.Response(409, json={"code": "fingerprint_mismatch", "detail": "other checkpoint"})
            if self.under_way == self._opens_at:
                self._open.set()
            await self._open.wait()
            return httpx.Response(200, json=OK)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.under_way -= 1


def test_async_stream_takes_an_async_iterable_and_keeps_requests_under_way():
    async def documents():
        for number in range(9):
            yield document(number)

    async def ingest():
        gate = Gate(opens_at=3)
        async with asyncio.timeout(5), AsyncClient(transport=httpx.MockTransport(gate)) as client:
            report = await client.ingest_stream(documents(), batch_size=1, concurrency=3)
        return report.counts.indexed, gate.most

    assert asyncio.run(ingest()) == (9, 3)


def test_async_stream_after_an_error_nothing_is_under_way():
    async def ingest():
        gate = Gate(opens_at=4)
        given = [{"id": "bad"}, *map(document, range(5))]
        async with AsyncClient(transport=httpx.MockTransport(gate)) as client:
            with pytest.raises(EoseekClientError, match="other checkpoint"):
                await client.ingest_stream(given, batch_size=1, concurrency=3)
        return gate

    gate = asyncio.run(ingest())
    assert gate.under_way == 0
    assert gate.given_up == 2
