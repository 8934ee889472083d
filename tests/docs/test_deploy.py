"""The files in deploy/ fit each other and the product: ports, probes, times to stop, metrics."""

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from consumerkit.cli.main import app
from consumerkit.monitoring import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
GRACE, MARGIN, STALL = 30, 5, 60  # a worker's and a supervisor's defaults


def _metrics() -> set[str]:
    registry = CollectorRegistry()
    Metrics(registry)
    return {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}


def _workload() -> dict[str, Any]:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    (found,) = [document for document in documents if document["kind"] == "Deployment"]
    pod: dict[str, Any] = found["spec"]["template"]["spec"]
    return pod


def test_alerts_use_metrics_that_exist() -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus-rules.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    used = {name for rule in rules for name in re.findall(r"consumerkit_\w+", rule["expr"])}
    assert used
    assert used <= _metrics()
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)


def test_a_pod_is_probed_where_it_serves_and_has_time_to_stop() -> None:
    pod = _workload()
    (container,) = pod["containers"]
    address = container["args"][container["args"].index("--http") + 1]
    assert container["ports"] == [{"name": "http", "containerPort": int(address.rpartition(":")[2])}]
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert (probes["livenessProbe"]["path"], probes["readinessProbe"]["path"]) == ("/live", "/ready")
    assert pod["terminationGracePeriodSeconds"] > GRACE + MARGIN


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
