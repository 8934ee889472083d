"""The result: rates, ratios with their spread, versions and machine."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import confluent_kafka
import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.meter import Measured
from benchmarks.stage import Stage

Result = dict[str, Any]
BASES = ("faststream", "bare-message", "bare-group")
TARGETS = {"faststream": 60.0, "bare-group": 0.8}
LABELS = {
    "faststream": "FastStream, one commit per message",
    "bare-message": "bare loop, one commit per message",
    "bare-group": "bare loop, 500 per commit",
    "confluent": "consumerkit on confluent-kafka",
    "aiokafka": "consumerkit on aiokafka",
}
_LIBRARIES = ("consumerkit", "confluent-kafka", "aiokafka", "faststream", "SQLAlchemy", "psycopg", "pydantic")


def load() -> str:
    """Return the machine's load averages."""
    return " ".join(f"{part:.2f}" for part in os.getloadavg())


def result(
    rounds: Sequence[dict[str, Measured]], processed: dict[str, int], stage: Stage, size: dict[str, int], before: str
) -> Result:
    """Return all that is to be kept."""
    rates = {name: [one[name].messages / one[name].seconds for one in rounds] for name in rounds[0]}
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "size": size,
        "rates": {name: spread(values) for name, values in rates.items()},
        "cpu_microseconds_per_message": {
            name: spread([one[name].cpu_seconds / one[name].messages * 1e6 for one in rounds]) for name in rounds[0]
        },
        "messages_per_commit": {
            name: spread([one[name].messages / one[name].commits for one in rounds]) for name in rounds[0]
        },
        # Of one round each, so that what disturbs the machine for longer than a round disturbs both.
        "ratios": {
            name: {
                base: spread([a / b for a, b in zip(values, rates[base], strict=True)])
                for base in BASES
                if base in rates
            }
            for name, values in rates.items()
            if name not in BASES
        },
        "processed_exactly_once": processed,
        "rounds": [{name: told._asdict() for name, told in one.items()} for one in rounds],
        "versions": versions(stage),
        "machine": {**machine(), "load_before": before, "load_after": load()},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions(stage: Stage) -> dict[str, str]:
    """Return what runs, with its versions."""
    return {
        "Python": platform.python_version(),
        "Kafka": stage.kafka.version,
        "PostgreSQL": stage.postgres.version,
        "librdkafka": confluent_kafka.libversion()[0],
        "psycopg's implementation": psycopg.pq.__impl__,
        **{name: _version(name) for name in _LIBRARIES},
    }


def machine() -> dict[str, Any]:
    """Return what it runs on."""
    models = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) // 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_mebibytes": memory[0] if memory else None,
        "system": platform.platform(),
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


def show(console: Console, told: Result) -> None:
    """Print the tables."""
    rates = Table(title="Messages per second, one process", caption=caption(told))
    for column in ("", "median", "min", "max", "CPU µs/message", "messages/commit"):
        rates.add_column(column, justify="left" if not column else "right")
    for name, rate in told["rates"].items():
        cpu, size = told["cpu_microseconds_per_message"][name], told["messages_per_commit"][name]
        numbers = [f"{rate[key]:,.0f}" for key in ("median", "min", "max")]
        rates.add_row(_label(name), *numbers, f"{cpu['median']:,.0f}", f"{size['median']:,.0f}")
    console.print(rates)
    if told["ratios"]:
        console.print(_ratios(told))


def _ratios(told: Result) -> Table:
    table = Table(title="Ratio to the others within a round: median (least to most)")
    bases = list(next(iter(told["ratios"].values())))
    table.add_column("")
    for base in bases:
        target = f"\ntarget {TARGETS[base]:g}" if base in TARGETS else ""
        table.add_column(f"to {LABELS[base]}{target}", justify="right")
    for name, ratios in told["ratios"].items():
        cells = [f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in ratios.values()]
        table.add_row(_label(name), *cells)
    return table


def _label(name: str) -> str:
    place, _, lanes = name.rpartition("-")
    return f"{LABELS[place]}, {lanes} lanes" if lanes.isdigit() else LABELS[name]


def caption(told: Result) -> str:
    """Return the line about versions, machine and load."""
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    machine = told["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"
    return f"{versions}\n{where}; load {machine['load_before']} before, {machine['load_after']} after"
