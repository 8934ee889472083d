"""The dead letters: whole messages with the reason why they are not tried again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select, update
from sqlalchemy.orm import Session

from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.storage import headers as header_text
from consumerkit.storage.dead_letters.history import Entry, load
from consumerkit.storage.dead_letters.selection import Selection
from consumerkit.storage.dialects import dialect_for, insert_if_new
from consumerkit.storage.origins import (
    Clash,
    MessageIdentity,
    Origin,
    clash,
    home,
    identity,
    identity_of,
    moved,
    origin,
)
from consumerkit.storage.payload import sealed
from consumerkit.storage.tables import Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadMessage:
    """A message that is given up, with its known failure.

    Attributes:
        message: The record.
        digest: The ledger's key, or None if no ID was found.
        message_id: The ID as text, or None.
        reason: Why it was given up.
        error_type: The error's class.
        error: The error's text, cut.
        stack: The error's stack, cut, without values.
        attempts: Failed invocations in which it ran alone.
        first_failed_at: When the first of them failed.
        keep_value: False for an oversized record: only its size and its place in the log are kept.
        fingerprint, fingerprint_version: As in the ledger; the first is None if it is not known.
        place: Where the error was raised, as file, line and function; part of its group of errors.
        letter: The dead letter that was redriven and died again; None for a message from the log.
        redrives: How often it was redriven before; set once it is entered, for the dead-letter
            topic.
        history: Its earlier errors; set once it is entered, for the dead-letter topic.
        clash: Set once it is entered, if another message's letter has the same place in the log.
        id: Its number, set once it is entered.
        summary: The part of the error that a log may show; not stored.
        in_full: The error's text and traceback with `--show-errors`; not stored.
        hooked: Whether the handler has an `on_dead_letter`, which is to be called for it.
    """

    message: Message
    digest: bytes | None
    message_id: str | None
    reason: Reason
    error_type: str
    error: str
    stack: str = ""
    attempts: int = 0
    first_failed_at: datetime | None = None
    keep_value: bool = True
    fingerprint: bytes | None = None
    place: str | None = None
    letter: int | None = None
    redrives: int = 0
    history: Sequence[Entry] = ()
    fingerprint_version: int | None = None
    clash: Clash | None = None
    id: int | None = None
    summary: str = ""
    in_full: str = ""
    hooked: bool = False


class State(StrEnum):
    """The state of a dead letter; the names are stored.

    DEAD: given up. REDRIVEN: parked again, and not decided yet. RESOLVED: processed after all, or
    taken care of by a person. DISCARDED: a person decided to do nothing more about it.
    """

    DEAD = "dead"
    REDRIVEN = "redriven"
    RESOLVED = "resolved"
    DISCARDED = "discarded"


def resolved() -> dict[str, Any]:
    """Return the columns of a letter that becomes resolved: it is not given to `on_dead_letter` any more.

    A reaction to the failure would come after the success, and stand.
    """
    return {"state": State.RESOLVED.value, "state_at": func.now(), "hook_at": None}


class Entered(NamedTuple):
    """A dead letter that was entered, or that died again.

    Attributes:
        id: Its ID.
        topic_id: The topic ID in its row.
        redrives: How often it was redriven before.
        history: Its earlier errors.
        clash: Set if another message has the same place, and so an origin of its own was made for
            this row.
    """

    id: int
    topic_id: str
    redrives: int = 0
    history: Sequence[Entry] = ()
    clash: Clash | None = None


def add(connection: Connection, tables: Tables, consumer: int, dead: Sequence[DeadMessage]) -> dict[Origin, Entered]:
    """Enter dead letters in the caller's transaction; return those that are new, or were redriven and died again.

    A message from the log that already has its dead letter, in whatever state, was only delivered
    again. Another message's letter at the same place does not count: this message gets its own
    letter beside it.
    """
    entered: dict[Origin, Entered] = {}
    for one in dead:
        at = origin(one.message)
        if one.letter is not None and (again := _again(connection, tables, consumer, one)) is not None:
            entered[at] = again
            continue
        values = {"consumer": consumer, **sealed(tables.sealer, _record(one)), **_failure(one, connection, tables)}
        if (new := enter(connection, tables, values, identified(one))) is not None:
            entered[at] = new
    return entered


def enter(connection: Connection, tables: Tables, values: dict[str, Any], own: MessageIdentity) -> Entered | None:
    """Insert the row of a dead letter, beside another message's row if that has the same place.

    Returns:
        None if the message has a letter already.
    """
    c = tables.dead_letters.c
    key = (c.consumer, c.topic_id, c.partition, c.offset)
    number = insert_if_new(connection, tables.dead_letters, values, key=key, returning=c.id)
    if number is not None:
        return Entered(number, values["topic_id"])
    here = [column == values[column.name] for column in key]
    there = connection.execute(select(tables.dead_letters).where(*here)).one()
    if own.agrees(known(there, tables)):
        return None
    topic_id = home(values["topic_id"]) + own.mark
    number = insert_if_new(connection, tables.dead_letters, {**values, "topic_id": topic_id}, key=key, returning=c.id)
    if number is None:
        return None
    at = Message(values["topic"], values["partition"], values["offset"])
    return Entered(number, topic_id, clash=clash(at, values.get("message_id"), "dead_letters", there.id))


def beside(dead: DeadMessage) -> DeadMessage:
    """Return a dead message under an origin of its own, as `add` makes it if another message has its place."""
    message = dead.message
    return replace(dead, message=moved(message, home(message.topic_id) + identified(dead).mark))


def identified(dead: DeadMessage) -> MessageIdentity:
    """Return the identity of a dead message, as `known` returns it after the message is entered."""
    return identity(dead.message, dead.digest, dead.fingerprint, dead.fingerprint_version, whole=dead.keep_value)


def known(row: Any, tables: Tables) -> MessageIdentity:
    """Return the identity of the message that a row of `dead_letters` is about."""
    whole = row.erased_at is None and not (row.reason == Reason.OVERSIZED and row.value is None)
    return identity_of(row, tables.sealer, size=row.size, whole=whole)


def _again(connection: Connection, tables: Tables, consumer: int, dead: DeadMessage) -> Entered | None:
    """Mark a redriven letter as dead again if it is this message's own; its record stays unchanged."""
    table = tables.dead_letters
    c, (topic_id, partition, offset) = table.c, origin(dead.message)
    own = (c.consumer == consumer, c.topic_id == topic_id, c.partition == partition, c.offset == offset)
    values = {**_failure(dead, connection, tables), "state": State.DEAD.value, "state_at": func.now()}
    statement = update(table).where(c.id == dead.letter, *own).values(**values).returning(c.id, c.redrives, c.history)
    row = connection.execute(statement).one_or_none()
    return None if row is None else Entered(row.id, topic_id, row.redrives, load(row.history))


