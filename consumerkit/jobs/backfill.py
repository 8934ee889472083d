"""Backfills: a large query in batches, each in one transaction with its checkpoint."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, TypeVar, overload

from sqlalchemy import Row, Select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from consumerkit.errors import ConfigurationError
from consumerkit.jobs.batches import BackfillPace, Batches, InCoroutine, InThread
from consumerkit.jobs.keyed_block import owner_name
from consumerkit.jobs.paging import KeyColumn, Paging
from consumerkit.jobs.progress import Bar, is_watched
from consumerkit.storage.tables import DEFAULT_TABLES, Tables

R = TypeVar("R")
BACKFILL: Final = "backfill:"


@overload
def checkpoints(
    session: AsyncSession,
    name: str,
    query: Select[R],
    *,
    key: KeyColumn | Sequence[KeyColumn],
    batch_size: int = 500,
    rate: float | None = None,
    progress: bool = True,
    tables: Tables = DEFAULT_TABLES,
) -> AsyncIterator[Sequence[R]]: ...


@overload
def checkpoints(
    session: AsyncSession,
    name: str,
    query: Select[*tuple[Any, ...]],
    *,
    key: KeyColumn | Sequence[KeyColumn],
    batch_size: int = 500,
    rate: float | None = None,
    progress: bool = True,
    tables: Tables = DEFAULT_TABLES,
) -> AsyncIterator[Sequence[Row[*tuple[Any, ...]]]]: ...


@overload
def checkpoints(
    session: Session,
    name: str,
    query: Select[R],
    *,
    key: KeyColumn | Sequence[KeyColumn],
    batch_size: int = 500,
    rate: float | None = None,
    progress: bool = True,
    tables: Tables = DEFAULT_TABLES,
) -> Iterator[Sequence[R]]: ...


@overload
def checkpoints(
    session: Session,
    name: str,
    query: Select[*tuple[Any, ...]],
    *,
    key: KeyColumn | Sequence[KeyColumn],
    batch_size: int = 500,
    rate: float | None = None,
    progress: bool = True,
    tables: Tables = DEFAULT_TABLES,
) -> Iterator[Sequence[Row[*tuple[Any, ...]]]]: ...


def checkpoints(
    session: AsyncSession | Session,
    name: str,
    query: Select[*tuple[Any, ...]],
    *,
    key: KeyColumn | Sequence[KeyColumn],
    batch_size: int = 500,
    rate: float | None = None,
    progress: bool = True,
    tables: Tables = DEFAULT_TABLES,
) -> AsyncIterator[Sequence[Any]] | Iterator[Sequence[Any]]:
    """Go through a query in batches; each batch's changes are committed together with the backfill's position.

    The loop commits a batch when it asks for the next one. An error or a `break` in the loop leaves
    the current batch uncommitted, and closing the session rolls it back. A later run, in this
    process or another, continues after the last committed batch. Two concurrent runs take turns,
    and each row is in one committed batch.

    A row that appears beyond the position while the backfill runs is included; one before the
    position is not. A finished backfill that runs again continues where it ended; give it another
    name to begin again.

    Args:
        session: A session with READ COMMITTED transactions, outside `session.begin()`. Use `async
            for` with an `AsyncSession`, and `for` with a plain one.
        name: The backfill's name: up to 200 letters, digits and `. _ : -`.
        query: The query, without ORDER BY and LIMIT. It may lock its rows with `with_for_update()`.
        key: The column or columns that order the rows: unique, never null, of one table, and
            indexed in this order.
        batch_size: Rows in a batch.
        rate: The most rows per second in this process; the loop waits between two transactions.
            None is no limit.
        progress: Whether to show a bar on standard error, if that is a terminal. The rows are then
            counted first.
        tables: The table definitions, if they are not the default ones; as for `outbox.publish`.

    Returns:
        An iterator over batches: of entities or values where the query selects one item, else of
        rows.

    Raises:
        TransactionMisused: The loop's body committed or rolled back the session.
        ConfigurationError: An argument cannot be used, or the session does not find consumerkit's
            tables.

    Example:
        async for orders in checkpoints(session, "fill-totals", select(Order), key=Order.id, rate=2_000):
            for order in orders:
                order.total = sum(line.cents for line in order.lines)
    """
    label = owner_name(BACKFILL, name)
    columns = list(key) if isinstance(key, Sequence) else [key]
    _check(label, batch_size, rate)
    bar = Bar(name) if progress and is_watched() else None
    batches = Batches(label, Paging(label, query, columns), batch_size, tables, bar)
    pace = BackfillPace(rate)
    return (
        InCoroutine(session, batches, pace) if isinstance(session, AsyncSession) else InThread(session, batches, pace)
    )


def _check(label: str, batch_size: int, rate: float | None) -> None:
    if not (isinstance(batch_size, int) and batch_size >= 1):
        raise ConfigurationError(f"{label}: batch_size={batch_size!r}; give a whole number of rows above 0")
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigurationError(f"{label}: rate={rate!r}; give rows per second above 0, or None for no limit")
