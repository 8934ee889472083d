"""Which variants of a test `make test` runs.

Most tests beside servers can run on two databases, three drivers or two Kafka clients. What differs between those is
held by the contract tests, which always run on all. Every other test runs once in `make test`: its variants take turns
from test to test and from case to case, so each environment has its share. `make test-variants` runs the rest.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

ENVIRONMENTS = frozenset(
    {"postgresql", "psycopg", "asyncpg", "sqlite", "pysqlite", "aiosqlite", "confluent", "aiokafka"}
)
"""The values of parameters that say where a test runs; all others say what it tests."""

_THINNED = ("tests/integration/", "tests/crash/")


def further_cases(*values: object) -> list[Any]:
    """Return values of a parameter which only `make test-variants` runs."""
    return [pytest.param(value, marks=pytest.mark.variant) for value in values]


def further(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Return what `make test-variants` runs in addition: what is marked so, and all variants of a test but one."""
    cases: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    marked = []
    for item in items:
        if item.get_closest_marker("variant"):
            marked.append(item)
        elif (case := _case(item)) is not None:
            cases[case].append(item)
    return marked + [item for case, some in cases.items() for item in _all_but_one(case, some)]


def _case(item: pytest.Item) -> str | None:
    """Return the name of the test and of its case, whatever the environment; None if the test runs everywhere."""
    spec = getattr(item, "callspec", None)
    if spec is None or not item.nodeid.startswith(_THINNED) or item.get_closest_marker("every_variant"):
        return None
    environments = {value for value in spec.params.values() if isinstance(value, str) and value in ENVIRONMENTS}
    if not environments:
        return None
    rest = [word for word in spec.id.split("-") if word not in environments]
    return "-".join([item.nodeid.partition("[")[0], *rest])


def _all_but_one(case: str, variants: list[pytest.Item]) -> list[pytest.Item]:
    """Not Python's own hash, which differs from process to process."""
    chosen = zlib.crc32(case.encode()) % len(variants)
    return [item for number, item in enumerate(sorted(variants, key=lambda item: item.nodeid)) if number != chosen]
