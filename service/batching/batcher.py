"""The loop around the policy: puts the texts of many requests into few batches and each result where it belongs.

The two lanes take turns at the encoder, on one track; where it encodes documents in the background, each has a track.

Every request ends exactly once: with its embeddings, a named error, or its caller's cancellation. Whatever ends it also
takes what still waits of it out of its lane, so that nothing is encoded that nobody waits for.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from service.batching.policy import Lane, Limits, Plan, Slice, is_admitted, is_in_time, retry_after_seconds
from service.batching.tracks import BatcherRequest, Encoded, LaneQueue, OnRows, Track
from service.encoders.base import AsyncBackgroundEncoder, AsyncEncoder, Embeddings, TokenIds
from service.errors import (
    DeadlineExceededError,
    EncoderError,
    EoseekError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
)
from service.metrics import Metrics
from service.settings import BatchingSettings

log = logging.getLogger(__name__)

_LATE = "the deadline passes before the texts are encoded; allow more time or send fewer"
# of the time that a request has, it and all before it may take so much: a backlog that reached to the deadlines would
# have the encoder work on texts that time out under its hands, and next to nothing would be answered
_MAX_WAIT_SHARE = 0.8
# of a document batch and the one ahead of it, where no query waits for them: longer ones are hardly faster, but have
# the encoder full rows for each of its threads, or abstracts are encoded one by one, an eighth slower
_BACKGROUND_TARGET_SECONDS = 2.0
_BACKGROUND_MIN_TOKENS = 2048


class Batcher:
    """Encodes requests of two lanes through one encoder. All methods belong to one event loop."""

    def __init__(
        self,
        encoder: AsyncEncoder,
        settings: BatchingSettings,
        *,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is accepted before `start`.

        Args:
            encoder: started and stopped by the caller.
            settings: `max_batch_tokens` at least the model's length, or texts of that length are refused.
            metrics: told of queues, batches, stages and rejections.
            clock: seconds; deadlines are on it.
        """
        self._encoder = encoder
        self._limits = Limits(
            max_batch_tokens=settings.max_batch_tokens,
            max_batch_texts=settings.max_batch_texts,
            max_queue_tokens=settings.max_queue_tokens,
            batch_target_seconds=settings.batch_target_ms / 1000,
            document_max_wait_seconds=settings.document_max_wait_ms / 1000,
        )
        self._metrics = metrics
        self._clock = clock
        self._lanes: dict[Lane, LaneQueue] = {"query": LaneQueue(), "document": LaneQueue()}
        self._reported: dict[Lane, tuple[int, int]] = dict.fromkeys(self._lanes, (0, 0))
        self._unwatch = [metrics.watch_queue(lane, partial(self._age_seconds, lane)) for lane in self._lanes]
        self._tracks: dict[Lane, Track] = {}
        self._requests: set[BatcherRequest] = set()  # admitted and not ended
        self._is_accepting = False
        self._is_pump_scheduled = False

    async def start(self) -> None:
        """Accept requests. The encoder is started by now, so it knows whether it works in the background."""
        encoder = self._encoder
        track = Track(
            lanes=self._lanes, limits=self._limits, encode=encoder.encode, num_parallel=lambda: encoder.num_parallel
        )
        if isinstance(encoder, AsyncBackgroundEncoder) and encoder.has_background:
            self._tracks = {
                "query": replace(track, lanes={"query": self._lanes["query"]}, in_flight={}),
                "document": replace(
                    track,
                    lanes={"document": self._lanes["document"]},
                    limits=replace(
                        self._limits,
                        batch_target_seconds=_BACKGROUND_TARGET_SECONDS,
                        min_document_tokens=_BACKGROUND_MIN_TOKENS,
                    ),
                    encode=encoder.encode_in_background,
                    in_flight={},
                ),
            }
        else:
            self._tracks = {"query": track, "document": track}
        self._is_accepting = True

    async def stop(self, drain_seconds: float) -> None:
        """Accept no more, wait for what was admitted, then fail the rest with NotReadyError."""
        self._is_accepting = False
        for track in set(self._tracks.values()):
            self._stop_waiting(track)
        if self._requests:
            await asyncio.wait([request.future for request in self._requests], timeout=drain_seconds)
        for request in list(self._requests):
            self._metrics.count_rejection("stopping")
            self._end(request, NotReadyError("the service is shutting down; send the request again"))
        tasks = [task for track in set(self._tracks.values()) for task in track.in_flight]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._unwatch:
            self._unwatch.pop()()

    async def submit(self, token_ids: Sequence[TokenIds], *, lane: Lane, deadline: float | None = None) -> Encoded:
        """Encode the texts of one request. Cancelling it takes its waiting texts out of the queue.

        Args:
            token_ids: complete token ids, one non-empty sequence per text.
            lane: "query" goes first; "document" fills what is left.
            deadline: on the batcher's clock; None waits for ever.
        Raises:
            InvalidInputError: an empty text, or one over the batch budget.
            OverloadedError: the lane is full, or what waits in it takes too much of the time until the deadline;
                carries `retry_after_seconds`.
            DeadlineExceededError: no result before the deadline.
            EncoderError: the encoder failed, or gave embeddings that are no numbers.
            NotReadyError: not started, or shutting down.
        """
        if not token_ids:
            return Encoded(embeddings=self._rows(0), queue_seconds=0.0, encode_seconds=0.0)
        request = self.admit(token_ids, lane=lane, deadline=deadline)
        try:
            async with self.until(deadline):
                encoded = await request.future
        finally:
            self.withdraw(request)
        self.observe_times(encoded, num_tokens=sum(request.lengths))
        return encoded

    @asynccontextmanager
    async def until(self, deadline: float | None) -> AsyncIterator[None]:
        """Ends what waits for embeddings at its deadline. Raises DeadlineExceededError, and counts it."""
        try:
            async with asyncio.timeout(None if deadline is None else deadline - self._clock()):
                yield
        except TimeoutError:
            self._metrics.count_rejection("deadline")
            raise DeadlineExceededError(_LATE) from None

    def observe_times(self, encoded: Encoded, *, num_tokens: int) -> None:
        """Tell the metrics, and the current request's trace, of a wait that ends now."""
        now = self._clock()
        self._metrics.observe_stage("queue", encoded.queue_seconds, ended=now - encoded.encode_seconds)
        self._metrics.observe_stage("encode", encoded.encode_seconds, ended=now, num_tokens=num_tokens)

    def admit(
        self,
        token_ids: Sequence[TokenIds],
        *,
        lane: Lane,
        deadline: float | None = None,
        on_rows: OnRows | None = None,
    ) -> BatcherRequest:
        """Put one or more texts in the queue, at once. Whoever calls this calls `withdraw` in the end.

        Args:
            token_ids: as in `submit`.
            lane: as in `submit`.
            deadline: as in `submit`, except that its passing is the caller's affair: here it decides whether the
                request is taken, and whether it gives way once it is late. May be moved while the request waits.
            on_rows: called on the event loop for each batch with texts of this request, also after `withdraw`; must
                return at once. Its rows are finite, and the caller's only until it returns.
        Raises:
            InvalidInputError, OverloadedError, NotReadyError: as `submit`.
        """
        if not self._is_accepting:
            self._metrics.count_rejection("stopping")
            raise NotReadyError("the service is starting or shutting down; send the request again")
        lengths = self.check_lengths(token_ids)
        queue = self._lanes[lane]
        if not is_admitted(sum(lengths), queue.num_tokens, self._limits.max_queue_tokens):
            self._metrics.count_rejection("queue_full")
            raise OverloadedError(
                f"{queue.num_tokens} tokens wait in the {lane} lane and this request has {sum(lengths)}; "
                f"the limit is {self._limits.max_queue_tokens}; try again later or send less at once",
                retry_after_seconds=retry_after_seconds(queue.num_tokens, queue.speed.tokens_per_second),
            )
        self._check_wait(sum(lengths), lane, deadline)
        request = BatcherRequest(
            token_ids=token_ids,
            lengths=lengths,
            lane=lane,
            arrived=self._clock(),
            deadline=deadline,
            embeddings=self._rows(len(lengths)),
            future=asyncio.get_running_loop().create_future(),
            on_rows=on_rows,
        )
        self._requests.add(request)
        queue.add(request)
        self._report_queue(lane)
        self._schedule_pump()
        return request

    def withdraw(self, request: BatcherRequest) -> None:
        """Forget a request and what still waits of it; one that has ended is left as it is."""
        self._requests.discard(request)
        self._lanes[request.lane].discard(request)
        self._report_queue(request.lane)
        request.future.cancel()

    def _check_wait(self, num_tokens: int, lane: Lane, deadline: float | None) -> None:
        """Refuse a request that would most likely not be done in time; one that finds an empty lane is always tried."""
        queue = self._lanes[lane]
        if deadline is None or not queue.requests or not queue.speed.is_measured:
            return
        speed, seconds_left = queue.speed.tokens_per_second, deadline - self._clock()
        num_ahead = self._tracks[lane].in_flight_tokens() + queue.num_tokens
        seconds_needed = (num_ahead + num_tokens) / speed
        if seconds_needed > _MAX_WAIT_SHARE * seconds_left:
            self._metrics.count_rejection("queue_full")
            raise OverloadedError(
                f"what waits in the {lane} lane and this request take about {seconds_needed:.0f} s, which leaves too "
                f"little of the {seconds_left:.0f} s until its deadline; try again later",
                retry_after_seconds=retry_after_seconds(num_ahead, speed),
            )

    def check_lengths(self, token_ids: Sequence[TokenIds]) -> list[int]:
        """Tokens of each text. Raises InvalidInputError for an empty text, or one over the batch budget."""
        lengths = [len(ids) for ids in token_ids]
        for index, length in enumerate(lengths):
            if not 0 < length <= self._limits.max_batch_tokens:
                raise InvalidInputError(
                    f"text {index} has {length} tokens; a text has 1 to {self._limits.max_batch_tokens} "
                    "(EOSEEK_BATCHING__MAX_BATCH_TOKENS); shorten it"
                )
        return lengths

    def _rows(self, num_texts: int) -> Embeddings:
        return np.empty((num_texts, self._encoder.dimension), dtype=np.float32)

    def _report_queue(self, lane: Lane) -> None:
        queue = self._lanes[lane]
        (tokens, requests), self._reported[lane] = self._reported[lane], (queue.num_tokens, len(queue.requests))
        self._metrics.add_to_queue(lane, tokens=queue.num_tokens - tokens, requests=len(queue.requests) - requests)

    def _age_seconds(self, lane: Lane) -> float:
        oldest = next(iter(self._lanes[lane].requests), None)
        return self._clock() - oldest.arrived if oldest else 0.0

    def _schedule_pump(self) -> None:
        # not at once: what arrives in the same turn of the event loop shares a batch
        if not self._is_pump_scheduled:
            self._is_pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Send what the policy wants sent."""
        self._is_pump_scheduled = False
        self._drop_late()
        for track in dict.fromkeys(self._tracks.values()):
            while (plan := track.plan(self._clock())) is not None:
                self._lanes[plan.lane].take(plan)
                self._report_queue(plan.lane)
                if plan.lane == "document":
                    track.document_served = self._clock()
                is_ahead = len(track.in_flight) >= track.num_parallel()
                task = asyncio.create_task(self._execute(plan, track, is_ahead=is_ahead))
                track.in_flight[task] = plan
                task.add_done_callback(partial(self._on_executed, track))

    def _drop_late(self) -> None:
        """End requests at the front that can no longer be encoded in time, where others wait behind them.

        The encoder is for those. The last one is always tried, so that what is encoded corrects a wrong estimate.
        """
        for name, lane in self._lanes.items():
            while len(lane.requests) > 1:
                request = next(iter(lane.requests))
                seconds_left = math.inf if request.deadline is None else request.deadline - self._clock()
                num_tokens = request.waiting_tokens + self._tracks[name].in_flight_tokens()
                if is_in_time(num_tokens, lane.speed.tokens_per_second, seconds_left):
                    break
                self._metrics.count_rejection("deadline")
                self._end(request, DeadlineExceededError(_LATE))

    def _on_executed(self, track: Track, task: asyncio.Task[None]) -> None:
        if track.in_flight.pop(task).lane == "document":
            track.document_served = self._clock()
        self._schedule_pump()

    def _stop_waiting(self, track: Track) -> None:
        track.forget_company()
        self._schedule_pump()

    async def _execute(self, plan: Plan[BatcherRequest], track: Track, *, is_ahead: bool) -> None:
        """Encode one batch and end or advance each of its requests."""
        sent = self._clock()
        token_ids = [ids for each in plan.slices for ids in each.request.token_ids[each.start : each.stop]]
        try:
            embeddings = await track.encode(token_ids)
            self._deliver(plan, track, embeddings, sent, is_ahead=is_ahead)
        except EoseekError as error:
            self._fail(plan, error)
        except Exception as error:
            log.exception("unexpected error of the encoder")
            self._fail(plan, EncoderError(f"the encoder failed: {type(error).__name__}"))
        finally:
            track.last_finished = self._clock()

    def _deliver(
        self, plan: Plan[BatcherRequest], track: Track, embeddings: Embeddings, sent: float, *, is_ahead: bool
    ) -> None:
        expected = (plan.num_texts, self._encoder.dimension)
        if embeddings.shape != expected:
            raise EncoderError(f"the encoder gave embeddings of shape {embeddings.shape} instead of {expected}")
        finished = self._clock()
        # of batches side by side each counts from the end of the last: speed and load are those of all together
        busy_seconds = finished - max(sent, track.last_finished)
        self._lanes[plan.lane].speed.observe(plan.num_tokens, busy_seconds)
        self._metrics.observe_batch(plan.lane, tokens=plan.num_tokens, texts=plan.num_texts, seconds=busy_seconds)
        if plan.lane == "query" and self._is_accepting:
            track.expect_company(plan, busy_seconds, partial(self._stop_waiting, track))
        started = max(sent, track.last_finished) if is_ahead else sent  # one ahead waits for one before it
        row = 0
        for each in plan.slices:
            rows = embeddings[row : row + each.stop - each.start]
            row += each.stop - each.start
            self._advance(each, rows, started=started, finished=finished)

    def _advance(self, part: Slice[BatcherRequest], rows: Embeddings, *, started: float, finished: float) -> None:
        """Store one request's rows of a batch; end the request with its last."""
        request = part.request
        if not np.isfinite(rows).all():
            self._metrics.count_encode_failure("not_finite")
            self._end(request, EncoderError("the encoder gave an embedding that is not finite"))
            return
        request.embeddings[part.start : part.stop] = rows
        request.num_done += part.stop - part.start
        if request.started is None:
            request.started = started
        if request.on_rows is not None:
            request.on_rows(part.start, rows, started)
        if request.num_done == len(request.lengths) and not request.future.done():
            request.future.set_result(
                Encoded(
                    embeddings=request.embeddings,
                    queue_seconds=request.started - request.arrived,
                    encode_seconds=finished - request.started,
                )
            )

    def _fail(self, plan: Plan[BatcherRequest], error: EoseekError) -> None:
        self._metrics.count_encode_failure("error")
        for each in plan.slices:
            # one instance each: a raised one gets a traceback
            self._end(each.request, error.copy())

    def _end(self, request: BatcherRequest, error: EoseekError) -> None:
        """End a request with an error and forget what still waits of it."""
        self._lanes[request.lane].discard(request)
        if not request.future.done():
            request.future.set_exception(error)
