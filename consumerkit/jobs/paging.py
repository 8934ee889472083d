"""Splits a query into pages by its key: each page begins behind the last row of the previous one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import Alias, Column, ColumnElement, Row, Select, Table, UniqueConstraint, func, select, tuple_
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.orm import InstrumentedAttribute, Session

from consumerkit.errors import ConfigurationError
from consumerkit.jobs.outer_joins import may_be_null

KeyColumn = InstrumentedAttribute[Any] | Column[Any]


class Page(NamedTuple):
    """Some rows of the query (entities or values where it selects one item), and the key of the last one."""

    rows: Sequence[Any]
    last: tuple[Any, ...]


class Paging:
    """A query and the columns that order its pages.

    Raises:
        ConfigurationError: The query has its own order or limit, or the key is not unique or may be
            null.
    """

    def __init__(self, label: str, query: Select[*tuple[Any, ...]], key: Sequence[KeyColumn]) -> None:
        self._label = label
        self._query = query
        self._key = [_column(label, one) for one in key]
        self._given = list(key)
        _check_query(label, query)
        _check_key(label, self._key)
        _check_joins(label, query, self._given, self._key)

    @property
    def names(self) -> tuple[str, ...]:
        """The key's columns, as a stored position names them."""
        return tuple(f"{column.table.name}.{column.name}" for column in self._key)

    def page(self, session: Session, after: Sequence[Any] | None, size: int) -> Page | None:
        """Return the next rows behind a key; None where there are none.

        Raises:
            ConfigurationError: Two rows have one key, as with a join, or a row has none. The next page
                begins behind the key, so it would not have such a row.
        """
        query = self._behind(after).order_by(*self._given).limit(size + 1).add_columns(*self._given)
        result = session.execute(query)
        width, names = len(self._query.column_descriptions), list(result.keys())
        found = result.all()
        if not found:
            return None
        keys = [tuple(row[width:]) for row in found]
        if any(part is None for one in keys for part in one):
            raise ConfigurationError(_null(self._label, self.names))
        if any(one == other for one, other in pairwise(keys)):
            raise ConfigurationError(
                f"{self._label}: the query returns several rows with one key ({', '.join(self.names)}), "
                "as with a join; some of them would be skipped; give the key of the table that has one row for each of "
                "these rows"
            )
        found, last = found[:size], keys[:size][-1]
        if width == 1:
            return Page([row[0] for row in found], last)
        return Page(_rows(names[:width], [tuple(row[:width]) for row in found]), last)

    def count(self, session: Session, after: Sequence[Any] | None) -> int:
        """Return the number of rows behind a key."""
        rows = self._behind(after).with_only_columns(*self._given, maintain_column_froms=True).subquery()
        return int(session.execute(select(func.count()).select_from(rows)).scalar_one())

    def _behind(self, after: Sequence[Any] | None) -> Select[*tuple[Any, ...]]:
        if after is None:
            return self._query
        if len(self._key) == 1:
            return self._query.where(self._given[0] > after[0])
        values = [_bound(value, column) for value, column in zip(after, self._key, strict=True)]
        return self._query.where(tuple_(*self._given) > tuple_(*values))


def _bound(value: Any, column: Column[Any]) -> ColumnElement[Any]:
    from sqlalchemy import literal

    return literal(value, column.type)


def _rows(names: Sequence[str], values: Sequence[tuple[Any, ...]]) -> Sequence[Row[*tuple[Any, ...]]]:
    return IteratorResult(SimpleResultMetaData(names), iter(values)).all()


def _column(label: str, given: KeyColumn) -> Column[Any]:
    found = given.property.columns[0] if isinstance(given, InstrumentedAttribute) else given
    if isinstance(found, Column) and isinstance(found.table, Alias) and isinstance(found.table.element, Table):
        found = found.table.element.c[found.key]
    if not isinstance(found, Column) or not isinstance(found.table, Table):
        raise ConfigurationError(
            f"{label}: key={given}: give columns of a table, or mapped attributes such as Order.id"
        )
    return found


def _check_query(label: str, query: Select[*tuple[Any, ...]]) -> None:
    for name, what in (
        ("_order_by_clauses", "an ORDER BY"),
        ("_limit_clause", "a LIMIT"),
        ("_offset_clause", "an OFFSET"),
    ):
        found = getattr(query, name)
        if found is not None and found != ():
            raise ConfigurationError(f"{label}: the query has {what}; leave it out, the pages go by the key")
    locks = getattr(query, "_for_update_arg", None)
    if locks is not None and locks.skip_locked:
        raise ConfigurationError(
            f"{label}: the query has SKIP LOCKED, so rows that another transaction has locked would be skipped; "
            "leave it out, and the backfill waits for them"
        )


def _check_joins(
    label: str, query: Select[*tuple[Any, ...]], given: Sequence[KeyColumn], key: Sequence[Column[Any]]
) -> None:
    for one, column in zip(given, key, strict=True):
        element = one.__clause_element__() if isinstance(one, InstrumentedAttribute) else one
        if may_be_null(element, query):
            raise ConfigurationError(_null(label, [f"{column.table.name}.{column.name}"]))


def _null(label: str, names: Sequence[str]) -> str:
    return (
        f"{label}: an outer join of the query may leave the key ({', '.join(names)}) null, and such rows would be "
        "skipped; give the key of a table that each row has, or use an inner join"
    )


def _check_key(label: str, key: Sequence[Column[Any]]) -> None:
    if not key or len({column.table for column in key}) != 1:
        raise ConfigurationError(f"{label}: give the key as a column, or several of one table, such as key=Order.id")
    if empty := [column.name for column in key if column.nullable]:
        raise ConfigurationError(f"{label}: the key's column {empty[0]} may be null, and such rows would be skipped")
    table: Any = key[0].table
    unique = [set(table.primary_key.columns)]
    unique += [set(one.columns) for one in table.constraints if isinstance(one, UniqueConstraint)]
    unique += [set(one.columns) for one in table.indexes if one.unique]
    unique += [{column} for column in table.columns if column.unique]
    if not any(one and one <= set(key) for one in unique):
        names = ", ".join(column.name for column in key)
        raise ConfigurationError(
            f"{label}: key=({names}) is not unique in {table.name}, so rows between two pages would be skipped; "
            "add a column of the primary key"
        )
