"""Compares a run with the clean run, and says in plain sentences what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from enum import Enum
from itertools import combinations
from typing import Final, NamedTuple, TypeVar

from consumerkit.testing.case import Result
from consumerkit.testing.run_file import Contents, Row

_MOST: Final = 3  # differences that are shown of one table
_MOST_COLUMNS: Final = 3  # columns that may be volatile together
_LONGEST: Final = 200
T = TypeVar("T", bound=Hashable)


class Where(Enum):
    """What differs; each has its own way out."""

    EFFECT = "effect"
    TABLE = "table"
    PUBLISHED = "published"
    DEAD = "dead"


class Difference(NamedTuple):
    """One sentence about what differs."""

    where: Where
    sentence: str


def differences(clean: Result, found: Result) -> Iterator[Difference]:
    """Yield what a run left behind otherwise than the clean run."""
    for effect, expected, seen in _counts(clean.effects, found.effects):
        yield Difference(Where.EFFECT, f"effect {_shown(effect)}: expected {expected}, found {seen}")
    for name in sorted(clean.tables.keys() | found.tables.keys()):
        yield from _of_table(name, clean.tables.get(name), found.tables.get(name))
    for (topic, key, value), expected, seen in _counts(clean.published, found.published):
        what = f"message to {topic} with the key {_shown(key)} and the value {_shown(value)}"
        yield Difference(Where.PUBLISHED, f"{what}: expected {expected}, found {seen}")
    for name in sorted(clean.dead.keys() ^ found.dead.keys()):
        if name in found.dead:
            why = found.why.get(name, "")
            yield Difference(Where.DEAD, f"message {name!r} became a dead letter: {found.dead[name]}; {why}")
        else:
            yield Difference(Where.DEAD, f"message {name!r} is a dead letter in the clean run only")


def _of_table(name: str, clean: Contents | None, found: Contents | None) -> Iterator[Difference]:
    if clean is None or found is None:
        where = "only in this run" if clean is None else "only in the clean run"
        yield Difference(Where.TABLE, f"table {name}: it exists {where}")
        return
    if clean.rows == found.rows:
        return
    shown = list(_counts(clean.rows, found.rows))
    for row, expected, seen in shown[:_MOST]:
        text = _row(clean.columns, row)
        yield Difference(Where.TABLE, f"table {name}: row {text}: expected {expected}, found {seen}")
    if len(shown) > _MOST:
        yield Difference(Where.TABLE, f"table {name}: and {len(shown) - _MOST} more rows")
    if volatile := _volatile(clean, found):
        columns = tuple(f"{name}.{column}" for column in volatile)
        yield Difference(
            Where.TABLE,
            f"table {name}: the rows differ only in {', '.join(columns)}; if each run generates these values, such as "
            f"numbers or times, give ignore={columns!r}",
        )


def _volatile(clean: Contents, found: Contents) -> tuple[str, ...]:
    """Return the fewest columns without which the rows are the same."""
    for size in range(1, min(_MOST_COLUMNS, len(clean.columns) - 1) + 1):
        for left_out in combinations(range(len(clean.columns)), size):
            if _without(clean.rows, left_out) == _without(found.rows, left_out):
                return tuple(clean.columns[one] for one in left_out)
    return ()


def _without(rows: Counter[Row], left_out: tuple[int, ...]) -> Counter[Row]:
    short: Counter[Row] = Counter()
    for row, count in rows.items():
        short[tuple(value for at, value in enumerate(row) if at not in left_out)] += count
    return short


def _counts(clean: Counter[T], found: Counter[T]) -> Iterator[tuple[T, int, int]]:
    for one in sorted(clean.keys() | found.keys(), key=repr):
        if clean[one] != found[one]:
            yield one, clean[one], found[one]


def _row(columns: tuple[str, ...], row: Row) -> str:
    return "(" + ", ".join(f"{name}={_shown(value)}" for name, value in zip(columns, row, strict=True)) + ")"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
