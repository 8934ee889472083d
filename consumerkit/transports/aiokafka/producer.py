"""The producer on aiokafka: idempotent, with an answer for every record, and a new client after a failure.

An idempotent producer numbers its batches, and aiokafka continues the numbers after a refused
batch: the broker then refuses all later batches as out of order. aiokafka also retries a batch for
ever. So each `send` has a deadline, and after any failure the next round uses a new client. Each
topic has its own client, so that a topic that is refused, or does not answer, delays no other
topic.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import aiokafka.errors as errors  # type: ignore[import-untyped]
from aiokafka import AIOKafkaProducer

from consumerkit.errors import StartError
from consumerkit.transports.aiokafka import client as aiokafka_client
from consumerkit.transports.aiokafka.client import words
from consumerkit.transports.aiokafka.group import Describe
from consumerkit.transports.base import Acknowledged, Record, SendFailure, failure_in

SEND_TIMEOUT: Final = 30.0
"""Seconds after which records without an acknowledgement have failed."""

MOST_CLIENTS: Final = 32
"""Idle topics that keep their own client."""

_BATCH_BYTES: Final = 128 * 1024
_REQUEST_BYTES: Final = 100 * 1024 * 1024
_FORBIDDEN: Final = (
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.InvalidTopicError,
)
_FINAL: Final = (*_FORBIDDEN, TimeoutError, errors.KafkaTimeoutError, StartError)
# The broker's verdict on a batch's order or on our identity, not on its records.
_OUT_OF_ORDER: Final = (
    errors.OutOfOrderSequenceNumber,
    errors.UnknownProducerId,
    errors.InvalidProducerEpoch,
    errors.ProducerFenced,
)


class AiokafkaProducer:
    """Sends records; see `consumerkit.transports.base.Producer`."""

    def __init__(self, settings: Mapping[str, Any], options: Mapping[str, Any], describe: Describe) -> None:
        self._settings = settings
        self._arguments = {
            **settings,
            "max_batch_size": _BATCH_BYTES,
            # The topic decides how large a record may be.
            "max_request_size": _REQUEST_BYTES,
            **aiokafka_client.suited(AIOKafkaProducer, options),
            "enable_idempotence": True,
            "acks": "all",
        }
        self._describe = describe
        self._spare: AIOKafkaProducer | None = None
        # In the order of use: the latest is last.
        self._topics: dict[str, _TopicProducer] = {}

    async def start(self) -> None:
        """Connect.

        Raises:
            StartError: The broker refused, or could not be reached in time.
        """
        self._spare = await self._connect()

    async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
        """Send all records; return one answer per record, in order: None when acknowledged."""
        return [failure_in(answer) for answer in await self.place(records)]

    async def place(self, records: Sequence[Record]) -> list[Acknowledged | SendFailure]:
        """Send all records; return each one's place in the log, or why it has none."""
        places: dict[str, list[int]] = {}
        for at, record in enumerate(records):
            places.setdefault(record.topic, []).append(at)
        sends = [self._of(topic).send([records[at] for at in chosen]) for topic, chosen in places.items()]
        answers: dict[int, Acknowledged | SendFailure] = {}
        for chosen, answered in zip(places.values(), await asyncio.gather(*sends), strict=True):
            answers |= zip(chosen, answered, strict=True)
        await self._retire()
        return [answers[at] for at in range(len(records))]

    async def stop(self) -> None:
        """Finish the sends that are running, and disconnect."""
        spare, self._spare = self._spare, None
        if spare is not None:
            await aiokafka_client.stop(spare)
        await asyncio.gather(*(topic.stop() for topic in self._topics.values()))
        self._topics.clear()

    def _of(self, name: str) -> _TopicProducer:
        found = self._topics.pop(name, None)
        if found is None:
            spare, self._spare = self._spare, None
            found = _TopicProducer(self._connect, self._describe, spare)
        self._topics[name] = found
        return found

    async def _retire(self) -> None:
        """Disconnect from the least recently used topics if there are too many."""
        idle = [name for name, topic in self._topics.items() if not topic.sending]
        for name in idle[: max(0, len(self._topics) - MOST_CLIENTS)]:
            await self._topics.pop(name).stop()

    async def _connect(self) -> AIOKafkaProducer:
        return await aiokafka_client.connect(lambda: AIOKafkaProducer(**self._arguments), self._settings)


