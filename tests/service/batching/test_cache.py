import asyncio
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.batching.cache import _ENTRY_BYTES, EmbeddingCache, SharedQueries
from service.errors import DeadlineExceededError, EncoderError, InvalidInputError, NotReadyError, OverloadedError
from service.metrics import Metrics
from tests.fakes import fake_embedding
from tests.service.batching.test_batcher import Bench, bench_test, embeddings, measured

ROW_BYTES = 8 * 4 + _ENTRY_BYTES  # of the fake encoder's eight numbers


class QueryBench(Bench):
    """A bench with a cache before its batcher."""

    def __init__(self, *, cache_bytes=100 * ROW_BYTES, **settings):
        super().__init__(**settings)
        self.cache = EmbeddingCache(cache_bytes, metrics=self.metrics) if cache_bytes else None
        self.queries = self.queries_of("one")

    def queries_of(self, fingerprint):
        return SharedQueries(self.batcher, self.cache, fingerprint=fingerprint, metrics=self.metrics, clock=self.clock)

    def ask(self, *token_ids, deadline=None, of=None):
        task = asyncio.create_task((of or self.queries).submit(token_ids, deadline=deadline))
        self.tasks.append(task)
        return task

    async def ask_and_serve(self, *token_ids, of=None):
        """Ask, answer every batch that it takes; returns the embeddings and what was encoded for them."""
        encoded, task = [], self.ask(*token_ids, of=of)
        while True:
            await self.settle()
            if self.encoder.waiting.empty():
                return (await task).embeddings, encoded
            batch = await self.batch()
            encoded += batch.token_ids
            batch.release()

    def counts(self):
        return tuple(
            self.sample("eoseek_cached_queries_total", outcome=outcome) for outcome in ("hit", "miss", "shared")
        )


def query_test(**settings):
    """As `bench_test`; at the end nothing is left under way in the cache either."""

    def decorate(test):
        @bench_test(make=QueryBench, **settings)
        async def checked(bench):
            await test(bench)
            await bench.batcher.stop(0)
            await asyncio.gather(*bench.tasks, return_exceptions=True)
            await bench.settle()
            assert bench.queries._under_way == {}
            assert not bench.batcher._requests

        checked.__name__ = test.__name__
        return checked

    return decorate


@query_test()
async def test_queries_one_that_comes_again_is_exact_and_costs_no_batch_and_no_time(bench):
    first, encoded = await bench.ask_and_serve([1, 2])
    again = await bench.ask([1, 2])

    assert encoded == [[1, 2]]
    np.testing.assert_array_equal(first, embeddings([1, 2]))
    np.testing.assert_array_equal(again.embeddings, first)
    assert (again.queue_seconds, again.encode_seconds) == (0.0, 0.0)
    assert bench.encoder.waiting.empty()
    assert bench.counts() == (1, 1, 0)
    assert bench.sample("eoseek_stage_seconds_count", stage="encode") == 1


@query_test()
async def test_queries_an_answer_is_the_caller_s_own_to_change(bench):
    first, _ = await bench.ask_and_serve([1, 2])
    first[:] = 0
    (await bench.ask([1, 2])).embeddings[:] = 0

    np.testing.assert_array_equal((await bench.ask([1, 2])).embeddings, embeddings([1, 2]))


@query_test()
async def test_queries_of_a_request_only_what_is_missing_is_encoded_and_twins_once(bench):
    await bench.ask_and_serve([1])
    found, encoded = await bench.ask_and_serve([2], [1], [3], [2], [1])

    assert encoded == [[2], [3]]
    np.testing.assert_array_equal(found, embeddings([2], [1], [3], [2], [1]))
    assert bench.counts() == (2, 3, 1)


@query_test()
async def test_queries_that_are_under_way_are_waited_for_not_begun_again(bench):
    first = bench.ask([1], [2])
    running = await bench.batch()
    bench.clock.now += 1.0
    second = bench.ask([2], [3])
    third = bench.ask([1])
    await bench.settle()
    bench.clock.now += 2.0
    running.release()
    batch = await bench.batch()

    assert batch.token_ids == [[3]]
    assert (await third).embeddings.tolist() == embeddings([1]).tolist()  # though another request's rest still runs
    batch.release()
    np.testing.assert_array_equal((await first).embeddings, embeddings([1], [2]))
    np.testing.assert_array_equal((await second).embeddings, embeddings([2], [3]))
    assert ((await first).queue_seconds, (await first).encode_seconds) == (0.0, 3.0)
    assert ((await third).queue_seconds, (await third).encode_seconds) == (0.0, 2.0)  # what it waited itself
    assert bench.counts() == (0, 3, 2)


@query_test(max_batch_tokens=4)
async def test_queries_a_shared_text_is_there_as_soon_as_its_own_batch_is(bench):
    long = bench.ask([1] * 4, [2] * 4, [3] * 4)
    first = await bench.batch()
    short = bench.ask([1] * 4)
    await bench.settle()
    first.release()

    np.testing.assert_array_equal((await short).embeddings, embeddings([1] * 4))
    assert not long.done()


