"""Writes what becomes of the messages of a transaction: dead letters, parked messages, and the end of parked ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection

from consumerkit.dead_letters.formats import consumerkit as dead_letter_format
from consumerkit.engine.transaction.batch import Batch
from consumerkit.engine.transaction.item import Disposition, Item
from consumerkit.handlers.declaration import Declaration
from consumerkit.handlers.handler import Ordering
from consumerkit.handlers.steps import IdempotencyKey
from consumerkit.message import Message
from consumerkit.outcome import Outcome
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.dead_letters import resolving
from consumerkit.storage.dead_letters.letters import DeadMessage, Entered
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.origins import Origin, origin
from consumerkit.storage.parking import redriven
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import Kind, ParkedMessage
from consumerkit.storage.undoing import KEEPS_STEPS, UndoRows

_SETTLED: Final = {
    Disposition.RUN: "processed",
    Disposition.DUPLICATE: "another message of its ID was there before",
    Disposition.REPEAT: "another message of its ID was there before, and the handler was told",
}


class Writing:
    """Writes the rows of messages that do not end as processed; synchronous, in the batch's transaction."""

    def __init__(self, ledger: Ledger, lot: ParkingLot, declared: Declaration) -> None:
        self._ledger = ledger
        self._lot = lot
        self._declared = declared
        undoes = bool(declared.steps) or declared.undoes
        self._undo = UndoRows(ledger.tables, ledger.dialect, ledger.consumer) if undoes else None

    def dead_letter(self, connection: Connection, batch: Batch, items: Sequence[Item], *, undoes: bool = True) -> None:
        """Enter the dead letters of items, mark their steps for undoing, and publish to the dead-letter topic."""
        dead_lettered = [
            item for item in items if item.disposition is Disposition.DEAD_LETTER and item.dead is not None
        ]
        if not dead_lettered:
            return
        if self._undo is not None and undoes:
            _tell_doubt(connection, self._undo, self._declared.name, dead_lettered)
        hooked = self._declared.on_dead_letter is not None
        dead = _to_enter(dead_lettered, hooked=hooked)
        entered = dead_letters.add(connection, self._ledger.tables, self._ledger.consumer, dead)
        batch.dead = _entered(dead_lettered, entered)
        if self._undo is not None and undoes:
            self._undo.mark(connection, _with_steps(dead_lettered, entered))
        if self._declared.holds_key:
            _hold(dead_lettered, entered)
        if self._declared.dead_letter is not None:
            topic, name, now = self._declared.dead_letter.topic, self._declared.name, datetime.now(UTC)
            batch.publications += [dead_letter_format.written(one, topic, name, now) for one in batch.dead]

    def park(self, connection: Connection, batch: Batch, items: Sequence[Item]) -> None:
        """Park items that wait and holds of dead ones; for parked messages, write the end of their attempt."""
        if not items:
            return
        if items[0].parked is not None:
            self._leave_lot(connection, items)
            return
        parking = [(one, row) for one in items if (row := one.hold or _parking(one)) is not None]
        rows = [row for _, row in parking]
        any_key = self._declared.ordering is Ordering.PARTITION
        numbers, batch.clashes = redriven.park(self._lot, connection, rows, any_key=any_key)
        for (one, _), number in zip(parking, numbers, strict=True):
            one.number = number

    def _leave_lot(self, connection: Connection, items: Sequence[Item]) -> None:
        """Settle the claims, remove the rows, and make the next row of their key due."""
        for item in items:
            if item.parked is not None and (parking := _parking(item)) is not None:
                self._postpone(connection, item, item.parked, parking)
            elif item.hold is not None:
                self._lot.hold(connection, item.hold)
        for disposition, outcome in ((Disposition.RUN, Outcome.PROCESSED), (Disposition.DEAD_LETTER, Outcome.DEAD)):
            rows = [item.parked for item in items if item.disposition is disposition and item.parked is not None]
            own = [row.digest for row in rows if row.digest is not None and row.kind is not Kind.REPEAT]
            self._ledger.settle(connection, own, outcome)
        gone = [(item.disposition, item.parked) for item in items if item.parked and not item.stays_parked]
        if gone:
            removed = self._lot.remove(connection, [parked.id for _, parked in gone])
            self._settle_letters(connection, [one for one in gone if one[1].id in removed])
            # Also without an order: messages may have been parked behind others while there was one.
            self._lot.promote(connection, gone[-1][1], any_key=self._declared.ordering is Ordering.PARTITION)

    def _postpone(self, connection: Connection, item: Item, read: ParkedMessage, parking: ParkedMessage) -> None:
        """Record a failed attempt, unless another worker has since tried the message or removed it."""
        if not self._lot.postpone(connection, read, parking):
            item.gone = self._lot.lock(connection, read) is None
            item.disposition = Disposition.DUPLICATE if item.gone else Disposition.LEAVE

    def _settle_letters(self, connection: Connection, gone: Sequence[tuple[Disposition, ParkedMessage]]) -> None:
        """Resolve the dead letters of redriven messages that are now processed."""
        ledger, by = self._ledger, self._declared.name
        for disposition, note in _SETTLED.items():
            numbers = [one.dead_letter for each, one in gone if each is disposition and one.dead_letter is not None]
            if numbers:
                resolving.settle(connection, ledger, numbers, by, note)


