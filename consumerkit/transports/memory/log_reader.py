"""Reads a topic in memory outside any group."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from consumerkit.errors import PartitionUnusable, StartError
from consumerkit.message import Message
from consumerkit.transports.base import Span
from consumerkit.transports.memory.log import Logs
from consumerkit.transports.spans import Spans


class MemoryReader:
    """Reads a topic of a broker in memory; see `consumerkit.transports.base.LogReader`."""

    def __init__(self, logs: Logs, topic: str, offsets: Mapping[int, int]) -> None:
        self._logs = logs
        self._topic = topic
        self._offsets = offsets
        self._spans = Spans({})

    async def start(self) -> Mapping[int, Span]:
        """Return what will be read of each partition."""
        if not self._logs.available:
            raise StartError("the broker in memory is down")
        if self._topic not in self._logs.topics:
            raise StartError(f"no such topic: {self._topic}")
        logs = enumerate(self._logs.topics[self._topic].partitions)
        self._spans = Spans({number: Span(log.start, log.end) for number, log in logs}, self._offsets)
        return self._spans.read

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        """Return available messages, at most `limit`."""
        found: list[Message] = []
        if not self._logs.available:
            await asyncio.sleep(timeout)
            return found
        for number, position in self._spans.open().items():
            log = self._logs.topics[self._topic].partitions[number]
            if not log.has_leader:
                continue
            if position < log.start:
                raise PartitionUnusable(f"{self._topic}[{number}]: offset {position} is outside the log")
            room = limit - len(found)
            records = log.read(position, room)
            found += self._spans.taken(records)
            if len(records) < room:
                # The remaining offsets may be control records only.
                self._spans.close(number)
        if not found and not self.finished:
            await asyncio.sleep(timeout)
        return found

    @property
    def positions(self) -> Mapping[int, int]:
        """How far each partition is read."""
        return self._spans.positions

    @property
    def finished(self) -> bool:
        """Whether everything was returned."""
        return not self._spans.open()

    async def stop(self) -> None:
        """Disconnect: nothing to do in memory."""
