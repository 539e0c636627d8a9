"""The remote encoder: an `AsyncEncoder` over OpenAI-compatible upstreams, so that a fleet shares engines elsewhere.

A batch goes to the proven upstream with the fewest calls under way, and to another one if that fails. Each call carries
one text whose vector is known, so every answer proves that weights and pooling are still the checkpoint's: an upstream
that changes its model is refused at its next answer. Price: some tokens a call.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import httpx
import numpy as np

from service.encoders.base import Embeddings, TokenIds
from service.encoders.checkpoint import Checkpoint
from service.encoders.proof import Proof, unit_length
from service.encoders.upstream import Upstream, UpstreamFault
from service.errors import ConfigurationError, EncoderError, OverloadedError
from service.settings import EncoderSettings

log = logging.getLogger(__name__)

Outcome = Literal["answered", "away", "busy", "refused", "wrong"]

_MAX_TRIES = 2  # of a batch at one upstream: its idle connection may just have been closed
_MAX_FAILURES = 3  # in a row, then the upstream is left alone until it is proven again
_MAX_NAP_SECONDS = 1.0  # while all are overloaded; another may be back by then


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often upstreams are looked after, in seconds."""

    proof_seconds: float = 5.0  # after so long without an answer, which is a proof as well; twice that at most
    first_backoff_seconds: float = 0.25  # before the first proof of one that failed; doubled up to the next
    max_backoff_seconds: float = 5.0


@dataclass(eq=False, kw_only=True)
class _Member:
    """An upstream and what is known of it; it serves only between a proof and a fault."""

    index: int
    url: str
    upstream: Upstream
    is_serving: bool = False
    is_wrong: bool = False
    cause: str = "has not answered yet"
    num_failures: int = 0
    num_outstanding: int = 0
    last_asked: int = 0
    num_answers: int = 0
    busy_until: float = float("-inf")
    failed: asyncio.Event = field(default_factory=asyncio.Event)  # set from a failure to the next success

    @property
    def is_well(self) -> bool:
        return self.is_serving and not self.num_failures

    def succeed(self) -> None:
        self.num_failures = 0
        self.num_answers += 1
        self.failed.clear()

    def __str__(self) -> str:
        return f"upstream {self.index} {self.cause}"


