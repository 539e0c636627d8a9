"""All metric names of the service, in one place: dashboards and alerts use these and no others.

Base units, `eoseek_` prefix, no ids and no text in labels. The registry is passed in: two apps live in one test.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from service.encoders.base import PrefixFigures
from service.tracing import note_stage

Kind = Literal["query", "document"]
Stage = Literal["tokenize", "queue", "encode", "search", "flush"]
RejectionReason = Literal["queue_full", "deadline", "stopping"]
EncodeFailure = Literal["error", "not_finite"]
PrefixOutcome = Literal["hit", "miss"]
ReindexStage = Literal["loading", "copying", "ready", "switched", "paused", "failed"]
Child = Literal["encoder", "store"]
BuildOutcome = Literal["built", "given_up", "failed"]
UpstreamOutcome = Literal["answered", "away", "busy", "refused", "wrong"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_BUILD_SECONDS = (1.0, 5.0, 15.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10800.0)
_TOKENS = tuple(float(2**power) for power in range(4, 18))  # one short query to 131,072
_TEXTS = tuple(float(2**power) for power in range(11))
_MAX_COLLECTIONS = 100
_OTHER_COLLECTIONS = "(other)"  # no collection can be called so


class Metrics:
    """What the rooms report; each method is one event or one level."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = Counter(
            "eoseek_requests", "HTTP requests answered.", ["route", "method", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "eoseek_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["route", "method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "eoseek_stage_seconds", "What a request spent where.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._queue_tokens = Gauge("eoseek_queue_tokens", "Tokens waiting in a lane.", ["lane"], registry=registry)
        self._queue_requests = Gauge(
            "eoseek_queue_requests", "Requests of which a text waits in a lane.", ["lane"], registry=registry
        )
        self._queue_age_seconds = Gauge(
            "eoseek_queue_age_seconds", "Age of the oldest request that waits in a lane.", ["lane"], registry=registry
        )
        self._batch_tokens = Histogram(
            "eoseek_batch_tokens", "Tokens in one batch.", ["lane"], buckets=_TOKENS, registry=registry
        )
        self._batch_texts = Histogram(
            "eoseek_batch_texts", "Texts in one batch.", ["lane"], buckets=_TEXTS, registry=registry
        )
        self._encoder_busy_seconds = Counter(
            "eoseek_encoder_busy_seconds", "Time in which the encoder worked on a batch.", ["lane"], registry=registry
        )
        self._tokens = Counter("eoseek_tokens", "Tokens encoded.", ["kind"], registry=registry)
        self._prefix_lookups = Counter(
            "eoseek_prefix_lookups",
            "Texts with a shared opening: continued from its states, or calculated whole to have them.",
            ["outcome"],
            registry=registry,
        )
        self._prefix_saved_tokens = Counter(
            "eoseek_prefix_saved_tokens", "Tokens not calculated, as their states were there.", registry=registry
        )
        self._prefix_evictions = Counter(
            "eoseek_prefix_evictions", "Openings whose states left no room for others'.", registry=registry
        )
        self._prefix_tokens = Gauge("eoseek_prefix_tokens", "Tokens whose states are kept.", registry=registry)
        self._encode_failures = Counter(
            "eoseek_encode_failures", "Batches or requests whose encoding failed.", ["reason"], registry=registry
        )
        self._cached_queries = Counter(
            "eoseek_cached_queries",
            "Queries by how they got their embedding: from the cache, by the encoder, or by a computation under way.",
            ["outcome"],
            registry=registry,
        )
        self._cache_evictions = Counter(
            "eoseek_query_cache_evictions", "Embeddings that made room for newer ones.", registry=registry
        )
        self._cache_bytes = Gauge("eoseek_query_cache_bytes", "Memory that kept embeddings take up.", registry=registry)
        self._upstream_calls = Counter(
            "eoseek_upstream_calls", "Batches sent to an upstream.", ["upstream", "outcome"], registry=registry
        )
        self._upstream_serving = Gauge(
            "eoseek_upstream_serving", "1 if an upstream is proven and asked, else 0.", ["upstream"], registry=registry
        )
        self._truncated = Counter("eoseek_truncated", "Texts cut to the model's length on request.", registry=registry)
        self._rejections = Counter(
            "eoseek_rejections", "Requests that the batcher did not serve.", ["reason"], registry=registry
        )
        self._worker_restarts = Counter(
            "eoseek_worker_restarts", "Child processes started again after they died.", ["child"], registry=registry
        )
        self._ready = Gauge("eoseek_ready", "1 if a part would work now, else 0.", ["part"], registry=registry)
        self._documents = Counter("eoseek_documents", "Documents taken in, by outcome.", ["outcome"], registry=registry)
        self._store_call_seconds = Histogram(
            "eoseek_store_call_seconds", "Calls to the store.", ["operation"], buckets=_SECONDS, registry=registry
        )
        self._store_errors = Counter(
            "eoseek_store_errors", "Calls to the store that it could not execute.", ["operation"], registry=registry
        )
        self._store_points = Gauge(
            "eoseek_store_points", "Documents of a collection.", ["collection"], registry=registry
        )
        self._store_bytes = Gauge(
            "eoseek_store_bytes", "Disk that a collection takes up.", ["collection"], registry=registry
        )
        self._reindexes = Gauge(
            "eoseek_reindexes", "Re-indexes that are not at their end, by stage.", ["stage"], registry=registry
        )
        self._reindex_behind = Gauge(
            "eoseek_reindex_behind_documents", "Changed documents that standbys still lack.", registry=registry
        )
        self._index_building = Gauge(
            "eoseek_index_building", "1 while an index of the embedded store is built, else 0.", registry=registry
        )
        self._index_build_seconds = Histogram(
            "eoseek_index_build_seconds",
            "Building an index of the embedded store, from the copy to its end.",
            ["outcome"],
            buckets=_BUILD_SECONDS,
            registry=registry,
        )
        self._disk_free_bytes = Gauge(
            "eoseek_disk_free_bytes", "Free space on the disk of a part.", ["part"], registry=registry
        )
        self._disk_size_bytes = Gauge(
            "eoseek_disk_size_bytes", "Size of the disk of a part.", ["part"], registry=registry
        )
        self._build = Info("eoseek_build", "Version, checkpoint and parts that serve.", registry=registry)
        self._ages: dict[Kind, list[Callable[[], float]]] = {lane: [] for lane in get_args(Kind)}
        self._pids: dict[Child, Callable[[], int | None]] = {}
        ProcessCollector(registry=registry)
        for child in get_args(Child):
            # a pid that is no number is no directory of /proc: nothing is reported of no process
            pid = partial(self._pid_or, child, "none")
            ProcessCollector(namespace=f"eoseek_{child}", pid=pid, registry=registry)
        self._start_series()

    def _pid_or(self, child: Child, default: str) -> int | str:
        return (child in self._pids and self._pids[child]()) or default

    def _start_series(self) -> None:
        # a series that is there from the start can be alerted on: a rate needs the zero before the first event
        for lane in get_args(Kind):
            self.add_to_queue(lane, tokens=0, requests=0)
            self._tokens.labels(lane)
            self._encoder_busy_seconds.labels(lane)
        for reason in get_args(RejectionReason):
            self._rejections.labels(reason)
        for failure in get_args(EncodeFailure):
            self._encode_failures.labels(failure)
        for outcome in get_args(PrefixOutcome):
            self._prefix_lookups.labels(outcome)
        for child in get_args(Child):
            self._worker_restarts.labels(child)
        for outcome in get_args(BuildOutcome):
            self._index_build_seconds.labels(outcome)
        self.set_reindexes({}, 0)
        self.count_documents()
        self.count_cached_queries()

    def observe_request(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """Count a finished request; `route` is the template, never the path."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route, method).observe(seconds)

    def observe_stage(
        self,
        stage: Stage,
        seconds: float,
        *,
        ended: float | None = None,
        collection: str | None = None,
        num_tokens: int | None = None,
    ) -> None:
        """One request's time in one stage, for its trace as well.

        Args:
            stage: which one.
            seconds: how long it took.
            ended: when, on `time.monotonic`; None is now.
            collection: that was searched or written to; for the trace alone.
            num_tokens: that were encoded; for the trace alone.
        """
        self._stage_seconds.labels(stage).observe(seconds)
        note_stage(stage, seconds, ended=ended, collection=collection, num_tokens=num_tokens)

    def add_to_queue(self, lane: Kind, *, tokens: int, requests: int) -> None:
        """How much more or less waits in a lane; the lanes of several batchers add up."""
        self._queue_tokens.labels(lane).inc(tokens)
        self._queue_requests.labels(lane).inc(requests)

    def watch_queue(self, lane: Kind, age_seconds: Callable[[], float]) -> Callable[[], None]:
        """Ask for the age of a lane's oldest request at each scrape; 0 where none waits. Returns what ends it.

        Of several batchers the oldest counts.
        """
        ages = self._ages[lane]
        ages.append(age_seconds)
        self._queue_age_seconds.labels(lane).set_function(lambda: max((each() for each in ages), default=0.0))
        return lambda: ages.remove(age_seconds)

    def watch_part(self, part: Child, is_ready: Callable[[], bool], pid: Callable[[], int | None]) -> None:
        """Ask at each scrape whether a part is ready, and what its process takes; `pid` is None without one."""
        self._ready.labels(part).set_function(is_ready)
        self._pids[part] = pid

    def watch_disk(self, part: Child, usage: Callable[[], tuple[float, float]]) -> None:
        """Ask at each scrape for size and free bytes of the disk that a part writes to."""
        self._disk_size_bytes.labels(part).set_function(lambda: usage()[0])
        self._disk_free_bytes.labels(part).set_function(lambda: usage()[1])

    def observe_batch(self, lane: Kind, *, tokens: int, texts: int, seconds: float) -> None:
        """A batch that the encoder finished."""
        self._batch_tokens.labels(lane).observe(tokens)
        self._batch_texts.labels(lane).observe(texts)
        self._encoder_busy_seconds.labels(lane).inc(seconds)
        self._tokens.labels(lane).inc(tokens)

    def note_prefixes(self, figures: PrefixFigures) -> None:
        """What became of shared openings; `held_tokens` is the change, so that several workers add up."""
        self._prefix_lookups.labels("hit").inc(figures.hits)
        self._prefix_lookups.labels("miss").inc(figures.misses)
        self._prefix_saved_tokens.inc(figures.saved_tokens)
        self._prefix_evictions.inc(figures.evictions)
        self._prefix_tokens.inc(figures.held_tokens)

    def count_encode_failure(self, reason: EncodeFailure) -> None:
        """A batch that raised, or a request with an embedding that was refused."""
        self._encode_failures.labels(reason).inc()

    def count_cached_queries(self, *, hit: int = 0, miss: int = 0, shared: int = 0) -> None:
        """Texts of a request by how they get their embedding; those that the batcher turned away are not counted."""
        for outcome, number in {"hit": hit, "miss": miss, "shared": shared}.items():
            self._cached_queries.labels(outcome).inc(number)

    def count_query_cache_eviction(self) -> None:
        """An embedding left the cache for others."""
        self._cache_evictions.inc()

    def watch_query_cache(self, num_bytes: Callable[[], int]) -> None:
        """Ask at each scrape what the cache takes up."""
        self._cache_bytes.set_function(num_bytes)

    def watch_upstreams(self, number: int, is_serving: Callable[[int], bool]) -> None:
        """Ask at each scrape which of the upstreams serve; they are named by their place in the settings."""
        for index in range(number):
            self._upstream_serving.labels(str(index)).set_function(partial(is_serving, index))
            for outcome in get_args(UpstreamOutcome):
                self._upstream_calls.labels(str(index), outcome)

    def count_upstream_call(self, index: int, outcome: UpstreamOutcome) -> None:
        """How a call to the upstream in this place ended."""
        self._upstream_calls.labels(str(index), outcome).inc()

    def count_truncated(self, num_texts: int) -> None:
        """Texts that were cut because their request allowed it."""
        self._truncated.inc(num_texts)

    def count_rejection(self, reason: RejectionReason) -> None:
        """A request that was turned away, or not served in time."""
        self._rejections.labels(reason).inc()

    def count_child_event(self, child: Child, event: str) -> None:
        """What `Supervised` tells of a child process; counted is that it was started again."""
        if event == "restarted":
            self._worker_restarts.labels(child).inc()

    def count_documents(self, *, indexed: int = 0, unchanged: int = 0, failed: int = 0) -> None:
        """Documents of an ingest, by outcome."""
        for outcome, number in {"indexed": indexed, "unchanged": unchanged, "failed": failed}.items():
            self._documents.labels(outcome).inc(number)

    def observe_store_call(self, operation: str, seconds: float) -> None:
        """One call to the store; `operation` is the method's name."""
        self._store_call_seconds.labels(operation).observe(seconds)

    def count_store_errors(self, operation: str, number: int = 1) -> None:
        """Calls to the store that failed by no fault of their caller."""
        self._store_errors.labels(operation).inc(number)

    def set_collections(self, points_and_bytes: Mapping[str, tuple[int, int | None]]) -> None:
        """Documents and bytes by collection; beyond the 100 largest they are one series, `(other)`."""
        self._store_points.clear()
        self._store_bytes.clear()
        by_size = sorted(points_and_bytes.items(), key=lambda item: item[1][0], reverse=True)
        for rank, (name, (num_points, num_bytes)) in enumerate(by_size):
            label = name if rank < _MAX_COLLECTIONS else _OTHER_COLLECTIONS
            self._store_points.labels(label).inc(num_points)
            if num_bytes is not None:
                self._store_bytes.labels(label).inc(num_bytes)

    def note_index_build(self, outcome: BuildOutcome | None, seconds: float) -> None:
        """How the build of an index ended, and after how long; None is that one begins."""
        self._index_building.set(outcome is None)
        if outcome is not None:
            self._index_build_seconds.labels(outcome).observe(seconds)

    def set_reindexes(self, stages: Mapping[ReindexStage, int], num_behind: int) -> None:
        """Re-indexes by stage, and the changed documents that their standbys lack."""
        for stage in get_args(ReindexStage):
            self._reindexes.labels(stage).set(stages.get(stage, 0))
        self._reindex_behind.set(num_behind)

    def set_build(self, **facts: str) -> None:
        """Version, checkpoint, fingerprint and the like, as labels of one constant series."""
        self._build.info(facts)
