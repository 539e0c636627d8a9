"""What is asked of ours, held against what was measured; arithmetic only."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.bench.works import ENCODER_ALONE, STORE_ALONE

Works = dict[str, dict[str, dict[str, Any]]]
HTTP_PEERS = ("vllm", "infinity", "infinity bfloat16")
MIN_COSINE = 0.995


@dataclass(frozen=True)
class Goal:
    """A line of the second table; `reached` is None where something that it needs was not measured."""

    name: str
    measured: str
    wanted: str
    reached: bool | None


@dataclass(frozen=True)
class Figures:
    """Medians by work, engine and key; None for what there is not."""

    works: Works

    def get(self, work: str, engine: str, key: str) -> float | None:
        value = self.works.get(work, {}).get(engine, {}).get("medians", {}).get(key)
        return None if value is None else float(value)

    def best_peer(self, work: str, key: str) -> float | None:
        return max((value for peer in HTTP_PEERS if (value := self.get(work, peer, key)) is not None), default=None)


def goals(works: Works, *, flop_per_document: float) -> list[Goal]:
    """All of them, in the table's order."""
    return list(_goals(Figures(works), flop_per_document))


def _goals(figures: Figures, flop_per_document: float) -> Iterator[Goal]:
    get = figures.get
    documents = get("documents", "eoseek", "documents/s")
    for peer, floor in (("vllm", 1.5), ("infinity", 2.5), ("sentence-transformers", 8.0)):
        yield at_least(f"documents/s, times {peer}", documents, get("documents", peer, "documents/s"), floor)
    limit = get("documents", "limit", "GFLOP/s")
    yield at_least(
        "documents/s, share of the limit", documents, None if limit is None else limit * 1e9 / flop_per_document, 0.75
    )
    queries = get("queries", "eoseek", "queries/s")
    yield at_least("queries/s over HTTP, times the best peer", queries, figures.best_peer("queries", "queries/s"), 2.0)
    without = get("instructed", "eoseek", "times without")
    yield at_least("queries/s with an instruction, times those without", without, 1.0, 0.9)
    instructed = get("instructed", "eoseek", "queries/s")
    best = figures.best_peer("instructed", "queries/s")
    yield at_least("queries/s with an instruction, times the best peer", instructed, best, 4.0)
    yield _search(figures)
    idle, busy = (get("ingestion", "eoseek", f"{state} p99 ms") for state in ("idle", "busy"))
    yield at_most("query p99 during ingestion, times idle", busy, idle, 2.5)
    alone, beside = (get("ingestion", "eoseek", f"documents/s {when}") for when in ("alone", "beside queries"))
    yield at_least("ingestion beside 5 queries/s, times alone", beside, alone, 0.8)
    half, whole = "sentence-transformers bfloat16", "sentence-transformers"
    peer = whole if whole in figures.works.get("long", {}) else half  # the whole one where no bfloat16 is multiplied
    yield at_least(
        f"long documents, times {peer}", get("long", "eoseek", "documents/s"), get("long", peer, "documents/s"), 1.5
    )
    yield _memory(figures)
    yield _growth(figures, documents)
    start = get("start", "eoseek", "start seconds")
    yield Goal("warm start to ready", _shown(start, " s"), "at most 6 s", None if start is None else start <= 6)
    yield _cosine(figures)


def at_least(name: str, ours: float | None, theirs: float | None, floor: float) -> Goal:
    """Ours is so many times theirs."""
    ratio = ours / theirs if ours is not None and theirs else None
    return Goal(name, _shown(ratio, "x"), f"at least {floor:g}x", None if ratio is None else ratio >= floor)


def at_most(name: str, ours: float | None, theirs: float | None, limit: float) -> Goal:
    ratio = ours / theirs if ours is not None and theirs else None
    return Goal(name, _shown(ratio, "x"), f"at most {limit:g}x", None if ratio is None else ratio <= limit)


def _search(figures: Figures) -> Goal:
    measured = figures.get("search", "eoseek", "p50 ms")
    parts = [figures.get("search", name, "p50 ms") for name in (ENCODER_ALONE, STORE_ALONE)]
    name = "/search p50, one client"
    if measured is None or parts[0] is None or parts[1] is None:
        return Goal(name, _shown(measured, " ms"), "encode alone + search alone + 2 ms", None)
    limit = parts[0] + parts[1] + 2
    medians = figures.works["search"]["eoseek"]["medians"]
    encode, search, total = (medians[f"{stage} p50 ms"] for stage in ("encode", "search", "total"))
    around = f"{total - encode - search:.1f} around them, {measured - total:.1f} client and HTTP"
    shown = f"{measured:.1f} ms: {encode:.1f} encoding, {search:.1f} searching, {around}"
    return Goal(name, shown, f"at most {parts[0]:.1f} + {parts[1]:.1f} + 2 ms", measured <= limit)


def _memory(figures: Figures) -> Goal:
    """MiB a token between the longest texts against that between the shortest: 1 is a straight line."""
    medians = figures.works.get("long", {}).get("eoseek", {}).get("medians", {})
    taken = sorted((int(key.split()[2]), value) for key, value in medians.items() if key.startswith("MiB at "))
    name, wanted = "memory of long documents, slope at the long end", "at most 1.25x that at the short end"
    slopes = [(more - less) / (many - few) for (few, less), (many, more) in pairwise(taken)]
    if len(slopes) < 2 or slopes[0] <= 0:
        return Goal(name, "", wanted, None)
    shown = ", ".join(f"{value:.0f} MiB at {tokens}" for tokens, value in taken)
    ratio = slopes[-1] / slopes[0]
    return Goal(name, f"{ratio:.2f}x: {shown}", wanted, ratio <= 1.25)


def _growth(figures: Figures, documents: float | None) -> Goal:
    """Time of an upsert at each size of the store, added to that of encoding a document."""
    rates = figures.works.get("growth", {}).get("eoseek", {}).get("medians", {})
    name, wanted = "documents/s at the largest store, times at the smallest", "at least 0.85x"
    if documents is None or len(rates) < 2:
        return Goal(name, "", wanted, None)
    by_size = [rates[size] for size in sorted(rates, key=int)]
    first, last = (1 / (1 / documents + 1 / rate) for rate in (by_size[0], by_size[-1]))
    shown = ", ".join(f"{rates[size]:.0f}/s at {int(size):,}" for size in sorted(rates, key=int))
    return Goal(name, f"{last / first:.3f}x; the store alone: {shown}", wanted, last / first >= 0.85)


def _cosine(figures: Figures) -> Goal:
    found = [figures.get(work, "eoseek", "lowest cosine") for work in figures.works]
    known = [value for value in found if value is not None]
    lowest = min(known, default=None)
    name, wanted = "lowest cosine to float32, one text at a time", f"at least {MIN_COSINE}"
    return Goal(
        name, "" if lowest is None else f"{lowest:.5f}", wanted, None if lowest is None else lowest >= MIN_COSINE
    )


def _shown(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.2f}{unit}"
