"""Guards for a handler's own tables: a state that only moves forward, and a row that is inserted or changed.

The ledger prevents a message from taking effect twice. It does not put the events of one order in
sequence, and it does not recognise two messages with different IDs and the same meaning. These two
functions let the database decide that, in one place and in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, TypeVar, cast, overload

from sqlalchemy import ColumnCollection, ColumnElement, Integer, UniqueConstraint, select, update
from sqlalchemy.exc import MultipleResultsFound
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, Mapper, Session, class_mapper

from consumerkit.errors import ConfigurationError

S = TypeVar("S")
M = TypeVar("M")

Excluded = ColumnCollection[str, ColumnElement[Any]]
"""The row that could not be inserted, by column name: SQL's `excluded`."""


class Transition(StrEnum):
    """The result of a guarded change of state.

    Example:
        >>> Transition.APPLIED.value
        'applied'
    """

    APPLIED = "applied"
    """The row was in one of the states `before`, and is now in the new state."""
    ALREADY = "already"
    """The row was already in the new state."""
    REFUSED = "refused"
    """The row is in a state that does not lead to the new state, and does not change."""
    MISSING = "missing"
    """There is no such row: the event that creates it may still be on its way."""


@overload
def transition(
    session: AsyncSession,
    attribute: InstrumentedAttribute[S],
    *,
    before: Collection[S],
    after: S,
    where: ColumnElement[bool],
    values: Mapping[str, Any] | None = None,
) -> Coroutine[Any, Any, Transition]: ...


@overload
def transition(
    session: Session,
    attribute: InstrumentedAttribute[S],
    *,
    before: Collection[S],
    after: S,
    where: ColumnElement[bool],
    values: Mapping[str, Any] | None = None,
) -> Transition: ...


def transition(
    session: AsyncSession | Session,
    attribute: InstrumentedAttribute[S],
    *,
    before: Collection[S],
    after: S,
    where: ColumnElement[bool],
    values: Mapping[str, Any] | None = None,
) -> Coroutine[Any, Any, Transition] | Transition:
    """Move one row from one of the states `before` to the state `after`, and return what happened.

    The change is one UPDATE whose condition names the states `before`, so two transactions cannot
    both apply it. Where it does not apply, the row is locked and read: the answer holds until the
    caller's transaction ends.

    Args:
        session: Any session; the caller commits. With an `AsyncSession` the call must be awaited.
        attribute: The mapped attribute that holds the state.
        before: The states that lead to `after`.
        after: The new state.
        where: The condition that names the row, such as `Order.id == event.order_id`.
        values: Other attributes to set in the same UPDATE, by name.

    Returns:
        `Transition.APPLIED`, `ALREADY`, `REFUSED` or `MISSING`.

    Raises:
        ValueError: `before` is empty or contains `after`, or `values` names an attribute that does not exist.
        MultipleResultsFound: The condition names more than one row; the caller must then roll back.

    Example:
        done = await transition(
            context.session, Order.status, before={"pending"}, after="paid", where=Order.id == event.order_id
        )
        if done is Transition.MISSING:
            raise Defer(5)
    """
    _check_states(attribute, before, after)
    mapper = class_mapper(cast("type[Any]", attribute.class_))
    changes = {**_next_version(mapper), **_attributes(mapper, values or {}), attribute.key: after}

    def move(sync: Session) -> Transition:
        return _moved(sync, attribute, before, after, where, changes)

    return session.run_sync(move) if isinstance(session, AsyncSession) else move(session)


def _check_states(attribute: InstrumentedAttribute[S], before: Collection[S], after: S) -> None:
    if isinstance(before, str) or not before:
        raise ValueError(f"transition of {attribute}: give the states before as a set, such as before={{'pending'}}")
    if after in before:
        raise ValueError(f"transition of {attribute}: the state after, {after!r}, is also among the states before")


def _moved(
    session: Session,
    attribute: InstrumentedAttribute[S],
    before: Collection[S],
    after: S,
    where: ColumnElement[bool],
    changes: Mapping[str, Any],
) -> Transition:
    entity = attribute.class_
    guarded = update(entity).where(where, attribute.in_(before)).values(changes)
    guarded = guarded.execution_options(synchronize_session="fetch")
    if _one_row(attribute, _rows(session, guarded)):
        return Transition.APPLIED
    # With a lock, since another transaction may move the row between the two statements.
    states = session.scalars(select(attribute).where(where).with_for_update()).all()
    if not states:
        return Transition.MISSING
    _one_row(attribute, len(states))
    if states[0] == after:
        return Transition.ALREADY
    if states[0] in before and _one_row(attribute, _rows(session, guarded)):
        return Transition.APPLIED
    return Transition.REFUSED


def _rows(session: Session, statement: Any) -> int:
    return int(cast("Any", session.execute(statement)).rowcount)


def _one_row(attribute: InstrumentedAttribute[Any], rows: int) -> bool:
    if rows > 1:
        raise MultipleResultsFound(f"transition of {attribute}: the condition names {rows} rows; it must name one")
    return rows == 1


@overload
def upsert(
    session: AsyncSession,
    model: type[M],
    values: Mapping[str, Any],
    *,
    on: Sequence[str],
    change: Callable[[Excluded], Mapping[str, Any]] | None = None,
    where: Callable[[Excluded], ColumnElement[bool]] | None = None,
) -> Coroutine[Any, Any, M | None]: ...


