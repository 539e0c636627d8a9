"""The remote encoder over fake upstreams: what is asked, what counts as an answer, who is left alone and comes back."""

import asyncio
import contextlib
import json
import re
from collections import Counter
from dataclasses import replace

import httpx
import numpy as np
import pytest

from service.encoders.base import AsyncEncoder
from service.encoders.proof import unit_length
from service.encoders.remote_encoder import Pace, RemoteEncoder
from service.errors import ConfigurationError, EncoderError, OverloadedError
from service.settings import EncoderSettings
from tests.fakes import fake_embedding
from tests.service.api.parts import DIMENSION, MAX_LENGTH
from tests.service.encoders.fake_upstream import CHECKPOINT, NAN_ID, FakeNetwork, FakeUpstream

LIMIT_SECONDS = 30  # what would hang fails
KEY = "k" * 40
TEXTS = [[5, 6, 256], [8, 256], [9, 10, 11, 256]]


class Bench:
    """A remote encoder over fake upstreams, whose pauses take no time and are recorded."""

    def __init__(self, *upstreams, checkpoint=CHECKPOINT, limit_seconds=10.0, proof_seconds=1000.0, **settings):
        network = FakeNetwork(*upstreams)
        self.now = 1000.0
        self.naps = []
        self.calls = Counter()
        self.encoder = RemoteEncoder(
            checkpoint,
            EncoderSettings(backend="remote", urls=json.dumps(network.urls), **settings),
            limit_seconds=limit_seconds,
            on_call=lambda index, outcome: self.calls.update([(index, outcome)]),
            pace=Pace(proof_seconds=proof_seconds),
            transport=network,
            clock=lambda: self.now,
            sleep=self.nap,
        )

    async def nap(self, seconds):
        self.naps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def serving(self):
        return [self.encoder.is_serving(index) for index in range(self.encoder.num_upstreams)]


async def until(condition):
    while not condition():  # noqa: ASYNC110  a turn of the loop, not a time
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def started(*upstreams, **options):
    bench = Bench(*upstreams, **options)
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            await bench.encoder.start()
            yield bench
    finally:
        await bench.encoder.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def run(test):
    """Run an async test."""

    def wrapped(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    wrapped.__name__ = test.__name__
    if hasattr(test, "pytestmark"):
        wrapped.pytestmark = test.pytestmark
    wrapped.__wrapped__ = test
    return wrapped


def refusal(*upstreams, **options):
    """The words with which a start is refused."""

    async def start():
        async with started(*upstreams, **options):
            pass

    with pytest.raises(ConfigurationError) as refused:
        asyncio.run(start())
    return refused.value.detail


def expected(token_ids):
    return np.array([fake_embedding(ids, DIMENSION) for ids in token_ids])


def status(code, *, path="/embeddings", headers=None, **body):
    """Answers one call with a status, leaves the others alone."""

    def answer(request):
        return httpx.Response(code, json=body, headers=headers) if request.url.path.endswith(path) else None

    return answer


@pytest.mark.parametrize("has_base64", [True, False])
@run
async def test_remote_gives_unit_rows_in_input_order(has_base64):
    upstream = FakeUpstream()
    upstream.has_base64 = has_base64
    async with started(upstream) as bench:
        embeddings = await bench.encoder.encode(TEXTS)

        assert isinstance(bench.encoder, AsyncEncoder)
        assert (embeddings.dtype, embeddings.shape) == (np.float32, (3, DIMENSION))
        np.testing.assert_allclose(embeddings, expected(TEXTS), atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-6)
        assert (await bench.encoder.encode([])).shape == (0, DIMENSION)


@run
async def test_remote_sends_complete_ids_the_canary_the_model_and_the_key():
    upstream = FakeUpstream()
    async with started(upstream, api_key=KEY) as bench:
        await bench.encoder.encode(TEXTS)

    sent = upstream.requests[-1]
    body = json.loads(sent.content)
    canary = CHECKPOINT.contract.documents([("", "检索 検索 검색")]).token_ids  # the shortest that says enough
    assert body == {"input": TEXTS + canary, "model": "tiny", "encoding_format": "base64"}
    assert str(sent.url) == "http://up0/v1/embeddings"
    assert sent.headers["authorization"] == f"Bearer {KEY}"


@run
async def test_remote_row_that_is_no_number_is_nan_and_spoils_no_other():
    async with started(FakeUpstream()) as bench:
        embeddings = await bench.encoder.encode([[NAN_ID, 256], TEXTS[0]])

        assert np.isnan(embeddings[0]).all()
        np.testing.assert_allclose(embeddings[1:], expected(TEXTS[:1]), atol=1e-6)
        assert bench.serving() == [True]


def test_remote_unit_length_of_huge_rows_and_none_of_rows_without_direction():
    rows = unit_length(np.array([[3e30, 4e30], [0, 0], [np.inf, 1]], np.float32))

    np.testing.assert_allclose(rows[0], [0.6, 0.8])
    assert np.isnan(rows[1]).all()
    assert np.isnan(rows[2]).any()


@pytest.mark.parametrize(
    ("upstream", "words"),
    [
        (FakeUpstream(salt=1), "upstream 0 embeds .* with cosine -?0.* it serves another model, or pools otherwise"),
        (FakeUpstream(models=("a", "b")), "lists 2 models; name one in EOSEEK_ENCODER__URL_MODEL"),
        (FakeUpstream(max_model_len=99), "takes texts of 99 tokens, this service up to 100; .*MAX_LENGTH=99"),
    ],
)
def test_remote_start_refuses_an_upstream_of_another_model(upstream, words):
    assert re.search(words, refusal(upstream))


def answered(answer, **options):
    upstream = FakeUpstream()
    upstream.answer = answer
    return refusal(upstream, **options)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(401, path=""), "answered 401: it wants another key; set EOSEEK_ENCODER__API_KEY"),
        (status(403, path=""), "answered 403: it does not let this key in"),
        (status(404), "answered 404: it knows no such path or model"),
        (status(307, headers={"location": "http://up1/v1/embeddings"}), "a redirect, which is not followed"),
        (status(422), "answered 422"),
        (status(200), "answers in another shape than OpenAI's embeddings call"),
        (status(200, path="/models"), "answers in another shape than OpenAI's list of models"),
        (status(200, data=["x" * 100_000]), "answers with more than"),
    ],
)
def test_remote_start_refuses_an_upstream_that_cannot_be_used(answer, words):
    assert words in answered(answer, api_key=KEY)


