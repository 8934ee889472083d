"""How far a reader is in each partition of its topic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from consumerkit.message import Message
from consumerkit.transports.base import Span


class Spans:
    """What to read of each partition, and how far that is done.

    Args:
        logs: The oldest and the next offset of each partition.
        offsets: Where to begin, by partition; an offset outside the log becomes the log's nearer
            end.

    Attributes:
        read: The offsets to read of each partition.
        positions: The position in each partition.

    Example:
        >>> spans = Spans({0: Span(5, 9), 1: Span(0, 0)}, {0: 7})
        >>> spans.open()
        {0: 7}
    """

    def __init__(self, logs: Mapping[int, Span], offsets: Mapping[int, int] | None = None) -> None:
        begun = offsets or {}
        self.read: dict[int, Span] = {
            number: Span(min(max(begun.get(number, 0), log.start), log.end), log.end) for number, log in logs.items()
        }
        self.positions: dict[int, int] = {number: span.start for number, span in self.read.items()}

    def open(self) -> dict[int, int]:
        """Return the positions of the partitions that may have something left."""
        return {number: at for number, at in self.positions.items() if at < self.read[number].end}

    def taken(self, messages: Iterable[Message]) -> list[Message]:
        """Return the messages that are to be read, and advance past all of them."""
        found: list[Message] = []
        for message in messages:
            if self.positions[message.partition] <= message.offset < self.read[message.partition].end:
                found.append(message)
                self.positions[message.partition] = message.offset + 1
            elif message.offset >= self.read[message.partition].end:
                self.close(message.partition)
        return found

    def close(self, number: int) -> None:
        """Record that nothing is left of a partition: the last offsets may hold no message."""
        self.positions[number] = self.read[number].end
