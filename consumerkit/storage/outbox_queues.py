"""The outbox queue by queue: what to send while some queues wait.

A queue is all rows of one topic and key. Each is read from its lowest row, in one statement,
whatever was read before: sequences are not committed in order, so a lower row of the queue may have
appeared. The index skips waiting queues, so a page costs the same beside a million rows that wait.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    FromClause,
    LargeBinary,
    ScalarSelect,
    Select,
    and_,
    case,
    cast,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from consumerkit.storage.dialects import Dialect
from consumerkit.storage.outbox import Pending, Queue, read, stored_bytes
from consumerkit.storage.tables import Tables

_BEYOND_ALL_KEYS: Final = literal(b"\xff" * 17, LargeBinary)
_BEYOND_ALL_ROWS: Final = 2**63 - 1


class Waiting(NamedTuple):
    """What to leave out.

    Attributes:
        topics: Digests of topics.
        queues: Queues of other topics.
        keyless: By a topic's digest: its rows without a key are left out up to this sequence.
    """

    topics: Collection[bytes] = ()
    queues: Collection[Queue] = ()
    keyless: Mapping[bytes, int] = MappingProxyType({})


NOTHING: Final = Waiting()


class OutboxPage(NamedTuple):
    """The result of a read.

    Attributes:
        pending: The messages, in order.
        last: The queue to continue after; None if none follow.
        cut: Queues that may have more rows than were read.
    """

    pending: list[Pending]
    last: Queue | None
    cut: frozenset[Queue]


class _Turn(NamedTuple):
    """A queue's sequences, lowest first, at most `share` of them."""

    queue: Queue
    rows: list[int]
    share: int


def page(
    connection: Connection,
    dialect: Dialect,
    tables: Tables,
    rows: int,
    most_bytes: int,
    *,
    after: Queue | None = None,
    waiting: Waiting = NOTHING,
) -> OutboxPage:
    """Return the first rows of each of the next queues, and at least one message if there is any.

    Args:
        connection: Of the caller's transaction.
        dialect: Its dialect.
        tables: The table definitions.
        rows: About the largest number of rows with a key, and of rows without; at least one of each
            queue.
        most_bytes: The limit for the bytes of keys, values and headers; the first row may exceed it
            alone.
        after: The queue to continue after.
        waiting: What to leave out.
    """
    most_queues = rows + len(waiting.queues) + len(waiting.topics)
    query = _query(tables, rows, most_queues, after, waiting, lateral=connection.dialect.name == "postgresql")
    with dialect.by_index(connection):
        turns = _turns(connection.execute(query).all())
    last = turns[-1].queue if len(turns) == most_queues else None
    full = [turn for turn in turns if turn.rows]
    taken = _fitting(full, stored_bytes(connection, tables, [row for turn in full for row in turn.rows]), most_bytes)
    if len(taken) < len(full):
        last = full[len(taken) - 1].queue
    cut = [turn.queue for turn, of in zip(full, taken, strict=False) if len(of) in (turn.share, *range(len(turn.rows)))]
    return OutboxPage(read(connection, tables, [row for of in taken for row in of]), last, frozenset(cut))


def _turns(found: Sequence[Any]) -> list[_Turn]:
    ordered = sorted(found, key=lambda row: (row.number, row.sequence or 0))
    return [
        _Turn(
            Queue(bytes(first.topic), bytes(first.key)),
            [row.sequence for row in (first, *others) if row.sequence is not None],
            first.share,
        )
        for _, (first, *others) in groupby(ordered, key=lambda row: row.number)
    ]


def _fitting(turns: Sequence[_Turn], sizes: Mapping[int, int], most_bytes: int) -> list[list[int]]:
    """Return what to take of the first queues: the first row of each, then the second of each, and so on."""
    taken: list[list[int]] = []
    for turn in turns:
        most_bytes -= sizes.get(turn.rows[0], 0)
        if taken and most_bytes < 0:
            break
        taken.append(turn.rows[:1])
    later = [(nth, row, at) for at in range(len(taken)) for nth, row in enumerate(turns[at].rows) if nth]
    for _, row, at in sorted(later):
        most_bytes -= sizes.get(row, 0)
        if most_bytes < 0:
            break
        taken[at].append(row)
    return taken


def _query(
    tables: Tables, rows: int, most_queues: int, after: Queue | None, waiting: Waiting, *, lateral: bool
) -> Select[Any]:
    queue = _queues(tables, most_queues, after, waiting)
    turn = select(*queue.c, _free(queue, waiting).label("free"), (queue.c.key == b"").label("keyless")).cte("turn")
    keyed, keyless = and_(turn.c.free, not_(turn.c.keyless)), and_(turn.c.free, turn.c.keyless)
    shares = (
        select(_share(rows, keyed).label("keyed"), _share(rows, keyless).label("keyless"))
        .select_from(turn)
        .cte("shares")
    )
    low = case(dict(waiting.keyless), value=turn.c.topic, else_=0) if waiting.keyless else literal(0)
    low = case((turn.c.keyless, low), else_=0)
    share = case((turn.c.keyless, shares.c.keyless), else_=shares.c.keyed)
    place, places = (_laterally if lateral else _up_to_the_highest)(tables, turn, shares, low, share)
    columns = (turn.c.number, turn.c.topic, turn.c.key, place.label("sequence"))
    return select(*columns, share.label("share")).select_from(places)


