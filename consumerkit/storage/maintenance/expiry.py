"""Ending what has stayed in the tables for too long: the statements.

Payloads of dead letters are erased. A parked message becomes a whole dead letter, under its
partition's fence; its row stays without a payload for as long as the partition's owner needs it. A
message in the outbox is given up while no relay sends. Nothing here waits for a row that another
transaction has locked, so it is never part of a deadlock: it waits for the fence and the relay's
turn before it locks anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, DateTime, Select, and_, func, or_, select, type_coerce, update
from sqlalchemy.orm import Session

from consumerkit.message import Message, TopicPartition
from consumerkit.outcome import Outcome, Reason
from consumerkit.storage import fence, origins, outbox
from consumerkit.storage.dead_letters import history
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.dead_letters.letters import DeadMessage, State
from consumerkit.storage.dialects import Dialect, Limits
from consumerkit.storage.isolation import begin
from consumerkit.storage.maintenance.erasure import DECIDED, GONE, EraseStatements
from consumerkit.storage.outbox import Old, OutboxMessage
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import Kind, ParkedMessage, plain
from consumerkit.storage.portions import portions
from consumerkit.storage.tables import Tables
from consumerkit.storage.undoing import KEEPS_STEPS, UndoRows

LETTERS: Final = 1_000
PARKED: Final = 100
BYTES: Final = 16 * 1024 * 1024
UNSENT: Final = 500
FENCE_WAIT: Final = 2.0
RELAY_WAIT: Final = 5.0
UNCLAIMED: Final = 86_400.0
"""Seconds after which a row that no owner took out counts as one of a partition without an owner."""

ACTOR: Final = "retention"
_LIMITS: Final = Limits(statement=60.0, lock=5.0, idle=60.0)
_MESSAGES: Final = (Kind.MESSAGE.value, Kind.REPEAT.value)


@dataclass(frozen=True, slots=True)
class Terms:
    """What happens when a handler's messages die.

    Attributes:
        name: The handler's name.
        holds_key: Whether later messages of a dead message's key wait for a decision.
        copy: Returns the record for the dead-letter topic from a letter; None if there is no such
            topic.
        hooked: Whether the handler has an `on_dead_letter`.
    """

    name: str
    holds_key: bool = False
    copy: Callable[[DeadMessage], OutboxMessage] | None = None
    hooked: bool = False


class EndedBatch(NamedTuple):
    """The letters that were made, and the number of the last row checked; None if no rows are left to check."""

    made: list[DeadMessage]
    last: int | None


@dataclass(frozen=True, slots=True)
class ExpireStatements:
    """Each method is the whole work of one transaction, which the caller commits."""

    tables: Tables
    dialect: Dialect

    # Dead letters.

    def letters(self, session: Session, consumer: int, seconds: float, *, decided: bool) -> int:
        """Erase payloads of dead letters decided, or undecided, for this many seconds; return of how many."""
        table = self.tables.dead_letters
        connection = begin(session, self.dialect, _LIMITS, "expiry")
        old = select(table.c.id).where(self._old_letters(consumer, seconds, decided=decided))
        rows = connection.execute(old.order_by(table.c.id).limit(LETTERS).with_for_update(skip_locked=True))
        numbers = list(rows.scalars())
        values = {**GONE, "erased_at": func.now()}
        if not decided:
            values["history"] = history.extended("[]", history.entry("erased", ACTOR, note="it was not decided on"))
        for some in portions(numbers):
            connection.execute(update(table).where(table.c.id.in_(some)).values(**values))
        return len(numbers)

    def count_letters(self, session: Session, consumer: int, seconds: float, *, decided: bool) -> int:
        """Return of how many dead letters `letters` would erase the payload."""
        table = self.tables.dead_letters
        old = select(func.count()).select_from(table).where(self._old_letters(consumer, seconds, decided=decided))
        return int(session.execute(old).scalar_one())

    def _old_letters(self, consumer: int, seconds: float, *, decided: bool) -> ColumnElement[bool]:
        c = self.tables.dead_letters.c
        states = DECIDED if decided else (State.DEAD.value,)
        since = func.coalesce(c.state_at, c.dead_at)
        return and_(c.consumer == consumer, c.erased_at.is_(None), c.state.in_(states), since < self._before(seconds))

    # Parked messages.

    def partitions(self, session: Session, consumer: int, seconds: float) -> list[TopicPartition]:
        """Return the partitions in which a message has been parked for too long."""
        c = self.tables.parked_messages.c
        query = select(c.topic, c.partition).where(or_(self._old(consumer, seconds), self._unclaimed(consumer)))
        return [TopicPartition(*row) for row in session.execute(query.distinct().order_by(c.topic, c.partition))]

    def count_parked(self, session: Session, consumer: int, seconds: float) -> int:
        """Return how many messages have been parked for this many seconds."""
        table = self.tables.parked_messages
        old = select(func.count()).select_from(table).where(self._old(consumer, seconds))
        return int(session.execute(old).scalar_one())

    def parked(
        self, session: Session, consumer: int, terms: Terms, partition: TopicPartition, seconds: float, after: int
    ) -> EndedBatch | None:
        """Make dead letters of the first messages of a partition that have been parked for too long.

        Args:
            session: The caller's.
            consumer: The handler's number.
            terms: The handler's.
            partition: Where they are parked.
            seconds: The limit.
            after: The number of the last row that was checked before.

        Returns:
            None if the owner's transactions did not end in time.
        """
        connection = begin(session, self.dialect, _LIMITS, "expiry")
        lot = ParkingLot(self.tables, self.dialect, consumer)
        if not fence.hold(connection, lot, [partition], wait=FENCE_WAIT):
            session.rollback()
            return None
        self._take_out_unclaimed(connection, lot, partition)
        rows = self._locked(connection, lot, partition, seconds, after)
        made = [_Expiry(lot, terms, seconds).dead_letter(connection, row) for row in self._free(connection, lot, rows)]
        return EndedBatch([dead for dead in made if dead is not None], rows[-1].id if rows else None)

    def _locked(
        self, connection: Connection, lot: ParkingLot, partition: TopicPartition, seconds: float, after: int
    ) -> list[ParkedMessage]:
        """Lock the first messages, as many as may be in memory at once, and at least one."""
        c = self.tables.parked_messages.c
        size = func.coalesce(func.length(c.value), 0) + func.length(c.headers)
        old = and_(self._old(lot.consumer, seconds), c.topic == partition.topic, c.partition == partition.partition)
        query = select(c.id, size).where(old, c.id > after).order_by(c.id).limit(PARKED)
        found = connection.execute(query.with_for_update(skip_locked=True)).all()
        sums = accumulate(size for _, size in found)
        fitting = [row[0] for at, (row, total) in enumerate(zip(found, sums, strict=True)) if not at or total <= BYTES]
        return lot.read(connection, fitting)

    def _free(self, connection: Connection, lot: ParkingLot, rows: Sequence[ParkedMessage]) -> list[ParkedMessage]:
        """Lock the ledger rows and letters too; return the rows where both were free."""
        ledger, letter = self.tables.processed_messages.c, self.tables.dead_letters.c
        digests = [row.digest for row in rows if row.digest is not None]
        letters = [row.dead_letter for row in rows if row.dead_letter is not None]
        of_ids = select(ledger.digest).where(ledger.consumer == lot.consumer, ledger.digest.in_(digests))
        busy: set[object] = {bytes(digest) for digest in _in_hand(connection, of_ids.order_by(ledger.digest))}
        busy |= _in_hand(connection, select(letter.id).where(letter.id.in_(letters)).order_by(letter.id))
        return [row for row in rows if row.digest not in busy and row.dead_letter not in busy]

    def _take_out_unclaimed(self, connection: Connection, lot: ParkingLot, partition: TopicPartition) -> None:
        """Take out rows that wait for an owner that does not come; one that comes later takes the partition again."""
        c = self.tables.parked_messages.c
        here = and_(self._unclaimed(lot.consumer), c.topic == partition.topic, c.partition == partition.partition)
        rows = connection.execute(select(c.id, c.key).where(here).with_for_update(skip_locked=True)).all()
        if not rows:
            return
        erasing = EraseStatements(self.tables, self.dialect)
        lot.remove(connection, [row.id for row in rows])
        any_key = erasing.in_partition_order(connection, lot.consumer)
        for key in {plain(row.key) for row in rows}:
            gone = ParkedMessage(message=Message(*partition, 0, key), digest=None, message_id="", fingerprint=b"")
            lot.promote(connection, gone, any_key=any_key)
        fence.revoke(connection, lot, partition)

    # The outbox.

    def unsent(self, session: Session, seconds: float) -> list[Old] | None:
        """Give up messages that stayed unsent too long, while no relay sends; None if a relay sends all the time."""
        if not self.dialect.lock_relay(session, wait=RELAY_WAIT):
            session.rollback()
            return None
        connection = session.connection()
        self.dialect.begin(connection, _LIMITS, "expiry")
        return outbox.expire(connection, self.tables, self._before(seconds), UNSENT, actor=ACTOR)

    def count_unsent(self, session: Session, seconds: float) -> int:
        """Return how many messages have stayed unsent for this many seconds."""
        return outbox.count_old(session.connection(), self.tables, self._before(seconds))

    def oldest_unsent(self, session: Session) -> Old | None:
        """Return the first message in the outbox."""
        return outbox.oldest(session.connection(), self.tables, self.dialect)

    def _old(self, consumer: int, seconds: float) -> ColumnElement[bool]:
        c = self.tables.parked_messages.c
        return and_(c.consumer == consumer, c.kind.in_(_MESSAGES), c.parked_at < self._before(seconds))

    def _unclaimed(self, consumer: int) -> ColumnElement[bool]:
        c = self.tables.parked_messages.c
        released = c.kind == Kind.RELEASED.value
        return and_(c.consumer == consumer, released, c.due_at < self._before(UNCLAIMED))

    def _before(self, seconds: float) -> ColumnElement[Any]:
        return type_coerce(self.dialect.in_seconds(-seconds), DateTime(timezone=True))


@dataclass(frozen=True, slots=True)
class _Expiry:
    """Makes dead letters of parked messages, all in one transaction under their partition's fence."""

    lot: ParkingLot
    terms: Terms
    seconds: float

    def dead_letter(self, connection: Connection, row: ParkedMessage) -> DeadMessage | None:
        """Return the letter; None if the message has one already."""
        tables, consumer = self.lot.tables, self.lot.consumer
        dead = replace(_expired(row, self.seconds), hooked=self.terms.hooked)
        entered = dead_letters.add(connection, tables, consumer, [dead]).get(origins.origin(row.message))
        if row.digest is not None and entered is not None and dead.reason not in KEEPS_STEPS:
            UndoRows(tables, self.lot.dialect, consumer).mark(connection, {row.digest: entered.id})
        if row.digest is not None and row.kind is Kind.MESSAGE:
            self._settle(connection, row.digest)
        letter = entered.id if entered is not None and self._holds(dead) else None
        self.lot.hold(connection, _stand_in(row, letter))
        if entered is None:
            return None
        dead = replace(dead, redrives=entered.redrives, history=entered.history, clash=entered.clash)
        if self.terms.copy is not None:
            outbox.append(connection, tables, [self.terms.copy(dead)])
        return dead

    def _settle(self, connection: Connection, digest: bytes) -> None:
        table = self.lot.tables.processed_messages
        c = table.c
        own = (c.consumer == self.lot.consumer, c.digest == digest, c.outcome == int(Outcome.PARKED))
        connection.execute(update(table).where(*own).values(outcome=int(Outcome.DEAD), processed_at=func.now()))

    def _holds(self, dead: DeadMessage) -> bool:
        return self.terms.holds_key and dead.message.key is not None and dead.reason.holds_key


