"""Reading on aiokafka: one `getmany` after the other, and the handling of the client's errors.

An error from `getmany` may lose messages that the same call took from other partitions, though
their positions have advanced. So after each error, all partitions go back to the positions that
this module knows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiokafka.errors as errors  # type: ignore[import-untyped]
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as ClientPartition

from consumerkit.concurrency import wait_until_set
from consumerkit.message import Message, TopicPartition
from consumerkit.transports.aiokafka.client import Insight, words
from consumerkit.transports.aiokafka.group import Held, Membership
from consumerkit.transports.base import Position

_TROUBLE_PAUSE: Final = 0.1
_CAREFUL_SECONDS: Final = 15.0
# aiokafka reads an empty selection as every partition, so a partition that does not exist stands
# for none.
_NONE_OF_THEM: Final = ClientPartition("", 0)

_log = logging.getLogger(__name__)


class Reader:
    """Reads for one consumer; `read` must not be called while another call is running.

    Attributes:
        running: Cleared while the consumer is paused. aiokafka does not know of this pause: it
            would drop fetched messages, and forget the pause at the next rebalance.
        turned: When the client was last seen to run, by the monotonic clock.
        passed: Where the client continues, after the messages returned last.
    """

    def __init__(self, client: AIOKafkaConsumer, group: Membership, running: asyncio.Event) -> None:
        self.running = running
        self.turned = time.monotonic()
        self.passed: dict[TopicPartition, Position] = {}
        self._client = client
        self._insight = Insight(client)
        self._group = group
        self._careful_until = 0.0
        self._trouble = ""
        self._suspected: tuple[TopicPartition, int, int] | None = None

    async def read(self, limit: int, timeout: float) -> list[Message]:
        """Return available messages, at most `limit`; wait `timeout` seconds for the first, or out a rebalance."""
        end = time.monotonic() + timeout
        while True:
            remaining = end - time.monotonic()
            try:
                messages = await self._poll(limit, remaining)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - the contract requires that fetch survives any error
                messages, self.passed = [], {}
                await self._recover(error)
            else:
                self._note_positions()
            self.turned = time.monotonic()
            if messages:
                self._trouble = ""
            if messages or end <= self.turned:
                return messages

    def _note_positions(self) -> None:
        """Record the offsets that the client passed without a message, after all its messages were taken."""
        self.passed = {}
        for partition, mine in self._group.held.items():
            position = self._insight.position(ClientPartition(*partition))
            if mine.readable and not mine.on_hold and position is not None and position > mine.next:
                self.passed[partition] = Position(position, mine.epoch)

    async def _poll(self, limit: int, timeout: float) -> list[Message]:
        client = self._client
        if not self.running.is_set():
            # Called nevertheless: aiokafka raises its errors here, and keeps them until this call.
            await client.getmany(_NONE_OF_THEM, timeout_ms=0)
            await wait_until_set(self.running, max(0.0, timeout))
            return []
        if time.monotonic() < self._careful_until:
            return await self._poll_carefully(limit, timeout)
        waited = max(0, int(timeout * 1000))
        return self._convert(await client.getmany(timeout_ms=waited, max_records=limit))

    async def _poll_carefully(self, limit: int, timeout: float) -> list[Message]:
        """Read one record of one partition at a time: returns what precedes a broken batch, and finds its partition."""
        messages: list[Message] = []
        group = self._group
        readable = [partition for partition, mine in group.held.items() if mine.readable]
        share = max(1, int(min(timeout, 1.0) * 1000) // max(1, len(readable)))
        for partition in readable:
            try:
                while len(messages) < limit:
                    selected = await self._client.getmany(ClientPartition(*partition), timeout_ms=share, max_records=1)
                    if not selected:
                        break
                    messages += self._convert(selected)
            except Exception as error:  # noqa: BLE001 - as in `read`
                if _is_broken_batch(error):
                    await self._suspect(partition, error)
                else:
                    await self._recover(error)
        return messages

    async def _suspect(self, partition: TopicPartition, error: Exception) -> None:
        mine = self._group.held.get(partition)
        if mine is None or not mine.readable:
            return
        if self._suspected == (partition, mine.epoch, mine.next):
            self._careful_until = 0.0
            await self._group.fail(partition, f"the batch cannot be read: {words(error)}")
            return
        # Read it from the broker again before the partition is given up.
        self._suspected = (partition, mine.epoch, mine.next)
        self._client.seek(ClientPartition(*partition), mine.next)

    def _convert(self, batches: Mapping[ClientPartition, Sequence[Any]]) -> list[Message]:
        held = self._group.held
        messages: list[Message] = []
        for partition, records in batches.items():
            mine: Held | None = held.get(partition)
            if mine is None or not mine.readable:
                continue
            topic, number = partition
            topic_id, epoch = mine.topic_id, mine.epoch
            messages += [
                Message(topic, number, r.offset, r.key, r.value, r.headers, r.timestamp, topic_id, epoch)
                for r in records
            ]
            mine.next = records[-1].offset + 1
        return messages

    async def _recover(self, error: Exception) -> None:
        if isinstance(error, errors.KafkaError) and await self._fail_by_name(error):
            return
        if isinstance(error, errors.NoOffsetForPartitionError | errors.ConsumerStoppedError):
            # The first of these errors occurs during a take-over: the partition's position is
            # about to be set.
            await asyncio.sleep(_TROUBLE_PAUSE)
            return
        if words(error) != self._trouble:
            self._trouble = words(error)
            _log.warning("%s: fetching from Kafka: %s", self._group.name, self._trouble)
        self._rewind()
        if _is_broken_batch(error):
            self._careful_until = time.monotonic() + _CAREFUL_SECONDS
        await asyncio.sleep(_TROUBLE_PAUSE)

    async def _fail_by_name(self, error: errors.KafkaError) -> bool:
        if isinstance(error, errors.OffsetOutOfRangeError):
            for partition, offset in error.args[0].items():
                await self._group.fail(TopicPartition(*partition), f"offset {offset} is outside the log")
            return True
        if isinstance(error, errors.RecordTooLargeError):
            await self._group.fail(TopicPartition(*error.args[1]), "the record is larger than can be fetched")
            return True
        return False

    def _rewind(self) -> None:
        # The failed call lost what it took from other partitions, and the client's positions are
        # past it.
        assigned = self._client.assignment()
        for partition, mine in self._group.held.items():
            if mine.readable and partition in assigned:
                self._client.seek(ClientPartition(*partition), mine.next)


def _is_broken_batch(error: Exception) -> bool:
    # An error that is not aiokafka's own comes from parsing a batch: from a decompressor, or from
    # decoding.
    if isinstance(error, errors.CorruptRecordException | errors.UnsupportedCodecError):
        return True
    return not isinstance(error, errors.KafkaError)
