"""The product with one of its rules taken out, in the worker process only: the verdict must fail on each."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection

from consumerkit.engine.partitions.offsets import OffsetTracker
from consumerkit.engine.rebalance import Rebalance
from consumerkit.engine.transaction.transaction import Transaction
from consumerkit.relay import Relay
from consumerkit.storage import ledger
from consumerkit.storage.dialects import Claim
from consumerkit.storage.dialects.postgresql import PostgreSQL
from consumerkit.storage.outbox import Pending


def _replace(owner: object, name: str, made: object) -> None:
    setattr(owner, name, made)


def without_claim() -> None:
    """Every claim succeeds, also the second one for an ID."""
    insert_what_is_new = PostgreSQL.claim

    def claim(
        self: PostgreSQL, connection: Connection, consumer: int, claims: Sequence[Claim], *, name: str | None = None
    ) -> set[bytes]:
        insert_what_is_new(self, connection, consumer, claims, name=name)
        return {one.digest for one in claims}

    _replace(PostgreSQL, "claim", claim)


def without_finalise() -> None:
    """The final check of the transaction and the check of the fence are left out."""
    _replace(Transaction, "_end_handling", lambda *_: None)
    _replace(Transaction, "_finalise", lambda *_: None)
    _replace(Transaction, "_end_handling", lambda *_: None)
    _replace(PostgreSQL, "probe", lambda *_: None)


def without_sort() -> None:
    """IDs are claimed in the order of the log."""
    _replace(ledger, "sorted", list)


def without_drain() -> None:
    """A partition is given back while its messages are being handled."""

    async def drain(_self: Rebalance, _partitions: Any) -> int:
        return 0

    _replace(Rebalance, "_drain", drain)


def without_contiguity() -> None:
    """The highest offset that was fetched is committed, whether what stands before it is finished or not."""

    def position(self: OffsetTracker) -> int | None:
        return self._next

    _replace(OffsetTracker, "position", property(position))


def without_publishing() -> None:
    """The relay counts every message as acknowledged."""

    async def send(self: Relay, page: Sequence[Pending], *_: Any) -> int:
        self._rows.acknowledge(page)
        return len(page)

    _replace(Relay, "_send", send)


MUTANTS: dict[str, Callable[[], None]] = {
    "claim": without_claim,
    "finalise": without_finalise,
    "sort": without_sort,
    "drain": without_drain,
    "contiguity": without_contiguity,
    "publishing": without_publishing,
}
