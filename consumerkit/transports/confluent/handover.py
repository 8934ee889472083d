"""Passes messages from the poll thread to the fetch that waits for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from consumerkit.message import Message, TopicPartition
from consumerkit.transports.base import Position
from consumerkit.transports.confluent.messages import Reading

_UNCHECKED = -1


class Fetched(NamedTuple):
    """The answer to a fetch: messages, and how far partitions are read after them."""

    messages: list[Message]
    passed: Mapping[TopicPartition, Position]


class Fetch(NamedTuple):
    """A fetch that waits for messages."""

    limit: int
    deadline: float
    answer: asyncio.Future[Fetched]


class Handover:
    """Stores at most one fetch, and the messages that wait for one; used by the poll thread only.

    Args:
        loop: Where the fetches wait.
        call: Runs a function on the poll thread, soon; callable from the event loop.
        passed: Returns how far partitions are read if all polled messages are handed over.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        call: Callable[[Callable[[], None]], None],
        passed: Callable[[], Mapping[TopicPartition, Position]] = dict,
    ) -> None:
        self.fetch: Fetch | None = None
        self.ready: list[Message] = []
        self._valid_at = _UNCHECKED
        self._loop = loop
        self._call = call
        self._passed = passed

    def ask(self, fetch: Fetch) -> None:
        """Store a new fetch."""
        self.fetch = fetch

    def add(self, messages: list[Message], changes: int) -> None:
        """Make messages ready that are valid at this count of assignment changes."""
        if self.ready and self._valid_at != changes:
            changes = _UNCHECKED
        self.ready += messages
        self._valid_at = changes

    def give(self, readings: Mapping[tuple[str, int], Reading], changes: int) -> None:
        """Answer with the ready messages, except of partitions given up since; if there are none, keep waiting.

        The present fetch is answered, never an earlier one: while a poll runs callbacks, a fetch
        may expire and another take its place. Messages given to the expired fetch would return
        after later messages were given.
        """
        fetch = self.fetch
        if fetch is None:
            return
        if self.ready and self._valid_at != changes:
            self.ready = [message for message in self.ready if _belongs(message, readings)]
            self._valid_at = changes
        if self.ready:
            found = self.ready[: fetch.limit]
            self.ready = self.ready[fetch.limit :]
            self._answer(fetch, found)

    def expire(self, now: float) -> None:
        """Answer an expired fetch with nothing."""
        if self.fetch is not None and now >= self.fetch.deadline:
            self._answer(self.fetch, [])

    def end(self) -> None:
        """Answer a waiting fetch with nothing."""
        self.expire(float("inf"))

    def _answer(self, fetch: Fetch, messages: list[Message]) -> None:
        self.fetch = None
        # While messages still wait, no offset after them is passed.
        fetched = Fetched(messages, {} if self.ready else self._passed())

        def hand_over() -> None:
            if not fetch.answer.done():
                fetch.answer.set_result(fetched)
            elif messages:  # cancelled against the contract: the next fetch gets them
                self._call(lambda: self._put_back(messages))

        with contextlib.suppress(RuntimeError):  # the loop was closed, and no caller waits any more
            self._loop.call_soon_threadsafe(hand_over)

    def _put_back(self, messages: list[Message]) -> None:
        self.ready[:0] = messages
        self._valid_at = _UNCHECKED


def _belongs(message: Message, readings: Mapping[tuple[str, int], Reading]) -> bool:
    reading = readings.get((message.topic, message.partition))
    return reading is not None and reading.epoch == message.epoch
