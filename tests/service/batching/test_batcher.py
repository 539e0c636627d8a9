import asyncio
import contextlib

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.errors import (
    DeadlineExceededError,
    EncoderError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
)
from service.metrics import Metrics
from service.settings import BatchingSettings
from tests.fakes import GatedBackgroundEncoder, GatedEncoder, fake_embedding

LIMIT_SECONDS = 30  # what would hang fails


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Bench:
    """A batcher over a gated encoder and a fake clock."""

    def __init__(self, *, encoder=None, **settings):
        self.clock = Clock()
        self.encoder = encoder or GatedEncoder()
        self.metrics = Metrics(CollectorRegistry())
        self.batcher = Batcher(self.encoder, BatchingSettings(**settings), metrics=self.metrics, clock=self.clock)
        self.tasks = []

    def submit(self, *token_ids, lane="query", deadline=None):
        task = asyncio.create_task(self.batcher.submit(token_ids, lane=lane, deadline=deadline))
        self.tasks.append(task)
        return task

    async def batch(self):
        return await self.encoder.waiting.get()

    async def settle(self):
        """Let the event loop run until nothing moves any more."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def serve(self):
        """Answer every batch at once, for ever."""
        while True:
            (await self.batch()).release()

    def sample(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)


def bench_test(*, make=Bench, **settings):
    """Run an async test with a started bench; at its end every request has ended and nothing is left."""

    def decorate(test):
        def run():
            async def limited():
                bench = make(**settings)
                await bench.batcher.start()
                async with asyncio.timeout(LIMIT_SECONDS):
                    await test(bench)
                    await bench.batcher.stop(0)
                    await asyncio.gather(*bench.tasks, return_exceptions=True)
                for lane in ("query", "document"):
                    assert bench.sample("eoseek_queue_tokens", lane=lane) == 0
                    assert bench.sample("eoseek_queue_requests", lane=lane) == 0
                assert asyncio.all_tasks() == {asyncio.current_task()}

            asyncio.run(limited())

        run.__name__ = test.__name__
        return run

    return decorate


def embeddings(*token_ids):
    return np.stack([fake_embedding(ids) for ids in token_ids])


@bench_test()
async def test_batcher_requests_of_one_turn_share_a_batch_and_get_their_own_rows(bench):
    first, second = bench.submit([1, 2], [3]), bench.submit([4, 5, 6])

    batch = await bench.batch()
    assert batch.token_ids == [[1, 2], [3], [4, 5, 6]]
    batch.release()

    np.testing.assert_array_equal((await first).embeddings, embeddings([1, 2], [3]))
    np.testing.assert_array_equal((await second).embeddings, embeddings([4, 5, 6]))


@bench_test()
async def test_batcher_no_texts_give_no_embeddings_without_a_batch(bench):
    assert (await bench.submit()).embeddings.shape == (0, 8)
    assert bench.encoder.waiting.empty()


@bench_test(max_batch_tokens=4)
async def test_batcher_large_request_is_spread_over_batches_and_shares_them(bench):
    large, small = bench.submit([1, 1], [2, 2], [3, 3]), bench.submit([4])

    first = await bench.batch()
    assert first.token_ids == [[1, 1], [2, 2]]
    first.release()
    second = await bench.batch()
    assert second.token_ids == [[3, 3], [4]]
    second.release()

    np.testing.assert_array_equal((await large).embeddings, embeddings([1, 1], [2, 2], [3, 3]))
    np.testing.assert_array_equal((await small).embeddings, embeddings([4]))


@bench_test(max_batch_tokens=4)
async def test_batcher_a_full_batch_is_sent_ahead_and_no_third(bench):
    task = bench.submit(*([index] * 4 for index in range(1, 5)))

    first, second = await bench.batch(), await bench.batch()
    await bench.settle()
    assert bench.encoder.waiting.empty()
    first.release()
    third = await bench.batch()
    second.release()
    third.release()
    (await bench.batch()).release()
    assert (await task).embeddings.shape == (4, 8)


@bench_test(make=lambda: Bench(encoder=GatedEncoder(num_parallel=2)))
async def test_batcher_gives_an_encoder_as_many_batches_as_it_runs_side_by_side(bench):
    tasks = [bench.submit([1])]
    first = await bench.batch()
    tasks.append(bench.submit([2]))
    second = await bench.batch()
    tasks.append(bench.submit([3]))
    await bench.settle()
    assert bench.encoder.waiting.empty()  # not full, and both are busy

    second.release()
    third = await bench.batch()
    third.release()
    first.release()
    await asyncio.gather(*tasks)


@bench_test(make=lambda: Bench(encoder=GatedEncoder(num_parallel=2)))
async def test_batcher_side_by_side_a_request_s_time_is_its_own_and_the_load_that_of_all(bench):
    one = bench.submit([1])
    first = await bench.batch()
    bench.clock.now += 1.0
    other = bench.submit([2])
    second = await bench.batch()

    bench.clock.now += 2.0
    first.release()
    await bench.settle()
    bench.clock.now += 1.0
    second.release()

    assert [((await each).queue_seconds, (await each).encode_seconds) for each in (one, other)] == [(0, 3), (0, 3)]
    assert bench.sample("eoseek_encoder_busy_seconds_total", lane="query") == 4.0


@bench_test()
async def test_batcher_while_busy_requests_gather_for_the_next_batch(bench):
    bench.submit([1])
    running = await bench.batch()
    later = [bench.submit([2]), bench.submit([3])]
    await bench.settle()
    assert bench.encoder.waiting.empty()

    running.release()
    batch = await bench.batch()
    assert batch.token_ids == [[2], [3]]
    batch.release()
    await asyncio.gather(*later)


@bench_test()
async def test_batcher_queries_overtake_documents_that_wait(bench):
    bench.submit([1])
    running = await bench.batch()
    bench.submit([2], lane="document")
    await bench.settle()
    bench.submit([3], lane="query")
    await bench.settle()

    running.release()
    batch = await bench.batch()
    assert batch.token_ids == [[3]]
    batch.release()
    batch = await bench.batch()
    assert batch.token_ids == [[2]]
    batch.release()


@bench_test(document_max_wait_ms=2000)
async def test_batcher_documents_that_waited_too_long_go_before_queries(bench):
    bench.submit([1])
    running = await bench.batch()
    bench.submit([2], lane="document")
    bench.submit([3], lane="query")
    await bench.settle()

    bench.clock.now += 2.0
    running.release()
    batch = await bench.batch()
    assert batch.token_ids == [[2]]
    batch.release()


@bench_test(max_batch_tokens=10, document_max_wait_ms=2000)
async def test_batcher_slow_document_batches_do_not_starve_queries(bench):
    bench.submit(*([each] * 10 for each in range(1, 9)), lane="document")
    running = [await bench.batch(), await bench.batch()]  # one and one ahead
    bench.clock.now += 1.0
    bench.submit([99], lane="query")
    await bench.settle()

    bench.clock.now += 5.0
    running[0].release()
    await bench.settle()
    bench.clock.now += 5.0
    running[1].release()

    batch = await bench.batch()
    assert batch.token_ids == [[99]]
    batch.release()


@bench_test(batch_target_ms=1000)
async def test_batcher_document_batches_follow_the_measured_speed(bench):
    texts = [[index] * 10 for index in range(1, 400)]
    bench.submit(*texts, lane="document")

    batch = await bench.batch()
    assert len(batch.token_ids) == 100  # 2,000 tokens/s assumed, half of a second
    ahead = await bench.batch()
    bench.clock.now += 2.0  # 1,000 tokens in 2 s
    batch.release()
    await bench.settle()
    bench.clock.now += 2.0
    ahead.release()
    batch = await bench.batch()
    assert len(batch.token_ids) == 25  # 500 tokens/s, half of a second


def background_bench(**settings):
    return Bench(encoder=GatedBackgroundEncoder(), **settings)


@bench_test(make=background_bench, batch_target_ms=1)
async def test_batcher_documents_in_the_background_keep_no_query_waiting(bench):
    documents = bench.submit(*([index] * 10 for index in range(1, 419)), lane="document")
    running, ahead = await bench.encoder.in_background.get(), await bench.encoder.in_background.get()
    # 2,048 tokens, more than a second's at the 2,000 assumed
    assert [len(running.token_ids), len(ahead.token_ids)] == [204, 204]

    query = bench.submit([7])
    (await bench.batch()).release()
    np.testing.assert_array_equal((await query).embeddings, embeddings([7]))

    running.release()
    ahead.release()
    (await bench.encoder.in_background.get()).release()
    assert (await documents).embeddings.shape == (418, 8)


@bench_test(make=background_bench, max_batch_tokens=10)
async def test_batcher_each_lane_has_its_speed_and_its_load_where_documents_are_in_the_background(bench):
    bench.submit([1] * 10, [2] * 10, lane="document")
    running = await bench.encoder.in_background.get()
    query = bench.submit([3] * 10)
    batch = await bench.batch()
    bench.clock.now += 1.0
    batch.release()
    await query
    bench.clock.now += 1.0
    running.release()
    (await bench.encoder.in_background.get()).release()
    await bench.settle()
    assert bench.sample("eoseek_encoder_busy_seconds_total", lane="query") == 1.0
    assert bench.sample("eoseek_encoder_busy_seconds_total", lane="document") == 2.0


@bench_test(make=background_bench)
async def test_batcher_stop_ends_the_background_too(bench):
    task = bench.submit([1], lane="document")
    await bench.encoder.in_background.get()
    await bench.batcher.stop(0)
    with pytest.raises(NotReadyError):
        await task


@bench_test()
async def test_batcher_time_is_told_apart_into_queue_and_encode(bench):
    first = bench.submit([1])
    running = await bench.batch()
    second = bench.submit([2, 2])
    await bench.settle()

    bench.clock.now += 3.0
    assert bench.sample("eoseek_queue_age_seconds", lane="query") == 3.0
    running.release()
    batch = await bench.batch()
    assert bench.sample("eoseek_queue_age_seconds", lane="query") == 0.0
    bench.clock.now += 0.5
    batch.release()

    assert ((await first).queue_seconds, (await first).encode_seconds) == (0.0, 3.0)
    assert ((await second).queue_seconds, (await second).encode_seconds) == (3.0, 0.5)
    assert bench.sample("eoseek_stage_seconds_sum", stage="encode") == 3.5
    assert bench.sample("eoseek_encoder_busy_seconds_total", lane="query") == 3.5
    assert bench.sample("eoseek_tokens_total", kind="query") == 3


@bench_test(max_batch_tokens=4)
async def test_batcher_a_batch_sent_ahead_is_not_charged_for_the_one_before_it(bench):
    bench.submit([1] * 4, [2] * 4, [3])
    first, second = await bench.batch(), await bench.batch()

    bench.clock.now += 2.0
    first.release()
    await bench.settle()
    bench.clock.now += 1.0
    second.release()
    await bench.settle()

    assert bench.sample("eoseek_encoder_busy_seconds_total", lane="query") == 3.0


@bench_test()
async def test_batcher_encoder_raises_every_caller_gets_an_error_of_its_own(bench):
    tasks = [bench.submit([1]), bench.submit([2])]

    (await bench.batch()).fail(EncoderError("no memory"))

    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [(type(error), error.detail) for error in errors] == [(EncoderError, "no memory")] * 2
    assert errors[0] is not errors[1]
    assert bench.sample("eoseek_encode_failures_total", reason="error") == 1


@bench_test()
async def test_batcher_encoder_overloaded_tells_when_to_come_back(bench):
    task = bench.submit([1])

    (await bench.batch()).fail(OverloadedError("all busy", retry_after_seconds=7.0))

    with pytest.raises(OverloadedError) as refused:
        await task
    assert refused.value.retry_after_seconds == 7.0


@bench_test()
async def test_batcher_unexpected_exception_is_an_encoder_error_and_the_next_batch_runs(bench):
    task = bench.submit([1])
    (await bench.batch()).fail(ZeroDivisionError("secret"))
    with pytest.raises(EncoderError, match="ZeroDivisionError"):
        await task

    task = bench.submit([2])
    (await bench.batch()).release()
    assert (await task).embeddings.shape == (1, 8)


@bench_test(max_batch_tokens=4)
async def test_batcher_failed_request_takes_its_waiting_texts_along(bench):
    failing = bench.submit([1] * 4, [2] * 4, [3] * 4, [4] * 4)
    first, second = await bench.batch(), await bench.batch()
    later = bench.submit([5])

    first.fail(EncoderError("no memory"))
    with pytest.raises(EncoderError):
        await failing
    second.release()
    batch = await bench.batch()
    assert batch.token_ids == [[5]]
    batch.release()
    await later


@bench_test()
async def test_batcher_embedding_that_is_not_finite_fails_its_request_only(bench):
    good, bad = bench.submit([1]), bench.submit([2])

    batch = await bench.batch()
    rows = embeddings([1], [2])
    rows[1, 3] = np.nan
    batch.release(rows)

    np.testing.assert_array_equal((await good).embeddings, embeddings([1]))
    with pytest.raises(EncoderError, match="not finite"):
        await bad
    assert bench.sample("eoseek_encode_failures_total", reason="not_finite") == 1


@bench_test()
async def test_batcher_embeddings_of_another_shape_fail_the_batch(bench):
    task = bench.submit([1])

    (await bench.batch()).release(np.zeros((2, 8), np.float32))

    with pytest.raises(EncoderError, match=r"\(2, 8\) instead of \(1, 8\)"):
        await task


@bench_test(max_batch_tokens=4)
async def test_batcher_text_outside_the_budget_is_refused_at_the_door(bench):
    for text in ([], [1] * 5):
        with pytest.raises(InvalidInputError, match=rf"text 1 has {len(text)} tokens; a text has 1 to 4"):
            await bench.submit([1], text)
    assert bench.encoder.waiting.empty()


@bench_test(max_queue_tokens=1000)
async def test_batcher_full_lane_refuses_with_the_time_to_come_back(bench):
    bench.submit([1])
    await bench.batch()
    waiting = bench.submit([1] * 1000)
    await bench.settle()

    with pytest.raises(OverloadedError, match="1000 tokens wait in the query lane") as refused:
        await bench.submit([1])
    assert refused.value.retry_after_seconds == 1.0
    assert bench.sample("eoseek_rejections_total", reason="queue_full") == 1
    documents = bench.submit([1], lane="document")
    await bench.settle()
    assert not documents.done()  # the other lane has its own bound

    waiting.cancel()
    await bench.settle()
    again = bench.submit([1])
    await bench.settle()
    assert not again.done()


async def measured(bench, *, tokens_per_second, lane="query"):
    """Let batches tell how fast the encoder is; many, as far slower than expected is not believed at once."""
    for _ in range(20):
        bench.submit([1] * 100, lane=lane)
        batch = await bench.batch()
        bench.clock.now += 100 / tokens_per_second
        batch.release()
        await bench.settle()


@bench_test()
async def test_batcher_refuses_what_the_backlog_would_keep_beyond_its_deadline(bench):
    await measured(bench, tokens_per_second=10)
    bench.submit([1] * 10)
    running = await bench.batch()
    bench.submit([1] * 600)
    await bench.settle()

    with pytest.raises(OverloadedError, match=r"take about 6. s, which leaves too little of the 70 s") as refused:
        await bench.submit([1] * 10, deadline=bench.clock() + 70)
    assert refused.value.retry_after_seconds == pytest.approx(60, abs=2)
    in_time = bench.submit([1] * 10, deadline=bench.clock() + 100)
    await bench.settle()
    assert not in_time.done()
    running.release()
    (await bench.batch()).release()
    await in_time


@bench_test()
async def test_batcher_request_to_an_empty_lane_is_tried_whatever_the_estimate(bench):
    await measured(bench, tokens_per_second=10)

    task = bench.submit([1] * 1000, deadline=bench.clock() + 1)
    (await bench.batch()).release()

    await task


@bench_test()
async def test_batcher_request_that_cannot_be_done_in_time_makes_room_for_those_that_can(bench):
    await measured(bench, tokens_per_second=10)
    bench.submit([1])
    running = await bench.batch()
    late, kept = bench.submit([2] * 100, deadline=bench.clock() + 20), bench.submit([3], deadline=bench.clock() + 100)
    await bench.settle()

    bench.clock.now += 15
    running.release()
    batch = await bench.batch()
    assert batch.token_ids == [[3]]
    batch.release()
    await kept
    with pytest.raises(DeadlineExceededError):
        await late
    assert bench.sample("eoseek_rejections_total", reason="deadline") == 1


@bench_test(max_queue_tokens=10)
async def test_batcher_request_larger_than_the_queue_is_admitted_to_an_empty_lane(bench):
    task = bench.submit(*[[1] * 8] * 4)

    (await bench.batch()).release()

    assert (await task).embeddings.shape == (4, 8)


@bench_test()
async def test_batcher_cancelled_request_is_never_encoded(bench):
    bench.submit([1])
    running = await bench.batch()
    cancelled, kept = bench.submit([2]), bench.submit([3])
    await bench.settle()

    cancelled.cancel()
    running.release()
    batch = await bench.batch()
    assert batch.token_ids == [[3]]
    batch.release()
    await kept
    with pytest.raises(asyncio.CancelledError):
        await cancelled


@bench_test()
async def test_batcher_request_cancelled_while_encoded_leaves_its_batch_mates_alone(bench):
    cancelled, kept = bench.submit([1]), bench.submit([2])
    batch = await bench.batch()

    cancelled.cancel()
    await bench.settle()
    batch.release()

    np.testing.assert_array_equal((await kept).embeddings, embeddings([2]))


@bench_test()
async def test_batcher_request_past_its_deadline_is_never_encoded(bench):
    bench.submit([1])
    running = await bench.batch()

    with pytest.raises(DeadlineExceededError):
        await bench.submit([2], deadline=bench.clock() + 0.001)
    kept = bench.submit([3], deadline=bench.clock() + 1000)
    running.release()
    batch = await bench.batch()
    assert batch.token_ids == [[3]]
    batch.release()
    await kept
    assert bench.sample("eoseek_rejections_total", reason="deadline") == 1


@bench_test()
async def test_batcher_deadline_ends_a_request_whose_encoder_hangs(bench):
    with pytest.raises(DeadlineExceededError):
        await bench.submit([1], deadline=bench.clock() + 0.001)


@bench_test(max_batch_tokens=4)
async def test_batcher_stop_drains_what_was_admitted(bench):
    tasks = [bench.submit([index] * 3) for index in range(1, 6)]
    await bench.settle()
    serving = asyncio.create_task(bench.serve())

    await bench.batcher.stop(LIMIT_SECONDS)

    assert [(await task).embeddings.shape for task in tasks] == [(1, 8)] * 5
    with pytest.raises(NotReadyError, match="shutting down"):
        await bench.submit([1])
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


@bench_test(max_batch_tokens=4)
async def test_batcher_stop_fails_what_is_not_done_in_time(bench):
    tasks = [bench.submit([index] * 3) for index in range(1, 6)]
    await bench.batch()

    await bench.batcher.stop(0)

    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [NotReadyError] * 5
    assert bench.sample("eoseek_rejections_total", reason="stopping") == 5


@bench_test(max_batch_tokens=64, max_batch_texts=8)
async def test_batcher_many_clients_each_gets_its_own_answer(bench):
    serving = asyncio.create_task(bench.serve())
    requests = [[[client, text] * (1 + client % 7) for text in range(1 + client % 20)] for client in range(1, 201)]
    tasks = [bench.submit(*texts, lane=("query", "document")[index % 2]) for index, texts in enumerate(requests)]
    for task in tasks[::10]:
        task.cancel()

    answers = await asyncio.gather(*tasks, return_exceptions=True)

    for index, (texts, answer) in enumerate(zip(requests, answers, strict=True)):
        if index % 10:
            np.testing.assert_array_equal(answer.embeddings, embeddings(*texts))
        else:
            assert isinstance(answer, asyncio.CancelledError)
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def test_batcher_before_start_is_not_ready():
    async def test():
        with pytest.raises(NotReadyError):
            await Bench().batcher.submit([[1]], lane="query")

    asyncio.run(test())


class CompanyBench(Bench):
    """Its first batch answers two clients, took ten seconds, and left the number 3 waiting."""

    async def answer_two(self):
        first = [self.submit([each]) for each in (1, 2)]
        batch = await self.batch()
        waiting = self.submit([3])
        await self.settle()
        self.clock.now += 10
        batch.release()
        await asyncio.gather(*first)
        return waiting


@bench_test(make=CompanyBench)
async def test_batcher_waits_for_clients_that_come_again(bench):
    waiting = await bench.answer_two()
    again = [bench.submit([each]) for each in (1, 2)]
    batch = await bench.batch()
    assert batch.token_ids == [[3], [1], [2]]
    batch.release()
    await asyncio.gather(waiting, *again)


@bench_test(make=CompanyBench)
async def test_batcher_waits_a_moment_only_for_clients_that_do_not_come_again(bench):
    begin = asyncio.get_running_loop().time()
    waiting = await bench.answer_two()
    batch = await bench.batch()  # by the event loop's timer
    assert asyncio.get_running_loop().time() - begin >= 0.045
    assert batch.token_ids == [[3]]
    batch.release()
    await waiting


@bench_test(make=CompanyBench)
async def test_batcher_that_stops_waits_for_nobody(bench):
    waiting = await bench.answer_two()
    stopping = asyncio.create_task(bench.batcher.stop(LIMIT_SECONDS))
    await bench.settle()
    assert not bench.encoder.waiting.empty()
    (await bench.batch()).release()
    await asyncio.gather(stopping, waiting)


@bench_test(make=CompanyBench)
async def test_batcher_waits_for_nobody_while_documents_wait(bench):
    waiting = await bench.answer_two()
    document = bench.submit([9], lane="document")
    await bench.settle()
    assert not bench.encoder.waiting.empty()
    (await bench.batch()).release()
    (await bench.batch()).release()
    await asyncio.gather(waiting, document)


@bench_test(max_batch_tokens=4)
async def test_batcher_the_rest_of_a_request_waits_for_nobody(bench):
    large = bench.submit([4, 4], [5, 5, 5])
    batch = await bench.batch()
    bench.clock.now += 10
    batch.release()
    batch = await bench.batch()
    assert bench.batcher._tracks["query"].company is None
    batch.release()
    await large
