"""librdkafka's consumer behind `consumerkit.transports.base.Consumer`: the event loop's side of the poll thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from consumerkit.errors import StartError
from consumerkit.message import Message, TopicPartition
from consumerkit.transports.base import (
    AssignmentListener,
    Health,
    PartitionInfo,
    Position,
    Subscription,
    Survey,
    TopicInfo,
)
from consumerkit.transports.confluent.admin import TopicAdmin
from consumerkit.transports.confluent.thread import PollThread
from consumerkit.transports.kafka_options import SESSION_MS, has_broker_assignment, milliseconds, unknown_to

if TYPE_CHECKING:
    from consumerkit.transports.aiokafka.leaving import Leaving

log = logging.getLogger(__name__)

_LATE = 0.5  # seconds after which a stop checks what delays it
_LEAVE = 30.0  # seconds beyond the drain timeout that leaving the group may take
_SMALLEST_FETCH = 1024 * 1024

# The settings that a user may change.
_DEFAULTS: dict[str, object] = {
    "session.timeout.ms": SESSION_MS,
    # Members learn of a rebalance from a heartbeat's answer: librdkafka's 3,000 ms would delay each
    # step by as much.
    "heartbeat.interval.ms": 1_000,
    # A joining member takes partitions from others without stopping those that stay.
    "partition.assignment.strategy": "cooperative-sticky",
    # How long a partition rests once enough is buffered; librdkafka's own 1,000 ms starves a small
    # buffer.
    "fetch.queue.backoff.ms": 10,
    "socket.keepalive.enable": True,
    "log.connection.close": False,
}
# The settings that the contract depends on.
CONTRACT: dict[str, object] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "check.crcs": True,
    "enable.partition.eof": False,
    "allow.auto.create.topics": False,
}


class ConfluentConsumer:
    """One member of a consumer group."""

    def __init__(
        self,
        config: Mapping[str, object],
        subscription: Subscription,
        admin: TopicAdmin,
        leaving: Callable[[], Leaving] | None = None,
    ) -> None:
        tuned = {name: value for name, value in _DEFAULTS.items() if name not in unknown_to(config)}
        self._config = {**tuned, **_sized(subscription, config), **config, **CONTRACT, **_named(subscription)}
        self._subscription = subscription
        self._admin = admin
        self._out = leaving
        self._topic_ids: dict[str, str] = {}
        self._questions = admin.questions(subscription.group, self._ask_topics)
        self._thread: PollThread | None = None
        self._passed: Mapping[TopicPartition, Position] = {}

    async def start(self, listener: AssignmentListener) -> None:
        """Connect and subscribe.

        Raises:
            StartError: The broker refused, or could not be reached in time, or a topic is missing.
        """
        topics = await self._admin.topics(self._subscription.topics)
        missing = [topic for topic in self._subscription.topics if topic not in topics]
        if missing:
            raise StartError(f"no such topic: {', '.join(missing)}")
        self._topic_ids = {name: info.topic_id for name, info in topics.items()}
        loop = asyncio.get_running_loop()
        questions = self._questions
        has_none = questions.has_none if has_broker_assignment(self._config) else None
        thread = PollThread(self._config, self._subscription, listener, questions.describe, loop, has_none)
        thread.start()
        await thread.started
        self._thread = thread

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        """Return available messages, at most `limit`; wait `timeout` seconds for the first."""
        self._passed = {}
        if self._running.over:
            await asyncio.sleep(timeout)  # `health` says why; a caller that goes on asking must not spin
            return []
        fetched = await self._running.fetch(limit, timeout)
        self._passed = fetched.passed
        return fetched.messages

    def passed(self) -> Mapping[TopicPartition, Position]:
        """Return the offsets where the client continues, for partitions whose messages were all returned."""
        return self._passed

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Commit the positions whose epochs are still current; return when the broker has them.

        Raises:
            Rebalancing: The group's members change.
            Unavailable: The broker did not confirm.
        """
        if positions:
            await self._running.commit(positions)

    async def pause(self) -> None:
        """Deliver nothing until `resume`."""
        self._running.paused = True

    async def resume(self) -> None:
        """Deliver again."""
        self._running.paused = False

    async def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver nothing of these partitions until `release`."""
        self._running.hold(partitions, held=True)

    async def release(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver these partitions again."""
        self._running.hold(partitions, held=False)

    def seek(self, partition: TopicPartition, offset: int) -> int:
        """Read a partition from `offset` from now on; return the new epoch."""
        return self._running.seek(partition, offset, self._topic_ids.get(partition.topic))

    async def describe(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, PartitionInfo]:
        """Ask the broker about assigned partitions, now.

        Raises:
            Unavailable: The broker did not answer.
        """
        found = await self._questions.describe([at for at in partitions if self._running.holds(at)])
        return {at: info for at, info in found.items() if self._running.holds(at)}

    async def survey(self, topic: str) -> Survey:
        """Ask the broker about all partitions of a topic.

        Raises:
            Unavailable: The broker did not answer.
        """
        return await self._questions.survey(topic)

    async def since(self, partition: TopicPartition, milliseconds: int) -> int:
        """Return the first offset since a moment.

        Raises:
            Unavailable: The broker did not answer.
        """
        return await self._questions.since(partition, milliseconds)

    async def stop(self) -> None:
        """Let the listener finish with all partitions, commit what it returns, and leave the group."""
        if self._thread is None:
            return
        thread = self._thread
        thread.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._subscription.drain_timeout + _LEAVE):
                await asyncio.wait({thread.finished}, timeout=None if self._out is None else _LATE)
                if self._out is not None and not thread.finished.done():
                    await self._out().help_out(
                        thread.finished, self._group, thread.member, is_at_work=thread.is_at_work
                    )
        if not thread.finished.done():
            log.warning(
                "the consumer of group %s did not leave in time; the broker removes it when its session times out",
                self._group,
            )
        await self._questions.stop()

    def health(self) -> Health:
        """Return the consumer's health; callable from any thread."""
        return Health(0.0, None) if self._thread is None else self._thread.health()

    def member(self) -> str:
        """Return the ID by which the group knows this consumer; callable from any thread."""
        return "" if self._thread is None else self._thread.member()

    @property
    def _running(self) -> PollThread:
        assert self._thread is not None, "the consumer has not been started"
        return self._thread

    @property
    def _group(self) -> str:
        return self._subscription.group

    async def _ask_topics(self, names: Collection[str]) -> Mapping[str, TopicInfo]:
        topics = await self._admin.topics(names)
        self._topic_ids |= {name: info.topic_id for name, info in topics.items()}
        return topics


def _named(subscription: Subscription) -> dict[str, object]:
    return {"group.id": subscription.group, "client.id": subscription.client_id}


def _sized(subscription: Subscription, config: Mapping[str, object]) -> dict[str, object]:
    size = max(subscription.fetch_bytes, _SMALLEST_FETCH)
    return {
        "queued.max.messages.kbytes": size // 1024,
        "fetch.max.bytes": size,
        # How long the broker waits in a rebalance for members to give partitions up; the thread
        # never stops polling. The client refuses a value below the session's timeout.
        "max.poll.interval.ms": int(
            max(
                60_000,
                (subscription.drain_timeout + 30) * 1000,
                milliseconds(config, "session.timeout.ms", SESSION_MS),
            )
        ),
    }