def _laterally(
    tables: Tables, turn: CTE, shares: CTE, low: ColumnElement[int], share: ColumnElement[int]
) -> tuple[ColumnElement[int], FromClause]:
    """Join each queue's first rows by an index that is read from the queue's place on.

    The conditions are below a LIMIT, so no plan reads the whole index and compares afterwards. If a
    vacuum saw the table empty, a plain join looks as cheap as this one, but reads each row once for
    each queue.
    """
    row = tables.outbox_messages.c
    first = select(row.place).where(_of(turn, row, low)).order_by(row.topic_digest, row.key_digest, row.place)
    found = first.limit(share).lateral("first_rows")
    return found.c.place, turn.join(shares, true()).outerjoin(found, turn.c.free)


def _up_to_the_highest(
    tables: Tables, turn: CTE, shares: CTE, low: ColumnElement[int], _share: ColumnElement[int]
) -> tuple[ColumnElement[int], FromClause]:
    """Join each queue's first rows by their bounds: for a database without LATERAL."""
    row = tables.outbox_messages.c
    highest = case(
        (turn.c.keyless, _nth(tables, turn, low, select(shares.c.keyless).scalar_subquery())),
        else_=_nth(tables, turn, low, select(shares.c.keyed).scalar_subquery()),
    )
    rows_of = and_(_of(turn, row, low), row.place <= func.coalesce(highest, _BEYOND_ALL_ROWS))
    return row.place, turn.join(shares, true()).outerjoin(tables.outbox_messages, and_(turn.c.free, rows_of))


def _free(queue: CTE, waiting: Waiting) -> ColumnElement[bool]:
    name = cast(queue.c.topic.op("||")(queue.c.key), LargeBinary)
    held = and_(queue.c.key != b"", name.in_([one.topic + one.key for one in waiting.queues]))
    return not_(or_(queue.c.topic.in_(waiting.topics), held))


def _of(turn: CTE, row: ReadOnlyColumnCollection[str, Any], low: ColumnElement[int]) -> ColumnElement[bool]:
    return and_(row.topic_digest == turn.c.topic, row.key_digest == turn.c.key, row.place > low)


def _queues(tables: Tables, most: int, after: Queue | None, waiting: Waiting) -> CTE:
    """Step from queue to queue; a step passes over a whole topic that waits."""
    first = None if after is None else [literal(digest, LargeBinary) for digest in after]
    queue = select(literal(1).label("number"), *_following(tables, first)).cte("queue", recursive=True)
    passed = case((queue.c.topic.in_(waiting.topics), _BEYOND_ALL_KEYS), else_=queue.c.key)
    step = select(queue.c.number + 1, *_following(tables, (queue.c.topic, passed)))
    steps = queue.union_all(step.where(queue.c.number < most, queue.c.topic.is_not(None)))
    return select(steps).where(steps.c.topic.is_not(None)).cte("found")


def _following(tables: Tables, place: Sequence[ColumnElement[bytes]] | None) -> list[ColumnElement[bytes]]:
    """Return the digests of the first queue after a place."""
    row = tables.outbox_messages.alias("following").c
    query = select().order_by(row.topic_digest, row.key_digest, row.place).limit(1)
    if place is not None:
        query = query.where(tuple_(row.topic_digest, row.key_digest) > tuple_(*place))
    return [
        query.with_only_columns(digest).scalar_subquery().label(name)
        for name, digest in (("topic", row.topic_digest), ("key", row.key_digest))
    ]


def _share(rows: int, which: ColumnElement[bool]) -> ColumnElement[int]:
    """Return how many rows each of the selected queues gets: at least one."""
    count = func.coalesce(func.sum(case((which, 1), else_=0)), 0)
    return case((count == 0, rows), else_=(literal(rows) + count - 1) // case((count == 0, 1), else_=count))


def _nth(tables: Tables, turn: CTE, low: ColumnElement[int], share: ScalarSelect[int]) -> ScalarSelect[int]:
    """Return the sequence of a queue's last row within its share, or NULL where it has fewer."""
    row = tables.outbox_messages.alias("row").c
    query = select(row.place).where(_of(turn, row, low))
    ordered = query.order_by(row.topic_digest, row.key_digest, row.place).limit(1).offset(share - 1)
    return ordered.correlate(turn).scalar_subquery()
