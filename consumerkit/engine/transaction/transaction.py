"""The parts of a transaction that coroutines and threads share; they are synchronous and never commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from consumerkit.dead_letters.formats import consumerkit as dead_letter_format
from consumerkit.engine.transaction import failures, writing
from consumerkit.engine.transaction.batch import Batch
from consumerkit.engine.transaction.claiming import Revival
from consumerkit.engine.transaction.guard import OPTION
from consumerkit.engine.transaction.item import Disposition, Item
from consumerkit.engine.transaction.new_outcomes import got_further, new_outcomes
from consumerkit.errors import CommitsLost, Fenced, TransactionMisused
from consumerkit.failpoints import reach
from consumerkit.handlers.declaration import Declaration
from consumerkit.handlers.handler import Ordering
from consumerkit.outcome import Outcome, Reason
from consumerkit.storage import fence, location, origins, outbox, progress
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.dead_letters import resolving
from consumerkit.storage.dialects import Claim, Kept, Limits
from consumerkit.storage.isolation import connection_of
from consumerkit.storage.ledger import Claimed, Ledger, LedgerMoved
from consumerkit.storage.parking import redriven
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import Kind, ParkedMessage
from consumerkit.storage.undoing import UndoRows


class Transaction:
    """Opens and closes a batch's transaction on a session."""

    def __init__(self, ledger: Ledger, lot: ParkingLot, declared: Declaration, limits: Limits) -> None:
        self._ledger = ledger
        self._lot = lot
        self._declared = declared
        self._limits = limits
        self._revival = Revival(ledger, declared)
        undoes = bool(declared.steps) or declared.undoes
        self._undo = UndoRows(ledger.tables, ledger.dialect, ledger.consumer) if undoes else None

    def open(self, session: Session, batch: Batch) -> None:
        """Begin under the fence, claim, and decide on each item."""
        reach("before_begin")
        connection = connection_of(session, self._ledger.dialect, **{OPTION: batch.guard})
        ledger = self._ledger
        batch.limits = self._limits
        batch.reused = bool(connection.info.setdefault(_SERVED, False))
        connection.info[_SERVED] = True
        location.remember(session, ledger.tables)
        location.refuse_translation(connection, ledger.tables)
        partition_store = fence.numbers(ledger.tables, ledger.consumer, batch.owners)
        batch.begun = ledger.dialect.begin(connection, self._limits, batch.token, partition_store)
        batch.begun_at = batch.stages.over("begin")
        reach("after_begin")
        if batch.items[0].parked is None:
            self._claim(connection, batch)
        for item in batch.items:
            if item.parked is not None:
                self._resume(connection, item, item.parked)
        if any(item.claimed for item in batch.items):
            batch.proof = ledger.dialect.proof(connection)
        if self._declared.on_duplicate is not None:
            repeated = [item.digest for item in batch.items if item.disposition is Disposition.REPEAT and item.digest]
            batch.recalled = ledger.results(connection, repeated)
        batch.stages.over("claim")
        batch.guard.set_local = batch.guard.set_session = False  # settings seen so far are ours
        batch.theirs = True

    def _resume(self, connection: Connection, item: Item, parked: ParkedMessage) -> None:
        """Lock a parked message; its ID was claimed at its parking, unless it had none."""
        if item.only_postponed:
            item.disposition = Disposition.PARK
            return
        unchanged = self._lot.lock(connection, parked)
        if unchanged is None:
            item.disposition, item.gone = Disposition.DUPLICATE, True
        elif not unchanged:
            item.disposition = Disposition.LEAVE
        elif parked.kind is Kind.RELEASED:
            item.disposition = Disposition.RELEASE
        elif parked.kind is Kind.REPEAT:
            self._repeat(item)
        else:
            item.disposition = item.wanted
            if parked.digest is None and item.digest is not None:
                claimed = self._ledger.claim(connection, [_claim(item)])
                if item.digest in claimed.won:
                    _check_first(item)
                    item.claimed = True
                else:
                    self._lost(item, item, claimed.kept.get(item.digest))
                    self._revive(connection, [item])

    def _claim(self, connection: Connection, batch: Batch) -> None:
        if any(item.outdated for item in batch.items):
            self._quarantine(connection, batch)
        first: dict[bytes, Item] = {}
        for item in batch.items:
            if item.digest is not None and not item.is_stale:
                first.setdefault(item.digest, item)
        reach("before_claim")
        claimed = self._ledger.claim(connection, map(_claim, first.values()))
        reach("after_claim")
        for item in batch.items:
            if item.digest is None or item.is_stale:
                item.disposition = Disposition.PARK if item.parking else Disposition.DEAD_LETTER
                continue
            ahead = first[item.digest]
            if ahead is item and item.digest in claimed.won:
                _check_first(item)
                item.claimed = True
                item.disposition = item.wanted
                continue
            self._lost(item, ahead, claimed.kept.get(item.digest))
        self._revive(connection, batch.items)
        self._look_for_parked(connection, batch, claimed)

    def _revive(self, connection: Connection, items: Sequence[Item]) -> None:
        if not self._revival.revive(connection, items):
            raise LedgerMoved("the ledger row of a dead message ID changed while it was claimed")

    def _quarantine(self, connection: Connection, batch: Batch) -> None:
        """Dead-letter messages that the ledger does not know and may have forgotten: some may have been processed.

        Raises:
            StaleFound: Some are stale by their event's time, and the brake was not asked; a clock may be wrong.
        """
        asked = [item for item in batch.items if item.outdated and item.digest is not None]
        digests = [item.digest for item in asked if item.digest is not None]
        known = self._ledger.dialect.kept(connection, self._ledger.consumer, digests)
        unknown = [item for item in asked if item.digest not in known and item.dead is None]
        if found := [origins.origin(item.message) for item in unknown if item.aged and not failures.is_held(item)]:
            raise StaleFound(*found)
        for item in unknown:
            if not item.aged:
                item.dead = failures.stale(item.delivery)
                item.parking = None

    def _lost(self, item: Item, ahead: Item, kept: Kept | None) -> None:
        """Decide on an item whose ID another transaction or an earlier item has claimed."""
        if kept is None and ahead is item:
            # A retention run removed the row between the two statements. Claim again.
            raise LedgerMoved(f"the ledger row of message ID {item.message_id!r} vanished while it was claimed")
        outcome = kept.outcome if kept is not None else ahead.outcome
        item.age = kept.age if kept is not None else 0.0
        if not self._is_same(item, kept, ahead):
            item.disposition = Disposition.DEAD_LETTER
            item.dead = failures.conflict(item.delivery)
        elif outcome is Outcome.DEAD:
            item.disposition = Disposition.DUPLICATE_OF_DEAD
        elif outcome is Outcome.PROCESSED and (item.repeats or item.dead is None):
            self._repeat(item)
        else:
            item.disposition = Disposition.DUPLICATE

    def _is_same(self, item: Item, kept: Kept | None, ahead: Item) -> bool:
        """Distinguish a resend from a conflict; compare fingerprints in the first message's version."""
        known = (kept.fingerprint, kept.version) if kept else (ahead.fingerprint, ahead.fingerprint_version)
        if item.fingerprint_version == known[1]:
            return item.fingerprint == known[0]
        return self._declared.fingerprint.of(item.message, item.event, known[1]) == known[0]

    def _repeat(self, item: Item) -> None:
        """Mark a duplicate of a processed message for the handler's `on_duplicate`, if it has one.

        If `on_duplicate` failed, the duplicate is parked or given up; if its key is blocked, it waits. The ledger row
        of its ID belongs to the first message.
        """
        if self._declared.on_duplicate is None:
            item.disposition = Disposition.DUPLICATE
            return
        item.repeats = True
        if item.parking is not None:
            item.parking = replace(item.parking, kind=Kind.REPEAT)
        item.disposition = Disposition.REPEAT if item.wanted is Disposition.RUN else item.wanted

    def _look_for_parked(self, connection: Connection, batch: Batch, claimed: Claimed) -> None:
        """Check that we know all parked messages of our partitions; this backs the fence up.

        A message that another worker parked blocks its key. If we do not know it, later messages of the key would
        overtake it. So the batch is given up, and the parked messages are loaded again.
        """
        if self._declared.ordering is Ordering.NONE:
            return
        parked = [digest for digest, kept in claimed.kept.items() if kept.outcome is Outcome.PARKED]
        places = self._lot.places(connection, parked) if parked else ()
        for place in places:
            if place.partition in batch.owners and not batch.knows(place):
                raise Overtaken(f"a message of {place.partition} was parked by another worker")

    def probe(self, session: Session) -> None:
        """Flush, and fail if the transaction is already broken."""
        session.flush()
        self._ledger.dialect.probe(session.connection())

    def close(self, session: Session, batch: Batch) -> None:
        """Flush, write dead letters, parked messages, results and outbox, and check that all can commit.

        The user's flush and deferred constraints run under the handler's settings; our own statements do not.
        """
        reach("after_handler")
        batch.stages.over("handle")
        connection = session.connection()
        ledger = self._ledger
        if not ledger.dialect.is_open(connection):
            # After a rollback through the driver, each flushed change could become durable by itself.
            raise TransactionEnded("the handler ended the transaction behind its session's back")
        session.flush()
        self._end_handling(connection, batch)
        batch.theirs = False
        if batch.released:
            ledger.dialect.release(connection, ledger.consumer, batch.released)
        ledger.relapse(connection, batch.relapsed)
        self._dead_letter(connection, batch, batch.items)
        self._park(connection, batch, batch.items)
        self._revival.settle(connection, batch.items)
        ledger.keep_results(connection, batch.results)
        outbox.append(connection, ledger.tables, batch.publications)
        batch.cleared = got_further(new_outcomes(batch.items, batch.dead), batch.reaches) if batch.reaches else ()
        for partition in batch.cleared:
            fence.clear_crashes(connection, ledger, partition, batch.owners[partition])
        reach("before_finalise")
        self._finalise(connection, batch)
        reach("after_finalise")
        batch.stages.over("write")
        reach("before_commit")
        if batch.dead:
            reach("before_dead_letter_commit")

    def _end_handling(self, connection: Connection, batch: Batch) -> None:
        # If none of the handler's code ran, none can have ended the transaction or swallowed an error in it.
        if not batch.handled:
            return
        location.untranslated(connection, self._ledger.tables)
        local = batch.guard.set_local and not batch.guard.set_session
        if not self._ledger.dialect.finalise(connection, batch.token, batch.begun, local=local):
            raise TransactionEnded("the handler ended the transaction behind its session's back")

    def _finalise(self, connection: Connection, batch: Batch) -> None:
        ledger = self._ledger
        owned = fence.count_owned(connection, ledger, batch.owners)
        if owned != len(batch.owners):
            raise Fenced(f"{len(batch.owners) - owned} of {len(batch.owners)} partitions were taken over")
        self._move_on(connection, batch)

    def _move_on(self, connection: Connection, batch: Batch) -> None:
        """Count this transaction in its lane; the mark relies on the count."""
        ledger = self._ledger
        if batch.lane is not None and not progress.move_on(connection, ledger, batch.lane):
            raise CommitsLost("the database has lost transactions that it had acknowledged")

    def check(self, session: Session, batch: Batch) -> None:
        """Raise `TransactionEnded` if a failed handler is known to have ended the transaction before.

        Without this check the batch would run again, and claims that the handler made durable would pass for those of
        processed messages. Sets `batch.sound` if the transaction could go on.
        """
        try:
            with session.no_autoflush:
                holds = self._ledger.dialect.holds(session.connection(), batch.token)
        except SQLAlchemyError:
            return  # lost, aborted, or rolled back by the session itself
        if not holds:
            raise TransactionEnded("the handler ended the transaction behind its session's back")
        batch.sound = True

    def _dead_letter(self, connection: Connection, batch: Batch, items: Sequence[Item], *, undoes: bool = True) -> None:
        dead_lettered = [
            item for item in items if item.disposition is Disposition.DEAD_LETTER and item.dead is not None
        ]
        if not dead_lettered:
            return
        if self._undo is not None and undoes:
            writing.tell_doubt(connection, self._undo, self._declared.name, dead_lettered)
        entered = dead_letters.add(
            connection, self._ledger.tables, self._ledger.consumer, writing.to_enter(dead_lettered)
        )
        batch.dead = writing.entered(dead_lettered, entered)
        if self._undo is not None and undoes:
            self._undo.mark(connection, writing.with_steps(dead_lettered, entered))
        if self._declared.holds_key:
            writing.hold(dead_lettered, entered)
        if self._declared.dead_letter is not None:
            topic, name, now = self._declared.dead_letter.topic, self._declared.name, datetime.now(UTC)
            batch.publications += [dead_letter_format.written(one, topic, name, now) for one in batch.dead]

    def _park(self, connection: Connection, batch: Batch, items: Sequence[Item]) -> None:
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

    def dead_letter_misuse(self, session: Session, batch: Batch, error: TransactionEnded) -> None:
        """Dead-letter messages whose claims a handler committed by itself, in a separate transaction.

        Their claims are durable, but it is unknown which of their effects are. Another run could double effects, and
        counting them as processed could lose effects. The owner of their partitions does not matter here, so the fence
        is not checked. The lane counts this transaction like any other, because the mark then passes these messages: if
        the database lost their dead letters with its last commits, only the lane's count would show it.

        Raises:
            CommitsLost: The database has lost transactions of this lane.
        """
        connection = session.connection()
        claimed = {item.digest: item for item in batch.items if item.claimed and item.digest is not None}
        durable = self._ledger.kill(connection, list(claimed), batch.proof) if claimed else set()
        # A parked message's claim was durable before, so it does not show whether its effects are.
        waiting = self._waiting(connection, batch)
        batch.misused = [item for item in batch.items if item in waiting or item.digest in durable]
        for item in batch.misused:
            item.disposition = Disposition.DEAD_LETTER
            since = (item.parked and item.parked.first_failed_at) or failures.now()
            item.dead = failures.from_error(
                item.delivery, Reason.EXHAUSTED, error, attempts=item.attempt, first_failed_at=since
            )
        batch.publications = []
        # The handler's durable changes may need the effects of its steps, so a person decides whether to undo them.
        self._dead_letter(connection, batch, batch.misused, undoes=False)
        self._park(connection, batch, batch.misused)
        outbox.append(connection, self._ledger.tables, batch.publications)
        self._move_on(connection, batch)

    def _waiting(self, connection: Connection, batch: Batch) -> list[Item]:
        """Return the parked messages of a batch whose rows in the lot are unchanged.

        Others became dead letters by a COMMIT whose answer was lost, or another worker decides on them.
        """
        parked = {origins.origin(item.message): item for item in batch.items if item.parked is not None}
        there = redriven.standing(self._lot, connection, list(parked))
        kinds = {at: item.parked.kind for at, item in parked.items() if item.parked is not None}
        same = [at for at, row in there.items() if row.kind == kinds[at] and row.kind != Kind.RELEASED]
        return [parked[at] for at in same]


_SERVED = "consumerkit.served"
_SETTLED = {
    Disposition.RUN: "processed",
    Disposition.DUPLICATE: "another message of its ID was there before",
    Disposition.REPEAT: "another message of its ID was there before, and the handler was told",
}


class TransactionEnded(TransactionMisused):
    """Other code ended the transaction with the claims; a lookup must show whether the claims are durable."""


class StaleFound(Exception):
    """Messages are stale by their event's time: decide on them, and run the transaction again."""

    @property
    def places(self) -> Sequence[origins.Origin]:
        """Their places in the log."""
        return self.args


class Overtaken(Fenced):
    """A message is parked that this worker does not know."""


def _parking(item: Item) -> ParkedMessage | None:
    return item.parking if item.disposition is Disposition.PARK else None


def _check_first(item: Item) -> None:
    """Refuse the first claim of an ID for a message that was decided on as a duplicate.

    The ledger has lost the row of the first message. This message is read again and decided on afresh.
    """
    if item.repeats:
        raise Overtaken(f"the ledger row of message ID {item.message_id!r}, which this message repeats, is gone")


def _claim(item: Item) -> Claim:
    assert item.digest is not None
    return Claim(item.digest, item.message_id, item.fingerprint, item.outcome, item.fingerprint_version)
