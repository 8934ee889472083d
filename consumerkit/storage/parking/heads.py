"""Which parked messages stand first, of their key or of their partition: only these may become due.

Each is found by an index lookup, or by one reading of the rows. The lot is never joined with
itself: with many messages of one key, a database would compare each of them with all earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, and_, func, or_, select, tuple_

from consumerkit.storage.parking.parked import plain
from consumerkit.storage.tables import Tables


def first_of_key(tables: Tables) -> ColumnElement[bool]:
    """Return the condition that a row is the first of its key; a row without a key always is."""
    table = tables.parked_messages
    other = table.alias("other")
    first = select(func.min(other.c.id)).where(
        other.c.consumer == table.c.consumer,
        other.c.topic == table.c.topic,
        other.c.partition == table.c.partition,
        other.c.key_digest == table.c.key_digest,
    )
    return or_(table.c.key_digest.is_(None), table.c.id == first.scalar_subquery())


def first_of_partition(tables: Tables, consumer: int, numbers: Sequence[int]) -> ColumnElement[bool]:
    """Return the condition that a row is the first of its partition; `numbers` are the rows in question."""
    c, other = tables.parked_messages.c, tables.parked_messages.alias("other").c
    places = select(c.topic, c.partition).where(c.id.in_(numbers))
    here = and_(other.consumer == consumer, tuple_(other.topic, other.partition).in_(places))
    return c.id.in_(select(func.min(other.id)).where(here).group_by(other.topic, other.partition))


def by_key(
    rows: Iterable[tuple[bytes | None, int, bool]], *, any_key: bool
) -> tuple[dict[bytes | None, set[int]], list[int]]:
    """Sort a partition's rows, given in order as key, number, and whether the row could wait for ever.

    Returns:
        The numbers by key, and those of the rows that stand first and could wait for ever.
    """
    found: dict[bytes | None, set[int]] = {}
    stuck: list[int] = []
    for raw, number, waits in rows:
        key = plain(raw)
        first = not found if any_key else key is None or key not in found
        if first and waits:
            stuck.append(number)
        found.setdefault(key, set()).add(number)
    return found, stuck
