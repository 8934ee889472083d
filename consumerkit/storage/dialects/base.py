"""The seam between the ledger and a database."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol

from sqlalchemy import ColumnElement, Connection
from sqlalchemy.orm import Session

from consumerkit.errors import TablesReplaced
from consumerkit.outcome import Outcome
from consumerkit.storage.dialects.settings import SessionSettings


class Claim(NamedTuple):
    """One row that a transaction wants to be the first to insert, in its final state.

    Digest and fingerprint have 16 bytes; `message_id` is as `identity.shown` returns it: printable, and not empty.
    `fingerprint_version` None is the first.
    """

    digest: bytes
    message_id: str
    fingerprint: bytes
    outcome: Outcome
    fingerprint_version: int | None = None


class Kept(NamedTuple):
    """What the ledger holds for an ID that was taken.

    Attributes:
        fingerprint: The first message's.
        outcome: What became of that.
        version: In which its fingerprint was made.
        age: Seconds since its outcome was written, on the database's clock; 0 where it was not read.
    """

    fingerprint: bytes
    outcome: Outcome
    version: int | None = None
    age: float = 0.0


class ClaimHolder(Enum):
    """Who holds a message ID that the ledger, as this transaction sees it, does not have."""

    NOBODY = "nobody"
    OPEN = "a transaction that is not committed"
    COMMITTED = "a transaction that was committed since"
    UNTOLD = "not known"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a transaction may take on the server, in seconds.

    Attributes:
        statement: One statement.
        lock: Waiting for one lock.
        idle: Between two statements.
    """

    statement: float = 60.0
    lock: float = 30.0
    idle: float = 60.0


def check_number(consumer: int, name: str | None, found: int | None) -> None:
    """Check that the tables which a claim went to give a handler the number that the worker started with.

    Raises:
        TablesReplaced: They do not: they are another set, restored or made again under the running worker.
    """
    if name is not None and found != consumer:
        raise TablesReplaced(
            f"handler {name!r} has {'no number' if found is None else f'the number {found}'} in consumerkit's tables, "
            f"and had {consumer} when the worker started: the tables were replaced while it ran; restart it"
        )


RELAY_IDLE: Final = 10.0
"""Seconds after which a silent relay loses its turn, where the server can see to that."""


class RelayHolder(NamedTuple):
    """Who has the relay's turn.

    Attributes:
        name: As a person finds it: the server's process, or the file that is locked.
        silent: Seconds since its last sign of life; None where that cannot be seen.
    """

    name: str
    silent: float | None


