"""The trace of one search by a real service, as a collector gets it, drawn as text.

    python -m benchmarks.trace [--query TEXT]

The service holds the demo's documents, and the search is the first of that query, so no cache has its vector. Needs the
extra `otel`. Exit code 1 where the stages' durations add up to less than 95 % of the request's.
"""

import argparse
import os
import sys

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.overhead import collector
from benchmarks.running import running_service
from eoseek.demo import standard_library_documents

MIN_SHARE = 0.95
_NUM_DOCUMENTS = 64
_WIDTH = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--query", default="How do I merge two sorted lists?")
    arguments = parser.parse_args()
    documents = [
        {"id": document.id, "text": document.text} for document in standard_library_documents()[:_NUM_DOCUMENTS]
    ]
    bodies: list[bytes] = []
    with collector(bodies) as address:
        os.environ |= {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{address}/v1/traces", "OTEL_TRACES_SAMPLER": "always_on"}
        with running_service(tracing="true") as service, httpx.Client(base_url=service.url, timeout=120) as client:
            client.post("/documents", json={"documents": documents}).raise_for_status()
            for query in (f"Before: {arguments.query}", arguments.query):  # the first of all opens the store's files
                client.post("/search", json={"query": query}).raise_for_status()
    request, stages = last_search(spans_of(bodies))
    print("\n".join(drawn(request, stages)))
    return int(sum(map(milliseconds, stages)) < MIN_SHARE * milliseconds(request))


def spans_of(bodies: list[bytes]) -> list[Span]:
    """Of all calls to the collector."""
    return [
        span
        for body in bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def last_search(spans: list[Span]) -> tuple[Span, list[Span]]:
    """The span of the request, and those of its stages in their order."""
    request = max((span for span in spans if span.name == "POST /search"), key=lambda span: span.start_time_unix_nano)
    stages = [span for span in spans if span.parent_span_id == request.span_id]
    return request, sorted(stages, key=lambda span: span.start_time_unix_nano)


def drawn(request: Span, stages: list[Span]) -> list[str]:
    """A line for each span: name, milliseconds, and where in the request it was; the last line adds up."""
    width = max(len(span.name) for span in (request, *stages)) + 2
    scale = _WIDTH / milliseconds(request)
    lines = []
    for span in (request, *stages):
        before = round(scale * (span.start_time_unix_nano - request.start_time_unix_nano) / 1e6)
        bar = " " * before + "█" * max(1, round(scale * milliseconds(span)))
        name = span.name if span is request else f"  {span.name}"
        lines.append(f"{name:{width}} {milliseconds(span):7.2f} ms  {bar}")
    total = sum(map(milliseconds, stages))
    lines.append(f"{'stages':{width}} {total:7.2f} ms, {100 * total / milliseconds(request):.1f} % of the request")
    return lines


def milliseconds(span: Span) -> float:
    return float(span.end_time_unix_nano - span.start_time_unix_nano) / 1e6


if __name__ == "__main__":
    sys.exit(main())
