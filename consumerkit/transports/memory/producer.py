"""Sending to a broker in memory, and the broker's answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from consumerkit.message import HEADER_BYTES, Message, bytes_of
from consumerkit.transports.base import Acknowledged, Record, SendFailure, failure_in
from consumerkit.transports.memory.log import Logs

_HEADER = 2  # at least, for the lengths of a header's name and value
_NOWHERE = Acknowledged(-1, -1)
_OVERHEAD = 70  # Kafka's overhead for a lone record: batch header and lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """How the broker in memory answers one record that a producer sends.

    Args:
        delay: Seconds after which the answer comes.
        gate: Awaited before the answer, besides the delay.
        failure: The producer's answer; None is success.
        written: Whether the record is in the log. A lost answer is the failure of a record that is
            written.

    Raises:
        ValueError: Success of a record that is not written.

    Example:
        >>> lost = SendFailure("REQUEST_TIMED_OUT", "no answer", permanent=False)
        >>> Acknowledgement(failure=lost).written
        True
    """

    delay: float = 0.0
    gate: asyncio.Event | None = None
    failure: SendFailure | None = None
    written: bool = True

    def __post_init__(self) -> None:
        if self.failure is None and not self.written:
            raise ValueError("a record that is not written needs a failure")


Answers = Callable[[Record], Acknowledgement]


def at_once(_: Record) -> Acknowledgement:
    """Acknowledge a record at once."""
    return Acknowledgement()


class Intake:
    """Accepts records for a broker in memory.

    Args:
        logs: The broker's.
        append: Adds a record to a topic.
        max_record_bytes: Larger records are refused.
    """

    def __init__(self, logs: Logs, append: Callable[[Record, int], Message], max_record_bytes: int) -> None:
        self.answers: Answers = at_once
        self._logs = logs
        self._append = append
        self.max_record_bytes = max_record_bytes

    def take(self, record: Record) -> tuple[Acknowledgement, Acknowledged]:
        """Add a record unless something prevents it; return the answer, and the record's actual or intended place."""
        if (refusal := self._refusal(record)) is not None:
            return _refused(refusal, _NOWHERE)
        topic = self._logs.topics[record.topic]
        partition = topic.partition_for(record.key) if record.partition is None else record.partition
        if not 0 <= partition < len(topic.partitions):
            words = f"no such partition: {record.topic}[{partition}]"
            return _refused(SendFailure("_UNKNOWN_PARTITION", words, permanent=True), _NOWHERE)
        placement = Acknowledged(partition, topic.partitions[partition].end)
        if not topic.partitions[partition].has_leader:
            words = f"{record.topic}[{partition}] has no leader"
            return _refused(SendFailure("LEADER_NOT_AVAILABLE", words, permanent=False), placement)
        answer = self.answers(record)
        if answer.written:
            self._append(record, partition)
        return answer, placement

    def _refusal(self, record: Record) -> SendFailure | None:
        if not self._logs.available:
            return SendFailure("_TRANSPORT", "the broker in memory is down", permanent=False)
        if record.topic not in self._logs.topics:
            return SendFailure("UNKNOWN_TOPIC_OR_PART", f"no such topic: {record.topic}", permanent=True)
        kept_apart = (HEADER_BYTES - _HEADER) * len(record.headers)
        size = bytes_of(record.key, record.value, record.headers) - kept_apart + _OVERHEAD
        if size > self.max_record_bytes:
            words = f"{size} bytes are more than the broker's {self.max_record_bytes}"
            return SendFailure("MSG_SIZE_TOO_LARGE", words, permanent=True)
        return None


class IntakeProducer:
    """Sends to a broker in memory; see `consumerkit.transports.base.Producer`."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def start(self) -> None:
        """Connect: nothing to do in memory."""

    async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
        """Add all records, in order, then wait for their answers; one answer per record."""
        return [failure_in(answer) for answer in await self.place(records)]

    async def place(self, records: Sequence[Record]) -> list[Acknowledged | SendFailure]:
        """Add all records, in order, then wait for their answers; return each one's place, or why it has none."""
        taken = [self._intake.take(record) for record in records]
        return await asyncio.gather(*(_awaited(answer, placement) for answer, placement in taken))

    async def stop(self) -> None:
        """Disconnect: nothing to do in memory."""


def _refused(failure: SendFailure, placement: Acknowledged) -> tuple[Acknowledgement, Acknowledged]:
    return Acknowledgement(failure=failure, written=False), placement


async def _awaited(answer: Acknowledgement, placement: Acknowledged) -> Acknowledged | SendFailure:
    if answer.delay:
        await asyncio.sleep(answer.delay)
    if answer.gate is not None:
        await answer.gate.wait()
    return placement if answer.failure is None else answer.failure
