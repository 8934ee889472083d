"""The ledger: which message was first with an ID, and its outcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.orm import Session

from consumerkit.outcome import Outcome
from consumerkit.storage.dialects import Claim, Kept
from consumerkit.storage.store import Store
from consumerkit.storage.tables import Tables


class LedgerMoved(Exception):
    """The ledger changed between two statements of ours: run the transaction again."""


class Claimed(NamedTuple):
    """The answer to a claim: the digests that are ours, and what the ledger holds for the others."""

    won: set[bytes]
    kept: dict[bytes, Kept]


@dataclass(frozen=True, slots=True)
class Ledger(Store):
    """One consumer's part of the ledger.

    Attributes:
        name: The handler's name: each claim then checks that the tables give it this number. None
            skips the check.
    """

    name: str | None = None

    def claim(self, connection: Connection, claims: Iterable[Claim]) -> Claimed:
        """Claim message IDs in this transaction, each digest given once.

        Sorted: two transactions that claim the same IDs wait for each other instead of deadlocking.
        A second statement reads what a concurrent winner left, since the first one's snapshot
        cannot show it.
        """
        ordered = sorted(claims)
        if not ordered:
            return Claimed(set(), {})
        won = self.dialect.claim(connection, self.consumer, ordered, name=self.name)
        if len(won) == len(ordered):
            return Claimed(won, {})
        lost = [claim.digest for claim in ordered if claim.digest not in won]
        return Claimed(won, self.dialect.kept(connection, self.consumer, lost))

    def keep_results(self, connection: Connection, results: Mapping[bytes, str]) -> None:
        """Store what handlers returned, as JSON by digest."""
        if results:
            rows = [
                {"consumer": self.consumer, "digest": digest, "result": result} for digest, result in results.items()
            ]
            connection.execute(insert(self.tables.message_results), rows)

    def settle(self, connection: Connection, digests: Sequence[bytes], outcome: Outcome) -> None:
        """Give parked IDs their outcome.

        Raises:
            RuntimeError: One is not parked: something else decided on it, so this transaction must
                not commit.
        """
        if not digests:
            return
        table = self.tables.processed_messages
        statement = (
            update(table)
            .where(table.c.consumer == self.consumer, table.c.digest.in_(digests))
            .where(table.c.outcome == int(Outcome.PARKED))
            .values(outcome=int(outcome), processed_at=func.now())
        )
        if connection.execute(statement).rowcount != len(digests):
            raise RuntimeError("a parked message's claim is gone or decided already")

    def kill(self, connection: Connection, digests: Sequence[bytes], proof: str) -> set[bytes]:
        """Turn IDs that the transaction with this proof marked as processed into dead ones; return them.

        If that transaction was rolled back, another may have claimed the IDs since; its rows stay
        as they are.
        """
        table = self.tables.processed_messages
        statement = (
            update(table)
            .where(table.c.consumer == self.consumer, table.c.digest.in_(digests))
            .where(table.c.outcome == int(Outcome.PROCESSED))
            .where(self.dialect.written_by(proof))
            .values(outcome=int(Outcome.DEAD))
            .returning(table.c.digest)
        )
        return {bytes(digest) for (digest,) in connection.execute(statement)}

    def revive(self, connection: Connection, digests: Sequence[bytes], outcome: Outcome) -> set[bytes]:
        """Give dead IDs another outcome; return those that were dead, checked again under the lock."""
        if not digests:
            return set()
        table = self.tables.processed_messages
        statement = (
            update(table)
            .where(table.c.consumer == self.consumer, table.c.digest.in_(digests))
            .where(table.c.outcome == int(Outcome.DEAD))
            .values(outcome=int(outcome), processed_at=self.dialect.claimed_at(connection))
            .returning(table.c.digest)
        )
        return {bytes(digest) for (digest,) in connection.execute(statement)}

    def relapse(self, connection: Connection, digests: Sequence[bytes]) -> None:
        """Take back what `revive` did in this transaction, for messages that will run in another."""
        if digests:
            table = self.tables.processed_messages
            mine = (table.c.consumer == self.consumer, table.c.digest.in_(digests))
            connection.execute(update(table).where(*mine).values(outcome=int(Outcome.DEAD)))

    def results(self, connection: Connection, digests: Sequence[bytes]) -> dict[bytes, str]:
        """Return the JSON of what the handler returned for these IDs; leaves out IDs without a result."""
        if not digests:
            return {}
        c = self.tables.message_results.c
        query = select(c.digest, c.result).where(c.consumer == self.consumer, c.digest.in_(digests))
        return {bytes(digest): str(result) for digest, result in connection.execute(query)}

    def result(self, session: Session, digest: bytes) -> str | None:
        """Return the JSON of what the handler returned for this ID, or None."""
        c = self.tables.message_results.c
        found = session.scalar(select(c.result).where(c.consumer == self.consumer, c.digest == digest))
        return None if found is None else str(found)


def count_by_outcome(session: Session, tables: Tables) -> Sequence[Any]:
    """Return (handler name, outcome, rows, oldest, newest) for each handler and outcome."""
    ledger, consumers = tables.processed_messages.c, tables.consumers.c
    moment = ledger.processed_at
    return session.execute(
        select(consumers.name, ledger.outcome, func.count(), func.min(moment), func.max(moment))
        .join_from(tables.processed_messages, tables.consumers, ledger.consumer == consumers.id)
        .group_by(consumers.name, ledger.outcome)
        .order_by(consumers.name, ledger.outcome)
    ).all()
