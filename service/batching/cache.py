"""Repeated queries: embeddings of recent ones stay in memory, and a text that is under way is not begun again.

It stands before the batcher's query lane and knows a text by its token ids, in which instruction, template and cut are
already. What it saves is the encoder's time; the price is a digest and a few microseconds for each text that is new.
"""

import asyncio
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b

import numpy as np

from service.batching.batcher import Batcher
from service.batching.tracks import BatcherRequest, Encoded
from service.encoders.base import Embeddings, TokenIds
from service.errors import EoseekError
from service.metrics import Metrics

_ENTRY_BYTES = 320  # what an entry takes beside its numbers: digest, objects' heads, its place in the order


class EmbeddingCache:
    """The embeddings that were used last, in bounded memory; one for all checkpoints of a service."""

    def __init__(self, max_bytes: int, *, metrics: Metrics) -> None:
        """Keep `max_bytes` at most, the entries' own cost included; `metrics` asks for its size at each scrape."""
        self._rows: OrderedDict[bytes, bytes] = OrderedDict()
        self._max_bytes = max_bytes
        self._metrics = metrics
        self.num_bytes = 0
        metrics.watch_query_cache(lambda: self.num_bytes)

    def get(self, key: bytes) -> bytes | None:
        """The float32 numbers under `key`, which now is the one that was used last."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, key: bytes, row: bytes) -> None:
        """Keep `row`, and drop what was not used for longest; one larger than the cache is not kept."""
        if (old := self._rows.pop(key, None)) is not None:
            self.num_bytes -= _ENTRY_BYTES + len(old)
        self._rows[key] = row
        self.num_bytes += _ENTRY_BYTES + len(row)
        while self.num_bytes > self._max_bytes:
            _, dropped = self._rows.popitem(last=False)
            self.num_bytes -= _ENTRY_BYTES + len(dropped)
            self._metrics.count_query_cache_eviction()


@dataclass(frozen=True, slots=True)
class _Row:
    """An embedding's bytes, and when the encoder took its text up."""

    data: bytes
    started: float


@dataclass(eq=False)
class _Computation:
    """Texts that one request sent to the batcher; it goes on while anybody waits for one of them."""

    futures: dict[bytes, asyncio.Future[_Row | EoseekError]]
    num_waiting: int = 0  # requests
    request: BatcherRequest = field(init=False)


