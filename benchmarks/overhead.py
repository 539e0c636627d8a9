"""What metrics, logs and traces cost at full load: services with and without them, in turn, on this machine.

    python -m benchmarks.overhead [--rounds 7] [--queries 300] [--clients 8] [--json FILE]

All search the same two documents, `--clients` clients at once, with short queries that no cache knows. `unobserved` is
the service with every method of `Metrics` replaced by one that does nothing and without a log, which no setting can do;
then the service as it comes, with a JSON log, and with a JSON log and one trace in ten sent to a collector here. While
it is not its turn a service is stopped by a signal. Ratios are of requests/s and of the processor time that a request
takes in all processes of a service, medians of the rounds' own ratios; processor time is the steadier one.
"""

import argparse
import json
import logging
import os
import runpy
import signal
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from benchmarks.bench.load import closed
from benchmarks.running import (
    Service,
    free_port,
    processor_seconds,
    start_service,
    stop,
    texts_of_lengths,
    wait_until_ready,
    write_json,
)
from service.metrics import Metrics

MODES = {
    "unobserved": {},
    "metrics and text log": {},
    "metrics and JSON log": {"log_format": "json"},
    "traces, one in ten": {"log_format": "json", "tracing": "true"},
}
MAX_COSTS = {"metrics and text log": 0.03, "metrics and JSON log": 0.03, "traces, one in ten": 0.05}
_UNOBSERVED = "--unobserved"
_WORDS = (4, 8, 12)


def main() -> int:
    if _UNOBSERVED in sys.argv:
        return serve_unobserved(sys.argv[sys.argv.index(_UNOBSERVED) + 1 :])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--queries", type=int, default=300, help="a round and service")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        os.environ |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.enter_context(collector()),
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.1",
        }
        services = {mode: stack.enter_context(running(mode)) for mode in MODES}
        rounds = [measure(services, arguments, number) for number in range(arguments.rounds + 1)][1:]  # the first warms
    return report(rounds, arguments.json)


def serve_unobserved(command: Sequence[str]) -> int:
    """Runs `python -m MODULE ...` without what is measured here."""
    for name, method in vars(Metrics).items():
        if callable(method) and not name.startswith("_"):
            setattr(Metrics, name, (lambda *_, **__: lambda: None) if name.startswith("watch_") else _nothing)
    logging.disable(logging.CRITICAL)
    sys.argv = list(command[2:])
    runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    return 0


def _nothing(*_: object, **__: object) -> None:
    pass


@contextmanager
def collector(kept: list[bytes] | None = None) -> Iterator[str]:
    """Takes spans, each call's as protobuf into `kept`; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if kept is not None:
                kept.append(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def running(mode: str) -> Iterator[Service]:
    """A service in this mode, with two documents; stopped by a signal."""
    prefix = [sys.executable, "-m", "benchmarks.overhead", _UNOBSERVED] if mode == "unobserved" else []
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log.txt"
        service = start_service(free_port(), Path(directory) / "store", log=log, prefix=prefix, **MODES[mode])
        try:
            wait_until_ready(service)
            documents = [{"id": "a", "text": "Cats sleep a lot."}, {"id": "b", "text": "Dogs bark."}]
            httpx.post(f"{service.url}/documents", json={"documents": documents}, timeout=60).raise_for_status()
            send(service, signal.SIGSTOP)
            yield service
        finally:
            send(service, signal.SIGCONT)
            stop(service)


def send(service: Service, number: signal.Signals) -> None:
    for process in service.family():
        process.send_signal(number)


def measure(services: dict[str, Service], arguments: argparse.Namespace, number: int) -> dict[str, dict[str, float]]:
    """Requests/s and processor milliseconds a request of each, each round beginning with another."""
    modes = list(services)
    modes = modes[number % len(modes) :] + modes[: number % len(modes)]
    found = {}
    for index, mode in enumerate(modes):
        texts = texts_of_lengths([_WORDS[n % 3] for n in range(arguments.queries)], seed=100 * number + index)
        bodies = [json.dumps({"query": text}).encode() for text in texts]
        service = services[mode]
        send(service, signal.SIGCONT)
        before = processor_seconds(service.family())
        loaded = closed(int(service.url.rsplit(":", 1)[1]), "/search", bodies, clients=arguments.clients)
        spent = processor_seconds(service.family()) - before
        send(service, signal.SIGSTOP)
        found[mode] = {"requests/s": len(bodies) / loaded.seconds, "processor ms": 1000 * spent / len(bodies)}
    return found


def report(rounds: list[dict[str, dict[str, float]]], file: Path | None) -> int:
    """Prints the table; 1 when something costs more than it may."""
    print("| service | requests/s | of unobserved | processor ms a request | of unobserved |")
    print("| --- | ---: | ---: | ---: | ---: |")
    is_dear = False
    for mode in MODES:
        speed, time = (statistics.median(each[mode][key] for each in rounds) for key in ("requests/s", "processor ms"))
        ratios = {
            key: statistics.median(each[mode][key] / each["unobserved"][key] for each in rounds)
            for key in ("requests/s", "processor ms")
        }
        print(f"| {mode} | {speed:.1f} | {ratios['requests/s']:.3f} | {time:.2f} | {ratios['processor ms']:.3f} |")
        is_dear |= ratios["processor ms"] > 1 + MAX_COSTS.get(mode, 0.0)
    write_json(file, rounds)
    return int(is_dear)


if __name__ == "__main__":
    sys.exit(main())
