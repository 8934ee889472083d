"""The interface between the ledger and a database."""

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
    """One row, in its final state, that a transaction tries to be the first to insert.

    Digest and fingerprint have 16 bytes. `message_id` is as `identity.shown` returns it: printable
    and not empty. `fingerprint_version` None means the first version.
    """

    digest: bytes
    message_id: str
    fingerprint: bytes
    outcome: Outcome
    fingerprint_version: int | None = None


class Kept(NamedTuple):
    """What the ledger holds for an ID that is taken.

    Attributes:
        fingerprint: The first message's.
        outcome: The first message's outcome.
        version: The version of its fingerprint.
        age: Seconds since its outcome was written, on the database's clock; 0 if it was not read.
    """

    fingerprint: bytes
    outcome: Outcome
    version: int | None = None
    age: float = 0.0


class ClaimHolder(Enum):
    """Who holds a message ID that the ledger, as this transaction sees it, does not contain."""

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
    """Check that the tables in which a claim was made give a handler the number that the worker started with.

    Raises:
        TablesReplaced: They do not: the tables were restored or recreated under the running worker.
    """
    if name is not None and found != consumer:
        raise TablesReplaced(
            f"handler {name!r} has {'no number' if found is None else f'the number {found}'} in consumerkit's tables, "
            f"and had {consumer} when the worker started: the tables were replaced while it ran; restart it"
        )


RELAY_IDLE: Final = 10.0
"""Seconds after which a silent relay loses its turn, if the server can enforce that."""


class RelayHolder(NamedTuple):
    """Which relay has the turn.

    Attributes:
        name: The server's process, or the locked file.
        silent: Seconds since its last sign of life; None if that is unknown.
    """

    name: str
    silent: float | None


class Dialect(Protocol):
    """What the ledger needs from a database, within one transaction on one connection.

    The order is `begin`, `claim`, then `kept` if a claim was lost, then `holds` and `finalise`.
    Nothing here commits.
    """

    single_writer: bool
    """Whether only one transaction at a time can write, so that more than one lane is of no use."""

    def begin(
        self, connection: Connection, limits: Limits, token: str, fences: Sequence[int] = ()
    ) -> SessionSettings | None:
        """Set the limits and full durability for this transaction, mark it with `token`, and keep take-overs out.

        `fences` are the sorted numbers of the partitions whose messages it handles: `take_over`
        waits until it ends.

        Returns:
            The settings that a handler may change for the transaction or the session; `finalise`
            sets them back.
        """
        ...

    def limit(self, connection: Connection, limits: Limits) -> None:
        """Make the server end this transaction if it takes too long: a frozen process would hold its locks."""

    def is_open(self, connection: Connection) -> bool:
        """Return whether the driver knows of a transaction; the server is not asked."""
        ...

    def proof(self, connection: Connection) -> str:
        """Return the proof that this transaction, once ended, wrote a row of the ledger; see `written_by`.

        Call it only after the transaction wrote such a row: otherwise the call may use up a
        transaction number.
        """
        ...

    def written_by(self, proof: str) -> ColumnElement[bool]:
        """Return the condition that the transaction with this proof wrote a row of the ledger."""
        ...

    def claimed_at(self, connection: Connection) -> Any:
        """Return the time that this transaction writes as `processed_at`."""
        ...

    def take_over(self, connection: Connection, fence: int, *, wait: float) -> bool:
        """Wait until no transaction holds this fence, and keep new ones out until this transaction ends.

        Returns:
            False if it took longer than `wait` seconds; with 0 it does not wait.
        """
        ...

    def take_free(self, connection: Connection, fences: Sequence[int]) -> list[int]:
        """Take over many fences without waiting; return those that no other transaction holds."""
        ...

    def in_seconds(self, seconds: float) -> ColumnElement[Any]:
        """Return the time `seconds` from now, on the database's clock."""
        ...

    def seconds_since(self, moment: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return how many seconds ago a time was, on the database's clock."""
        ...

    def claim(
        self, connection: Connection, consumer: int, claims: Sequence[Claim], *, name: str | None = None
    ) -> set[bytes]:
        """Insert the claims that are free, in the order of their digests; return the digests inserted.

        It waits for a concurrent transaction that inserted one of them; if that one commits, the
        claim is taken. `claims` is sorted by digest, each digest once. `name` is the name of the
        handler with the number `consumer`.

        Raises:
            TablesReplaced: The handler `name` has another number in the tables that this transaction sees.
        """
        ...

    def kept(self, connection: Connection, consumer: int, digests: Sequence[bytes]) -> dict[bytes, Kept]:
        """Return what the ledger holds for digests whose claim was lost; call it in a statement after the claim's."""
        ...

    def holder(self, connection: Connection, consumer: int, digest: bytes) -> ClaimHolder:
        """Return who holds an ID that was not found, without waiting; the transaction stays as it was.

        It may be any transaction of the caller's, not only one that `begin` started.
        """
        ...

    def release(self, connection: Connection, consumer: int, digests: Sequence[bytes]) -> None:
        """Take back claims of this transaction for messages that will run in another transaction."""

    def finalise(
        self, connection: Connection, token: str, begun: SessionSettings | None = None, *, local: bool = False
    ) -> bool:
        """End the handlers' part: check deferred constraints, then set back the settings that they changed.

        Args:
            connection: The transaction's.
            token: The token that `begin` marked it with.
            begun: The result of `begin`; None sets nothing back.
            local: Whether the handlers used SET LOCAL only; otherwise the session's own values are
                set back too.

        Returns:
            Whether this is still the transaction that `begin` marked.

        Raises:
            DBAPIError: A constraint is violated, or the transaction is aborted.
            TransactionMisused: The transaction is read-only.
        """
        ...

    def holds(self, connection: Connection, token: str) -> bool:
        """Return whether this is still the transaction that `begin` marked; it changes nothing.

        Raises:
            DBAPIError: The transaction is aborted.
        """
        ...

    def probe(self, connection: Connection) -> None:
        """Run the cheapest statement that fails in an aborted transaction."""

    def relay_guard(self, location: str) -> AbstractContextManager[bool]:
        """Keep other relays of this database out by means outside the database; yields whether it is our turn."""
        ...

    def lock_relay(self, session: Session, *, wait: float = 0.0) -> bool:
        """Keep other relays out until this transaction ends, at most `RELAY_IDLE` after its last statement.

        Returns whether it is our turn.

        Call it first in the transaction. If it is not our turn after `wait` seconds, the
        transaction may be unusable.
        """
        ...

    def relay_lives(self, location: str) -> None:
        """Leave a sign of life, for a guard outside the database."""

    def relay_holder(self, connection: Connection, location: str) -> RelayHolder | None:
        """Return which relay has the turn; None if no process has it."""
        ...

    def by_index(self, connection: Connection) -> AbstractContextManager[None]:
        """Make the statements within read by indexes, in index order, whatever the tables' statistics say."""
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
