from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.policy import Limits, Situation, Speed, is_admitted, plan_batch, retry_after_seconds


@dataclass
class Waiting:
    lengths: list[int]
    arrived: float = 0.0
    num_taken: int = 0
    name: str = field(default="")


def limits(max_batch_tokens=100, max_batch_texts=10, max_queue_tokens=1000, target=1.0, max_wait=2.0, least=0):
    return Limits(
        max_batch_tokens=max_batch_tokens,
        max_batch_texts=max_batch_texts,
        max_queue_tokens=max_queue_tokens,
        batch_target_seconds=target,
        document_max_wait_seconds=max_wait,
        min_document_tokens=least,
    )


def plan(queries=(), documents=(), now=0.0, served=0.0, speed=1000.0, in_flight=0, running=None, parallel=1, **changes):
    situation = Situation(
        now=now,
        document_served=served,
        tokens_per_second=speed,
        in_flight_tokens=in_flight,
        num_in_flight=min(in_flight, 1) if running is None else running,
        num_parallel=parallel,
    )
    return plan_batch({"query": queries, "document": documents}, limits(**changes), situation)


def ranges(found):
    return [(each.start, each.stop) for each in found.slices]


def test_policy_nothing_waits_gives_no_plan():
    assert plan() is None


def test_policy_idle_encoder_takes_what_is_there():
    found = plan(queries=[Waiting([10]), Waiting([20, 30])])

    assert (found.lane, ranges(found), found.num_tokens, found.num_texts) == ("query", [(0, 1), (0, 2)], 60, 3)
    assert not found.is_full


def test_policy_tokens_over_the_budget_wait_in_order():
    found = plan(queries=[Waiting([40, 50, 20]), Waiting([5])])

    assert (ranges(found), found.is_full) == ([(0, 2)], True)  # 5 would fit, but does not overtake 20


def test_policy_budget_met_exactly_with_nothing_left_is_not_full():
    assert not plan(queries=[Waiting([100])]).is_full


def test_policy_texts_over_the_count_wait():
    found = plan(queries=[Waiting([1] * 7), Waiting([1] * 7)])

    assert (ranges(found), found.is_full) == ([(0, 7), (0, 3)], True)


def test_policy_large_request_goes_on_where_it_stopped_and_shares_its_batch():
    found = plan(queries=[Waiting([50] * 5, num_taken=4), Waiting([30])])

    assert ranges(found) == [(4, 5), (0, 1)]


def test_policy_queries_go_before_older_documents():
    found = plan(queries=[Waiting([10], arrived=1.0)], documents=[Waiting([10], arrived=0.0)], now=1.5)

    assert (found.lane, found.num_texts) == ("query", 1)


def test_policy_documents_that_waited_too_long_go_first():
    assert plan(queries=[Waiting([10])], documents=[Waiting([10])], now=2.0).lane == "document"


def test_policy_old_documents_wait_again_after_their_lane_was_served():
    waiting = {"queries": [Waiting([10])], "documents": [Waiting([10], arrived=0.0)]}

    assert plan(**waiting, now=11.9, served=10.0).lane == "query"
    assert plan(**waiting, now=12.0, served=10.0).lane == "document"


def test_policy_document_batch_takes_half_of_the_target():
    found = plan(documents=[Waiting([10] * 10)], speed=100.0, target=1.0)

    assert found.num_tokens == 50  # 100 tokens/s * 1 s / 2


def test_policy_query_batch_is_not_cut_to_the_target():
    assert plan(queries=[Waiting([10] * 10)], speed=100.0, target=0.1).num_tokens == 100


def test_policy_long_text_goes_alone_whatever_it_takes():
    assert ranges(plan(documents=[Waiting([90, 1])], speed=1.0)) == [(0, 1)]


def test_policy_busy_encoder_gets_a_full_batch_ahead():
    assert plan(queries=[Waiting([60, 60])], in_flight=100).num_tokens == 60


def test_policy_busy_encoder_gets_no_batch_that_could_still_grow():
    assert plan(queries=[Waiting([60])], in_flight=100) is None


def test_policy_documents_ahead_of_queries_stay_within_the_target():
    documents = [Waiting([50, 50, 50])]

    assert plan(documents=documents, in_flight=50, speed=100.0).num_tokens == 50
    assert plan(documents=documents, in_flight=51, speed=100.0) is None


def test_policy_waiting_queries_keep_documents_from_being_sent_ahead():
    assert plan(queries=[Waiting([10])], documents=[Waiting([50, 50, 50])], in_flight=10, speed=1000.0) is None


def test_policy_encoder_that_runs_several_batches_is_idle_until_it_has_them():
    assert plan(queries=[Waiting([60])], in_flight=100, running=1, parallel=2).num_tokens == 60
    assert plan(queries=[Waiting([60])], in_flight=200, running=2, parallel=2) is None