@overload
def upsert(
    session: Session,
    model: type[M],
    values: Mapping[str, Any],
    *,
    on: Sequence[str],
    change: Callable[[Excluded], Mapping[str, Any]] | None = None,
    where: Callable[[Excluded], ColumnElement[bool]] | None = None,
) -> M | None: ...


def upsert(
    session: AsyncSession | Session,
    model: type[M],
    values: Mapping[str, Any],
    *,
    on: Sequence[str],
    change: Callable[[Excluded], Mapping[str, Any]] | None = None,
    where: Callable[[Excluded], ColumnElement[bool]] | None = None,
) -> Coroutine[Any, Any, M | None] | M | None:
    """Insert a row, or change the one that has the same unique key, in one statement.

    Args:
        session: Any session; the caller commits. With an `AsyncSession` the call must be awaited.
        model: The mapped class, which must have only one table.
        values: The row to insert, by attribute name.
        on: The attributes of a primary key or unique constraint; their values decide whether the
            row exists.
        change: What to set where the row exists: a function that gets the row that could not be
            inserted, and returns values or SQL expressions by attribute name. None sets all of
            `values` except the key.
        where: When to change the row: a function that gets the same row and returns a condition. A
            row that does not meet the condition stays as it is.

    Returns:
        The row as it is now, as an object of the session; None where `where` prevented the change.

    Raises:
        ValueError: A name is not an attribute of the model, a value of the key is missing, or `on`
            is no unique key.
        ConfigurationError: The database is neither PostgreSQL nor SQLite.

    Example:
        await upsert(
            context.session, Price, {"sku": event.sku, "cents": event.cents, "version": event.version}, on=["sku"],
            where=lambda new: Price.version < new.version,
        )
    """
    mapper = class_mapper(model)
    columns = {**dict.fromkeys(_next_version(mapper), 1), **_attributes(mapper, values)}
    key = list(_attributes(mapper, dict.fromkeys(on)))
    _check_key(mapper, key, columns)

    def write(sync: Session) -> M | None:
        return _upserted(sync, mapper, columns, key, change, where)

    return session.run_sync(write) if isinstance(session, AsyncSession) else write(session)


def _upserted(
    session: Session,
    mapper: Mapper[M],
    values: Mapping[str, Any],
    key: Sequence[str],
    change: Callable[[Excluded], Mapping[str, Any]] | None,
    where: Callable[[Excluded], ColumnElement[bool]] | None,
) -> M | None:
    session.flush()  # the statement must see the session's own changes to this row
    insert = _insert(session)(mapper.class_).values({mapper.columns[name]: value for name, value in values.items()})
    new = insert.excluded
    if change is None:
        changes = {name: new[mapper.columns[name].name] for name in values if name not in key}
    else:
        changes = _attributes(mapper, change(new))
    if changes:
        changes = {**changes, **_next_version(mapper)}
    # Where nothing changes, the key is set to itself: DO NOTHING would return no row.
    assigned = {mapper.columns[name]: value for name, value in changes.items()} or {
        mapper.columns[name]: new[mapper.columns[name].name] for name in key
    }
    statement = insert.on_conflict_do_update(
        index_elements=[mapper.columns[name] for name in key],
        set_=assigned,
        where=where(new) if where is not None else None,
    )
    rows = session.scalars(statement.returning(mapper.class_), execution_options={"populate_existing": True})
    return cast("M | None", rows.one_or_none())


def _insert(session: Session) -> Any:
    name = session.connection().dialect.name
    if name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert
    if name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert
    raise ConfigurationError(f"upsert: {name} is not supported; use PostgreSQL or SQLite")


def _attributes(mapper: Mapper[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, after a check that each name is a column attribute of the mapper."""
    for name in values:
        if name not in mapper.columns:
            near = get_close_matches(name, mapper.columns.keys(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{mapper.class_.__name__} has no column attribute {name!r}{hint}")
    return dict(values)


def _next_version(mapper: Mapper[Any]) -> dict[str, Any]:
    """Return the next version of a row by attribute: an UPDATE outside the unit of work does not count it up."""
    version = mapper.version_id_col
    if version is None or not mapper.version_id_generator:
        return {}
    if not isinstance(version.type, Integer):
        raise ValueError(  # noqa: TRY004 - of the model, not of an argument's type
            f"{mapper.class_.__name__}: SQL can only count a version that is a number"
        )
    return {mapper.get_property_by_column(version).key: version + 1}


def _check_key(mapper: Mapper[Any], key: Sequence[str], values: Mapping[str, Any]) -> None:
    name = mapper.class_.__name__
    if missing := [one for one in key if one not in values]:
        raise ValueError(f"upsert of {name}: `on` names {', '.join(missing)}, which the values lack")
    wanted = {mapper.columns[one].name for one in key}
    table: Any = mapper.local_table
    unique = [set(table.primary_key.columns.keys())]
    unique += [set(one.columns.keys()) for one in table.constraints if isinstance(one, UniqueConstraint)]
    unique += [set(one.columns.keys()) for one in table.indexes if one.unique]
    unique += [{column.name} for column in table.columns if column.unique]
    if not wanted or wanted not in unique:
        raise ValueError(
            f"upsert of {name}: {', '.join(key) or 'nothing'} is no unique key of {table.name}; "
            "declare one in the model, with unique=True or a UniqueConstraint"
        )
