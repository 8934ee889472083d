"""aiokafka's consumer as a reader outside any group."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final

import aiokafka.errors as errors  # type: ignore[import-untyped]
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as ClientPartition

from consumerkit.errors import PartitionUnusable, StartError
from consumerkit.message import Message
from consumerkit.transports.aiokafka import client as aiokafka_client
from consumerkit.transports.aiokafka import records
from consumerkit.transports.aiokafka.client import words
from consumerkit.transports.base import Span, TopicInfo
from consumerkit.transports.spans import Spans

_TROUBLE_PAUSE: Final = 0.1
_log = logging.getLogger(__name__)


class AiokafkaLogReader:
    """Reads one topic; see `consumerkit.transports.base.LogReader`."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        options: Mapping[str, Any],
        topic: str,
        offsets: Mapping[int, int],
        describe: Callable[[Collection[str]], Awaitable[Mapping[str, TopicInfo]]],
    ) -> None:
        self._settings = settings
        self._options = options
        self._topic = topic
        self._offsets = offsets
        self._describe = describe
        self._topic_id = ""
        self._spans = Spans({})
        self._client: AIOKafkaConsumer | None = None

    async def start(self) -> Mapping[int, Span]:
        """Connect, and return what will be read of each partition.

        Raises:
            StartError: The topic is missing, or the broker refused or could not be reached in time.
        """
        info = (await self._describe([self._topic])).get(self._topic)
        if info is None:
            raise StartError(f"no such topic: {self._topic}")
        self._topic_id = info.topic_id
        records.install()
        arguments = self._arguments()
        client = await aiokafka_client.connect(lambda: AIOKafkaConsumer(**arguments), self._settings)
        self._client = client
        partitions = [ClientPartition(self._topic, number) for number in range(info.partitions)]
        try:
            oldest, newest = await client.beginning_offsets(partitions), await client.end_offsets(partitions)
            self._spans = Spans({at.partition: Span(oldest[at], newest[at]) for at in partitions}, self._offsets)
            client.assign([ClientPartition(self._topic, number) for number in self._spans.open()])
            self._seek()
        except errors.KafkaError as error:
            raise StartError(f"topic {self._topic!r} cannot be read: {words(error)}") from error
        return self._spans.read

    async def fetch(self, limit: int, timeout: float) -> list[Message]:
        """Return available messages, at most `limit`; wait `timeout` seconds for the first.

        Raises:
            PartitionUnusable: A partition cannot be read from its position.
        """
        assert self._client is not None, "start comes first"
        if self.finished:
            return []
        try:
            batches = await self._client.getmany(timeout_ms=int(timeout * 1000), max_records=limit)
        except errors.OffsetOutOfRangeError as error:
            at, offset = next(iter(error.args[0].items()))
            raise PartitionUnusable(f"{self._topic}[{at.partition}]: offset {offset} is outside the log") from error
        except (errors.CorruptRecordException, errors.UnsupportedCodecError, errors.RecordTooLargeError) as error:
            raise PartitionUnusable(f"{self._topic}: a batch cannot be read: {words(error)}") from error
        except errors.KafkaError as error:
            # The error may lose what the call took from other partitions, though their positions
            # have advanced.
            _log.warning("reading %s: %s", self._topic, words(error))
            self._seek()
            await asyncio.sleep(_TROUBLE_PAUSE)
            return []
        found = [message for records in batches.values() for message in self._taken(records)]
        await self._close_what_is_read()
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
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            await aiokafka_client.stop(client)

    def _arguments(self) -> dict[str, Any]:
        return {
            **self._settings,
            **aiokafka_client.suited(AIOKafkaConsumer, self._options),
            "group_id": None,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "check_crcs": True,
        }

    def _taken(self, records: Sequence[Any]) -> list[Message]:
        return self._spans.taken(
            Message(self._topic, r.partition, r.offset, r.key, r.value, r.headers, r.timestamp, self._topic_id)
            for r in records
        )

    async def _close_what_is_read(self) -> None:
        """Close partitions whose remaining offsets the client passed: they hold no committed message."""
        assert self._client is not None
        for number in self._spans.open():
            at = ClientPartition(self._topic, number)
            position, stable = await self._client.position(at), self._client.last_stable_offset(at)
            if position >= self._spans.read[number].end or (stable is not None and 0 <= stable <= position):
                self._spans.close(number)

    def _seek(self) -> None:
        assert self._client is not None
        for number, offset in self._spans.open().items():
            self._client.seek(ClientPartition(self._topic, number), offset)
