"""The consumer on aiokafka: starting, fetching, pausing and stopping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Any, Final

import aiokafka.errors as errors  # type: ignore[import-untyped]
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as ClientPartition

from consumerkit.errors import StartError
from consumerkit.message import Message, TopicPartition
from consumerkit.transports.aiokafka import client as aiokafka_client
from consumerkit.transports.aiokafka import records
from consumerkit.transports.aiokafka.client import Insight, words
from consumerkit.transports.aiokafka.fetcher import Reader
from consumerkit.transports.aiokafka.group import COMMIT_TIMEOUT, DRAIN_MARGIN, Describe, Membership
from consumerkit.transports.aiokafka.leaving import Leaving
from consumerkit.transports.base import AssignmentListener, Health, PartitionInfo, Position, Subscription, Survey
from consumerkit.transports.confluent.questions import Questions
from consumerkit.transports.kafka_options import AIOKAFKA_SESSION_MS

_NEVER_MS: Final = 2**31 - 1
_GRACE: Final = 0.1
_LATE: Final = 0.5  # seconds after which a stop checks what delays it


class AiokafkaConsumer:
    """One member of one consumer group; see `consumerkit.transports.base.Consumer`.

    Each fetch is a separate task that outlives a cancelled caller, or one that a rebalance delays;
    the next call gets its messages.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        options: Mapping[str, Any],
        subscription: Subscription,
        describe: Describe,
        questions: Questions,
        leaving: Leaving,
    ) -> None:
        self._settings = settings
        self._options = options
        self._subscription = subscription
        self._describe = describe
        self._questions = questions
        self._out = leaving
        self._client: AIOKafkaConsumer | None = None
        self._group: Membership | None = None
        self._reader: Reader | None = None
        self._reading: asyncio.Task[list[Message]] | None = None
        self._leaving: asyncio.Future[None] | None = None
        self._ready: list[Message] = []
        self._passed: Mapping[TopicPartition, Position] = {}
        self._seen_version = 0
        self._running = asyncio.Event()
        self._running.set()

    async def start(self, listener: AssignmentListener) -> None:
        """Connect and subscribe; partitions are assigned later.

        Raises:
            StartError: A topic is missing, or the broker refused or could not be reached in time.
        """
        subscription = self._subscription
        topics = await self._describe(subscription.topics)
        if missing := [name for name in subscription.topics if name not in topics]:
            raise StartError(f"no such topic: {', '.join(missing)}")
        arguments = self._arguments(sum(info.partitions for info in topics.values()))
        records.install()
        client = await aiokafka_client.connect(lambda: AIOKafkaConsumer(**arguments), self._settings)
        try:
            await self._check_rights(client)
            group = Membership(client, subscription, listener, self._questions.describe)
            client.subscribe(list(subscription.topics), listener=group)
        except BaseException:
            await aiokafka_client.stop(client)
            raise
        self._client, self._group, self._reader = client, group, Reader(client, group, self._running)

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        """Return available messages, at most `limit`; wait `timeout` seconds for the first."""
        assert self._reader is not None, "start comes first"
        self._passed = {}
        if self._ready and not self._running.is_set():
            # During a pause, the messages left from an earlier call wait too.
            await asyncio.sleep(timeout)
            return []
        if not self._ready:
            if self._reading is None:
                self._reading = asyncio.create_task(self._reader.read(limit, timeout))
            # This neither cancels the task nor waits for it: during a rebalance aiokafka returns
            # only at its end.
            await asyncio.wait({self._reading}, timeout=timeout + _GRACE)
            if not self._reading.done():
                self._excuse_rebalance()
                return []
            reading, self._reading = self._reading, None
            if reading.cancelled():  # by `stop`
                return []
            self._ready = reading.result()
        self._drop_what_is_over()
        found, self._ready = self._ready[:limit], self._ready[limit:]
        if not self._ready and self._reading is None:
            self._passed = self._reader.passed
        return found

    def passed(self) -> Mapping[TopicPartition, Position]:
        """Return the offsets where the client continues, for partitions whose messages were all returned."""
        return self._passed

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Commit the positions whose epochs are still current.

        Raises:
            Unavailable: The broker did not confirm.
        """
        if self._group is not None:
            await self._group.commit(positions)

    async def pause(self) -> None:
        """Deliver nothing until `resume`."""
        self._running.clear()

    async def resume(self) -> None:
        """Deliver again."""
        self._running.set()

    async def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver nothing of these partitions until `release`."""
        if self._group is not None:
            self._group.hold(partitions, held=True)

    async def release(self, partitions: Collection[TopicPartition]) -> None:
        """Deliver these partitions again."""
        if self._group is not None:
            self._group.hold(partitions, held=False)

    def seek(self, partition: TopicPartition, offset: int) -> int:
        """Read a partition from `offset` from now on; return the new epoch."""
        assert self._group is not None, "start comes first"
        return self._group.seek(partition, offset)

    async def describe(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, PartitionInfo]:
        """Ask the broker about assigned partitions, now.

        Raises:
            Unavailable: The broker did not answer.
        """
        assert self._group is not None, "start comes first"
        return await self._group.describe(partitions)

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
        client, group, self._client = self._client, self._group, None
        if client is None or group is None:
            return
        # Cancelling the wait does not stop the leave: a client that is never stopped keeps its
        # partitions.
        self._leaving = asyncio.ensure_future(self._leave(client, group))
        await asyncio.shield(self._leaving)

    async def _leave(self, client: AIOKafkaConsumer, group: Membership) -> None:
        await group.close()
        stopped = asyncio.ensure_future(client.stop())
        try:
            async with asyncio.timeout(aiokafka_client.STOP_TIMEOUT):
                await asyncio.wait({stopped}, timeout=_LATE)
                await self._out.help_out(stopped, group.name, Insight(client).member, is_at_work=lambda: False)
        except TimeoutError:
            pass
        await aiokafka_client.end(stopped)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
            self._reading = None
        await self._questions.stop()

    def health(self) -> Health:
        """Return the consumer's health; callable from any thread."""
        client, group, reader = self._client, self._group, self._reader
        if client is None or group is None or reader is None:
            return Health(0.0, None)
        return Health(time.monotonic() - reader.turned, Insight(client).fatal() or group.error)

    def member(self) -> str:
        """Return the ID by which the group knows this consumer; callable from any thread."""
        client = self._client
        return "" if client is None else Insight(client).member()

    # -- starting

    def _arguments(self, partitions: int) -> dict[str, Any]:
        subscription = self._subscription
        rebalance = subscription.drain_timeout + DRAIN_MARGIN + 2 * COMMIT_TIMEOUT
        # aiokafka stores one answer per partition, so this bounds all of them together.
        share = subscription.fetch_bytes // max(1, partitions)
        arguments = {
            **self._settings,
            "session_timeout_ms": AIOKAFKA_SESSION_MS,
            "max_partition_fetch_bytes": min(max(share, 65_536), 4 * 1024 * 1024),
            # A broker answers a join when all members have drained, or when the slowest one's time
            # is over.
            "request_timeout_ms": int(max(40.0, rebalance + 10.0) * 1000),
            **aiokafka_client.suited(AIOKafkaConsumer, self._options),
            "client_id": subscription.client_id,
            "group_id": subscription.group,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "rebalance_timeout_ms": int(rebalance * 1000),
            # After this time aiokafka would leave the group of a busy handler. Our watchdog ends a
            # stuck process.
            "max_poll_interval_ms": _NEVER_MS,
            "fetch_max_bytes": subscription.fetch_bytes,
            "check_crcs": True,
        }
        return {"heartbeat_interval_ms": min(3_000, int(arguments["session_timeout_ms"]) // 3), **arguments}

    async def _check_rights(self, client: AIOKafkaConsumer) -> None:
        group = self._subscription.group
        try:
            async with asyncio.timeout(aiokafka_client.START_TIMEOUT):
                await client.committed(ClientPartition(self._subscription.topics[0], 0))
        except TimeoutError:
            raise StartError(f"Kafka names no coordinator for the group {group}") from None
        except errors.KafkaError as error:
            raise StartError(f"Kafka refuses the group {group}: {words(error)}") from None

    # -- fetching

    def _drop_what_is_over(self) -> None:
        group = self._group
        if group is None or group.version == self._seen_version:
            return
        self._seen_version = group.version
        held = group.held
        self._ready = [
            message
            for message in self._ready
            if (mine := held.get(TopicPartition(message.topic, message.partition))) is not None
            and mine.epoch == message.epoch
            and not mine.leaving
        ]

    def _excuse_rebalance(self) -> None:
        # A rebalance that waits for other members is no fault, but only for as long as the broker
        # waits for them.
        assert self._group is not None
        assert self._reader is not None
        allowed = 2 * (self._subscription.drain_timeout + DRAIN_MARGIN + 2 * COMMIT_TIMEOUT)
        if 0.0 < self._group.rebalancing() < allowed:
            self._reader.turned = time.monotonic()
