"""What goes into the next batch, and who may wait: pure functions over the two lanes.

Budgets count tokens, because nothing is padded. A lane is served in order of arrival, text by text: a large request is
spread over batches and shares them with its neighbours. Order within a batch is the encoder's affair.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Literal, Protocol, TypeVar

Lane = Literal["query", "document"]

_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 1.0, 60.0
_DECAY = 0.8  # weight of the past at each batch; ten batches forget nine tenths
_MAX_SLOWDOWN = 4.0
# before anything was measured: a small model on two cores; the first batches correct it
_INITIAL_TOKENS_PER_SECOND = 2000.0


class Waiting(Protocol):
    """A request as the planner sees it; its first `num_taken` texts are in earlier batches."""

    @property
    def arrived(self) -> float:
        """When it came, on the batcher's clock, seconds."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each text."""
        ...

    @property
    def num_taken(self) -> int:
        """How many texts are no longer waiting."""
        ...


Request = TypeVar("Request", bound=Waiting)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The settings that planning depends on."""

    max_batch_tokens: int
    max_batch_texts: int
    max_queue_tokens: int
    batch_target_seconds: float
    document_max_wait_seconds: float
    min_document_tokens: int = 0
    """What a document batch may have however slow the encoder is."""


@dataclass(frozen=True, kw_only=True)
class Slice(Generic[Request]):
    """Texts `start` to `stop` of one request."""

    request: Request
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Plan(Generic[Request]):
    """The next batch. `is_full`: a waiting text was left out, so that waiting longer would not make it larger."""

    lane: Lane
    slices: list[Slice[Request]]
    num_tokens: int
    num_texts: int
    is_full: bool


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What planning depends on besides the lanes: the time, the encoder's speed on documents, and its load."""

    now: float
    document_served: float  # when the last document batch ended, on the same clock; `now` while one runs
    tokens_per_second: float
    in_flight_tokens: int
    num_in_flight: int  # batches
    num_parallel: int  # batches that the encoder executes at once

    @property
    def is_busy(self) -> bool:
        """Whether a batch sent now would wait behind another."""
        return self.num_in_flight >= self.num_parallel


def plan_batch(lanes: Mapping[Lane, Iterable[Request]], limits: Limits, situation: Situation) -> Plan[Request] | None:
    """The batch to send now; None when there is nothing, or when sending it now would hurt.

    An idle encoder takes what is there. A busy one is given a batch ahead only if that batch is full (others gain by
    waiting for company) and, for documents, only if all that is then ahead of a query still takes no longer than
    `batch_target_seconds`. So a document batch is half of that, except that it has at least one text and may have
    `min_document_tokens`. The speed is that of all batches side by side, so each of them gets its part of it.

    Args:
        lanes: requests in order of arrival; only those with waiting texts.
        limits: the settings.
        situation: time, speed and load.
    """
    lane = _choose_lane(lanes, limits, situation)
    if lane is None:
        return None
    target_tokens = int(situation.tokens_per_second * limits.batch_target_seconds)
    target_tokens = max(target_tokens, 2 * situation.num_parallel * limits.min_document_tokens)
    max_tokens = limits.max_batch_tokens
    if lane == "document":
        max_tokens = min(max_tokens, target_tokens // (2 * situation.num_parallel))
    plan = _fill(lane, lanes[lane], max_tokens, limits.max_batch_texts)
    if situation.is_busy:
        is_ahead_of_queries = lane == "document" and situation.in_flight_tokens + plan.num_tokens > target_tokens
        return None if is_ahead_of_queries or not plan.is_full else plan
    return plan


def _choose_lane(lanes: Mapping[Lane, Iterable[Waiting]], limits: Limits, situation: Situation) -> Lane | None:
    """Queries first, but documents when they have waited too long.

    Their wait counts from the end of the last document batch on, not from their arrival or from its beginning: behind a
    long backlog, or after one slow batch, every document is old, and queries would come second for as long as it lasts.
    """
    oldest_query = next(iter(lanes.get("query", ())), None)
    oldest_document = next(iter(lanes.get("document", ())), None)
    if oldest_document is None:
        return "query" if oldest_query is not None else None
    waited_seconds = situation.now - max(oldest_document.arrived, situation.document_served)
    return "document" if oldest_query is None or waited_seconds >= limits.document_max_wait_seconds else "query"


def _fill(lane: Lane, requests: Iterable[Request], max_tokens: int, max_texts: int) -> Plan[Request]:
    """Texts in order of arrival up to the first that does not fit; at least one."""
    slices: list[Slice[Request]] = []
    num_tokens = num_texts = 0
    is_full = False
    for request in requests:
        stop = request.num_taken
        for length in islice(request.lengths, stop, None):
            is_full = num_texts > 0 and (num_texts == max_texts or num_tokens + length > max_tokens)
            if is_full:
                break
            stop, num_tokens, num_texts = stop + 1, num_tokens + length, num_texts + 1
        if stop > request.num_taken:
            slices.append(Slice(request=request, start=request.num_taken, stop=stop))
        if is_full:
            break
    return Plan(lane=lane, slices=slices, num_tokens=num_tokens, num_texts=num_texts, is_full=is_full)


def is_admitted(num_tokens: int, queued_tokens: int, max_queue_tokens: int) -> bool:
    """Whether a request may wait in a lane where `queued_tokens` wait already.

    A request larger than the whole queue is admitted to an empty lane; else it could never pass. Under steady load it
    may not find one: its client had better send it in parts.
    """
    return queued_tokens + min(num_tokens, max_queue_tokens) <= max_queue_tokens


def is_in_time(num_tokens: int, tokens_per_second: float, seconds_left: float) -> bool:
    """Whether so many tokens are encoded within the time left, by a running estimate of the speed."""
    return num_tokens <= tokens_per_second * seconds_left


def retry_after_seconds(queued_tokens: int, tokens_per_second: float) -> float:
    """When what waits will have been encoded: whole seconds from 1 to 60."""
    return min(max(float(math.ceil(queued_tokens / tokens_per_second)), _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)


class Speed:
    """Running estimate of tokens per second: recent tokens over recent seconds, so that tiny batches weigh little."""

    def __init__(self, tokens_per_second: float = _INITIAL_TOKENS_PER_SECOND) -> None:
        self.tokens_per_second = tokens_per_second
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def is_measured(self) -> bool:
        """Whether a batch was observed; until then the speed is a guess."""
        return self._seconds > 0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A batch took that long. Far longer than expected is cut: an interruption, or the next ones agree."""
        seconds = min(seconds, _MAX_SLOWDOWN * num_tokens / self.tokens_per_second)
        self._tokens = _DECAY * self._tokens + num_tokens
        self._seconds = _DECAY * self._seconds + seconds
        if self._seconds > 0:
            self.tokens_per_second = self._tokens / self._seconds