def _parking(item: Item) -> ParkedMessage | None:
    return item.parking if item.disposition is Disposition.PARK else None


def _to_enter(dead_lettered: Sequence[Item], *, hooked: bool) -> list[DeadMessage]:
    """Return the dead letters of items; a redriven message's letter refers to its earlier letter.

    `hooked` says whether the handler has an `on_dead_letter`.
    """
    for item in dead_lettered:
        if item.dead is not None and hooked:
            item.dead = replace(item.dead, hooked=True)
        if item.dead is not None and item.parked is not None and item.parked.dead_letter is not None:
            item.dead = replace(item.dead, letter=item.parked.dead_letter)
    return [item.dead for item in dead_lettered if item.dead is not None]


def _entered(dead_lettered: Sequence[Item], found: Mapping[Origin, Entered]) -> list[DeadMessage]:
    """Return the dead letters that were entered, completed from their rows."""
    made = []
    for item in dead_lettered:
        if item.dead is not None and (letter := found.get(origin(item.message))) is not None:
            history, clash = letter.history, letter.clash
            item.dead = replace(item.dead, redrives=letter.redrives, history=history, clash=clash, id=letter.id)
            made.append(item.dead)
    return made


def _tell_doubt(connection: Connection, rows: UndoRows, handler: str, dead_lettered: Sequence[Item]) -> None:
    """Add to the letters which steps may have happened, if nothing settles that."""
    found = rows.doubtful(
        connection, [item.digest for item in dead_lettered if item.digest is not None and _ends_steps(item)]
    )
    for item in dead_lettered:
        for step, generation in found.get(item.digest or b"", ()):
            told = f"step {step!r} may have happened"
            if item.dead is None or item.digest is None or told in item.dead.error:
                continue
            key = IdempotencyKey.of(handler, item.digest, step, generation)
            error = f"{item.dead.error}; {told}: look for the key {key} on the other side: nothing undoes the effect"
            item.dead = replace(item.dead, error=error)


def _with_steps(dead_lettered: Sequence[Item], found: Mapping[Origin, Entered]) -> dict[bytes, int]:
    """Return the IDs whose steps end with these letters, and the letters' numbers."""
    return {
        item.digest: letter.id
        for item in dead_lettered
        if item.digest is not None and _ends_steps(item) and (letter := found.get(origin(item.message))) is not None
    }


def _ends_steps(item: Item) -> bool:
    return item.dead is not None and item.dead.reason not in KEEPS_STEPS


def _hold(dead_lettered: Sequence[Item], found: Mapping[Origin, Entered]) -> None:
    """Make later messages of their keys wait behind items whose dead letters were entered.

    The rows refer to the letters, which have the whole message.
    """
    for item in dead_lettered:
        message, letter = item.message, found.get(origin(item.message))
        if letter is None or item.dead is None or message.key is None or not item.dead.reason.holds_key:
            continue
        item.hold = ParkedMessage(
            id=item.parked.id if item.parked is not None else 0,
            message=Message(
                message.topic,
                message.partition,
                message.offset,
                message.key,
                timestamp=message.timestamp,
                topic_id=letter.topic_id,
            ),
            digest=None,
            message_id=item.message_id or item.dead.message_id or "",
            fingerprint=b"",
            kind=Kind.HELD,
            dead_letter=letter.id,
        )
