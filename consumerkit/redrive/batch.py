"""One transaction of a run handles dead letters of one partition, in log order, under the partition's fence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final, NamedTuple, Protocol

from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from consumerkit.redrive.decision import RedriveResult
from consumerkit.redrive.plan import PartitionLetters
from consumerkit.storage import audit, fence
from consumerkit.storage.dead_letters.letters import State
from consumerkit.storage.dead_letters.selection import Selection
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.isolation import connection_of
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.tables import Tables

LETTERS: Final = 100
BYTES: Final = 16 * 1024 * 1024
FENCE_WAIT: Final = 10.0


class LetterResult(NamedTuple):
    """The result of one letter."""

    letter: Any
    result: RedriveResult


class LockedLetters(NamedTuple):
    """The scope of an action: one transaction on one partition.

    Attributes:
        connection: The transaction's connection.
        lot: The handler's parking lot.
        log: The partition.
        dry: Whether to change nothing.
    """

    connection: Connection
    lot: ParkingLot
    log: PartitionLetters
    dry: bool


class Action(Protocol):
    """An action on dead letters."""

    @property
    def name(self) -> str:
        """The name in the audit record."""
        ...

    def check(self, log: PartitionLetters) -> None:
        """Refuse a partition before anything is done.

        Raises:
            StartError: The action lacks something that it needs.
        """

    def carry_out(self, scene: LockedLetters, numbers: Sequence[int], by: str) -> list[LetterResult]:
        """Lock these letters, decide on those that are still dead, and carry the decisions out."""
        ...

    def details(self) -> dict[str, Any]:
        """Return the details that the audit records besides the letters."""
        ...


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a batch; `after` is the offset of the last letter, None if no letter is left."""

    told: list[LetterResult]
    after: int | None


class Busy(Exception):
    """Another transaction of the partition did not end in time."""


@dataclass(frozen=True, slots=True)
class LetterBatches:
    """Handles a run's letters one batch at a time.

    Attributes:
        tables: The table definitions.
        selection: Which letters.
        ceiling: The highest ID.
        action: The action.
        by: Who carries it out.
        run: The run's name in the records.
        dry: Whether to change nothing.
    """

    tables: Tables
    selection: Selection
    ceiling: int
    action: Action
    by: str
    run: str
    dry: bool

    def next(self, session: Session, log: PartitionLetters, after: int, limit: int) -> Done:
        """Handle a partition's letters after an offset, in the caller's transaction.

        Two runs at once do not collide. This transaction holds the fence until its end, and letters that the other run
        handled are no longer dead. The fence also keeps the partition's owner out for a few milliseconds.

        Raises:
            Busy: The owner's transactions took too long.
        """
        dialect = dialect_for(session.get_bind().dialect.name, self.tables)
        connection = connection_of(session, dialect)
        lot = ParkingLot(self.tables, dialect, log.consumer)
        if not self.dry and not fence.hold(connection, lot, [log.name], wait=FENCE_WAIT):
            raise Busy(f"{log.name} is busy")
        chosen = self._chosen(connection, log, after, limit)
        if not chosen:
            return Done([], None)
        scene = LockedLetters(connection, lot, log, self.dry)
        told = self.action.carry_out(scene, [row.id for row in chosen], self.by)
        told.sort(key=lambda one: one.letter.offset)
        self._record(connection, log, told)
        return Done(told, chosen[-1].offset)

    def _chosen(self, connection: Connection, log: PartitionLetters, after: int, limit: int) -> list[Any]:
        """Return the next letters' IDs and offsets: at least one, and as many as memory allows at once."""
        c = self.tables.dead_letters.c
        selection = self.selection if log.ids is None else replace(self.selection, ids=log.ids)
        rows = connection.execute(
            select(c.id, c.offset, c.size)
            .where(log.holds(self.tables), selection.where(self.tables))
            .where(c.state == State.DEAD.value, c.offset > after, c.id <= self.ceiling)
            .order_by(c.offset)
            .limit(limit)
        ).all()
        sizes = accumulate(row.size for row in rows)
        return [row for number, (row, size) in enumerate(zip(rows, sizes, strict=True)) if not number or size <= BYTES]

    def _record(self, connection: Connection, log: PartitionLetters, told: Sequence[LetterResult]) -> None:
        letters = [one.letter.id for one in told if one.result.is_done]
        if self.dry or not letters:
            return
        details = {"run": self.run, "partition": str(log.name), "letters": letters, **self.action.details()}
        audit.record(
            connection, self.tables, actor=self.by, action=self.action.name, consumer=log.consumer, details=details
        )