def test_remote_start_without_recorded_vectors_is_refused_with_the_cure():
    words = refusal(FakeUpstream(), checkpoint=replace(CHECKPOINT, probes={}))

    assert "`eoseek export` records them" in words
    assert "EOSEEK_ENCODER__TRUST_URLS=true" in words


@run
async def test_remote_start_on_trust_holds_the_others_and_later_answers_against_the_first():
    first, other = FakeUpstream(salt=1), FakeUpstream(salt=2)
    async with started(first, other, checkpoint=replace(CHECKPOINT, probes={}), trust_urls=True) as bench:
        assert bench.serving() == [True, False]

        first.salt = 3
        with pytest.raises(EncoderError, match="serves another model"):
            await bench.encoder.encode(TEXTS)


def test_remote_start_gives_up_when_none_comes_up_in_time():
    upstream = FakeUpstream()
    upstream.is_up = False

    words = refusal(upstream, start_timeout_seconds=0.02)

    assert "upstream 0 cannot be reached" in words
    assert "EOSEEK_ENCODER__START_TIMEOUT_SECONDS" in words


@run
async def test_remote_start_waits_for_the_first_with_growing_pauses():
    upstream = FakeUpstream()
    left = iter(range(7))
    upstream.answer = lambda request: httpx.Response(503) if next(left, None) is not None else None

    async with started(upstream) as bench:
        assert bench.naps == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


@run
async def test_remote_start_serves_the_right_one_and_keeps_the_wrong_one_out():
    right, wrong = FakeUpstream(), FakeUpstream(salt=1)
    async with started(wrong, right) as bench:
        assert bench.serving() == [False, True]
        await asyncio.gather(*(bench.encoder.encode(TEXTS) for _ in range(10)))
        assert bench.calls == {(1, "answered"): 10}
        assert bench.encoder.num_parallel == 2


@pytest.mark.parametrize("max_model_len", [None, 100])
@run
async def test_remote_start_tries_the_longest_text_where_the_upstream_does_not_say_what_it_takes(max_model_len):
    upstream = FakeUpstream(max_model_len=max_model_len)
    async with started(upstream):
        pass

    lengths = [len(ids) for texts in upstream.inputs for ids in texts]
    assert (MAX_LENGTH in lengths) is (max_model_len is None)


def test_remote_start_refuses_an_upstream_that_cuts_without_saying_so():
    upstream = FakeUpstream(max_model_len=None)
    whole = upstream.embeddings
    upstream.embeddings = lambda body: whole({"input": [ids[:80] for ids in body["input"]]})

    assert "took 80 tokens where 100 were sent" in refusal(upstream)


