"""Backfills: a large query in batches, each with its checkpoint in one transaction."""

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
    """Go through a query in batches; each batch's changes are committed together with how far the backfill has come.

    The loop commits a batch when the next one is asked for. What ends the loop early, an error or a `break`, leaves the
    batch in hand uncommitted, and closing the session rolls it back. A later run goes on behind the last batch that was
    committed, in this process or another. Two runs at once take turns, and each row is in one committed batch.

    Rows that appear behind the position while the backfill runs are met, those before it are not. A backfill that is
    through goes on where it ended when it is run again; give it another name to begin again.

    Args:
        session: Any session, whose transactions are READ COMMITTED, outside of `session.begin()`. Use `async for` with
            an `AsyncSession`, and `for` with a plain one.
        name: The backfill's name: up to 200 letters, digits and `. _ : -`.
        query: What to go through, without ORDER BY and LIMIT. It may lock its rows by `with_for_update()`.
        key: The column or columns to follow: unique, never null, of one table, and indexed in this order.
        batch_size: Rows in a batch.
        rate: At most so many rows a second in this process, by waiting between two transactions; None for no limit.
        progress: Whether to show a bar on standard error, where that is a terminal. The rows are counted first then.
        tables: The table definitions, if they are not the default ones; as for `outbox.publish`.

    Returns:
        An iterator over batches: of entities or values where the query selects one thing, else of rows.

    Raises:
        TransactionMisused: The loop's body committed or rolled back the session.
        ConfigurationError: An argument cannot be used, or the session finds none of our tables.

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
