"""Every expression of the dashboards, rules and alerts against a real Prometheus that scrapes a real service.

    python -m benchmarks.dashboards [--seconds 30] [--checkpoint default]

Starts a service, a second one that has it as its upstream, and Prometheus (Debian's package `prometheus`) with the
repository's rules, sends a light mixed load, provokes what is empty by nature (refused, late and failed requests, a
killed worker, a store that stands still), and asks Prometheus for each expression. Exit code 1 when one gives no
number. An alert is asked for what it compares, since a quiet one has no data.
"""

import argparse
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import yaml

from benchmarks.running import Service, running_service, wait_until_ready

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
SCRAPE_SECONDS = 1
RATE = "5m"  # for Grafana's $__rate_interval; covers the whole run
QUIET_SECONDS = 5  # for the last events to be scraped and the rules to be evaluated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="how long the mixed load lasts")
    parser.add_argument("--checkpoint", default="default", help="as EOSEEK_ENCODER__CHECKPOINT")
    arguments = parser.parse_args()
    if shutil.which("prometheus") is None:
        parser.error("prometheus is not installed; Debian's package of that name has it")
    model = {"encoder__checkpoint": arguments.checkpoint, "encoder__max_length": "128"}
    settings = {"encoder__threads": "1", "batching__max_queue_tokens": "256", "store__timeout_seconds": "2"}
    with (
        running_service(**model, **settings) as service,
        running_service(**model, encoder__backend="remote", encoder__urls=json.dumps([service.url])) as front,
        running_prometheus(service.url, front.url) as prometheus,
    ):
        load(service, arguments.seconds)
        provoke(service)
        time.sleep(QUIET_SECONDS)
        with httpx.Client(base_url=f"{prometheus}/api/v1", timeout=60) as client:
            now = time.time()  # one moment for all: on a slow machine the last answer comes long after the load
            empty = [f"{place}: {each}" for place, each in expressions() if not has_data(client, each, now)]
            empty += [f"{place}: {each}" for place, each in variables() if not label_values(client, each)]
            faults = rule_faults(client)
    print("FAIL" if empty or faults else "PASS", f"{len(expressions())} expressions and {len(variables())} variables")
    for line in [*(f"no data: {each}" for each in empty), *faults]:
        print(line)
    return 1 if empty or faults else 0


@contextmanager
def running_prometheus(*targets: str) -> Iterator[str]:
    """Prometheus with the repository's rules on a free port, scraping `targets`; its URL."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
    job = config["scrape_configs"][0]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [urlsplit(each).netloc for each in targets]}]
    with tempfile.TemporaryDirectory() as directory:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = "{}:{}".format(*free.getsockname())
        (Path(directory) / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={address}",
                "--log.level=warn",
            ]
        )
        try:
            wait_until_up(f"http://{address}/-/ready")
            yield f"http://{address}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def wait_until_up(url: str, limit_seconds: float = 60) -> None:
    """Return when `url` answers 200."""
    start = time.perf_counter()
    while time.perf_counter() - start < limit_seconds:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not answer 200 within {limit_seconds:.0f} s")


def load(service: Service, seconds: float) -> None:
    """Searches, embeddings and documents, a few a second."""
    end = time.perf_counter() + seconds
    number = 0
    with httpx.Client(base_url=service.url, timeout=60) as client:
        while time.perf_counter() < end:
            number += 1
            client.post("/search", json={"query": f"merge {number} sorted lists"}).raise_for_status()
            if number % 4 == 1:
                documents = [{"id": "same", "text": "always the same"}, {"id": str(number), "text": f"text {number}"}]
                client.post("/documents", json={"documents": documents}).raise_for_status()
                client.post("/embed", json={"inputs": f"text {number}", "kind": "document"}).raise_for_status()
            time.sleep(0.25)


def provoke(service: Service) -> None:
    """One of everything that goes wrong."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        client.post("/search", json={"query": 1})
        client.get("/documents/nothing")
        client.post("/documents", content="no json\n", headers={"Content-Type": "application/x-ndjson"})
        client.post("/embed", json={"inputs": "long " * 500, "kind": "document", "truncate": True}).raise_for_status()
        client.post("/search", json={"query": "too late"}, headers={"X-Request-Timeout": "0.001"})
        with ThreadPoolExecutor(16) as crowd:
            body = {"inputs": "many words " * 50, "kind": "query", "truncate": True}
            statuses = list(crowd.map(lambda _: client.post("/embed", json=body).status_code, range(64)))
        assert 429 in statuses, f"a crowd got {set(statuses)}"
        service.worker().kill()
        time.sleep(2 * SCRAPE_SECONDS)
        wait_until_ready(service)
        still = store_process(service)
        still.suspend()
        try:
            status = client.post("/search", json={"query": "a store that stands still"}).status_code
        finally:
            still.resume()
        assert status == 503, f"a store that stands still got {status}"


def store_process(service: Service) -> psutil.Process:
    """The embedded store: the child that no nursery bore."""
    children = psutil.Process(service.process.pid).children()
    return next(child for child in children if "service.child" in child.cmdline())


def dashboards() -> list[tuple[str, dict[str, Any]]]:
    """Name and content of each dashboard."""
    return [(path.stem, json.loads(path.read_text("utf-8"))) for path in sorted((DEPLOY / "grafana").rglob("*.json"))]


def expressions() -> list[tuple[str, str]]:
    """Where it stands and what to ask, of every panel, rule and alert."""
    found = []
    for name, dashboard in dashboards():
        for panel in dashboard["panels"]:
            found += [(f"{name}, {panel['title']}", _chosen(target["expr"])) for target in panel["targets"]]
    for name in ("rules.yml", "alerts.yml"):
        for group in yaml.safe_load((DEPLOY / "prometheus" / name).read_text("utf-8"))["groups"]:
            for rule in group["rules"]:
                found.append((f"{name}, {rule.get('record') or rule['alert']}", _compared(rule["expr"])))
    return found


def _chosen(expression: str) -> str:
    return re.sub(r"\$(?!__)\w+", ".*", expression.replace("$__rate_interval", RATE))


def _compared(expression: str) -> str:
    return re.sub(r"\s(==|!=|>=|<=|>|<)\s", r" \1 bool ", expression)


def variables() -> list[tuple[str, str]]:
    """The dashboards' variables and their queries."""
    return [
        (f"{name}, ${each['name']}", _chosen(each["query"]))
        for name, dashboard in dashboards()
        for each in dashboard["templating"]["list"]
    ]


def has_data(prometheus: httpx.Client, expression: str, now: float) -> bool:
    """Whether it gives a number."""
    answer = prometheus.get("/query", params={"query": expression, "time": now}).json()
    if answer["status"] != "success":
        print(answer["error"], file=sys.stderr)
        return False
    return any(isfinite(float(sample["value"][1])) for sample in answer["data"]["result"])


def label_values(prometheus: httpx.Client, query: str) -> list[str]:
    """What Grafana's label_values(SERIES, LABEL) offers."""
    series, label = query.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
    answer = prometheus.get(f"/label/{label}/values", params={"match[]": series}).json()
    values: list[str] = answer["data"]
    return values


def rule_faults(prometheus: httpx.Client) -> list[str]:
    """Rules that Prometheus could not evaluate."""
    groups = prometheus.get("/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules, "Prometheus knows no rules"
    return [
        f"rule {rule['name']}: {rule['health']} {rule.get('lastError', '')}" for rule in rules if rule["health"] != "ok"
    ]


if __name__ == "__main__":
    sys.exit(main())
