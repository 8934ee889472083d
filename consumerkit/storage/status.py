"""The state of a message ID: in the ledger, the parking lot, the dead letters, or an open transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, and_, exists, select

from consumerkit.outcome import MessageState, Outcome, Reason
from consumerkit.storage import consumers, steps
from consumerkit.storage.dialects import ClaimHolder, Dialect
from consumerkit.storage.parking.parked import Kind
from consumerkit.storage.tables import Tables

# Rows may change between two statements: a parked message leaves the lot, a claim is committed.
_READINGS: Final = 3
# Letters about another message's ID: they do not show that message's state.
_OF_ANOTHER: Final = frozenset({Reason.CONFLICT, Reason.FAILED_DUPLICATE})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStatus:
    """The state of one step of a message; all times are in UTC.

    Attributes:
        step: Its name.
        state: "started": it was called, or is about to be. "done": its result is kept. "failed":
            the call raised. "undoing": its message is dead, and the step is to be undone, or
            settled first. "undone": the undo is done. "not undone": its undo has failed for good,
            and `undo_letter` is its dead letter.
        calls: How often it was begun.
        started_at: When it was begun last.
        deadline_at: Until when a running call is waited for; after it, the call is in doubt.
        ended_at: When its result was kept, its call raised, or it was undone; None before.
        generation: How often it was begun again after an undo, plus 1.
        undo_at: When its undo is tried next; None if there is nothing to undo.
        undo_attempts: How often its undo has failed.
        undo_letter: The dead letter of its undo, if that has failed for good once.
    """

    step: str
    state: str
    calls: int
    started_at: datetime
    deadline_at: datetime
    ended_at: datetime | None = None
    generation: int = 1
    undo_at: datetime | None = None
    undo_attempts: int = 0
    undo_letter: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStatus:
    """The state of a message ID with one handler; all times are in UTC.

    Attributes:
        handler: The handler's name.
        message_id: The ID, as text.
        state: See `MessageState`; attributes that belong to another state are None.
        since: When it was processed, parked or given up.
        result: What `handle` returned the first time, decoded from JSON; None if it returned
            nothing.
        attempts: Failed invocations of a parked or dead message.
        due_at: When a parked message is tried next; None if it waits behind another one.
        held: Whether later messages of a dead message's key wait until a person decides on it.
        error_type: The class of a parked or dead message's last error; empty if it has not run yet.
        reason: Why a message is dead; see `Reason`.
        letter: The number of its dead letter, as `consumerkit dead-letters show` takes it; None if
            it is gone.
        letter_state: The letter's state: "dead", "redriven", "resolved" or "discarded".
        conflicts: The numbers of dead letters that have this ID and another payload. If there are
            some, find out which payload is meant before you rely on "processed".
        may_be_forgotten: Whether an unknown ID may have been handled so long ago that the ledger
            has forgotten it.
        steps: The steps of the message that have begun, in that order; see `StepStatus`.
        probed: Whether an unknown ID was found not to be in flight; False if that is not known.
    """

    handler: str
    message_id: str
    state: MessageState
    since: datetime | None = None
    result: Any = None
    attempts: int | None = None
    due_at: datetime | None = None
    held: bool = False
    error_type: str | None = None
    reason: str | None = None
    letter: int | None = None
    letter_state: str | None = None
    conflicts: tuple[int, ...] = ()
    may_be_forgotten: bool = False
    probed: bool = False
    steps: tuple[StepStatus, ...] = ()

    @property
    def known(self) -> bool:
        """Whether anything is known of the ID."""
        return self.state is not MessageState.UNKNOWN


@dataclass(frozen=True, slots=True)
class Search:
    """Looks for one message ID by its possible keys; no other ID has these keys."""

    connection: Connection
    tables: Tables
    dialect: Dialect
    handler: str
    message_id: str
    digests: Sequence[bytes]
    probe: bool

    def status(self) -> MessageStatus:
        """Return where the ID stands."""
        consumer = consumers.number_of(self.connection, self.tables, self.handler)
        if consumer is None:
            return self._told(MessageState.UNKNOWN)
        state = MessageState.UNKNOWN
        for _ in range(_READINGS):
            found = self._kept(consumer)
            status = self._missing(consumer) if found is None else self._found(consumer, found)
            if status is not None:
                return replace(status, steps=steps_of(self.connection, self.tables, consumer, self.digests))
            state = MessageState.IN_FLIGHT if found is None else MessageState.PARKED
        # Committed by others, after this transaction's snapshot.
        return self._told(state)

    def _kept(self, consumer: int) -> Any | None:
        kept, results = self.tables.processed_messages, self.tables.message_results
        same = and_(results.c.consumer == kept.c.consumer, results.c.digest == kept.c.digest)
        query = (
            select(kept.c.digest, kept.c.outcome, kept.c.processed_at, results.c.result)
            .join_from(kept, results, same, isouter=True)
            .where(kept.c.consumer == consumer, kept.c.digest.in_(self.digests))
        )
        return self.connection.execute(query).first()

    def _found(self, consumer: int, kept: Any) -> MessageStatus | None:
        """Return the status of an ID that the ledger has; None if it has changed."""
        if kept.outcome == Outcome.PARKED:
            return self._parked(consumer)
        letters = self._letters(consumer)
        if kept.outcome == Outcome.DEAD:
            return self._dead(consumer, letters, since=kept.processed_at)
        return self._told(
            MessageState.PROCESSED,
            since=_aware(kept.processed_at),
            result=None if kept.result is None else json.loads(kept.result),
            conflicts=_conflicts(letters),
        )

    def _parked(self, consumer: int) -> MessageStatus | None:
        c = self.tables.parked_messages.c
        query = (
            select(c.attempts, c.due_at, c.error_type, c.parked_at)
            .where(c.consumer == consumer, c.digest.in_(self.digests), c.kind == "message")
            .order_by(c.id)
        )
        row = self.connection.execute(query).first()
        if row is None:
            return None
        return self._told(
            MessageState.PARKED,
            since=_aware(row.parked_at),
            attempts=row.attempts,
            due_at=_aware(row.due_at),
            error_type=row.error_type,
            conflicts=_conflicts(self._letters(consumer)),
        )

    def _letters(self, consumer: int) -> Sequence[Any]:
        """Return the dead letters of the ID, latest first."""
        c = self.tables.dead_letters.c
        query = (
            select(c.id, c.reason, c.error_type, c.attempts, c.dead_at, c.state)
            .where(c.consumer == consumer, c.digest.in_(self.digests))
            .order_by(c.id.desc())
        )
        return self.connection.execute(query).all()

    def _dead(self, consumer: int, letters: Sequence[Any], since: datetime | None = None) -> MessageStatus:
        own = next((letter for letter in letters if letter.reason not in _OF_ANOTHER), None)
        if own is None:
            return self._told(MessageState.DEAD, since=_aware(since), conflicts=_conflicts(letters))
        return self._told(
            MessageState.DEAD,
            since=_aware(own.dead_at),
            attempts=own.attempts,
            error_type=own.error_type,
            reason=own.reason,
            letter=own.id,
            letter_state=own.state,
            held=self._holds_its_key(consumer, own.id),
            conflicts=_conflicts(letters),
        )

    def _holds_its_key(self, consumer: int, letter: int) -> bool:
        c = self.tables.parked_messages.c
        holding = exists().where(c.consumer == consumer, c.dead_letter == letter, c.kind == Kind.HELD.value)
        return bool(self.connection.execute(select(holding)).scalar_one())

    def _missing(self, consumer: int) -> MessageStatus | None:
        """Return the status of an ID that the ledger does not have; None if it was committed since."""
        letters = self._letters(consumer)
        if any(letter.reason not in _OF_ANOTHER for letter in letters):
            return self._dead(consumer, letters)
        holders = {self.dialect.holder(self.connection, consumer, one) for one in self.digests} if self.probe else set()
        if ClaimHolder.COMMITTED in holders:
            return None
        if ClaimHolder.OPEN in holders:
            return self._told(MessageState.IN_FLIGHT)
        return self._told(
            MessageState.UNKNOWN,
            conflicts=_conflicts(letters),
            may_be_forgotten=self._forgets(consumer),
            probed=holders == {ClaimHolder.NOBODY},
        )

    def _forgets(self, consumer: int) -> bool:
        c = self.tables.partition_progress.c
        forgotten = exists().where(c.consumer == consumer, c.forgotten_below > 0)
        return bool(self.connection.execute(select(forgotten)).scalar_one())

    def _told(self, state: MessageState, **facts: Any) -> MessageStatus:
        return MessageStatus(handler=self.handler, message_id=self.message_id, state=state, **facts)


def steps_of(connection: Connection, tables: Tables, consumer: int, digests: Sequence[bytes]) -> tuple[StepStatus, ...]:
    """Return the steps of a message that have begun, in that order."""
    return tuple(
        StepStatus(
            step=one.step,
            state=one.state,
            calls=one.calls,
            started_at=_moment(one.started_at),
            deadline_at=_moment(one.deadline_at),
            ended_at=_aware(one.ended_at),
            generation=one.generation,
            undo_at=_aware(one.undo_at),
            undo_attempts=one.undo_attempts,
            undo_letter=one.undo_letter,
        )
        for one in steps.told(connection, tables, consumer, digests)
    )


def _conflicts(letters: Sequence[Any]) -> tuple[int, ...]:
    return tuple(letter.id for letter in letters if letter.reason == Reason.CONFLICT)


def _moment(moment: datetime) -> datetime:
    return _aware(moment) or moment


def _aware(moment: datetime | None) -> datetime | None:
    """Return a time with its zone; databases without time zones hold UTC."""
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