@run
async def test_remote_model_named_in_the_settings_is_sent_also_to_an_upstream_that_lists_none():
    upstream = FakeUpstream()
    upstream.answer = status(404, path="/models")
    async with started(upstream, url_model="mine") as bench:
        await bench.encoder.encode(TEXTS)

    assert json.loads(upstream.requests[-1].content)["model"] == "mine"


@run
async def test_remote_upstream_that_changes_its_model_is_refused_at_its_next_answer_and_taken_back():
    changing, steady = FakeUpstream(), FakeUpstream()
    async with started(changing, steady) as bench:
        changing.salt = 1
        for _ in range(10):
            np.testing.assert_allclose(await bench.encoder.encode(TEXTS), expected(TEXTS), atol=1e-6)
        assert bench.serving() == [False, True]
        assert bench.calls[0, "wrong"] == 1

        changing.salt = 0
        await until(lambda: bench.serving() == [True, True])


@run
async def test_remote_idle_upstream_that_changes_its_model_is_found_by_its_next_proof():
    upstream = FakeUpstream()
    async with started(upstream, proof_seconds=0.001) as bench:
        upstream.salt = 1
        await until(lambda: not bench.encoder.is_ready)
        assert not bench.calls


@run
async def test_remote_one_of_two_killed_under_load_fails_no_batch():
    dying, steady = FakeUpstream(), FakeUpstream()
    async with started(dying, steady) as bench:
        gate = dying.gate = steady.gate = asyncio.Event()
        under_way = [asyncio.create_task(bench.encoder.encode([[5, number, 256]])) for number in range(100)]
        await until(lambda: dying.num_waiting == steady.num_waiting == 50)
        dying.is_up = False
        gate.set()
        later = [asyncio.create_task(bench.encoder.encode([[6, number, 256]])) for number in range(100)]

        for first, tasks in ((5, under_way), (6, later)):
            for number, row in enumerate(await asyncio.gather(*tasks)):
                np.testing.assert_allclose(row, expected([[first, number, 256]]), atol=1e-6)
        assert bench.calls[1, "answered"] == 200
        await until(lambda: bench.serving() == [False, True])


@run
async def test_remote_all_down_is_an_error_with_each_cause_and_heals_by_itself():
    first, second = FakeUpstream(), FakeUpstream()
    async with started(first, second) as bench:
        first.is_up = False
        second.answer = status(500, path="")
        for _ in range(3):
            with pytest.raises(EncoderError, match="upstream 0 cannot be reached; upstream 1 answered 500"):
                await bench.encoder.encode(TEXTS)
        assert not bench.encoder.is_ready
        assert bench.encoder.num_parallel == 1

        first.is_up = True
        await until(lambda: bench.encoder.is_ready)
        np.testing.assert_allclose(await bench.encoder.encode(TEXTS), expected(TEXTS), atol=1e-6)


@run
async def test_remote_lost_connection_of_the_only_upstream_is_tried_once_more():
    upstream = FakeUpstream()
    async with started(upstream) as bench:
        lost = iter([True])

        def lose_one(request):
            if next(lost, False):
                raise httpx.RemoteProtocolError("server disconnected without sending a response")

        upstream.answer = lose_one
        np.testing.assert_allclose(await bench.encoder.encode(TEXTS), expected(TEXTS), atol=1e-6)
        assert bench.serving() == [True]


@run
async def test_remote_slow_upstream_is_given_up_and_another_asked():
    slow, quick = FakeUpstream(), FakeUpstream()
    async with started(slow, quick, url_timeout_seconds=0.02) as bench:
        slow.gate = asyncio.Event()
        await bench.encoder.encode(TEXTS)
        await bench.encoder.encode(TEXTS)

        assert bench.calls == {(0, "away"): 1, (1, "answered"): 2}


@run
async def test_remote_batch_is_given_up_when_nobody_waits_any_longer():
    upstream = FakeUpstream()
    async with started(upstream, limit_seconds=0.02) as bench:
        upstream.gate = asyncio.Event()
        with pytest.raises(EncoderError, match=r"no upstream answered within 0\.02 s"):
            await bench.encoder.encode(TEXTS)


@run
async def test_remote_overloaded_upstream_is_spared_as_long_as_it_asks_for():
    busy, free = FakeUpstream(), FakeUpstream()
    async with started(busy, free) as bench:
        busy.answer = status(429, headers={"retry-after": "7"})
        for _ in range(3):
            await bench.encoder.encode(TEXTS)
        assert bench.calls == {(0, "busy"): 1, (1, "answered"): 3}

        bench.now += 7
        busy.answer = lambda request: None
        await bench.encoder.encode(TEXTS)
        assert bench.calls[0, "answered"] == 1
        assert bench.serving() == [True, True]