class _TopicProducer:
    """Sends the records of one topic, one `send` after another."""

    def __init__(
        self, connect: Callable[[], Awaitable[AIOKafkaProducer]], describe: Describe, client: AIOKafkaProducer | None
    ) -> None:
        self._connect = connect
        self._describe = describe
        self._client = client
        self._known = False
        self._lock = asyncio.Lock()
        self._users = 0

    @property
    def sending(self) -> bool:
        """Whether a `send` is running, or waits for its turn."""
        return self._users > 0

    async def send(self, records: Sequence[Record]) -> list[Acknowledged | SendFailure]:
        """Send all records; return one answer per record, in order."""
        self._users += 1
        try:
            async with self._lock:
                return await self._send(records)
        finally:
            self._users -= 1

    async def stop(self) -> None:
        """Finish the sends that are running, and disconnect."""
        async with self._lock:
            client, self._client = self._client, None
            if client is not None:
                await aiokafka_client.stop(client)

    async def _send(self, records: Sequence[Record]) -> list[Acknowledged | SendFailure]:
        end = time.monotonic() + SEND_TIMEOUT
        if not self._known and (missing := await self._missing(records[0].topic)) is not None:
            return [missing] * len(records)
        answers: list[Acknowledged | SendFailure] = []
        # A refused record fails its batch and what followed in its partition, so the failed records
        # are sent one by one.
        for at, outcome in enumerate(await self._send_together(records, end)):
            if isinstance(outcome, Acknowledged):
                answers.append(outcome)
            elif isinstance(outcome, _FINAL) or time.monotonic() >= end:
                answers.append(_failure(outcome))
            else:
                answers.append(await self._send_alone(records[at], end))
        if any(isinstance(answer, SendFailure) and not answer.permanent for answer in answers):
            self._known = False
        return answers

    async def _missing(self, topic: str) -> SendFailure | None:
        # Asked first: aiokafka would make the broker create an unknown topic, and wait for it.
        try:
            self._known = topic in await self._describe({topic})
        except StartError as error:
            return SendFailure("UNREACHABLE", words(error), permanent=False)
        if self._known:
            return None
        return SendFailure("UNKNOWN_TOPIC_OR_PARTITION", f"no such topic: {topic}", permanent=True)

    async def _send_together(self, records: Sequence[Record], end: float) -> list[Acknowledged | Exception]:
        """Send records in order; return the outcome of each. After a failure the client is not used again."""
        outcomes = await self._send_all(records, end)
        if self._client is not None and any(isinstance(outcome, Exception) for outcome in outcomes.values()):
            client, self._client = self._client, None
            await aiokafka_client.abandon(client)
        return [outcomes[at] for at in range(len(records))]

    async def _send_all(self, records: Sequence[Record], end: float) -> dict[int, Acknowledged | Exception]:
        sent: dict[int, asyncio.Future[Any]] = {}
        outcomes: dict[int, Acknowledged | Exception] = {}
        for at, record in enumerate(records):
            try:
                async with asyncio.timeout(max(0.0, end - time.monotonic())):
                    sent[at] = await self._hand_over(record)
            except Exception as error:  # noqa: BLE001 - any failure of a record is an answer
                outcomes[at] = error
        if sent:
            await asyncio.wait(sent.values(), timeout=max(0.0, end - time.monotonic()))
        for at, future in sent.items():
            if not future.done():
                outcomes[at] = TimeoutError(f"not acknowledged in {SEND_TIMEOUT:g} s")
                future.add_done_callback(_look_at)
            elif (refusal := future.exception()) is not None:
                outcomes[at] = refusal if isinstance(refusal, Exception) else RuntimeError(repr(refusal))
            else:
                outcomes[at] = Acknowledged(future.result().partition, future.result().offset)
        return outcomes

    async def _send_alone(self, record: Record, end: float) -> Acknowledged | SendFailure:
        (outcome,) = await self._send_together([record], end)
        return outcome if isinstance(outcome, Acknowledged) else _failure(outcome, alone=True)

    async def _hand_over(self, record: Record) -> asyncio.Future[Any]:
        if self._client is None:
            self._client = await self._connect()
        client, headers = self._client, list(record.headers)
        if record.key is not None or record.value is not None:
            sending = client.send(
                record.topic, record.value, key=record.key, partition=record.partition, headers=headers
            )
            return await sending  # type: ignore[no-any-return]
        # aiokafka's `send` refuses a tombstone without a key; its batches accept it.
        batch = client.create_batch()
        batch.append(timestamp=None, key=None, value=None, headers=headers)
        partition = record.partition
        if partition is None:
            partition = min(await client.partitions_for(record.topic))
        return await client.send_batch(batch, record.topic, partition=partition)  # type: ignore[no-any-return]


def _look_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _failure(error: Exception, *, alone: bool = False) -> SendFailure:
    code = error.message if isinstance(error, errors.BrokerResponseError) else type(error).__name__
    if isinstance(error, errors.BrokerResponseError):
        # Sent alone and refused in a way that the client would not retry: the record itself is at
        # fault.
        unfit = not error.retriable and not isinstance(error, _OUT_OF_ORDER)
    else:
        # An error that is neither the client's own nor the network's comes from building the
        # record.
        unfit = not isinstance(error, errors.KafkaError | OSError | StartError)
    return SendFailure(code, words(error), permanent=isinstance(error, _FORBIDDEN) or (alone and unfit))
