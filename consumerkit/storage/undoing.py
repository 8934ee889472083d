"""The record's side of undoing: which steps of dead messages are to be undone, and with what result.

A step is marked in the transaction of its message's dead letter. Any worker of the handler may undo
it: that worker holds the message's rows for a while, and extends that during a call. After a crash
the next owner of the rows calls again with the same key.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, case, func, or_, select, update

from consumerkit.errors import PayloadSealed
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.storage.dialects import Dialect
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.payload import payload
from consumerkit.storage.portions import portions
from consumerkit.storage.progress import OWNER_BYTES
from consumerkit.storage.step_values import StepState
from consumerkit.storage.tables import Tables

KEEPS_STEPS: Final = frozenset({Reason.CONFLICT, Reason.STALE, Reason.FAILED_DUPLICATE})
"""Reasons of dead letters whose message ID was, or may have been, processed: the steps are another message's."""


class Undo(NamedTuple):
    """A step to undo.

    Attributes:
        digest, step: The message's digest and the step's name.
        generation: The generation in its key.
        result: What it returned, as JSON; None if it is unknown whether the step was done.
        known: Whether it is known to be done.
        given: Its arguments; None if it had no undo when it was called.
        sealed: Whether `given` is sealed.
        attempts: How often its undo has failed.
        failing_for: Seconds since it first failed.
        failed_at: When it first failed.
        letter: The dead letter of its message.
        message_id: The ID of its message, as text.
        undo_letter: The dead letter of its undo, if that had failed for good before.
        message: Its message, without key and value; None if the message's dead letter is gone.
    """

    digest: bytes
    step: str
    generation: int
    result: str | None
    known: bool
    given: bytes | None
    sealed: bool
    attempts: int
    failing_for: float
    failed_at: datetime | None
    letter: int | None
    message_id: str
    undo_letter: int | None
    message: Message | None = None