class Dialect(Protocol):
    """What the ledger needs of a database, within one transaction on one connection.

    The order is `begin`, `claim`, then `kept` if a claim was lost, at last `holds`, `finalise`; nothing here commits.
    """

    single_writer: bool
    """Whether only one transaction at a time can write, so that more lanes than one are of no use."""

    def begin(
        self, connection: Connection, limits: Limits, token: str, fences: Sequence[int] = ()
    ) -> SessionSettings | None:
        """Set the limits and full durability for this transaction, mark it with `token`, and keep take-overs out.

        `fences` are the numbers of the partitions whose messages it handles, sorted: until it ends, `take_over` waits.

        Returns:
            What a handler may set for the transaction or the session, for `finalise` to set back.
        """
        ...

    def limit(self, connection: Connection, limits: Limits) -> None:
        """Have the server end this transaction when it takes too long: the process may be frozen, and hold locks."""

    def is_open(self, connection: Connection) -> bool:
        """Return whether the driver knows of a transaction; the server is not asked."""
        ...

    def proof(self, connection: Connection) -> str:
        """Return what proves, once this transaction has ended, that it wrote a row of the ledger; see `written_by`.

        The transaction has written one: else it may get a number of its own for nothing.
        """
        ...

    def written_by(self, proof: str) -> ColumnElement[bool]:
        """Return the condition that a row of the ledger was written by the transaction with this proof."""
        ...

    def claimed_at(self, connection: Connection) -> Any:
        """Return the moment that this transaction writes as `processed_at`."""
        ...

    def take_over(self, connection: Connection, fence: int, *, wait: float) -> bool:
        """Wait until no transaction holds this fence, and keep new ones out until this transaction ends.

        Returns:
            False when it took longer than `wait` seconds; 0 does not wait at all.
        """
        ...

    def take_free(self, connection: Connection, fences: Sequence[int]) -> list[int]:
        """Do as `take_over` for many fences, without a wait; return those that no other transaction holds."""
        ...

    def in_seconds(self, seconds: float) -> ColumnElement[Any]:
        """Return the moment `seconds` from now, on the database's clock."""
        ...

    def seconds_since(self, moment: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return how long ago a moment was, in seconds, on the database's clock."""
        ...

    def claim(
        self, connection: Connection, consumer: int, claims: Sequence[Claim], *, name: str | None = None
    ) -> set[bytes]:
        """Insert the claims that are free, in the order of their digests; return the digests inserted.

        Waits for a concurrent transaction that inserted one of them, and finds it taken if that one commits.
        `claims` is sorted by digest, each digest once. `name` is the handler's whose number is `consumer`.

        Raises:
            TablesReplaced: The handler `name` has another number in the tables that this transaction sees.
        """
        ...

    def kept(self, connection: Connection, consumer: int, digests: Sequence[bytes]) -> dict[bytes, Kept]:
        """Return what the ledger holds for digests whose claim was lost; in a statement after the claim's."""
        ...

    def holder(self, connection: Connection, consumer: int, digest: bytes) -> ClaimHolder:
        """Tell who holds an ID that was not found, without waiting; the transaction is as it was before.

        It may be any transaction of the caller's, not only one that `begin` began.
        """
        ...

    def release(self, connection: Connection, consumer: int, digests: Sequence[bytes]) -> None:
        """Take back claims of this transaction, for messages that will run in another."""

    def finalise(
        self, connection: Connection, token: str, begun: SessionSettings | None = None, *, local: bool = False
    ) -> bool:
        """End the handlers' part: check deferred constraints, then set back what they set.

        Args:
            connection: Of the transaction.
            token: What `begin` marked it with.
            begun: What `begin` returned; nothing is set back where None.
            local: Whether the handlers set by SET LOCAL alone; else the session's own values are set back, too.

        Returns:
            Whether this is still the transaction that `begin` marked.

        Raises:
            DBAPIError: A constraint is violated, or the transaction is aborted.
            TransactionMisused: The transaction is read-only.
        """
        ...

    def holds(self, connection: Connection, token: str) -> bool:
        """Return whether this is still the transaction that `begin` marked; changes nothing.

        Raises:
            DBAPIError: The transaction is aborted.
        """
        ...

    def probe(self, connection: Connection) -> None:
        """Run the cheapest statement that fails in an aborted transaction."""

    def relay_guard(self, location: str) -> AbstractContextManager[bool]:
        """Keep other relays of this database out from outside of it; yields whether it is our turn."""
        ...

    def lock_relay(self, session: Session, *, wait: float = 0.0) -> bool:
        """Keep other relays out until this transaction ends, `RELAY_IDLE` after its last statement at the latest.

        Returns whether it is our turn.

        This is the transaction's first work. If it is not our turn after `wait` seconds, it may be of no further use.
        """
        ...

    def relay_lives(self, location: str) -> None:
        """Leave a sign of life beside a guard from outside of the database."""

    def relay_holder(self, connection: Connection, location: str) -> RelayHolder | None:
        """Return who has the relay's turn; None where no process has."""
        ...

    def by_index(self, connection: Connection) -> AbstractContextManager[None]:
        """Have statements within read by indexes, in their order, whatever the tables' statistics say."""
        ...

    def lock_pruning(self, connection: Connection) -> bool:
        """Keep others from pruning the same ledger until this transaction ends; return whether it is our turn."""
        ...

    def isolation(self) -> str | None:
        """Return the isolation level to force on each transaction, or None for the database's only one."""
        ...

    def most_connections(self, connection: Connection) -> int | None:
        """Return how many connections the server allows, or None without a limit."""
        ...
