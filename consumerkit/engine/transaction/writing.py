"""Makes the rows that a transaction writes for messages that become dead letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection

from consumerkit.engine.transaction.item import Item
from consumerkit.handlers.steps import IdempotencyKey
from consumerkit.message import Message
from consumerkit.storage.dead_letters.letters import DeadMessage, Entered
from consumerkit.storage.origins import Origin, origin
from consumerkit.storage.parking.parked import Kind, ParkedMessage
from consumerkit.storage.undoing import KEEPS_STEPS, UndoRows


def to_enter(dead_lettered: Sequence[Item]) -> list[DeadMessage]:
    """Return the dead letters of items; a redriven message's letter refers to its earlier letter."""
    for item in dead_lettered:
        if item.dead is not None and item.parked is not None and item.parked.dead_letter is not None:
            item.dead = replace(item.dead, letter=item.parked.dead_letter)
    return [item.dead for item in dead_lettered if item.dead is not None]


def entered(dead_lettered: Sequence[Item], found: Mapping[Origin, Entered]) -> list[DeadMessage]:
    """Return the dead letters that were entered, completed from their rows."""
    made = []
    for item in dead_lettered:
        if item.dead is not None and (letter := found.get(origin(item.message))) is not None:
            history, clash = letter.history, letter.clash
            item.dead = replace(item.dead, redrives=letter.redrives, history=history, clash=clash, id=letter.id)
            made.append(item.dead)
    return made


def tell_doubt(connection: Connection, rows: UndoRows, handler: str, dead_lettered: Sequence[Item]) -> None:
    """Add to the letters which steps may have happened, if nothing settles that."""
    found = rows.doubtful(
        connection, [item.digest for item in dead_lettered if item.digest is not None and _ends_steps(item)]
    )
    for item in dead_lettered:
        for step, generation in found.get(item.digest or b"", ()):
            told = f"step {step!r} may have happened"
            if item.dead is None or item.digest is None or told in item.dead.error:
                continue
            key = IdempotencyKey.of(handler, item.digest, step, generation)
            error = f"{item.dead.error}; {told}: look for the key {key} on the other side: nothing undoes the effect"
            item.dead = replace(item.dead, error=error)


def with_steps(dead_lettered: Sequence[Item], found: Mapping[Origin, Entered]) -> dict[bytes, int]:
    """Return the IDs whose steps end with these letters, and the letters' numbers."""
    return {
        item.digest: letter.id
        for item in dead_lettered
        if item.digest is not None and _ends_steps(item) and (letter := found.get(origin(item.message))) is not None
    }


def _ends_steps(item: Item) -> bool:
    return item.dead is not None and item.dead.reason not in KEEPS_STEPS


def hold(dead_lettered: Sequence[Item], found: Mapping[Origin, Entered]) -> None:
    """Make later messages of their keys wait behind items whose dead letters were entered.

    The rows refer to the letters, which have the whole message.
    """
    for item in dead_lettered:
        message, letter = item.message, found.get(origin(item.message))
        if letter is None or item.dead is None or message.key is None or not item.dead.reason.holds_key:
            continue
        item.hold = ParkedMessage(
            id=item.parked.id if item.parked is not None else 0,
            message=Message(
                message.topic,
                message.partition,
                message.offset,
                message.key,
                timestamp=message.timestamp,
                topic_id=letter.topic_id,
            ),
            digest=None,
            message_id=item.message_id or item.dead.message_id or "",
            fingerprint=b"",
            kind=Kind.HELD,
            dead_letter=letter.id,
        )
