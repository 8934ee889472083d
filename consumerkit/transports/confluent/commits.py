"""Pending commits: librdkafka answers each by a callback, or never."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from consumerkit.errors import Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")

ANSWER_TIMEOUT = 10.0  # seconds after which a commit counts as not confirmed

_Offsets = frozenset[tuple[str, int, int]]


class _Commit(NamedTuple):
    offsets: list[TopicPartition]
    answer: asyncio.Future[None]
    deadline: float


class Commits:
    """Matches the client's answers to the waiting callers; used by the poll thread only.

    Args:
        loop: Where the waiting futures live.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._under_way: dict[_Offsets, list[_Commit]] = {}

    def begin(
        self, consumer: Consumer, offsets: list[TopicPartition], answer: asyncio.Future[None], *, wait: bool
    ) -> None:
        """Send a commit; `answer` is resolved when the broker has it; with `wait`, before this returns."""
        commit = _Commit(offsets, answer, time.monotonic() + ANSWER_TIMEOUT)
        if wait:
            self._finish(consumer, commit)
            return
        try:
            consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._refuse(answer, str(error.args[0]))
            return
        self._under_way.setdefault(_key(offsets), []).append(commit)

    def on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        """Handle the client's answer; must not raise, or messages would be lost."""
        try:
            waiting = self._under_way.get(_key(offsets))
            if not waiting:
                return
            commit = waiting.pop(0)
            if not waiting:
                del self._under_way[_key(offsets)]
            reason = error or next((at.error for at in offsets if at.error is not None), None)
            if reason is None:
                resolve(self._loop, commit.answer, None)
            else:
                self._refuse(commit.answer, reason.str())
        except Exception:
            log.exception("the answer to a commit was lost")

    def confirm(self, consumer: Consumer) -> None:
        """Commit all pending positions again, synchronously: their own answers cannot be received now."""
        for commit in self._take_all():
            self._finish(consumer, commit)

    def give_up(self) -> None:
        """Answer all pending commits as unconfirmed."""
        for commit in self._take_all():
            self._refuse(commit.answer, "the partitions were revoked before the answer")

    def expire(self, now: float) -> None:
        """Answer commits that have waited too long as unconfirmed."""
        if not self._under_way:
            return
        for key, waiting in list(self._under_way.items()):
            for commit in [commit for commit in waiting if commit.deadline <= now]:
                waiting.remove(commit)
                self._refuse(commit.answer, f"no answer within {ANSWER_TIMEOUT:.0f} s")
            if not waiting:
                del self._under_way[key]

    def _finish(self, consumer: Consumer, commit: _Commit) -> None:
        try:
            answers = consumer.commit(offsets=commit.offsets, asynchronous=False)
        except KafkaException as error:
            self._refuse(commit.answer, str(error.args[0]))
            return
        reason = next((at.error for at in answers if at.error is not None), None)
        if reason is None:
            resolve(self._loop, commit.answer, None)
        else:
            self._refuse(commit.answer, reason.str())

    def _take_all(self) -> list[_Commit]:
        everything = [commit for waiting in self._under_way.values() for commit in waiting]
        self._under_way.clear()
        return everything

    def _refuse(self, answer: asyncio.Future[None], why: str) -> None:
        resolve(self._loop, answer, Unavailable(f"the broker did not confirm the commit: {why}"))


def resolve(loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], result: T | Exception) -> None:
    """Resolve a future of the event loop, from any thread, unless it is resolved or cancelled."""

    def finish() -> None:
        if future.done():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    with contextlib.suppress(RuntimeError):  # the loop was closed, and no caller waits any more
        loop.call_soon_threadsafe(finish)


def _key(offsets: list[TopicPartition]) -> _Offsets:
    return frozenset((at.topic, at.partition, at.offset) for at in offsets)
