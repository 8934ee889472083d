"""Erasing everything stored of one key.

An erased message loses key, value, headers, message ID and error texts. The facts stay: its place
in the log, when and why it died, and its outcome.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, case, delete, func, null, select, update
from sqlalchemy.orm import Session

from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message, TopicPartition
from consumerkit.outcome import Outcome, Reason
from consumerkit.storage import audit, fence, steps
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.dead_letters.letters import State
from consumerkit.storage.dialects import Dialect, Limits
from consumerkit.storage.isolation import begin
from consumerkit.storage.origins import identity_of
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import Kind, ParkedMessage, key_digest
from consumerkit.storage.portions import portions
from consumerkit.storage.tables import Tables
from consumerkit.storage.undoing import UndoRows

ERASED: Final = "(erased)"
FENCE_WAIT: Final = 10.0
DECIDED: Final = (State.RESOLVED.value, State.DISCARDED.value)
_LIMITS: Final = Limits(statement=60.0, lock=15.0, idle=60.0)
GONE: Final[dict[str, Any]] = {
    "key": null(),
    "value": null(),
    "headers": "[]",
    "message_id": null(),
    "error": "",
    "history": "[]",
    "sealed": False,
}


@dataclass(frozen=True, slots=True)
class EraseStatements:
    """The statements that erase; each method is the whole work of one transaction, which the caller commits."""

    tables: Tables
    dialect: Dialect

    def handlers(self, session: Session, names: Collection[str] | None) -> list[tuple[str, int]]:
        """Return names and numbers of all handlers, or of the named ones."""
        c = self.tables.consumers.c
        query = select(c.name, c.id).order_by(c.name)
        rows = session.execute(query if names is None else query.where(c.name.in_(names)))
        return [(row.name, row.id) for row in rows]

    def partitions(self, session: Session, consumer: int, key: bytes) -> list[TopicPartition]:
        """Return the partitions in which messages of a key are parked."""
        c = self.tables.parked_messages.c
        query = select(c.topic, c.partition).where(c.consumer == consumer, c.key_digest == key_digest(key)).distinct()
        return [TopicPartition(*row) for row in session.execute(query.order_by(c.topic, c.partition))]

    def count_parked(self, session: Session, consumer: int, key: bytes) -> int:
        """Return how many messages of a key are parked."""
        c = self.tables.parked_messages.c
        here = and_(c.consumer == consumer, c.key_digest == key_digest(key))
        return int(session.execute(select(func.count()).where(here)).scalar_one())

    def parked(self, session: Session, consumer: int, partition: TopicPartition, key: bytes, by: str) -> int | None:
        """Take the parked messages of a key out of the lot, for good: each leaves a dead letter without a payload.

        The partition's fence is held until it is done. The owner then takes the partition again,
        and so sees the change.

        Returns:
            How many; None if the owner's transactions did not end in time.
        """
        connection = begin(session, self.dialect, _LIMITS, "erasure")
        lot = ParkingLot(self.tables, self.dialect, consumer)
        if not fence.hold(connection, lot, [partition], wait=FENCE_WAIT):
            return None
        rows = self._parked(connection, consumer, partition, key)
        if not rows:
            return 0
        for row in rows:
            self._dead_letter(connection, row)
        self._blank(connection, consumer, [bytes(row.digest) for row in rows if row.digest is not None], parked=True)
        lot.remove(connection, [row.id for row in rows])
        gone = ParkedMessage(message=Message(*partition, 0, key), digest=None, message_id="", fingerprint=b"")
        lot.promote(connection, gone, any_key=self.in_partition_order(connection, consumer))
        fence.revoke(connection, lot, partition)
        self._record(connection, consumer, key, by, parked=len(rows), partition=str(partition))
        return len(rows)

    def _parked(self, connection: Connection, consumer: int, partition: TopicPartition, key: bytes) -> list[Any]:
        table = self.tables.parked_messages
        c = table.c
        here = and_(c.consumer == consumer, c.topic == partition.topic, c.partition == partition.partition)
        rows = connection.execute(select(table).where(here, c.key_digest == key_digest(key)).with_for_update())
        return list(rows)

    def _dead_letter(self, connection: Connection, row: Any) -> None:
        c = self.tables.dead_letters.c
        size = len(row.key or b"") + len(row.value or b"")
        place = {name: getattr(row, name) for name in ("consumer", "topic", "topic_id", "partition", "offset")}
        facts = {"timestamp": row.timestamp, "attempts": row.attempts, "first_failed_at": row.first_failed_at}
        reason = Reason.REJECTED if row.digest is not None else Reason.UNIDENTIFIED
        why = {"reason": reason.value, "error_type": "Erased", "error": "", "stack": ""}
        state = {"state": State.DISCARDED.value, "state_at": func.now(), "erased_at": func.now()}
        values = {**place, **facts, **why, **state, "headers": "[]", "size": size, "digest": row.digest}
        there = connection.execute(select(c.id).where(*(c[name] == value for name, value in place.items()))).scalar()
        # The redriven letter is erased by itself; any other letter at the place is another
        # message's.
        number = row.dead_letter
        if there is None or there != number:
            own = identity_of(row, self.tables.sealer, size=size)
            entered = dead_letters.enter(connection, self.tables, values, own)
            number = None if entered is None else entered.id
        if row.digest is not None and number is not None and row.kind == Kind.MESSAGE.value:
            # The message dies here like any other, so the effects of its steps do not stay.
            UndoRows(self.tables, self.dialect, row.consumer).mark(connection, {bytes(row.digest): number})

    def in_partition_order(self, connection: Connection, consumer: int) -> bool:
        """Return whether a handler orders its messages by partition."""
        c = self.tables.consumers.c
        return bool(
            connection.execute(select(c.ordering).where(c.id == consumer)).scalar_one() == Ordering.PARTITION.value
        )

    def count_letters(self, session: Session, consumer: int, key: bytes) -> int:
        """Return how many dead letters of a key have a payload."""
        return len(self._letters(session.connection(), consumer, key))

    def letters(self, session: Session, consumer: int, key: bytes, by: str) -> int:
        """Erase the dead letters of a key, and what is stored under their IDs; return how many."""
        table = self.tables.dead_letters
        c = table.c
        connection = begin(session, self.dialect, _LIMITS, "erasure")
        rows = self._letters(connection, consumer, key)
        state = {
            "state": case((c.state == State.RESOLVED.value, c.state), else_=State.DISCARDED.value),
            "state_at": case((c.state.in_(DECIDED), c.state_at), else_=func.now()),
            "erased_at": func.now(),
        }
        for some in portions([row.id for row in rows]):
            connection.execute(update(table).where(c.id.in_(some)).values(**GONE, **state))
            # A letter about an undo is discarded too, so that its step is no longer kept for a
            # redrive.
            UndoRows(self.tables, self.dialect, consumer).decide(connection, some, undone=False)
        self._blank(connection, consumer, [bytes(row.digest) for row in rows if row.digest is not None], parked=False)
        if rows:
            self._record(connection, consumer, key, by, dead_letters=len(rows))
        return len(rows)

    def _letters(self, connection: Connection, consumer: int, key: bytes) -> list[Any]:
        c = self.tables.dead_letters.c
        query = select(c.id, c.digest).where(c.consumer == consumer, c.key == key, c.erased_at.is_(None))
        return list(connection.execute(query.order_by(c.id).with_for_update()))

    def _blank(self, connection: Connection, consumer: int, digests: Sequence[bytes], *, parked: bool) -> None:
        """Erase the text, results and steps of IDs; parked IDs become dead."""
        ledger, results = self.tables.processed_messages, self.tables.message_results
        c = ledger.c
        for some in portions(digests):
            here = and_(c.consumer == consumer, c.digest.in_(some))
            if parked:
                was = and_(here, c.outcome == int(Outcome.PARKED))
                connection.execute(update(ledger).where(was).values(outcome=int(Outcome.DEAD), processed_at=func.now()))
            connection.execute(update(ledger).where(here).values(message_id=ERASED))
            connection.execute(delete(results).where(results.c.consumer == consumer, results.c.digest.in_(some)))
            steps.forget(connection, self.tables, consumer, some)

    def count_outbox(self, session: Session, key: bytes) -> int:
        """Return how many messages of a key wait in the outbox."""
        c = self.tables.outbox_messages.c
        return int(session.execute(select(func.count()).where(c.key == key)).scalar_one())

    def outbox(self, session: Session, key: bytes, by: str) -> int:
        """Remove the messages of a key from the outbox, unsent; return how many."""
        table = self.tables.outbox_messages
        connection = begin(session, self.dialect, _LIMITS, "erasure")
        gone = connection.execute(delete(table).where(table.c.key == key)).rowcount
        if gone:
            self._record(connection, None, key, by, outbox=gone)
        return int(gone)

    def _record(self, connection: Connection, consumer: int | None, key: bytes, by: str, **counts: object) -> None:
        digest = key_digest(key)
        assert digest is not None
        details = {"key_digest": digest.hex(), **counts}
        audit.record(connection, self.tables, actor=by, action="erase", consumer=consumer, details=details)
