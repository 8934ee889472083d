"""Runs dead message IDs again: resends if that is declared, and redriven messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from consumerkit.engine.transaction.item import Disposition, Item
from consumerkit.handlers.declaration import Declaration
from consumerkit.outcome import Outcome
from consumerkit.storage.dead_letters import resolving
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.origins import Origin, home


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
