"""Selects dead letters by ID, handler, reason, group of errors or time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, and_, exists, select

from consumerkit.storage.tables import Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Chooses dead letters; all given conditions must hold, and no condition means all letters.

    Args:
        ids: These IDs; an empty list means none, not all.
        handler: The handler's name.
        reason: The reason, such as "exhausted".
        like: The ID of a letter; selects its group of errors: same handler, error type and place.
        error_type: The error type, as `consumerkit dead-letters list` shows it.
        place: Where the error was raised, as `consumerkit dead-letters groups` shows it.
        since: Dead at this time or later; a time without a zone is UTC.
        until: Dead before this time.

    Example:
        >>> Selection(handler="credit-account", reason="exhausted").is_everything
        False
    """

    ids: Collection[int] | None = None
    handler: str | None = None
    reason: str | None = None
    like: int | None = None
    error_type: str | None = None
    place: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_everything(self) -> bool:
        """Whether no condition is given: all dead letters are selected."""
        return self == Selection()

    def where(self, tables: Tables) -> ColumnElement[bool]:
        """Return the condition on the rows of `dead_letters`."""
        c = tables.dead_letters.c
        conditions: list[ColumnElement[bool]] = [c.id.is_not(None)]
        if self.ids is not None:
            conditions.append(c.id.in_(self.ids))
        if self.handler is not None:
            consumers = tables.consumers.c
            conditions.append(c.consumer.in_(select(consumers.id).where(consumers.name == self.handler)))
        if self.like is not None:
            conditions.append(_same_group(tables, self.like))
        for column, wanted in ((c.reason, self.reason), (c.error_type, self.error_type), (c.place, self.place)):
            if wanted is not None:
                conditions.append(column == str(wanted))
        if self.since is not None:
            conditions.append(c.dead_at >= _in_utc(self.since))
        if self.until is not None:
            conditions.append(c.dead_at < _in_utc(self.until))
        return and_(*conditions)


def _same_group(tables: Tables, number: int) -> ColumnElement[bool]:
    c, other = tables.dead_letters.c, tables.dead_letters.alias("other")
    return exists().where(
        other.c.id == number,
        other.c.consumer == c.consumer,
        other.c.error_type == c.error_type,
        other.c.place.is_not_distinct_from(c.place),
    )


def _in_utc(moment: datetime) -> datetime:
    # SQLite keeps UTC without a zone, and compares as text.
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
