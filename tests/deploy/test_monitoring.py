"""Dashboards, rules and alerts against the code that they are about, and against the runbook."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from service.metrics import Metrics
from service.settings import variables

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text("utf-8")) for path in (GRAFANA / "dashboards").glob("*.json")}
GROUPS = [
    group
    for name in ("rules.yml", "alerts.yml")
    for group in yaml.safe_load((PROMETHEUS / name).read_text("utf-8"))["groups"]
]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
OWN_OF_PROMETHEUS = {"up", "ALERTS"}
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"], "gauge": [""]}
RUNBOOK = (ROOT / "docs" / "operations.md").read_text("utf-8")


def code_names() -> set[str]:
    """Every series that the code can write; those of child processes are named as the process's own."""
    registry = CollectorRegistry()
    Metrics(registry)
    names = {family.name + suffix for family in registry.collect() for suffix in SUFFIXES[family.type]}
    process = {name for name in names if name.startswith("process_")}
    return names | {f"eoseek_{child}_{name}" for child in ("encoder", "store") for name in process}


def panels() -> list[tuple[str, dict]]:
    return [(name, panel) for name, dashboard in DASHBOARDS.items() for panel in dashboard["panels"]]


def expressions() -> list[str]:
    found = [target["expr"] for _, panel in panels() for target in panel["targets"]]
    found += [rule["expr"] for rule in RULES]
    return found + [each["query"] for dashboard in DASHBOARDS.values() for each in dashboard["templating"]["list"]]


def names_in(expression: str) -> set[str]:
    """The metrics of an expression: what stands before a selector or is spelled as one of ours."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    ours = re.findall(r"\b(?:job:)?(?:eoseek|process)_\w+(?::\w+)?", bare)
    return {*ours, *re.findall(r"([a-zA-Z_:][\w:]*)\s*\{", bare)}


def test_monitoring_uses_only_metrics_that_the_code_or_a_rule_writes():
    known = code_names() | {rule["record"] for rule in RULES if "record" in rule} | OWN_OF_PROMETHEUS
    used = set().union(*map(names_in, expressions()))

    assert used - known == set()


def test_monitoring_shows_every_metric_of_the_service_somewhere():
    def families(names):
        return {re.sub(r"_(total|bucket|sum|count|info)$", "", name) for name in names if "process_" not in name}

    used = set().union(*map(names_in, expressions()))

    assert families(code_names()) - families(used) == set()


def test_monitoring_every_recorded_series_is_used():
    recorded = {rule["record"] for rule in RULES if "record" in rule}

    assert recorded - set().union(*map(names_in, expressions())) == set()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_leads_to_a_section_of_the_runbook(alert):
    name = alert["alert"]
    section = re.search(rf"^### {name}\n\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)

    assert alert["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert section
    assert all(part in section[1] for part in ("**Means**", "**Look at**", "**Do**"))


def test_runbook_has_no_section_of_an_alert_that_does_not_exist_and_names_settings_that_do():
    settings = set(variables())

    assert set(re.findall(r"^### (\w+)", RUNBOOK, re.MULTILINE)) == {alert["alert"] for alert in ALERTS}
    assert set(re.findall(r"EOSEEK_[A-Z_]+[A-Z]", RUNBOOK)) - settings == set()


def test_every_alert_has_a_unit_test_in_which_it_fires_and_one_in_which_it_does_not():
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text("utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {alert["alert"] for alert in ALERTS}

    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


@pytest.mark.parametrize(
    ("name", "panel"), panels(), ids=lambda value: value if isinstance(value, str) else value["id"]
)
def test_panel_says_what_to_do_when_it_is_red(name, panel):
    colors = {step["color"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]}

    assert ("Red: " in panel["description"]) == ("red" in colors)
    assert "red" in colors or "no limit of its own: " in panel["description"]
    alerts = set(re.findall(r"\bEoseek\w+", panel["description"]))
    assert alerts <= {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboard_panels_lie_side_by_side_and_choose_by_variables_that_exist(name):
    dashboard = DASHBOARDS[name]
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    used = set(re.findall(r"\$(\w+)", json.dumps([panel["targets"] for panel in dashboard["panels"]])))

    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) == 23
    assert used - {"__rate_interval"} == {each["name"] for each in dashboard["templating"]["list"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_dashboards_ask_the_data_source_that_is_provisioned():
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text("utf-8"))
    uids = {source["uid"] for source in sources["datasources"]}

    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) == 4
    assert {panel["datasource"]["uid"] for _, panel in panels()} == uids


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus has it)"
)


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_takes_configuration_and_rules():
    promtool("check", "config", "prometheus.yml")


@needs_promtool
def test_promtool_unit_tests_of_the_alerts_pass():
    promtool("test", "rules", "alerts_test.yml")
