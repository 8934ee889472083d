"""The files in deploy/ fit each other and the product: ports, probes, times to stop, metrics."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from consumerkit.cli.main import app
from consumerkit.monitoring import Metrics
from consumerkit.monitoring.fixed_words import BACKLOG
from consumerkit.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
GRACE, MARGIN, STALL = 30, 5, 60  # a worker's and a supervisor's defaults


def _metrics() -> dict[str, set[str]]:
    """Return the names that can be asked for, each with its labels."""
    registry = CollectorRegistry()
    Metrics(registry)
    found: dict[str, set[str]] = {}
    for collector, names in registry._collector_to_names.items():
        for name in names:
            found[name] = set(collector._labelnames)  # type: ignore[attr-defined]
    return found


def _workload() -> dict[str, Any]:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    (found,) = [document for document in documents if document["kind"] == "Deployment"]
    pod: dict[str, Any] = found["spec"]["template"]["spec"]
    return pod


def _check(expressions: list[str]) -> None:
    """Each expression has brackets that match, and names metrics that exist with labels that they have."""
    exist = _metrics()
    for expression in expressions:
        assert all(expression.count(a) == expression.count(b) for a, b in ("()", "[]", "{}")), expression
        names = re.findall(r"consumerkit_\w+", expression)
        assert names, expression
        labels = {"le", "job", "instance"}
        for name in names:
            assert name in exist, expression
            labels |= exist[name]
        used = re.findall(r"(?:by|without) \(([^)]*)\)", expression) + re.findall(r"(?<=[{,])\s*(\w+)\s*=", expression)
        assert {word.strip() for group in used for word in group.split(",")} <= labels, expression


def test_alerts_use_metrics_that_exist() -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus-rules.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    _check([rule["expr"] for rule in rules])
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)
    assert len({rule["alert"] for rule in rules}) == len(rules)


def test_an_alert_on_what_is_measured_ignores_an_old_measurement() -> None:
    """During an outage these gauges keep their values."""
    groups = yaml.safe_load((DEPLOY / "prometheus-rules.yaml").read_text())["groups"]
    measured = [f"consumerkit_{name}" for name in (*BACKLOG, "outbox_waiting", "outbox_oldest_seconds")]
    found = 0
    for rule in (rule for group in groups for rule in group["rules"]):
        if any(re.search(rf"\b{name}\b", rule["expr"]) for name in measured):
            found += 1
            assert "consumerkit_measured_timestamp_seconds" in rule["expr"], rule["alert"]
    assert found >= 4


def test_the_dashboard_uses_metrics_that_exist_and_its_panels_do_not_overlap() -> None:
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    _check([target["expr"] for panel in panels for target in panel["targets"]])
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)


def test_the_scaler_scales_the_workload_by_work_left() -> None:
    scaler = yaml.safe_load((DEPLOY / "keda.yaml").read_text())["spec"]
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert scaler["scaleTargetRef"]["name"] in [document["metadata"]["name"] for document in documents]
    queries = [trigger["metadata"]["query"] for trigger in scaler["triggers"]]
    _check(queries)
    assert ["work_left{" in query for query in queries] == [True, False]
    for trigger in scaler["triggers"]:
        # An old value is none, and none changes nothing.
        assert "consumerkit_measured_timestamp_seconds" in trigger["metadata"]["query"]
        assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert scaler["minReplicaCount"] >= 1  # nothing is measured without a worker


def test_a_pod_is_probed_where_it_serves_and_has_time_to_stop() -> None:
    pod = _workload()
    (container,) = pod["containers"]
    address = container["args"][container["args"].index("--http") + 1]
    assert container["ports"] == [{"name": "http", "containerPort": int(address.rpartition(":")[2])}]
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert (probes["livenessProbe"]["path"], probes["readinessProbe"]["path"]) == ("/live", "/ready")
    assert pod["terminationGracePeriodSeconds"] > GRACE + MARGIN


def test_the_environment_sets_settings_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = _workload()["containers"]
    names = [variable["name"] for variable in container["env"]]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value", "postgresql+psycopg://shop@db/shop"))
    settings = Settings()
    assert {settings.origin("database"), settings.origin("kafka", "bootstrap")} == set(names)


def test_the_unit_has_time_to_stop() -> None:
    unit = (DEPLOY / "consumerkit.service").read_text()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(seconds) > GRACE + MARGIN
    assert "KillMode=mixed" in unit
    assert "Type=notify" in unit
    (watchdog,) = re.findall(r"^WatchdogSec=(\d+)$", unit, re.MULTILINE)
    assert int(watchdog) > STALL  # the worker's own watchdog tells the reason


def test_every_option_that_is_used_exists() -> None:
    text = "".join(file.read_text() for file in sorted(DEPLOY.iterdir()))
    help_text = CliRunner().invoke(app, ["run", "--help"]).output
    used = set(re.findall(r"(?<=[\s\[\"])--(?:workers|http|log-format|log-level|only|adopt)\b", text))
    assert used == {"--workers", "--http", "--log-format"}
    assert all(option in help_text for option in used)