@run
async def test_remote_all_overloaded_are_waited_for_while_somebody_waits():
    upstream = FakeUpstream()
    async with started(upstream) as bench:
        refusals = iter([status(429, headers={"retry-after": "1.5"})] * 2)
        upstream.answer = lambda request: next(refusals, lambda request: None)(request)
        await bench.encoder.encode(TEXTS)
        assert bench.naps == [1.0, 0.5, 1.0, 0.5]

        upstream.answer = status(429, headers={"retry-after": "50"})
        with pytest.raises(OverloadedError) as overloaded:
            await bench.encoder.encode(TEXTS)
        assert overloaded.value.retry_after_seconds == 50.0


@pytest.mark.parametrize("code", [400, 413, 422])
@run
async def test_remote_refused_texts_are_tried_nowhere_else_and_their_upstream_serves_on(code):
    first, second = FakeUpstream(), FakeUpstream()
    async with started(first, second) as bench:
        first.answer = second.answer = status(code, error={"message": "too long for me"})
        with pytest.raises(EncoderError, match=f"upstream 0 answered {code} and so refused the batch") as error:
            await bench.encoder.encode(TEXTS)

        assert bench.calls == {(0, "refused"): 1}
        assert bench.serving() == [True, True]
        assert "too long for me" not in error.value.detail


@run
async def test_remote_upstream_with_the_fewest_calls_under_way_is_asked():
    first, second = FakeUpstream(), FakeUpstream()
    async with started(first, second) as bench:
        first.gate = asyncio.Event()
        held = asyncio.create_task(bench.encoder.encode(TEXTS))
        await until(lambda: first.num_waiting == 1)
        for _ in range(3):
            await bench.encoder.encode(TEXTS)
        assert bench.calls == {(1, "answered"): 3}

        first.gate.set()
        await held


@run
async def test_remote_stop_ends_calls_under_way_with_an_error():
    upstream = FakeUpstream()
    async with started(upstream, url_timeout_seconds=0.02) as bench:
        upstream.gate = asyncio.Event()
        call = asyncio.create_task(bench.encoder.encode(TEXTS))
        await until(lambda: upstream.num_waiting == 1)
        await bench.encoder.stop()
        with pytest.raises(EncoderError):
            await call


def test_remote_log_says_what_the_upstream_says_once_on_a_line_without_the_key(caplog):
    async def fail_often():
        upstream = FakeUpstream()
        async with started(upstream, api_key=KEY) as bench:
            upstream.answer = status(500, path="", error={"message": f"bad key {KEY}\nforged line"})
            for _ in range(5):
                with pytest.raises(EncoderError):
                    await bench.encoder.encode(TEXTS)
            await until(lambda: len(bench.naps) > 20)

    asyncio.run(fail_often())

    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) <= 3
    assert all("upstream 0 (http://up0/v1) answered 500" in line and "\n" not in line for line in lines)
    assert "bad key *** forged line" in lines[-1]
    assert not any(record.exc_info for record in caplog.records)


@run
async def test_remote_upstream_that_failed_once_is_proven_at_once_and_spared_until_then():
    failing, steady = FakeUpstream(), FakeUpstream()
    async with started(failing, steady) as bench:
        failing.answer = status(500)
        await bench.encoder.encode(TEXTS)
        failing.answer = lambda request: None
        num_requests = len(failing.requests)
        await bench.encoder.encode(TEXTS)
        assert len(failing.requests) == num_requests

        await until(lambda: len(failing.requests) == num_requests + 2)  # its models and the probes
        assert bench.serving() == [True, True]


@run
async def test_remote_calls_share_connections():
    upstream = FakeUpstream()
    num_connections, closed = 0, asyncio.Event()

    async def serve(reader, writer):
        nonlocal num_connections
        num_connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head.lower())
                content = await reader.readexactly(int(length[1])) if length else b""
                response = await upstream.handle(httpx.Request("POST", f"http://up0{head.split()[1]}", content=content))
                size = f"content-length: {len(response.content)}"
                writer.write(f"HTTP/1.1 200 OK\r\n{size}\r\n\r\n".encode() + response.content)
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        settings = EncoderSettings(backend="remote", urls=f'["http://127.0.0.1:{port}"]')
        encoder = RemoteEncoder(CHECKPOINT, settings, limit_seconds=10)
        await encoder.start()
        for _ in range(20):
            np.testing.assert_allclose(await encoder.encode(TEXTS), expected(TEXTS), atol=1e-6)
        await encoder.stop()
        await closed.wait()

    assert num_connections == 1