@query_test()
async def test_queries_first_caller_gone_the_others_get_their_result(bench):
    gone, kept = bench.ask([1]), bench.ask([1])
    batch = await bench.batch()
    gone.cancel()
    await bench.settle()
    batch.release()

    np.testing.assert_array_equal((await kept).embeddings, embeddings([1]))
    assert gone.cancelled()
    assert bench.encoder.waiting.empty()


@query_test()
async def test_queries_first_caller_gone_before_its_text_is_sent_the_others_get_their_result(bench):
    bench.submit([9])
    running = await bench.batch()
    gone, kept = bench.ask([1], [2]), bench.ask([2])
    await bench.settle()
    gone.cancel()
    await bench.settle()
    running.release()
    (await bench.batch()).release()

    np.testing.assert_array_equal((await kept).embeddings, embeddings([2]))


@query_test()
async def test_queries_that_all_callers_gave_up_leave_the_queue_and_are_begun_anew_by_the_next(bench):
    bench.submit([9])
    running = await bench.batch()
    both = [bench.ask([1]), bench.ask([1])]
    await bench.settle()
    for each in both:
        each.cancel()
    await bench.settle()
    assert bench.sample("eoseek_queue_tokens", lane="query") == 0
    running.release()
    await bench.settle()
    assert bench.encoder.waiting.empty()

    _, encoded = await bench.ask_and_serve([1])
    assert encoded == [[1]]


@query_test()
async def test_queries_given_up_while_they_are_encoded_are_kept_for_the_next(bench):
    gone = bench.ask([1])
    batch = await bench.batch()
    gone.cancel()
    await bench.settle()
    batch.release()
    await bench.settle()

    assert (await bench.ask_and_serve([1]))[1] == []


@query_test()
async def test_queries_each_caller_has_its_own_deadline(bench):
    hasty = bench.ask([1], deadline=bench.clock() + 0.001)
    patient = bench.ask([1], deadline=bench.clock() + 1000)
    batch = await bench.batch()
    with pytest.raises(DeadlineExceededError):
        await hasty
    batch.release()

    np.testing.assert_array_equal((await patient).embeddings, embeddings([1]))
    assert bench.sample("eoseek_rejections_total", reason="deadline") == 1


@query_test()
async def test_queries_a_waiting_one_s_deadline_does_not_end_the_first(bench):
    patient = bench.ask([1])
    batch = await bench.batch()
    with pytest.raises(DeadlineExceededError):
        await bench.ask([1], deadline=bench.clock() + 0.001)
    batch.release()

    assert (await patient).embeddings.shape == (1, 8)


@query_test()
async def test_queries_an_error_reaches_all_who_wait_and_is_not_kept(bench):
    both = [bench.ask([1]), bench.ask([1])]
    (await bench.batch()).fail(EncoderError("the worker died"))
    for each in both:
        with pytest.raises(EncoderError, match="the worker died"):
            await each
    assert both[0].exception() is not both[1].exception()

    found, encoded = await bench.ask_and_serve([1])
    assert encoded == [[1]]
    np.testing.assert_array_equal(found, embeddings([1]))


@query_test()
async def test_queries_what_is_no_number_is_not_kept_and_fails_only_who_asked_for_it(bench):
    bad = bench.ask([1], [2])
    batch = await bench.batch()
    good = bench.ask([2])
    await bench.settle()
    batch.release(np.stack([np.full(8, np.nan, dtype=np.float32), fake_embedding([2])]))

    with pytest.raises(EncoderError, match="not finite"):
        await bad
    second = await bench.batch()
    assert second.token_ids == [[2]]
    second.release()
    np.testing.assert_array_equal((await good).embeddings, embeddings([2]))
    assert (await bench.ask_and_serve([1]))[1] == [[1]]


@query_test(max_queue_tokens=100)
async def test_queries_of_a_full_queue_only_what_is_encoded_counts_and_429_is_not_kept(bench):
    await bench.ask_and_serve([1] * 90)
    bench.submit([9])
    running = await bench.batch()
    waiting = bench.ask([2] * 90)
    await bench.settle()
    with pytest.raises(OverloadedError) as caught:
        await bench.ask([3] * 90)
    assert caught.value.retry_after_seconds is not None
    assert (await bench.ask([1] * 90)).embeddings.shape == (1, 8)  # kept, so it needs no place
    shared = bench.ask([2] * 90)
    await bench.settle()

    running.release()
    (await bench.batch()).release()
    await asyncio.gather(waiting, shared)
    assert (await bench.ask_and_serve([3] * 90))[1] == [[3] * 90]
    assert bench.counts() == (1, 3, 1)


@query_test(max_batch_tokens=4)
async def test_queries_a_bad_text_is_named_by_its_place_in_the_request(bench):
    await bench.ask_and_serve([1])
    with pytest.raises(InvalidInputError, match="text 1 has 5 tokens"):
        await bench.ask([1], [2] * 5)


