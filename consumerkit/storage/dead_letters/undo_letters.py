"""Dead letters of undos: each stands beside the letter of the message whose step could not be undone."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, select, update

from consumerkit.errors import PayloadSealed
from consumerkit.message import Message
from consumerkit.outcome import Reason
from consumerkit.storage.dead_letters import letters
from consumerkit.storage.dead_letters.history import entry, extended
from consumerkit.storage.dead_letters.letters import DeadMessage, State
from consumerkit.storage.origins import MARK, home
from consumerkit.storage.payload import payload
from consumerkit.storage.tables import Tables
from consumerkit.storage.undoing import Undo


def of(connection: Connection, tables: Tables, undo: Undo, error: str) -> DeadMessage | None:
    """Return the letter of an undo that has failed for good; None if the message's own letter is gone.

    It has no ID in the ledger: its outcome says nothing about its message.
    """
    c = tables.dead_letters.c
    row = connection.execute(select(tables.dead_letters).where(c.id == undo.letter)).one_or_none()
    if row is None:
        return None
    try:
        value, headers = payload(tables.sealer, row)
    except PayloadSealed:
        value, headers = None, ()
    key = None if row.key is None else bytes(row.key)
    topic_id = f"{home(row.topic_id)}{MARK}undo-{undo.step}"
    at = Message(row.topic, row.partition, row.offset, key, value, headers, row.timestamp, topic_id)
    return DeadMessage(
        message=at,
        digest=None,
        message_id=row.message_id,
        reason=Reason.UNDO_FAILED,
        error_type="",
        error=f"the undo of step {undo.step!r} failed, and the step's effect stands (dead letter {undo.letter}): "
        f"{error}",
        attempts=undo.attempts + 1,
        first_failed_at=undo.failed_at,
        place=f"undo of {undo.step}",
        letter=undo.undo_letter,
    )


def enter(connection: Connection, tables: Tables, consumer: int, dead: DeadMessage) -> DeadMessage:
    """Write the letter of an undo, or mark its earlier letter as dead again; return it with its number."""
    c = tables.dead_letters.c
    message = dead.message
    at = (c.topic_id == message.topic_id, c.partition == message.partition, c.offset == message.offset)
    there = connection.execute(select(c.id).where(c.consumer == consumer, *at)).scalar_one_or_none()
    entered = letters.add(connection, tables, consumer, [replace(dead, letter=there)])
    number = next(iter(entered.values())).id if entered else there
    return replace(dead, id=number)


def resolve(connection: Connection, tables: Tables, number: int, by: str) -> None:
    """Mark the letter of an undo as resolved: the undo was tried again and is done."""
    table = tables.dead_letters
    c = table.c
    open_states = (State.DEAD.value, State.REDRIVEN.value)
    found = select(c.history).where(c.id == number, c.state.in_(open_states)).with_for_update()
    if (history := connection.execute(found).scalar_one_or_none()) is not None:
        more = extended(history, entry("resolved", by, note="undone"))
        connection.execute(update(table).where(c.id == number).values(history=more, **letters.resolved()))
