"""The docs list every metric, and no other."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from consumerkit.monitoring import Metrics

PAGE = Path(__file__).parents[3] / "docs/monitoring.md"


def test_the_docs_list_the_metrics_that_exist() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    exist = {
        family.name.removeprefix("consumerkit_") + ("_total" if family.type == "counter" else "")
        for family in registry.collect()
    }
    section = PAGE.read_text().partition("## Metrics")[2].partition("\n## ")[0]
    names = [line.partition(":")[0] for line in section.splitlines() if line.startswith("* `")]
    told = {name for text in names for name in re.findall(r"`(\w+)", text)}
    assert told == exist
