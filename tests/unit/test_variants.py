"""`make test` runs each test beside servers once, and each environment has its share."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from tests import variants

PATH = "tests/integration/test_parking.py"


def item(name: str, *values: object, marks: tuple[str, ...] = (), path: str = PATH) -> Any:
    words = "-".join(str(value) for value in values)
    spec = SimpleNamespace(id=words, params=dict(enumerate(values)))
    given = {"callspec": spec} if values else {}
    nodeid = f"{path}::{name}" + f"[{words}]" * bool(values)
    return SimpleNamespace(nodeid=nodeid, get_closest_marker=lambda mark: mark in marks or None, **given)


def left(*items: Any) -> set[str]:
    out = {id(one) for one in variants.further(items)}
    return {one.nodeid.rpartition("::")[2] for one in items if id(one) not in out}


def test_one_environment_of_each_case_is_left() -> None:
    found = left(*(item("test_a", base, case) for base in ("psycopg", "asyncpg", "sqlite") for case in ("x", "y", 3)))
    assert sorted(name.rstrip("]").rpartition("-")[2] for name in found) == ["3", "x", "y"]


def test_two_environments_of_one_test_are_one_choice() -> None:
    pairs = [item("test_a", base, client) for base in ("postgresql", "sqlite") for client in ("confluent", "aiokafka")]
    assert len(left(*pairs)) == 1


def test_the_choice_depends_neither_on_the_order_nor_on_the_process() -> None:
    both = [item("test_a", "sqlite"), item("test_a", "postgresql")]
    assert left(*both) == left(*reversed(both)) == {"test_a[postgresql]"}


def test_each_environment_has_its_share() -> None:
    bases = ("psycopg", "asyncpg", "sqlite")
    found = left(*(item(f"test_{number}", base) for number in range(600) for base in bases))
    share = Counter(name.rpartition("[")[2].rstrip("]") for name in found)
    assert share.total() == 600
    assert min(share[base] for base in bases) > 150


@pytest.mark.parametrize(
    "one",
    [
        item("test_plain"),
        item("test_cases", "x"),
        item("test_about", "sqlite", marks=("every_variant",)),
        item("test_contract", "sqlite", path="tests/contracts/test_ledger.py"),
    ],
    ids=["no parameter", "no environment", "marked", "contract"],
)
def test_what_runs_everywhere_stays(one: Any) -> None:
    other = item("test_about", "postgresql", marks=("every_variant",))
    again = item("test_contract", "postgresql", path="tests/contracts/test_ledger.py")
    assert one.nodeid.rpartition("::")[2] in left(one, other, again)


def test_a_further_case_is_not_chosen() -> None:
    assert left(item("test_long", marks=("variant",)), item("test_short")) == {"test_short"}
