"""Limits the bytes of the messages in hand.

Fetch limits do not bound memory, since a record may grow when it is unpacked. So the messages in hand are
counted, and nothing is fetched above the budget. If that lasts, the consumer is paused but still polled, since a
consumer that is not polled leaves its group.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from consumerkit.concurrency import wait_until_set
from consumerkit.message import Message
from consumerkit.transports.base import Consumer

# What a message object weighs besides its bytes: measured with sys.getsizeof over its parts.
OVERHEAD: Final = 500
HEADER_OVERHEAD: Final = 130
"""Bytes of a header's tuple, name and value that `Message.size` does not count, measured likewise."""
PAUSE_AFTER: Final = 1.0


def cost(message: Message) -> int:
    """Return the bytes that a message counts for."""
    return message.size + OVERHEAD + HEADER_OVERHEAD * len(message.headers)


class Budget:
    """Counts the bytes of the messages in hand.

    Attributes:
        limit: How many bytes may be in hand.
        idle: How many of them belong to partitions that cannot run; half of `limit` is always for the others.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.idle = 0
        self._in_hand = 0
        self._full_since: float | None = None
        self._paused = False
        self._changed = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether a lack of room stops the fetching."""
        return self._paused or self._in_hand >= self.limit

    def took(self, amount: int) -> None:
        """Count fetched messages."""
        self._in_hand += amount

    def gave_back(self, amount: int) -> None:
        """Count messages that are finished or dropped."""
        self._in_hand -= amount
        self._changed.set()

    async def room(self, consumer: Consumer) -> bool:
        """Return whether to fetch; waits briefly for room, pauses the consumer if that lasts, resumes it later."""
        if self._paused:
            if self._in_hand <= max(self.limit // 2, self.idle + self.limit // 4):
                await consumer.resume()
                self._paused, self._full_since = False, None
            return True
        if self._in_hand < max(self.limit, self.idle + self.limit // 2):
            self._full_since = None
            return True
        now = time.monotonic()
        self._full_since = self._full_since or now
        if now - self._full_since > PAUSE_AFTER:
            await consumer.pause()
            self._paused = True
            return True
        self._changed.clear()
        await wait_until_set(self._changed, PAUSE_AFTER / 4)
        return False