@query_test()
async def test_queries_shutdown_ends_all_who_wait(bench):
    both = [bench.ask([1]), bench.ask([1])]
    await bench.batch()
    await bench.batcher.stop(0)
    for each in both:
        with pytest.raises(NotReadyError):
            await each


@query_test()
async def test_queries_of_two_checkpoints_do_not_mix(bench):
    other = bench.queries_of("two")
    await bench.ask_and_serve([1])
    _, encoded = await bench.ask_and_serve([1], of=other)
    assert encoded == [[1]]

    both = [bench.ask([2]), bench.ask([2], of=other)]
    batch = await bench.batch()
    assert batch.token_ids == [[2], [2]]
    batch.release()
    await asyncio.gather(*both)


@query_test(cache_bytes=0)
async def test_queries_without_a_cache_are_all_encoded(bench):
    await bench.ask_and_serve([1])
    both = [bench.ask([1]), bench.ask([1])]
    batch = await bench.batch()
    assert batch.token_ids == [[1], [1]]
    batch.release()
    await asyncio.gather(*both)
    assert bench.counts() == (0, 0, 0)


@query_test(cache_bytes=1)
async def test_queries_larger_than_the_cache_are_answered_and_not_kept(bench):
    found, _ = await bench.ask_and_serve([1])
    np.testing.assert_array_equal(found, embeddings([1]))
    assert (await bench.ask_and_serve([1]))[1] == [[1]]
    assert bench.sample("eoseek_query_cache_bytes") == 0


@query_test(cache_bytes=2 * ROW_BYTES)
async def test_queries_the_one_not_asked_for_longest_makes_room(bench):
    for ids in ([1], [2], [1], [3]):
        await bench.ask_and_serve(ids)

    assert (await bench.ask_and_serve([1]))[1] == []
    assert (await bench.ask_and_serve([2]))[1] == [[2]]
    assert bench.sample("eoseek_query_cache_evictions_total") == 2
    assert bench.sample("eoseek_query_cache_bytes") == 2 * ROW_BYTES


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "cancel", "serve", "serve", "fail"]),
        st.lists(st.integers(1, 6), min_size=1, max_size=4),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_queries_whatever_happens_each_request_ends_once_with_its_own_embeddings(steps):
    @query_test(max_batch_tokens=3, cache_bytes=3 * ROW_BYTES)
    async def check(bench):
        asked = []
        for step, texts in steps:
            if step == "ask":
                asked.append((bench.ask(*([text] for text in texts)), texts))
            elif step == "cancel" and asked:
                asked[texts[0] % len(asked)][0].cancel()
            elif not bench.encoder.waiting.empty():
                batch = await bench.batch()
                batch.release() if step == "serve" else batch.fail(EncoderError("asked to fail"))
            await bench.settle()
        serving = asyncio.create_task(bench.serve())
        if asked:
            await asyncio.wait([task for task, _ in asked])
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        for task, texts in asked:
            assert task.done()
            if task.cancelled() or isinstance(task.exception(), EncoderError):
                continue
            np.testing.assert_array_equal(task.result().embeddings, embeddings(*([text] for text in texts)))
        assert bench.cache.num_bytes <= 3 * ROW_BYTES

    check()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 40)), min_size=100, max_size=100))
def test_cache_ten_thousand_random_operations_agree_with_a_list_of_what_was_used_last(operations):
    limit = 4 * (_ENTRY_BYTES + 20)
    cache = EmbeddingCache(limit, metrics=Metrics(CollectorRegistry()))
    model = OrderedDict()
    for is_put, number, size in operations:
        key = bytes([number])
        if is_put:
            model.pop(key, None)
            model[key] = bytes([number]) * size
            cache.put(key, model[key])
            while sum(_ENTRY_BYTES + len(row) for row in model.values()) > limit:
                del model[next(iter(model))]
        else:
            assert cache.get(key) == model.get(key)
            if key in model:
                model[key] = model.pop(key)
        assert cache.num_bytes == sum(_ENTRY_BYTES + len(row) for row in model.values())


def test_cache_holds_no_more_memory_than_it_says():
    cache = EmbeddingCache(2**20, metrics=Metrics(CollectorRegistry()))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(10_000):
        cache.put(number.to_bytes(32, "big"), bytes(576 * 4))
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert 0.8 * cache.num_bytes < held < cache.num_bytes <= 2**20


@query_test()
async def test_queries_shared_computation_is_late_once_it_is_late_for_the_last_who_waits(bench):
    await measured(bench, tokens_per_second=10)
    bench.submit([1])
    running = await bench.batch()
    first = bench.ask([2] * 100, deadline=bench.clock() + 20)
    await bench.settle()
    patient = bench.ask([2] * 100, deadline=bench.clock() + 100)
    behind = bench.ask([3], deadline=bench.clock() + 100)
    await bench.settle()

    bench.clock.now += 15
    running.release()
    while not behind.done() or not patient.done():
        (await bench.batch()).release()
        await bench.settle()
    np.testing.assert_array_equal((await patient).embeddings, embeddings([2] * 100))
    await behind
    first.cancel()