class SharedQueries:
    """The queries of one checkpoint: from the cache, from a computation under way, or by the batcher.

    All methods belong to the batcher's event loop. Errors are not kept. Whoever waits has its own deadline and its own
    cancellation: the computation ends with the last of them, not with the first.
    """

    def __init__(
        self,
        batcher: Batcher,
        cache: EmbeddingCache | None,
        *,
        fingerprint: str,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the parts over.

        Args:
            batcher: of this checkpoint; started and stopped by the caller.
            cache: None hands every query to the batcher.
            fingerprint: the checkpoint's, so that several may share a cache.
            metrics: told of hits, misses and shared computations.
            clock: the batcher's.
        """
        self._batcher = batcher
        self._cache = cache
        self._metrics = metrics
        self._clock = clock
        # a digest of its own: of fixed length, no fingerprint and ids can read as another fingerprint and other ids
        self._hash = blake2b(blake2b(fingerprint.encode()).digest(), digest_size=32)
        self._under_way: dict[bytes, _Computation] = {}

    async def submit(self, token_ids: Sequence[TokenIds], *, deadline: float | None = None) -> Encoded:
        """As `Batcher.submit` in the query lane; what is in the cache takes no time there, and needs no encoder.

        A text that waits for another request's computation is asked for again if that fails by a text of the other's.
        """
        if self._cache is None or not token_ids:
            return await self._batcher.submit(token_ids, lane="query", deadline=deadline)
        lengths = self._batcher.check_lengths(token_ids)
        arrived = self._clock()
        keys = [self._key(ids) for ids in token_ids]
        asked = dict(zip(keys, token_ids, strict=True))
        rows = {key: row for key in asked if (row := self._cache.get(key)) is not None}
        waits, num_missing = self._join({key: ids for key, ids in asked.items() if key not in rows}, deadline)
        self._count(keys, rows, num_missing)
        queue_seconds = encode_seconds = 0.0
        if waits:
            tokens = {key: length for key, length in zip(keys, lengths, strict=True) if key in waits}
            async with self._batcher.until(deadline):
                found = await self._wait_for_all(asked, waits, deadline)
            rows |= {key: row.data for key, row in found.items()}
            # of a text that was under way already only the rest was waited for
            started = max(min(row.started for row in found.values()), arrived)
            queue_seconds, encode_seconds = started - arrived, self._clock() - started
        encoded = Encoded(
            embeddings=_matrix([rows[key] for key in keys]), queue_seconds=queue_seconds, encode_seconds=encode_seconds
        )
        if waits:
            self._batcher.observe_times(encoded, num_tokens=sum(tokens.values()))
        return encoded

    def _key(self, ids: TokenIds) -> bytes:
        # 256 bits of a cryptographic hash: nobody finds two texts with one key, by chance or on purpose
        digest = self._hash.copy()
        digest.update(array("i", ids))
        return digest.digest()

    def _count(self, keys: Sequence[bytes], rows: Mapping[bytes, bytes], num_missing: int) -> None:
        num_hits = sum(key in rows for key in keys)
        # a text that comes twice in a request shares its own computation
        self._metrics.count_cached_queries(hit=num_hits, miss=num_missing, shared=len(keys) - num_hits - num_missing)

    def _join(self, wanted: Mapping[bytes, TokenIds], deadline: float | None) -> tuple[dict[bytes, _Computation], int]:
        """A computation for each of these texts, and how many had to be begun. Raises what `Batcher.admit` raises."""
        waits = {
            key: computation
            for key in wanted
            if (computation := self._under_way.get(key)) is not None and not computation.request.future.done()
        }
        for request in (each.request for each in waits.values()):  # it is late once it is late for the last who waits
            both = (request.deadline, deadline)
            request.deadline = None if None in both else max(each for each in both if each is not None)
        missing = {key: ids for key, ids in wanted.items() if key not in waits}
        if missing:
            own = self._begin(missing, deadline)
            self._under_way |= dict.fromkeys(missing, own)
            waits |= dict.fromkeys(missing, own)
        return waits, len(missing)

    def _begin(self, token_ids: Mapping[bytes, TokenIds], deadline: float | None) -> _Computation:
        loop = asyncio.get_running_loop()
        computation = _Computation({key: loop.create_future() for key in token_ids})
        on_rows = partial(self._keep, computation, list(token_ids))
        computation.request = self._batcher.admit(
            list(token_ids.values()), lane="query", deadline=deadline, on_rows=on_rows
        )
        computation.request.future.add_done_callback(partial(self._on_ended, computation))
        return computation

    def _keep(
        self, computation: _Computation, keys: Sequence[bytes], first: int, rows: Embeddings, started: float
    ) -> None:
        """Rows of a batch go to the cache and to all who wait, before the rest of the request is encoded."""
        assert self._cache is not None, "nothing is begun without one"
        for key, row in zip(keys[first : first + len(rows)], rows, strict=True):
            data = row.tobytes()
            self._cache.put(key, data)
            self._forget(computation, key)
            if not computation.futures[key].done():
                computation.futures[key].set_result(_Row(data, started))

    def _forget(self, computation: _Computation, key: bytes) -> None:
        if self._under_way.get(key) is computation:
            del self._under_way[key]

    def _on_ended(self, computation: _Computation, result: asyncio.Future[Encoded]) -> None:
        """Nothing is left to wait for: after an error its texts end with it, after a withdrawal nobody waits."""
        error = None if result.cancelled() else result.exception()
        assert error is None or isinstance(error, EoseekError), "the batcher names its errors"
        for key, future in computation.futures.items():
            self._forget(computation, key)
            if not future.done():
                future.set_result(error) if error else future.cancel()

    async def _wait_for_all(
        self, asked: Mapping[bytes, TokenIds], waits: Mapping[bytes, _Computation], deadline: float | None
    ) -> dict[bytes, _Row]:
        """The rows of all waits, and of what failed with another request's texts in a second, unshared computation."""
        rows, errors = await self._wait(waits)
        for key, error in errors.items():
            if waits[key].futures.keys() <= asked.keys():
                raise error.copy()
        if errors:
            again = self._begin({key: asked[key] for key in errors}, deadline)
            more, errors = await self._wait(dict.fromkeys(errors, again))
            rows |= more
        for error in errors.values():
            raise error.copy()
        return rows

    async def _wait(self, waits: Mapping[bytes, _Computation]) -> tuple[dict[bytes, _Row], dict[bytes, EoseekError]]:
        """What became of each text; leaves nothing under way that nobody waits for, however this ends."""
        computations = set(waits.values())
        for each in computations:
            each.num_waiting += 1
        futures = {key: computation.futures[key] for key, computation in waits.items()}
        try:
            await asyncio.wait(futures.values())  # which cancels none of them
        finally:
            for each in computations:
                each.num_waiting -= 1
                if not each.num_waiting:
                    self._batcher.withdraw(each.request)
        outcomes = {key: future.result() for key, future in futures.items()}
        rows = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, _Row)}
        return rows, {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, EoseekError)}


def _matrix(rows: Sequence[bytes]) -> Embeddings:
    """The rows below each other, float32, in memory of its own."""
    return np.frombuffer(bytearray().join(rows), dtype=np.float32).reshape(len(rows), -1)
