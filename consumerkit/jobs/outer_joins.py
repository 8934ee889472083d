"""Finds out whether an outer join of a query may leave a column null."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import CTE, ColumnElement, CompoundSelect, FromClause, Join, Select, Subquery
from sqlalchemy.sql.selectable import FromGrouping


def may_be_null(column: ColumnElement[Any], query: Select[*tuple[Any, ...]]) -> bool:
    """Return whether a column's table is on the optional side of an outer join; also looks into subqueries.

    Example:
        >>> from sqlalchemy import column, select, table
        >>> order, line = table("order", column("id")), table("line", column("id"), column("order"))
        >>> lines = select(order).select_from(order.outerjoin(line, line.c.order == order.c.id))
        >>> may_be_null(order.c.id, lines), may_be_null(line.c.id, lines)
        (False, True)
    """
    own = getattr(column, "table", None)
    if own in {one for part in query.get_final_froms() for one in _optional(part, optional=False)}:
        return True
    inner = own.element if isinstance(own, Subquery | CTE) else None
    found = [(_source(column, one), one) for one in _selects(inner)]
    return any(source is not None and may_be_null(source, one) for source, one in found)


def _optional(part: FromClause, *, optional: bool) -> Iterator[FromClause]:
    """Yield the tables that an outer join within a FROM clause may leave out."""
    if isinstance(part, FromGrouping):
        yield from _optional(part.element, optional=optional)
    elif isinstance(part, Join):
        yield from _optional(part.left, optional=optional or part.full)
        yield from _optional(part.right, optional=optional or part.full or part.isouter)
    elif optional:
        yield part


def _selects(inner: Any) -> Sequence[Select[*tuple[Any, ...]]]:
    if isinstance(inner, CompoundSelect):
        return [one for each in inner.selects for one in _selects(each)]
    return [inner] if isinstance(inner, Select) else []


def _source(column: ColumnElement[Any], query: Select[*tuple[Any, ...]]) -> ColumnElement[Any] | None:
    """Return the column of a subquery's SELECT that an outer column stands for."""
    return next((one for one in query.selected_columns if one.shares_lineage(column)), None)