def test_policy_document_batches_side_by_side_share_the_target():
    found = plan(documents=[Waiting([5] * 20)], speed=100.0, target=1.0, parallel=2)

    assert found.num_tokens == 25  # 100 tokens/s * 1 s / 2, on two


REQUESTS = st.lists(st.lists(st.integers(1, 120), min_size=1, max_size=12), max_size=8)


@given(
    queries=REQUESTS,
    documents=REQUESTS,
    max_batch_tokens=st.integers(120, 300),
    max_batch_texts=st.integers(1, 6),
    speed=st.floats(1.0, 10_000.0),
    seconds_per_batch=st.floats(0.0, 3.0),
)
def test_policy_drained_lanes_every_text_once_in_order_within_budget(
    queries, documents, max_batch_tokens, max_batch_texts, speed, seconds_per_batch
):
    lanes = {
        "query": [Waiting(lengths, name=f"query {index}") for index, lengths in enumerate(queries)],
        "document": [Waiting(lengths, name=f"document {index}") for index, lengths in enumerate(documents)],
    }
    expected = {lane: [(each.name, i) for each in lanes[lane] for i in range(len(each.lengths))] for lane in lanes}
    planned = {"query": [], "document": []}
    now = served = 0.0
    while found := plan(
        lanes["query"],
        lanes["document"],
        now=now,
        served=served,
        speed=speed,
        max_batch_tokens=max_batch_tokens,
        max_batch_texts=max_batch_texts,
    ):
        assert 1 <= found.num_texts <= max_batch_texts
        assert found.num_tokens <= max_batch_tokens
        assert found.lane == "query" or found.num_texts == 1 or found.num_tokens <= speed / 2
        assert found.num_tokens == sum(sum(each.request.lengths[each.start : each.stop]) for each in found.slices)
        for each in found.slices:
            planned[found.lane] += [(each.request.name, i) for i in range(each.start, each.stop)]
            each.request.num_taken = each.stop
        lanes[found.lane] = [each for each in lanes[found.lane] if each.num_taken < len(each.lengths)]
        now += seconds_per_batch
        served = now if found.lane == "document" else served
    assert planned == expected


@pytest.mark.parametrize(
    ("num_tokens", "queued_tokens", "admitted"),
    [(10, 90, True), (11, 90, False), (500, 0, True), (500, 1, False), (1, 500, False), (100, 0, True)],
)
def test_policy_admission_is_bounded_in_tokens_but_an_empty_lane_takes_any_request(num_tokens, queued_tokens, admitted):
    assert is_admitted(num_tokens, queued_tokens, 100) is admitted


@pytest.mark.parametrize(("queued_tokens", "seconds"), [(0, 1), (500, 1), (2001, 3), (10**6, 60)])
def test_policy_retry_after_is_the_time_to_drain_within_bounds(queued_tokens, seconds):
    assert retry_after_seconds(queued_tokens, 1000.0) == seconds


def test_policy_speed_follows_what_is_measured():
    speed = Speed(100.0)

    speed.observe(1000, 1.0)
    assert speed.tokens_per_second == 1000.0
    speed.observe(500, 1.0)
    assert speed.tokens_per_second == pytest.approx((800 + 500) / 1.8)


def test_policy_speed_small_batches_weigh_little():
    speed = Speed()
    speed.observe(10_000, 1.0)

    speed.observe(10, 0.01)  # 1,000 tokens/s, in no time

    assert speed.tokens_per_second == pytest.approx(10_000, rel=0.02)


def test_policy_speed_an_interruption_is_cut_but_a_slower_encoder_is_learned():
    speed = Speed()
    speed.observe(1000, 1.0)

    speed.observe(1000, 600.0)
    assert speed.tokens_per_second > 300
    for _ in range(20):
        speed.observe(100, 1.0)
    assert speed.tokens_per_second == pytest.approx(100, rel=0.05)


def test_policy_speed_instant_batches_leave_the_estimate():
    speed = Speed(100.0)

    speed.observe(10, 0.0)

    assert speed.tokens_per_second == 100.0


def test_policy_slow_encoder_still_gets_documents_for_all_its_rows_and_a_batch_ahead():
    documents = [Waiting([20] * 10)]
    assert plan(documents=documents, speed=10.0).num_tokens == 20  # one text, as the target has room for none
    assert plan(documents=documents, speed=10.0, least=60).num_tokens == 60
    assert plan(documents=documents, speed=10.0, least=60, in_flight=60).num_tokens == 60
    assert plan(documents=documents, speed=10.0, least=60, in_flight=61) is None
    assert plan(documents=documents, speed=180.0, least=60).num_tokens == 80  # a fast one as before
    assert plan(documents=documents, speed=10.0, least=200).num_tokens == 100  # never over `max_batch_tokens`
