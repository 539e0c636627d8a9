"""Which openings texts share, and the states kept of them: an instruction is calculated once, not with each query.

Nobody says where an instruction ends; the tokens do. An opening that two different texts share is kept out of the row
that calculates the second one, and each later text continues from as much of it as it shares: a cut of a kept opening
serves as well. The price: the first two texts of an instruction are calculated whole.
"""

import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence

from service.encoders.base import PrefixFigures, TokenIds
from service.encoders.packed import Prefix

MIN_TOKENS = 8
"""No shorter opening is kept, nor one that goes on for fewer tokens behind a kept one, but see `_NUM_WITNESSES`."""

_NUM_WITNESSES = 3  # recent texts that share an opening: then any gain is worth it, not a common first word of queries
_MIN_SHARE = 1 / 8  # of a text: a title above a long document saves less than attention calls of its own cost
_MAX_TOKENS = 1024  # of a text that are looked at
_NUM_RECENT = 8  # texts remembered that begin with the same MIN_TOKENS tokens
_MAX_RECENT_BYTES = 2**22  # of all texts remembered: some thousand documents that rush through between two queries

Opening = bytes
"""Token ids as 32-bit integers: a ninth of the memory of a tuple of them, and compared by the processor."""

_ID_BYTES = 4
_BEGINNING_BYTES = MIN_TOKENS * _ID_BYTES


class PrefixCache:
    """States of shared openings, bounded; batches may be calculated beside each other."""

    def __init__(self, max_tokens: int) -> None:
        """`max_tokens`: held at most, of all openings together; the opening unused for longest goes first."""
        self.max_tokens = max_tokens
        self._prefixes: OrderedDict[Opening, Prefix] = OrderedDict()
        self._by_beginning: dict[Opening, list[Opening]] = {}  # the keys of `_prefixes`
        self._recent: OrderedDict[Opening, deque[Opening]] = OrderedDict()
        self._recent_bytes = 0
        self._figures = PrefixFigures()
        self._lock = threading.Lock()

    def learn(self, token_ids: Sequence[TokenIds]) -> dict[int, int]:
        """Note the openings of a batch.

        Returns:
            By index, of how many first tokens of a text the states are worth keeping when it is calculated.
        """
        with self._lock:
            chosen: dict[int, int] = {}
            coming: dict[Opening, list[Opening]] = {}
            for index, ids in enumerate(token_ids):
                if len(ids) <= MIN_TOKENS:
                    continue
                opening = _opening(ids, _MAX_TOKENS)
                beginning = opening[:_BEGINNING_BYTES]
                kept = [*self._by_beginning.get(beginning, ()), *coming.get(beginning, ())]
                length = _worth_keeping(opening, self._recent.get(beginning, ()), kept)
                if length <= self.max_tokens and _is_worth_using(length, ids):
                    chosen[index] = length
                    coming.setdefault(beginning, []).append(opening[: length * _ID_BYTES])
                self._remember(opening)
            self._figures.misses += len(chosen)
            return chosen

    def keep(self, ids: TokenIds, prefix: Prefix) -> None:
        """Hold the states of the first tokens of a text, and drop what they leave no room for.

        Of two openings one of which goes on from the other, the longer one is held: a cut of it serves the same texts.
        """
        with self._lock:
            opening = _opening(ids, prefix.length)
            siblings = self._by_beginning.get(opening[:_BEGINNING_BYTES], ())
            if any(each.startswith(opening) for each in siblings):
                return
            for other in [each for each in siblings if opening.startswith(each)]:
                self._drop(other)
            self._prefixes[opening] = prefix
            self._by_beginning.setdefault(opening[:_BEGINNING_BYTES], []).append(opening)
            self._figures.held_tokens += prefix.length
            while self._figures.held_tokens > self.max_tokens:
                self._drop(next(iter(self._prefixes)))
                self._figures.evictions += 1

    def find(self, token_ids: Sequence[TokenIds]) -> list[Prefix | None]:
        """What each text of a batch continues from, at least one token before its end; the same object for the same."""
        with self._lock:
            found = []
            for index, ids in enumerate(token_ids):
                opening, length = self._longest(ids)
                if _is_worth_using(length, ids):
                    self._prefixes.move_to_end(opening)
                    found.append((length, opening, index))
            prefixes: list[Prefix | None] = [None] * len(token_ids)
            cuts: dict[Opening, Prefix] = {}
            for length, opening, index in sorted(found):
                # a few tokens more are not worth an attention call: queries that begin alike stay with the others
                ends = [(length - n) * _ID_BYTES for n in range(MIN_TOKENS)]
                shared = next((opening[:end] for end in ends if opening[:end] in cuts), opening[: ends[0]])
                if shared not in cuts:
                    cuts[shared] = self._prefixes[opening].cut(length)
                prefixes[index] = prefix = cuts[shared]
                self._figures.hits += 1
                self._figures.saved_tokens += prefix.length
            return prefixes

    def take_figures(self) -> PrefixFigures:
        """What happened since the last call."""
        with self._lock:
            taken, self._figures = self._figures, PrefixFigures(held_tokens=self._figures.held_tokens)
            return taken

    def _longest(self, ids: TokenIds) -> tuple[Opening, int]:
        """The kept opening that shares most tokens with a text, and how many, its last token left out."""
        head = _opening(ids, min(_MAX_TOKENS, len(ids) - 1))
        kept = self._by_beginning.get(head[:_BEGINNING_BYTES], ())
        length, opening = max(((_num_common(head, each), each) for each in kept), default=(0, b""))
        return opening, length

    def _remember(self, opening: Opening) -> None:
        recent = self._recent.setdefault(opening[:_BEGINNING_BYTES], deque())
        self._recent.move_to_end(opening[:_BEGINNING_BYTES])
        if opening in recent:  # a text that comes again says nothing about where an opening ends
            return
        recent.append(opening)
        self._recent_bytes += len(opening)
        if len(recent) > _NUM_RECENT:
            self._recent_bytes -= len(recent.popleft())
        while self._recent_bytes > _MAX_RECENT_BYTES:
            _, oldest = self._recent.popitem(last=False)
            self._recent_bytes -= sum(map(len, oldest))

    def _drop(self, opening: Opening) -> None:
        self._figures.held_tokens -= self._prefixes.pop(opening).length
        siblings = self._by_beginning[opening[:_BEGINNING_BYTES]]
        siblings.remove(opening)
        if not siblings:
            del self._by_beginning[opening[:_BEGINNING_BYTES]]


def _opening(ids: TokenIds, length: int) -> Opening:
    return array("i", ids[:length]).tobytes()


def _worth_keeping(opening: Opening, recent: Sequence[Opening], kept: Sequence[Opening]) -> int:
    """Length of what an opening shares with recent ones, if enough goes beyond what is kept; else 0."""
    covered = max((_num_common(opening, each) for each in kept), default=0)
    shared = sorted((_num_common(opening, each) for each in recent if each != opening), reverse=True)
    for num_witnesses, gain in ((1, MIN_TOKENS), (_NUM_WITNESSES, 1)):
        if len(shared) >= num_witnesses and shared[num_witnesses - 1] >= covered + gain:
            return shared[num_witnesses - 1]
    return 0


def _is_worth_using(length: int, ids: TokenIds) -> bool:
    return length >= max(MIN_TOKENS, _MIN_SHARE * len(ids))


def _num_common(left: Opening, right: Opening) -> int:
    """How many first tokens are the same."""
    limit = min(len(left), len(right)) // _ID_BYTES
    return bisect_left(range(1, limit + 1), True, key=lambda n: left[: n * _ID_BYTES] != right[: n * _ID_BYTES])
