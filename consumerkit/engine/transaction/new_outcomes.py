"""What a transaction is the first to record, and where that ends a count of owners that died."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consumerkit.engine.transaction.item import Item
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.dead_letters.letters import DeadMessage


def new_outcomes(items: Sequence[Item], dead: Sequence[DeadMessage]) -> list[Message]:
    """Return the fresh messages whose outcome a transaction is the first to record, once it is closed.

    A parked message without an ID is not among them: whether its row is new is not known.

    Args:
        items: Its items.
        dead: The dead letters that it has written.
    """
    written = set(map(id, dead))
    return [
        item.message
        for item in items
        if item.parked is None and (item.claimed or item.revived or id(item.dead) in written)
    ]


def got_further(new: Sequence[Message], reaches: Mapping[TopicPartition, int]) -> tuple[TopicPartition, ...]:
    """Return the partitions in which these new outcomes are progress beyond owners that died.

    A message that the database knows is no progress: every owner that begins at the same mark finds it again, so a
    message that kills each of them would never be found. Neither is a message behind an unfinished one of another
    batch.

    Args:
        new: Messages with a new outcome.
        reaches: For each partition where owners died, the position that it has once the batch is finished.
    """
    names = {
        name
        for message in new
        if message.offset < reaches.get(name := TopicPartition(message.topic, message.partition), 0)
    }
    return tuple(sorted(names))  # as in every transaction that locks several of these rows