class RemoteEncoder:
    """An `AsyncEncoder` in this process; what takes long happens elsewhere."""

    dtype = "unknown"  # upstreams do not say

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: EncoderSettings,
        *,
        limit_seconds: float,
        on_call: Callable[[int, Outcome], None] | None = None,
        pace: Pace | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            checkpoint: what the upstreams must serve.
            settings: with at least one url.
            limit_seconds: how long a batch is tried; nobody waits longer.
            on_call: told how each call ended, by the upstream's place in `settings.urls`.
            pace: of proofs.
            transport: replaces the network, for tests.
            clock: seconds.
            sleep: replaces pauses, for tests.
        """
        self._checkpoint = checkpoint
        self._settings = settings
        self._limit_seconds = limit_seconds
        self._on_call = on_call or (lambda _index, _outcome: None)
        self._pace = pace or Pace()
        self._clock = clock
        self._sleep = sleep
        self._asked = itertools.count(1)
        self._keepers: list[asyncio.Task[None]] = []
        self._proof: Proof | None = None
        key = settings.api_key
        self._members = [
            _Member(
                index=index,
                url=url,
                upstream=Upstream(
                    url,
                    model=settings.url_model,
                    api_key=None if key is None else key.get_secret_value(),
                    timeout_seconds=settings.url_timeout_seconds,
                    transport=transport,
                ),
            )
            for index, url in enumerate(settings.urls)
        ]

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self._checkpoint.dimension

    @property
    def num_upstreams(self) -> int:
        """How many there are."""
        return len(self._members)

    @property
    def num_parallel(self) -> int:
        """See `AsyncEncoder.num_parallel`: those of each upstream that serves."""
        return max(1, sum(each.is_serving for each in self._members) * self._settings.url_batches)

    @property
    def is_ready(self) -> bool:
        """Whether an upstream is proven and serves."""
        return any(each.is_serving for each in self._members)

    def is_serving(self, index: int) -> bool:
        """Whether this upstream is proven and serves."""
        return self._members[index].is_serving

    async def start(self) -> None:
        """Prove the upstreams; returns when one serves. Those that do not are tried again for ever.

        Raises:
            ConfigurationError: nothing to prove them by, none can be used as they are, or none came up in time.
        """
        self._proof = Proof(self._checkpoint, is_on_trust=self._settings.trust_urls)
        seconds = self._settings.start_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._prove_one()
        except TimeoutError:
            raise ConfigurationError(
                f"no upstream came up within {seconds:g} s: {self._causes()}. Start them, or raise "
                "EOSEEK_ENCODER__START_TIMEOUT_SECONDS"
            ) from None
        self._keepers = [asyncio.create_task(self._keep(each)) for each in self._members]

    async def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """See `AsyncEncoder.encode`. A row that is not finite, or has no direction, comes back as NaN.

        Raises:
            EncoderError: no upstream could encode the batch; says of each why.
            OverloadedError: all of them ask to come back later than anybody waits.
        """
        if not token_ids:
            return np.empty((0, self.dimension), dtype=np.float32)
        deadline = self._clock() + self._limit_seconds
        tries: Counter[int] = Counter()
        try:
            async with asyncio.timeout(self._limit_seconds):
                while True:
                    member = self._choose(tries)
                    if member is None:
                        await self._wait_for_one(tries, deadline)
                    elif (embeddings := await self._try(member, token_ids, tries)) is not None:
                        return embeddings
        except TimeoutError:
            raise EncoderError(f"no upstream answered within {self._limit_seconds:g} s: {self._causes()}") from None

    async def stop(self) -> None:
        """See `AsyncEncoder.stop`."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for member in self._members:
            member.is_serving, member.cause = False, "is no longer asked, as the service stops"
            await member.upstream.close()

    def _choose(self, tries: Counter[int]) -> _Member | None:
        """The upstream to ask next: one not tried yet, that did not just fail, with least to do, asked longest ago."""
        now = self._clock()
        able = [each for each in self._able(tries) if each.busy_until <= now]

        def rank(member: _Member) -> tuple[int, int, int, int]:
            return tries[member.index], member.num_failures, member.num_outstanding, member.last_asked

        return min(able, key=rank, default=None)

    def _able(self, tries: Counter[int]) -> list[_Member]:
        return [each for each in self._members if each.is_serving and tries[each.index] < _MAX_TRIES]

    async def _wait_for_one(self, tries: Counter[int], deadline: float) -> None:
        """Wait while all that are left are overloaded. Raises as `encode`."""
        free = min((each.busy_until for each in self._able(tries)), default=None)
        if free is None:
            raise EncoderError(f"no upstream could encode the batch: {self._causes()}; retry in a moment")
        now = self._clock()
        if free >= deadline:
            raise OverloadedError("all upstreams are overloaded; try again later", retry_after_seconds=free - now)
        await self._sleep(min(free - now, _MAX_NAP_SECONDS))

    async def _try(self, member: _Member, token_ids: Sequence[TokenIds], tries: Counter[int]) -> Embeddings | None:
        """The batch's embeddings; None if another upstream should be asked. Raises EncoderError for refused texts."""
        tries[member.index] += 1
        try:
            embeddings = await self._call(member, token_ids)
        except UpstreamFault as fault:
            self._note(member, fault)
            if fault.kind == "busy":
                tries[member.index] -= 1
            if fault.kind == "refused":
                raise EncoderError(f"{member} and so refused the batch; the service's log has more") from fault
            return None
        member.succeed()
        return embeddings

    async def _call(self, member: _Member, token_ids: Sequence[TokenIds]) -> Embeddings:
        """One call with the canary at its end. Raises UpstreamFault, also for a canary with another vector."""
        proof = self._held_against()
        member.last_asked = next(self._asked)
        member.num_outstanding += 1
        try:
            embeddings = unit_length(await member.upstream.embed([*token_ids, proof.canary], dimension=self.dimension))
            proof.check_canary(embeddings[-1])
        except UpstreamFault as fault:
            self._on_call(member.index, fault.kind)
            raise
        finally:
            member.num_outstanding -= 1
        self._on_call(member.index, "answered")
        return embeddings[:-1]

    def _held_against(self) -> Proof:
        assert self._proof is not None, "called before start"
        return self._proof

    def _note(self, member: _Member, fault: UpstreamFault) -> None:
        """What a fault means for whether the upstream is asked again."""
        if fault.kind == "refused":
            log.warning("upstream %d (%s) %s: %s", member.index, member.url, fault.cause, fault.words)
            member.cause = fault.cause
            return
        if fault.kind == "busy":
            member.busy_until = self._clock() + fault.retry_after_seconds
            return
        member.num_failures += 1
        member.failed.set()
        is_new = fault.cause != member.cause
        was_serving = member.is_serving
        member.cause, member.is_wrong = fault.cause, fault.kind == "wrong"
        if member.is_wrong or member.num_failures >= _MAX_FAILURES:
            member.is_serving = False
        if was_serving or is_new:
            state = "is asked again" if member.is_serving else "is left alone until it is proven"
            log.warning("upstream %d (%s) %s, and %s %s", member.index, member.url, fault.cause, state, fault.words)

    def _causes(self) -> str:
        return "; ".join(map(str, self._members))

    async def _prove_one(self) -> None:
        """Prove all upstreams at once, and again until one serves. Raises ConfigurationError if none ever can."""
        pause = self._pace.first_backoff_seconds
        while True:
            await asyncio.gather(*map(self._prove, self._members))
            if self.is_ready:
                return
            if all(each.is_wrong for each in self._members):
                raise ConfigurationError(f"no upstream can be used: {self._causes()}")
            await self._sleep(pause)
            pause = min(2 * pause, self._pace.max_backoff_seconds)

    async def _keep(self, member: _Member) -> None:
        """Prove an upstream from time to time, and more often from a failure until it is well again, for ever."""
        pause = self._pace.first_backoff_seconds
        while True:
            if member.is_well:
                pause = self._pace.first_backoff_seconds
                await self._wait_until_doubtful(member)
            if not member.is_well:
                await self._sleep(pause)
                pause = min(2 * pause, self._pace.max_backoff_seconds)
            await self._prove(member)

    async def _wait_until_doubtful(self, member: _Member) -> None:
        """Wait for a failure, or for a time without any answer."""
        num_answers = -1
        while num_answers != member.num_answers:
            num_answers = member.num_answers
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.proof_seconds):
                    await member.failed.wait()
                    return

    async def _prove(self, member: _Member) -> None:
        """Let an upstream serve if it embeds the probes as recorded, and no longer if it does not."""
        try:
            cosine = await self._held_against().hold(member.upstream, is_new=not member.is_serving)
        except Exception as error:
            if not isinstance(error, UpstreamFault):  # a fault of ours must not end the loop that heals
                log.exception("unexpected error while upstream %d was proven", member.index)
                error = UpstreamFault("away", f"could not be proven: {type(error).__name__}")
            self._note_proof(member, error)
            return
        if not member.is_serving:
            log.info("upstream %d (%s) is proven, lowest cosine %.5f, and serves", member.index, member.url, cosine)
        member.is_serving, member.is_wrong, member.cause = True, False, "is well"
        member.succeed()

    def _note_proof(self, member: _Member, fault: UpstreamFault) -> None:
        if fault.kind == "refused":  # the probes, so everything
            fault = UpstreamFault("wrong", fault.cause, words=fault.words)
        if fault.kind == "busy" and not member.is_serving:
            member.cause, member.is_wrong = fault.cause, False
        self._note(member, fault)