@dataclass(frozen=True, slots=True)
class UndoRows:
    """One handler's steps to undo; nothing here commits."""

    tables: Tables
    dialect: Dialect
    consumer: int

    def mark(self, connection: Connection, letters: Mapping[bytes, int]) -> None:
        """Mark the steps of dead messages to be undone; `letters` gives each message's dead letter.

        A call that may still be running is waited for until its deadline; its outcome is no longer
        recorded.
        """
        table = self.tables.message_steps
        c = table.c
        can = or_(
            and_(c.state == StepState.DONE.value, c.undo.is_not(None)),
            and_(c.state.in_((StepState.STARTED.value, StepState.FAILED.value)), c.undo == "doubt"),
        )
        now = self.dialect.in_seconds(0.0)
        under_way = and_(c.state == StepState.STARTED.value, c.deadline_at > now)
        for digest in sorted(letters):
            statement = update(table).where(c.consumer == self.consumer, c.digest == digest, can)
            connection.execute(
                statement.values(
                    state=StepState.UNDOING.value,
                    owner=secrets.token_bytes(OWNER_BYTES),
                    undo_at=case((under_way, c.deadline_at), else_=now),
                    undo_attempts=0,
                    undo_failed_at=None,
                    dead_letter=letters[digest],
                )
            )
            # A message's steps are undone in order, so the first waits for the last.
            last = table.alias("last").c
            all_over = select(func.max(last.undo_at)).where(last.consumer == self.consumer, last.digest == digest)
            waits = update(table).where(self._waits(), c.digest == digest)
            connection.execute(waits.values(undo_at=all_over.scalar_subquery()))

    def doubtful(self, connection: Connection, digests: Collection[bytes]) -> dict[bytes, list[tuple[str, int]]]:
        """Return the steps, with their generations, that may have happened and that nothing settles."""
        if not digests:
            return {}
        c = self.tables.message_steps.c
        own = (c.consumer == self.consumer, c.digest.in_(digests))
        # Only for a step with an undo is it of interest that a call which raised may have taken effect.
        unknown = or_(
            and_(c.state == StepState.STARTED.value, func.coalesce(c.undo, "") != "doubt"),
            and_(c.state == StepState.FAILED.value, c.undo == "done"),
        )
        query = select(c.digest, c.step, c.generation).where(*own, unknown)
        found: dict[bytes, list[tuple[str, int]]] = {}
        for digest, step, generation in connection.execute(query.order_by(c.digest, c.started_at, c.step)):
            found.setdefault(bytes(digest), []).append((step, generation))
        return found

    def claim(self, connection: Connection, owner: bytes, seconds: float, limit: int) -> dict[bytes, list[Undo]]:
        """Hold due steps for this many seconds; return them by message, in the order in which they are to be undone."""
        c = self.tables.message_steps.c
        now = self.dialect.in_seconds(0.0)
        due = select(c.digest).where(self._waits(), c.undo_at <= now).order_by(c.undo_at, c.digest).limit(limit)
        found: dict[bytes, list[Undo]] = {}
        for digest in sorted({bytes(one) for one in connection.execute(due).scalars()}):
            rows = self._held(connection, digest)
            if rows and all(row.late >= 0 for row in rows):
                self.hold(connection, digest, owner, seconds, renew=True)
                message = self._message(connection, rows[0].dead_letter)
                found[digest] = [_undo(row)._replace(message=message) for row in rows]
        return found

    def _message(self, connection: Connection, letter: int | None) -> Message | None:
        """Return the place and the headers of a dead message: the headers name its trace."""
        c = self.tables.dead_letters.c
        row = connection.execute(select(self.tables.dead_letters).where(c.id == letter)).one_or_none()
        if row is None:
            return None
        try:
            headers = payload(self.tables.sealer, row).headers
        except PayloadSealed:
            headers = ()
        return Message(row.topic, row.partition, row.offset, None, None, headers, row.timestamp, row.topic_id)

    def _held(self, connection: Connection, digest: bytes) -> list[Any]:
        """Lock and return the rows of a message, last step first; empty if another transaction has locked one."""
        table, letters = self.tables.message_steps, self.tables.dead_letters
        c = table.c
        late: ColumnElement[Any] = self.dialect.seconds_since(c.undo_at)
        failing: ColumnElement[Any] = self.dialect.seconds_since(c.undo_failed_at)
        name = select(letters.c.message_id).where(letters.c.id == c.dead_letter).scalar_subquery()
        here = (self._waits(), c.digest == digest)
        query = select(table, late.label("late"), failing.label("failing_for"), name.label("message_id"))
        rows = connection.execute(query.where(*here).with_for_update(skip_locked=True, of=table)).all()
        count = connection.execute(select(func.count()).select_from(table).where(*here)).scalar_one()
        return sorted(rows, key=_order, reverse=True) if len(rows) == count else []

    def hold(self, connection: Connection, digest: bytes, owner: bytes, seconds: float, *, renew: bool = False) -> bool:
        """Hold a message's steps for this many seconds from now; return whether they are still ours."""
        table = self.tables.message_steps
        own = () if renew else (table.c.owner == owner,)
        statement = update(table).where(self._waits(), table.c.digest == digest, *own)
        return connection.execute(statement.values(owner=owner, undo_at=self.dialect.in_seconds(seconds))).rowcount > 0

    def undone(self, connection: Connection, one: Undo, owner: bytes) -> bool:
        """Record that a step is undone; return False if another worker has taken it over."""
        return self._settle(connection, one, owner, StepState.UNDONE, given=None, result=None)

    def not_undone(self, connection: Connection, one: Undo, owner: bytes, letter: int | None) -> bool:
        """Record that a step cannot be undone; return False if another worker has taken it over."""
        return self._settle(connection, one, owner, StepState.NOT_UNDONE, undo_letter=letter)

    def _settle(self, connection: Connection, one: Undo, owner: bytes, state: StepState, **values: Any) -> bool:
        table = self.tables.message_steps
        own = (self._waits(), table.c.digest == one.digest, table.c.step == one.step, table.c.owner == owner)
        changed = {"state": state.value, "undo_at": None, **values}
        if state is StepState.UNDONE:
            changed["ended_at"] = func.now()
        return connection.execute(update(table).where(*own).values(**changed)).rowcount == 1

    def postpone(self, connection: Connection, one: Undo, owner: bytes, wait: float, *, failed: bool) -> None:
        """Schedule a message's undo after this many seconds; with `failed`, count an attempt."""
        table = self.tables.message_steps
        own = (self._waits(), table.c.digest == one.digest, table.c.owner == owner)
        connection.execute(update(table).where(*own).values(undo_at=self.dialect.in_seconds(wait)))
        if failed:
            first = func.coalesce(table.c.undo_failed_at, self.dialect.in_seconds(0.0))
            counted = update(table).where(*own, table.c.step == one.step)
            connection.execute(counted.values(undo_attempts=table.c.undo_attempts + 1, undo_failed_at=first))

    def next_due(self, connection: Connection) -> float | None:
        """Return in how many seconds the next undo is due."""
        c = self.tables.message_steps.c
        late = self.dialect.seconds_since(func.min(c.undo_at))
        found = connection.execute(select(late).where(self._waits())).scalar_one()
        return None if found is None else -float(found)

    def again(self, connection: Connection, letters: Collection[int]) -> None:
        """Schedule undos again that had failed for good, by the numbers of their letters."""
        values = {"state": StepState.UNDOING.value, "undo_at": self.dialect.in_seconds(0.0), "undo_attempts": 0}
        self._decide(connection, letters, **values, undo_failed_at=None)

    def decide(self, connection: Connection, letters: Collection[int], *, undone: bool) -> None:
        """Record a person's decision on undos that failed for good: undone by hand, or left as they are.

        A step that is left as it is has no undo any more, also when its message is redriven and dies again. If the
        step is called again, that call has its own.
        """
        c = self.tables.message_steps.c
        stands = case((c.result.is_not(None), StepState.DONE.value), else_=StepState.STARTED.value)
        gone: dict[str, Any] = {} if undone else {"undo": None}
        state = StepState.UNDONE.value if undone else stands
        self._decide(connection, letters, state=state, given=None, sealed=False, **gone)

    def _decide(self, connection: Connection, letters: Collection[int], **values: Any) -> None:
        if not letters:
            return
        table = self.tables.message_steps
        own = (table.c.consumer == self.consumer, table.c.undo_letter.in_(letters))
        connection.execute(update(table).where(*own, table.c.state == StepState.NOT_UNDONE.value).values(**values))

    def arguments(self, one: Undo) -> bytes | None:
        """Return a step's arguments, in the clear.

        Raises:
            PayloadSealed: They are sealed, and this sealer cannot unseal them.
        """
        if one.given is None or not one.sealed:
            return one.given
        if self.tables.sealer is None:
            raise PayloadSealed("the arguments are sealed; give Tables(sealer=...) the sealer that sealed them")
        try:
            return self.tables.sealer.unseal(one.given)
        except Exception as error:
            raise PayloadSealed(f"the arguments were not sealed by this sealer: {type(error).__name__}") from error

    def _waits(self) -> ColumnElement[bool]:
        c = self.tables.message_steps.c
        return and_(c.consumer == self.consumer, c.undo_at.is_not(None), c.state == StepState.UNDOING.value)


def count_waiting(connection: Connection, tables: Tables, letters: Collection[int]) -> int:
    """Return how many steps of these letters' messages wait to be undone."""
    c, count = tables.message_steps.c, 0
    for some in portions(sorted(letters)):
        query = select(func.count()).where(c.undo_at.is_not(None), c.state == StepState.UNDOING.value)
        count += connection.execute(query.where(c.dead_letter.in_(some))).scalar_one()
    return count


def undo_rows(store: ParkingLot) -> UndoRows:
    """Return the steps to undo of the handler that has this parking lot."""
    return UndoRows(store.tables, store.dialect, store.consumer)


def _order(row: Any) -> tuple[int, str]:
    """Return the sort key: the order in which steps were begun; the last one is undone first."""
    return row.place, row.step


def _undo(row: Any) -> Undo:
    return Undo(
        bytes(row.digest),
        row.step,
        row.generation,
        row.result,
        row.result is not None,
        None if row.given is None else bytes(row.given),
        bool(row.sealed),
        row.undo_attempts,
        float(row.failing_for or 0.0),
        row.undo_failed_at,
        row.dead_letter,
        row.message_id or row.digest.hex(),
        row.undo_letter,
    )
