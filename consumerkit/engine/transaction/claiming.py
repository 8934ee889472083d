"""Claims the messages of a transaction: decides which run, wait, are duplicates or become dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.batch import Batch
from consumerkit.engine.transaction.item import Disposition, Item
from consumerkit.errors import Fenced
from consumerkit.failpoints import reach
from consumerkit.handlers.declaration import Declaration
from consumerkit.handlers.handler import Ordering
from consumerkit.outcome import Outcome
from consumerkit.storage import origins
from consumerkit.storage.dead_letters import resolving
from consumerkit.storage.dialects import Claim, Kept
from consumerkit.storage.ledger import Claimed, Ledger, LedgerMoved
from consumerkit.storage.origins import Origin, home
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import Kind, ParkedMessage


class Claiming:
    """Decides on each message of a batch; synchronous, in the batch's transaction."""

    def __init__(self, ledger: Ledger, lot: ParkingLot, declared: Declaration) -> None:
        self._ledger = ledger
        self._lot = lot
        self._declared = declared
        self._revival = Revival(ledger, declared)

    def claim(self, connection: Connection, batch: Batch) -> None:
        """Claim fresh messages, and lock parked ones.

        Raises:
            StaleFound: See `StaleFound`.
            Overtaken: See `Overtaken`.
            LedgerMoved: The ledger changed while it was claimed; roll back and claim again.
        """
        if batch.items[0].parked is None:
            self._claim(connection, batch)
        for item in batch.items:
            if item.parked is not None:
                self._resume(connection, item, item.parked)
        if any(item.claimed for item in batch.items):
            batch.proof = self._ledger.dialect.proof(connection)
        if self._declared.on_duplicate is not None:
            repeated = [item.digest for item in batch.items if item.disposition is Disposition.REPEAT and item.digest]
            batch.recalled = self._ledger.results(connection, repeated)

    def settle(self, connection: Connection, items: Sequence[Item]) -> None:
        """Resolve the dead letters of IDs that a resend processed."""
        self._revival.settle(connection, items)

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


class Revival:
    """Decides on messages of one transaction whose ID the ledger holds as dead."""

    def __init__(self, ledger: Ledger, declared: Declaration) -> None:
        self._ledger = ledger
        self._declared = declared

    def revive(self, connection: Connection, items: Sequence[Item]) -> bool:
        """Let dead IDs run that may; lock each ledger row and check it again under the lock.

        A message with a dead letter of its own was only delivered again and is skipped.

        Returns:
            False if the ledger has changed since the claim; the caller must claim again.
        """
        asked = [item for item in items if item.disposition is Disposition.DUPLICATE_OF_DEAD and self._may_run(item)]
        if not asked:
            return True
        ledger = self._ledger
        digests = {item.digest for item in asked if item.digest is not None}
        letters = resolving.origins(connection, ledger, digests)
        fresh = [item for item in asked if item.parked is not None or not _has_letter(item, letters)]
        first: dict[bytes, Item] = {}
        for item in fresh:
            if item.digest is not None:
                first.setdefault(item.digest, item)
        for outcome in Outcome:
            some = [digest for digest, item in first.items() if item.outcome is outcome]
            if len(ledger.revive(connection, some, outcome)) != len(some):
                return False
        for item in fresh:
            if item.digest is not None and first[item.digest] is item:
                _run(item, max(letters.get(item.digest, {}).values(), default=None))
            else:
                item.disposition = Disposition.DUPLICATE
        return True

    def _may_run(self, item: Item) -> bool:
        redriven = item.parked is not None and item.parked.dead_letter is not None
        return redriven or self._declared.runs_resends

    def settle(self, connection: Connection, items: Sequence[Item]) -> None:
        """Resolve the dead letters of IDs that a resend processed."""
        processed = [
            item.digest for item in items if item.revived and item.disposition is Disposition.RUN and item.digest
        ]
        if processed:
            ledger, by = self._ledger, self._declared.name
            resolving.settle_ids(connection, ledger, processed, by, "a resend was processed")


class StaleFound(Exception):
    """Messages are stale by their event's time: decide on them, and run the transaction again."""

    @property
    def places(self) -> Sequence[origins.Origin]:
        """Their places in the log."""
        return self.args


class Overtaken(Fenced):
    """A message is parked that this worker does not know."""


def _check_first(item: Item) -> None:
    """Refuse the first claim of an ID for a message that was decided on as a duplicate.

    The ledger has lost the row of the first message. This message is read again and decided on afresh.
    """
    if item.repeats:
        raise Overtaken(f"the ledger row of message ID {item.message_id!r}, which this message repeats, is gone")


def _claim(item: Item) -> Claim:
    assert item.digest is not None
    return Claim(item.digest, item.message_id, item.fingerprint, item.outcome, item.fingerprint_version)


def _has_letter(item: Item, letters: dict[bytes, dict[Origin, int]]) -> bool:
    message = item.message
    at = (home(message.topic_id), message.partition, message.offset)
    return item.digest is not None and at in letters.get(item.digest, {})


def _run(item: Item, letter: int | None) -> None:
    item.revived = item.claimed = True
    item.disposition = item.wanted
    if item.parking is not None and item.parked is None:
        # Its success then resolves the letter, too.
        item.parking = replace(item.parking, dead_letter=letter)