def _expired(row: ParkedMessage, seconds: float) -> DeadMessage:
    error = f"it was parked for longer than the {seconds:.0f} s that payload_retention allows"
    return DeadMessage(
        message=row.message,
        digest=row.digest,
        message_id=row.message_id or None,
        reason=Reason.FAILED_DUPLICATE if row.kind is Kind.REPEAT else Reason.EXPIRED,
        error_type="Expired",
        error=f"{error}; it had failed with {row.error_type}: {row.error}" if row.error_type else error,
        stack=row.stack,
        attempts=row.attempts,
        first_failed_at=row.first_failed_at,
        fingerprint=row.fingerprint,
        fingerprint_version=row.fingerprint_version,
        letter=row.dead_letter,
    )


def _stand_in(row: ParkedMessage, letter: int | None) -> ParkedMessage:
    """Return the row that stays in the lot: it holds the message's key, or the owner takes it out at its next look."""
    at = row.message
    return ParkedMessage(
        id=row.id,
        message=Message(at.topic, at.partition, at.offset, at.key, timestamp=at.timestamp, topic_id=at.topic_id),
        digest=None,
        message_id=row.message_id,
        fingerprint=b"",
        wait=None if letter is not None else 0.0,
        kind=Kind.HELD if letter is not None else Kind.RELEASED,
        dead_letter=letter,
    )


def _in_hand(connection: Connection, query: Select[Any]) -> set[Any]:
    """Lock the rows of a query; return the values of those that another transaction has locked."""
    free = set(connection.execute(query.with_for_update(skip_locked=True)).scalars())
    return set(connection.execute(query).scalars()) - free
