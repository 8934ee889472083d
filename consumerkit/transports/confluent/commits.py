"""Pending commits: librdkafka answers each by a callback, or never."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from consumerkit.errors import Rebalancing, Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")

ANSWER_TIMEOUT = 10.0  # seconds after which a commit counts as not confirmed

# With the group protocol of KIP-848 each change of the group raises the member's epoch, and the broker refuses a commit
# that the client sent before it learned of that. The answer to a heartbeat is on its way then; the client has the new
# epoch in a moment, and what is about to be given up is still its own.
STALE_TIMEOUT = 1.0  # seconds
STALE_PAUSE = 0.02

# The group has other members or another generation by now, or begins one: an ordinary part of a rebalance. The loss of
# partitions by a member that the group has removed is reported besides.
REBALANCING = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError._ASSIGNMENT_LOST,  # noqa: SLF001 - librdkafka spells its own codes so
    }
)

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
            resolve(self._loop, answer, refusal(error.args[0]))
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
                resolve(self._loop, commit.answer, refusal(reason))
        except Exception:
            log.exception("the answer to a commit was lost")

    def confirm(self, consumer: Consumer) -> None:
        """Commit all pending positions again, synchronously: their own answers cannot be received now."""
        for commit in self._take_all():
            self._finish(consumer, commit)

    def give_up(self) -> None:
        """Answer all pending commits as unconfirmed: their partitions are gone."""
        for commit in self._take_all():
            why = "the partitions were revoked before the broker confirmed the commit"
            resolve(self._loop, commit.answer, Rebalancing(why))

    def expire(self, now: float) -> None:
        """Answer commits that have waited too long as unconfirmed."""
        if not self._under_way:
            return
        for key, waiting in list(self._under_way.items()):
            for commit in [commit for commit in waiting if commit.deadline <= now]:
                waiting.remove(commit)
                why = f"the broker did not confirm the commit: no answer within {ANSWER_TIMEOUT:.0f} s"
                resolve(self._loop, commit.answer, Unavailable(why))
            if not waiting:
                del self._under_way[key]

    def _finish(self, consumer: Consumer, commit: _Commit) -> None:
        refused = _commit_now(consumer, commit.offsets)
        resolve(self._loop, commit.answer, refusal(refused[0]) if refused else None)

    def _take_all(self) -> list[_Commit]:
        everything = [commit for waiting in self._under_way.values() for commit in waiting]
        self._under_way.clear()
        return everything


def refusal(error: KafkaError) -> Unavailable:
    """Return what a refused commit raises.

    Example:
        >>> refusal(KafkaError(KafkaError.ILLEGAL_GENERATION))
        Rebalancing('the broker did not confirm the commit: Broker: Specified group generation id is not valid')
        >>> type(refusal(KafkaError(KafkaError.REQUEST_TIMED_OUT))).__name__
        'Unavailable'
    """
    kind = Rebalancing if error.code() in REBALANCING else Unavailable
    return kind(f"the broker did not confirm the commit: {error.str()}")


def commit_last(consumer: Consumer, offsets: list[TopicPartition]) -> None:
    """Commit offsets of revoked partitions; a failure is only logged, since the next owner commits again."""
    refused = _commit_now(consumer, offsets)
    end = time.monotonic() + STALE_TIMEOUT
    while refused and all(one.code() == KafkaError.STALE_MEMBER_EPOCH for one in refused) and time.monotonic() < end:
        time.sleep(STALE_PAUSE)
        refused = _commit_now(consumer, offsets)
    for one in refused:
        level = logging.INFO if one.code() in REBALANCING else logging.WARNING
        log.log(level, "the last commit of revoked partitions failed; the next owner commits again: %s", one)


def _commit_now(consumer: Consumer, offsets: list[TopicPartition]) -> list[KafkaError]:
    """Commit synchronously; return what was refused."""
    try:
        answers = consumer.commit(offsets=offsets, asynchronous=False)
    except KafkaException as error:
        return [error.args[0]]
    return [at.error for at in answers if at.error is not None]


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
