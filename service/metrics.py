"""All metric names of the service, in one place: dashboards and alerts use these and no others.

Base units, `eoseek_` prefix, no ids and no text in labels. The registry is passed in: two apps live in one test.
"""

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

Kind = Literal["query", "document"]
Stage = Literal["tokenize", "queue", "encode", "search", "upsert", "flush"]
RejectionReason = Literal["queue_full", "deadline", "stopping"]
EncodeFailure = Literal["error", "not_finite"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS = tuple(float(2**power) for power in range(4, 18))  # one short query to 131,072
_TEXTS = tuple(float(2**power) for power in range(11))


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
        self._encode_failures = Counter(
            "eoseek_encode_failures", "Batches or requests whose encoding failed.", ["reason"], registry=registry
        )
        self._truncated = Counter("eoseek_truncated", "Texts cut to the model's length on request.", registry=registry)
        self._rejections = Counter(
            "eoseek_rejections", "Requests that the batcher did not serve.", ["reason"], registry=registry
        )
        self._worker_restarts = Counter(
            "eoseek_worker_restarts", "Child processes started again after they died.", ["child"], registry=registry
        )
        self._documents = Counter("eoseek_documents", "Documents taken in, by outcome.", ["outcome"], registry=registry)
        self._store_call_seconds = Histogram(
            "eoseek_store_call_seconds", "Calls to the store.", ["operation"], buckets=_SECONDS, registry=registry
        )
        self._build = Info("eoseek_build", "Version and checkpoint that serve.", registry=registry)
        for lane in get_args(Kind):  # a series that is there from the start can be alerted on
            self.set_queue(lane, tokens=0, requests=0)

    def observe_request(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """Count a finished request; `route` is the template, never the path."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route, method).observe(seconds)

    def observe_stage(self, stage: Stage, seconds: float) -> None:
        """One request's time in one stage."""
        self._stage_seconds.labels(stage).observe(seconds)

    def set_queue(self, lane: Kind, *, tokens: int, requests: int) -> None:
        """What waits in a lane now."""
        self._queue_tokens.labels(lane).set(tokens)
        self._queue_requests.labels(lane).set(requests)

    def observe_batch(self, lane: Kind, *, tokens: int, texts: int, seconds: float) -> None:
        """A batch that the encoder finished."""
        self._batch_tokens.labels(lane).observe(tokens)
        self._batch_texts.labels(lane).observe(texts)
        self._encoder_busy_seconds.labels(lane).inc(seconds)
        self._tokens.labels(lane).inc(tokens)

    def count_encode_failure(self, reason: EncodeFailure) -> None:
        """A batch that raised, or a request with an embedding that was refused."""
        self._encode_failures.labels(reason).inc()

    def count_truncated(self, num_texts: int) -> None:
        """Texts that were cut because their request allowed it."""
        self._truncated.inc(num_texts)

    def count_rejection(self, reason: RejectionReason) -> None:
        """A request that was turned away, or not served in time."""
        self._rejections.labels(reason).inc()

    def count_restart(self, child: str) -> None:
        """A child process that was started again."""
        self._worker_restarts.labels(child).inc()

    def count_documents(self, *, indexed: int = 0, unchanged: int = 0, failed: int = 0) -> None:
        """Documents of an ingest, by outcome."""
        for outcome, number in {"indexed": indexed, "unchanged": unchanged, "failed": failed}.items():
            self._documents.labels(outcome).inc(number)

    def observe_store_call(self, operation: str, seconds: float) -> None:
        """One call to the store; `operation` is the method's name."""
        self._store_call_seconds.labels(operation).observe(seconds)

    def set_build(self, **facts: str) -> None:
        """Version, checkpoint, fingerprint and the like, as labels of one constant series."""
        self._build.info(facts)
