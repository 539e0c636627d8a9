"""What waits and what runs: requests in their lanes, and the tracks on which lanes take turns at the encoder.

All of it belongs to one event loop and changes at once; the batcher decides when.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from service.batching.policy import Lane, Limits, Plan, Situation, Speed, plan_batch
from service.encoders.base import Embeddings, TokenIds

# told of each batch: the first text's index, rows of shape (num_texts, dimension), when the encoder took it up
OnRows = Callable[[int, Embeddings, float], None]
_NUM_AHEAD = 1  # a batch beside those that run, so that the encoder never waits for us
# of a query batch's time, that the next one waits for those who were just answered to ask again: clients that ask one
# query after the other would else form two groups that take turns, each of which waits for the other's batch
_COMPANY_SHARE, _MAX_COMPANY_SECONDS = 0.1, 0.05


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A request's embeddings, shape (num_texts, dimension), float32, in input order, and where its time went."""

    embeddings: Embeddings
    queue_seconds: float  # until the encoder took up its first text
    encode_seconds: float  # from there to its last


@dataclass(eq=False, kw_only=True)
class BatcherRequest:
    """An admitted request; hashed by identity. Its future is the result, and is cancelled by `Batcher.withdraw`."""

    token_ids: Sequence[TokenIds]
    lengths: list[int]
    lane: Lane
    arrived: float
    deadline: float | None  # of the last who waits for it; None waits for ever
    embeddings: Embeddings
    future: asyncio.Future[Encoded]
    on_rows: OnRows | None = None
    num_taken: int = 0
    num_done: int = 0
    started: float | None = None

    @property
    def waiting_tokens(self) -> int:
        """Of the texts that are in no batch yet."""
        return sum(self.lengths[self.num_taken :])


@dataclass(kw_only=True)
class LaneQueue:
    """Requests with waiting texts, in order of arrival, and the speed at which the lane is encoded."""

    requests: dict[BatcherRequest, None] = field(default_factory=dict)
    num_tokens: int = 0
    speed: Speed = field(default_factory=Speed)

    def add(self, request: BatcherRequest) -> None:
        """At the end."""
        self.requests[request] = None
        self.num_tokens += request.waiting_tokens

    def take(self, plan: Plan[BatcherRequest]) -> None:
        """What the plan sends no longer waits."""
        for each in plan.slices:
            each.request.num_taken = each.stop
            if each.stop == len(each.request.lengths):
                del self.requests[each.request]
        self.num_tokens -= plan.num_tokens

    def discard(self, request: BatcherRequest) -> None:
        """What still waits of it; one that is not here is left as it is."""
        if request in self.requests:
            del self.requests[request]
            self.num_tokens -= request.waiting_tokens


@dataclass(frozen=True)
class _Company:
    """How many requests the next batch of queries has, if those just answered come again, and who ends the wait."""

    num_requests: int
    timer: asyncio.TimerHandle


@dataclass(eq=False, kw_only=True)
class Track:
    """Lanes that take turns at the encoder."""

    lanes: dict[Lane, LaneQueue]
    limits: Limits
    encode: Callable[[Sequence[TokenIds]], Awaitable[Embeddings]]
    num_parallel: Callable[[], int]
    in_flight: dict[asyncio.Task[None], Plan[BatcherRequest]] = field(default_factory=dict)
    document_served: float = float("-inf")
    last_finished: float = float("-inf")
    company: _Company | None = None

    def in_flight_tokens(self) -> int:
        """Of all batches that run or are ahead."""
        return sum(plan.num_tokens for plan in self.in_flight.values())

    def plan(self, now: float) -> Plan[BatcherRequest] | None:
        """What to send now."""
        if len(self.in_flight) >= self.num_parallel() + _NUM_AHEAD:
            return None
        # counted from the end of a batch: one that takes long would leave the next already old, and queries no turn
        is_served_now = any(plan.lane == "document" for plan in self.in_flight.values())
        situation = Situation(
            now=now,
            document_served=now if is_served_now else self.document_served,
            tokens_per_second=(self.lanes.get("document") or self.lanes["query"]).speed.tokens_per_second,
            in_flight_tokens=self.in_flight_tokens(),
            num_parallel=self.num_parallel(),
            num_in_flight=len(self.in_flight),
        )
        plan = plan_batch({name: lane.requests for name, lane in self.lanes.items()}, self.limits, situation)
        if plan is None or plan.lane == "document" or plan.is_full or self.company is None:
            return plan
        is_alone = all(not lane.requests for name, lane in self.lanes.items() if name != "query")
        is_waiting = is_alone and not self.in_flight and len(self.lanes["query"].requests) < self.company.num_requests
        return None if is_waiting else plan

    def expect_company(self, plan: Plan[BatcherRequest], seconds: float, stop: Callable[[], None]) -> None:
        """Those whom a batch of queries answers may come again; `stop` ends the wait for them."""
        self.forget_company()
        num_answered = sum(each.stop == len(each.request.lengths) for each in plan.slices)
        if num_answered and self.num_parallel() == 1:
            seconds = min(_COMPANY_SHARE * seconds, _MAX_COMPANY_SECONDS)
            timer = asyncio.get_running_loop().call_later(seconds, stop)
            self.company = _Company(num_answered + len(self.lanes["query"].requests), timer)

    def forget_company(self) -> None:
        """Wait no longer."""
        if self.company is not None:
            self.company.timer.cancel()
            self.company = None
