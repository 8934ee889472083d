"""The numbers that `benchmarks/PROFILE.md` quotes are those of the result beside it."""

import json
from typing import Any

import pytest

from tests.docs.markdown import ROOT

RESULT: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "latest.json").read_text())
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "benchmarks" / "PROFILE.md").read_text()
ROWS = {
    "faststream": "FastStream",
    "bare-message": "bare loop, one commit per message",
    "bare-group": "bare loop, 500 per commit",
    "confluent": "consumerkit on confluent-kafka",
    "aiokafka": "consumerkit on aiokafka",
}


def _row(name: str, heading: str) -> list[str]:
    """The cells of a row in the table with this heading."""
    (table,) = (one for one in PAGE.split("\n\n") if one.startswith(heading))
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {ROWS[name]} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def _spread(base: str, name: str, form: str) -> str:
    ratio = RESULT["ratios"][name][base]
    return f"{ratio['median']:{form}} ({ratio['min']:{form}} to {ratio['max']:{form}})"


@pytest.mark.parametrize("name", ROWS)
def test_rates_and_cpu_time_are_the_results(name: str) -> None:
    cells = _row(name, "| | messages a second |")
    assert cells[1] == f"{RESULT['rates'][name]['median']:,.0f}"
    assert cells[2] == f"{RESULT['cpu_microseconds_per_message'][name]['median']:,.0f}"


@pytest.mark.parametrize("name", ["confluent", "aiokafka"])
def test_ratios_are_the_results(name: str) -> None:
    assert _row(name, "| rate |")[1:] == [_spread("faststream", name, ".1f"), _spread("bare-group", name, ".2f")]


def test_the_bare_loops_ratio_is_that_of_each_round() -> None:
    rates = [{name: one["messages"] / one["seconds"] for name, one in each.items()} for each in RESULT["rounds"]]
    *some, last = (f"{rate['bare-group'] / rate['faststream']:.0f}" for rate in rates)
    assert f"was {', '.join(some)} and {last} in the five rounds" in PAGE


def test_the_readme_quotes_the_same_ratios() -> None:
    text = " ".join(README.split())
    for name in ("confluent", "aiokafka"):
        told, bare = RESULT["ratios"][name]["faststream"], RESULT["ratios"][name]["bare-group"]
        assert f"{told['median']:.0f} times" in text
        assert f"({told['min']:.0f} to {told['max']:.0f}" in text
        assert f"{bare['median']:.2f}" in text
