"""The parts of a transaction that coroutines and threads share; they are synchronous and never commit."""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.batch import Batch
from consumerkit.engine.transaction.claiming import Claiming
from consumerkit.engine.transaction.guard import OPTION
from consumerkit.engine.transaction.item import Disposition, Item
from consumerkit.engine.transaction.new_outcomes import got_further, new_outcomes
from consumerkit.engine.transaction.writing import Writing
from consumerkit.errors import Fenced, TransactionMisused, TransactionsLost
from consumerkit.failpoints import reach
from consumerkit.handlers.declaration import Declaration
from consumerkit.outcome import Reason
from consumerkit.storage import fence, lane_progress, location, origins, outbox
from consumerkit.storage.dialects import Limits
from consumerkit.storage.isolation import connection_of
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.parking import redriven
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import Kind


class Transaction:
    """Opens and closes a batch's transaction on a session."""

    def __init__(self, ledger: Ledger, lot: ParkingLot, declared: Declaration, limits: Limits) -> None:
        self._ledger = ledger
        self._lot = lot
        self._limits = limits
        self._claiming = Claiming(ledger, lot, declared)
        self._writing = Writing(ledger, lot, declared)

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
        fences = fence.numbers(ledger.tables, ledger.consumer, batch.owners)
        batch.begun = ledger.dialect.begin(connection, self._limits, batch.token, fences)
        batch.begun_at = batch.stages.over("begin")
        reach("after_begin")
        self._claiming.claim(connection, batch)
        batch.stages.over("claim")
        batch.guard.set_local = batch.guard.set_session = False  # settings seen so far are ours
        batch.theirs = True

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
        self._writing.dead_letter(connection, batch, batch.items)
        self._writing.park(connection, batch, batch.items)
        self._claiming.settle(connection, batch.items)
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
        if batch.lane is not None and not lane_progress.move_on(connection, ledger, batch.lane):
            raise TransactionsLost("the database has lost transactions that it had acknowledged")

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

    def dead_letter_misuse(self, session: Session, batch: Batch, error: TransactionEnded) -> None:
        """Dead-letter messages whose claims a handler committed by itself, in a separate transaction.

        Their claims are durable, but it is unknown which of their effects are. Another run could double effects, and
        counting them as processed could lose effects. The owner of their partitions does not matter here, so the fence
        is not checked. The lane counts this transaction like any other, because the mark then passes these messages: if
        the database lost their dead letters with its last commits, only the lane's count would show it.

        Raises:
            TransactionsLost: The database has lost transactions of this lane.
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
        self._writing.dead_letter(connection, batch, batch.misused, undoes=False)
        self._writing.park(connection, batch, batch.misused)
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


class TransactionEnded(TransactionMisused):
    """Other code ended the transaction with the claims; a lookup must show whether the claims are durable."""
