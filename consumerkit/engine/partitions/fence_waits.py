"""Announces partitions whose takeover waits long for a fence that another worker's transaction holds."""

from __future__ import annotations

import time
from typing import Final

from consumerkit import events
from consumerkit.events import Announcer
from consumerkit.message import TopicPartition

TOLD_AFTER: Final = 5.0
"""Seconds after which a wait is announced: a healthy owner ends its transaction sooner."""


class FenceWaits:
    """Remembers when the wait for each fence began.

    Args:
        announce: Announces each wait once.
    """

    def __init__(self, announce: Announcer) -> None:
        self._announce = announce
        self._since: dict[TopicPartition, float] = {}
        self._told: set[TopicPartition] = set()

    def held(self, name: TopicPartition) -> None:
        """Record that another transaction holds a partition's fence."""
        now = time.monotonic()
        seconds = now - self._since.setdefault(name, now)
        if seconds >= TOLD_AFTER and name not in self._told:
            self._told.add(name)
            self._announce(events.FenceAwaited(partition=name, seconds=seconds))

    def over(self, name: TopicPartition) -> None:
        """Record that a partition was taken over, or is no longer wanted."""
        self._since.pop(name, None)
        self._told.discard(name)
