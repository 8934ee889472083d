"""What a transaction writes besides the dead letter of a message that it writes off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from consumerkit.engine.transaction.item import Item
from consumerkit.message import Message
from consumerkit.storage.dead_letters.letters import DeadMessage, Entered
from consumerkit.storage.origins import Origin, origin
from consumerkit.storage.parking.parked import Kind, ParkedMessage


def to_enter(dead_lettered: Sequence[Item]) -> list[DeadMessage]:
    """Return the dead letters of items; those of redriven messages refer to the letter they came from."""
    for item in dead_lettered:
        if item.dead is not None and item.parked is not None and item.parked.dead_letter is not None:
            item.dead = replace(item.dead, letter=item.parked.dead_letter)
    return [item.dead for item in dead_lettered if item.dead is not None]


def entered(dead_lettered: Sequence[Item], found: Mapping[Origin, Entered]) -> list[DeadMessage]:
    """Return the dead letters that were entered, with what is known of them since."""
    made = []
    for item in dead_lettered:
        if item.dead is not None and (letter := found.get(origin(item.message))) is not None:
            history, clash = letter.history, letter.clash
            item.dead = replace(item.dead, redrives=letter.redrives, history=history, clash=clash, id=letter.id)
            made.append(item.dead)
    return made


def hold(dead_lettered: Sequence[Item], found: Mapping[Origin, Entered]) -> None:
    """Have items keep the later messages of their keys waiting whose dead letters were entered.

    Their rows refer to the letters, which have the whole message.
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