def _record(dead: DeadMessage) -> dict[str, Any]:
    message = dead.message
    return {
        "topic": message.topic,
        "topic_id": message.topic_id,
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": message.timestamp,
        "key": message.key if dead.keep_value else None,
        "value": message.value if dead.keep_value else None,
        "headers": header_text.dump(message.headers) if dead.keep_value else "[]",
        "size": message.size,
    }


def _failure(dead: DeadMessage, connection: Connection, tables: Tables) -> dict[str, Any]:
    # To the fraction of a second, which SQLite's `now()` lacks: a letter may die twice within one.
    now = dialect_for(connection.dialect.name, tables).in_seconds(0.0)
    return {
        "digest": dead.digest,
        "message_id": dead.message_id,
        "reason": dead.reason.value,
        "error_type": storable(dead.error_type),
        "error": storable(dead.error),
        "stack": storable(dead.stack),
        "attempts": dead.attempts,
        "first_failed_at": dead.first_failed_at,
        "fingerprint": dead.fingerprint or None,
        "fingerprint_version": dead.fingerprint_version,
        "place": None if dead.place is None else storable(dead.place),
        "dead_at": now,
        **({"hook_at": now, "hook_tries": 0} if dead.hooked else {}),
    }


def storable(text: str) -> str:
    """Return text that every database and every terminal accepts: no NUL, no lone surrogate."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def listed(
    session: Session,
    tables: Tables,
    selection: Selection,
    *,
    states: Collection[State] = tuple(State),
    limit: int = 50,
    before: int | None = None,
) -> Sequence[Any]:
    """Return dead letters, newest first, without their payloads; `before` is the ID to page on from."""
    c, consumers = tables.dead_letters.c, tables.consumers.c
    about = (c.topic, c.partition, c.offset, c.message_id, c.reason, c.error_type, c.error, c.place, c.attempts, c.size)
    query = (
        select(c.id, consumers.name.label("handler"), *about, c.dead_at, c.state, c.state_at, c.redrives)
        .join_from(tables.dead_letters, tables.consumers, c.consumer == consumers.id)
        .where(selection.where(tables), c.state.in_([state.value for state in states]))
        .order_by(c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(c.id < before)
    return session.execute(query).all()


def grouped(session: Session, tables: Tables, selection: Selection) -> Sequence[Any]:
    """Return (handler, error type, place, letters, the last ID, oldest, newest) of dead letters, largest first."""
    c, consumers = tables.dead_letters.c, tables.consumers.c
    group = (consumers.name.label("handler"), c.error_type, c.place)
    count = func.count()
    return session.execute(
        select(
            *group,
            count.label("letters"),
            func.max(c.id).label("last"),
            func.min(c.dead_at).label("oldest"),
            func.max(c.dead_at).label("newest"),
        )
        .join_from(tables.dead_letters, tables.consumers, c.consumer == consumers.id)
        .where(selection.where(tables), c.state == State.DEAD.value)
        .group_by(*group)
        .order_by(count.desc(), func.max(c.id).desc())
    ).all()


def shown(session: Session, tables: Tables, number: int) -> Any | None:
    """Return one whole dead letter with its handler's name, or None."""
    c, consumers = tables.dead_letters.c, tables.consumers.c
    return session.execute(
        select(tables.dead_letters, consumers.name.label("handler"))
        .join_from(tables.dead_letters, tables.consumers, c.consumer == consumers.id)
        .where(c.id == number)
    ).one_or_none()


def count_by_reason(session: Session, tables: Tables) -> Sequence[Any]:
    """Return (handler name, reason, rows, when the oldest died) of undecided letters, by handler and reason."""
    c, consumers = tables.dead_letters.c, tables.consumers.c
    return session.execute(
        select(consumers.name, c.reason, func.count(), func.min(c.dead_at))
        .join_from(tables.dead_letters, tables.consumers, c.consumer == consumers.id)
        .where(c.state == State.DEAD.value)
        .group_by(consumers.name, c.reason)
        .order_by(consumers.name, c.reason)
    ).all()
