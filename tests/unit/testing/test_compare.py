"""A run is compared with the clean run: what differs is told in sentences."""

from collections import Counter
from typing import Any

from consumerkit.testing.case import Plan, Result
from consumerkit.testing.compare import Where, differences
from consumerkit.testing.run_file import Contents
from consumerkit.testing.verdict import verdict


def result(**given: Any) -> Result:
    nothing: dict[str, Any] = {"tables": {}, "effects": Counter(), "published": Counter(), "dead": {}, "why": {}}
    return Result(plan=Plan("a run", ()), visits=Counter(), was_killed=False, **{**nothing, **given})


def table(*rows: tuple[object, ...], columns: tuple[str, ...] = ("id", "at")) -> dict[str, Contents]:
    return {"orders": Contents(columns, Counter(rows))}


def sentences(clean: Result, found: Result) -> list[str]:
    return [one.sentence for one in differences(clean, found)]


def test_runs_alike_have_no_difference() -> None:
    one = {"tables": table((1, 2)), "effects": Counter(a=1), "published": Counter({("t", b"k", b"v"): 1})}
    assert sentences(result(**one), result(**one)) == []


def test_a_row_too_many_is_told() -> None:
    assert sentences(result(tables=table((1, 2))), result(tables=table((1, 2), (1, 2)))) == [
        "table orders: row (id=1, at=2): expected 1, found 2"
    ]


def test_columns_that_alone_differ_are_named_after_the_rows() -> None:
    found = sentences(result(tables=table((1, "now"), (2, "now"))), result(tables=table((1, "then"), (2, "now"))))
    assert found[:2] == [
        "table orders: row (id=1, at='now'): expected 1, found 0",
        "table orders: row (id=1, at='then'): expected 0, found 1",
    ]
    assert found[2].startswith("table orders: the rows differ only in orders.at; if each run generates these values")
    assert found[2].endswith("give ignore=('orders.at',)")


def test_many_rows_are_counted() -> None:
    found = sentences(result(tables=table()), result(tables=table(*((n, n) for n in range(9)))))
    assert len(found) == 4
    assert found[-1] == "table orders: and 6 more rows"


def test_a_table_that_only_one_run_has_is_told() -> None:
    assert sentences(result(), result(tables=table())) == ["table orders: it exists only in this run"]
    assert sentences(result(tables=table()), result()) == ["table orders: it exists only in the clean run"]


def test_runs_that_differ_alike_are_told_together_with_each_way_out_once() -> None:
    some = list(differences(result(effects=Counter(mail=1)), result(effects=Counter(mail=2))))
    dead = list(differences(result(), result(dead={"p-1": "exhausted"}, why={"p-1": "OSError at x.py:3"})))
    assert [one.where for one in some + dead] == [Where.EFFECT, Where.DEAD]
    lines = verdict("credit", {"one run": some, "another run": some, "a third": dead}, 9).splitlines()
    assert lines[:-2] == [
        "handler 'credit' is not idempotent: 3 of 9 runs ended otherwise than the clean run.",
        "",
        "one run:",
        "another run:",
        "  effect 'mail': expected 1, found 2",
        "",
        "a third:",
        "  message 'p-1' became a dead letter: exhausted; OSError at x.py:3",
        "",
    ]
    assert lines[-2].startswith(
        "An effect outside the database is not rolled back: move the call from handle into a step"
    )
    assert lines[-1].startswith("The handler fails in this run only")
