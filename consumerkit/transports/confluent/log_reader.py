"""librdkafka's consumer as a reader outside any group, in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from consumerkit.errors import PartitionUnusable, StartError
from consumerkit.message import Message
from consumerkit.transports.base import Span
from consumerkit.transports.confluent.admin import TopicAdmin
from consumerkit.transports.confluent.consumer import CONTRACT
from consumerkit.transports.confluent.messages import UNUSABLE, headers_of, without_values
from consumerkit.transports.oauth import wait_for_token
from consumerkit.transports.spans import Spans

T = TypeVar("T")
_ANSWER = 15.0
# The client needs a group's name but never joins: partitions are assigned by hand, and nothing is
# committed.
_OWN: dict[str, object] = {
    "group.id": "consumerkit-reader",
    "enable.partition.eof": True,
    "log_level": 0,
    # Buffered beyond the request: the client's own default is eight times as much.
    "queued.max.messages.kbytes": 8 * 1024,
}


class ConfluentReader:
    """Reads one topic; see `consumerkit.transports.base.LogReader`."""

    def __init__(self, config: Mapping[str, object], topic: str, offsets: Mapping[int, int], admin: TopicAdmin) -> None:
        self._config: dict[str, Any] = {**config, **CONTRACT, **_OWN, "error_cb": self._note}
        self._topic = topic
        self._offsets = offsets
        self._admin = admin
        self._topic_id = ""
        self._spans = Spans({})
        self._thread = ThreadPoolExecutor(1, "consumerkit-reader")
        self._consumer: confluent_kafka.Consumer | None = None
        self._trouble = ""

    async def start(self) -> Mapping[int, Span]:
        """Connect, and return what will be read of each partition.

        Raises:
            StartError: The topic is missing, or the broker refused or could not be reached in time.
        """
        info = (await self._admin.topics([self._topic])).get(self._topic)
        if info is None:
            raise StartError(f"no such topic: {self._topic}")
        self._topic_id = info.topic_id
        await self._do(lambda: self._open(info.partitions))
        return self._spans.read

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        """Return available messages, at most `limit`; wait `timeout` seconds for the first.

        Raises:
            PartitionUnusable: A partition cannot be read from its position.
        """
        return await self._do(lambda: self._read(limit, timeout))

    @property
    def positions(self) -> Mapping[int, int]:
        """How far each partition is read."""
        return self._spans.positions

    @property
    def finished(self) -> bool:
        """Whether everything was returned."""
        return not self._spans.open()

    async def stop(self) -> None:
        """Disconnect."""
        await self._do(self._close)
        self._thread.shutdown(wait=False)

    async def _do(self, work: Callable[[], T]) -> T:
        """Run work in the reader's thread; cancelling the caller does not cancel the work."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    def _open(self, partitions: int) -> None:
        try:
            wait_for_token(self._config)
            consumer = confluent_kafka.Consumer(self._config)
            self._consumer = consumer
            numbers = range(partitions)
            logs = {number: Span(*self._watermarks(consumer, number)) for number in numbers}
            self._spans = Spans(logs, self._offsets)
            begun = self._spans.open().items()
            consumer.assign([confluent_kafka.TopicPartition(self._topic, number, at) for number, at in begun])
        except KafkaException as error:
            words = dict.fromkeys(words for words in (error.args[0].str(), self._trouble) if words)
            raise StartError(f"topic {self._topic!r} cannot be read: {without_values(': '.join(words))}") from None

    def _watermarks(self, consumer: confluent_kafka.Consumer, number: int) -> tuple[int, int]:
        asked = consumer.get_watermark_offsets(confluent_kafka.TopicPartition(self._topic, number), timeout=_ANSWER)
        if asked is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 - librdkafka spells its codes so
        return int(asked[0]), int(asked[1])

    def _read(self, limit: int, timeout: float) -> list[Message]:
        assert self._consumer is not None, "start comes first"
        first = self._consumer.poll(timeout)
        if first is None:
            return []
        # `consume` would wait for the full number; messages that are ready are taken without
        # waiting.
        rest = self._consumer.consume(limit - 1, 0) if limit > 1 else []
        return self._spans.taken(self._message(item) for item in (first, *rest) if self._is_message(item))

    def _is_message(self, item: confluent_kafka.Message) -> bool:
        error = item.error()
        if error is None:
            return True
        number = item.partition()
        if error.code() == KafkaError._PARTITION_EOF and number is not None:  # noqa: SLF001
            self._spans.close(number)
        elif error.code() in UNUSABLE:
            raise PartitionUnusable(f"{self._topic}[{number}]: {error.str()}")
        else:
            self._note(error)
        return False

    def _message(self, item: confluent_kafka.Message) -> Message:
        partition, offset = item.partition(), item.offset()
        assert partition is not None
        assert offset is not None
        stamp = item.timestamp()[1]
        found = (item.key(), item.value(), headers_of(item))
        return Message(self._topic, partition, offset, *found, stamp, self._topic_id)

    def _close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _note(self, error: KafkaError) -> None:
        self._trouble = error.str()
