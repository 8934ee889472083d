"""librdkafka's producer behind `consumerkit.transports.base.Producer`."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consumerkit.errors import StartError
from consumerkit.transports.base import Acknowledged, Record, SendFailure, failure_in
from consumerkit.transports.confluent import client_log
from consumerkit.transports.confluent.admin import refused_settings
from consumerkit.transports.oauth import wait_for_token

log = logging.getLogger(__name__)

_DEFAULTS: dict[str, object] = {
    "delivery.timeout.ms": 30_000,
    # How long to wait for an unknown topic; librdkafka's own 30 s would end in a timeout that names
    # no cause.
    "topic.metadata.propagation.max.ms": 5_000,
    # The topic decides how large a record may be: what could be consumed must fit into a
    # dead-letter topic.
    "message.max.bytes": 100 * 1024 * 1024,
}
_FIXED: dict[str, object] = {"acks": "all", "enable.idempotence": True, "partitioner": "murmur2_random"}
_FULL_QUEUE_TIMEOUT = 30.0
_ANY = -1  # librdkafka's value for an unnamed partition or offset
_PERMANENT = frozenset(
    {
        "UNKNOWN_TOPIC_OR_PART",
        "_UNKNOWN_TOPIC",
        "_UNKNOWN_PARTITION",
        "TOPIC_AUTHORIZATION_FAILED",
        "CLUSTER_AUTHORIZATION_FAILED",
        "TOPIC_EXCEPTION",
        "MSG_SIZE_TOO_LARGE",
        "RECORD_LIST_TOO_LARGE",
        "INVALID_RECORD",
        "POLICY_VIOLATION",
        "_INVALID_ARG",
    }
)
_OF_A_BATCH = frozenset({"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_RECORD", "POLICY_VIOLATION"})


class _Answers:
    """The outcomes of the records of one `send`; the poll thread fills them in."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self._answers: dict[int, Acknowledged | SendFailure] = {}
        self.done: asyncio.Future[None] = loop.create_future()
        self._open = count
        self._loop = loop
        self._lock = threading.Lock()

    @property
    def answers(self) -> list[Acknowledged | SendFailure]:
        """All answers in the records' order, once all are there."""
        return [self._answers[at] for at in range(len(self._answers))]

    def put(self, at: int, answer: Acknowledged | SendFailure) -> None:
        """Store one record's answer; callable from any thread."""
        self._answers[at] = answer
        with self._lock:
            self._open -= 1
            last = self._open == 0
        if last and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class ConfluentProducer:
    """Sends records; a thread of its own collects the delivery reports."""

    def __init__(self, config: Mapping[str, object]) -> None:
        self._config: dict[str, Any] = {**_DEFAULTS, **config, **_FIXED, "logger": client_log.log}
        self._producer: Producer | None = None
        self._running = False
        self._broken = False
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            StartError: The client refused its settings, or there is no token to log in with.
        """
        self._producer = await asyncio.to_thread(self._connect)
        self._running = True
        self._thread = threading.Thread(target=self._poll, name="consumerkit-producer", daemon=True)
        self._thread.start()

    async def send(self, records: Sequence[Record]) -> list[SendFailure | None]:
        """Send all records; one answer per record, in order."""
        return [failure_in(answer) for answer in await self.place(records)]

    async def place(self, records: Sequence[Record]) -> list[Acknowledged | SendFailure]:
        """Send all records; return each one's place in the log, or why it has none."""
        if not records:
            return []
        if self._broken:
            # A fatal error of an idempotent producer cannot be repaired; the producer must be
            # replaced.
            await self._replace()
        answers = await self._send(records)
        if len(records) > 1:
            # A refused record, or too many together, means a refused batch: so the records are sent
            # one by one.
            for at, answer in enumerate(answers):
                if isinstance(answer, SendFailure) and answer.code in _OF_A_BATCH:
                    (answers[at],) = await self._send([records[at]])
        return answers

    async def _send(self, records: Sequence[Record]) -> list[Acknowledged | SendFailure]:
        answers = _Answers(len(records), asyncio.get_running_loop())
        for at, record in enumerate(records):
            await self._enqueue(record, answers, at)
        await answers.done
        return answers.answers

    async def stop(self) -> None:
        """Finish the sends that are running, and disconnect."""
        if self._producer is not None:
            await asyncio.to_thread(self._producer.flush, _FULL_QUEUE_TIMEOUT)
        self._running = False
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._producer = self._thread = None

    async def _enqueue(self, record: Record, answers: _Answers, at: int) -> None:
        end = time.monotonic() + _FULL_QUEUE_TIMEOUT
        assert self._producer is not None, "the producer has not been started"
        while True:
            try:
                _check(record)
                self._producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    partition=_ANY if record.partition is None else record.partition,
                    on_delivery=functools.partial(self._delivered, answers, at),
                    headers=list(record.headers),
                )
            except BufferError:
                if time.monotonic() < end:
                    await asyncio.sleep(0.01)
                    continue
                answers.put(at, SendFailure("_QUEUE_FULL", "the client's queue stayed full", permanent=False))
            except KafkaException as error:
                answers.put(at, self._failure(error.args[0]))
            except (TypeError, ValueError) as error:
                # The client can never write such a record; the error's words could quote it, so
                # they are left out.
                words = "the client cannot encode the record"
                answers.put(at, SendFailure(type(error).__name__, words, permanent=True))
            return

    async def _replace(self) -> None:
        new = await asyncio.to_thread(self._connect)
        old, self._producer, self._broken = self._producer, new, False
        if old is not None:
            await asyncio.to_thread(old.flush, 5.0)  # fails what it held, so that no caller waits

    def _connect(self) -> Producer:
        # In a thread: a client that logs in with tokens waits for its first one, a second or more.
        wait_for_token(self._config)
        try:
            return Producer(self._config)
        except (KafkaException, TypeError, ValueError) as error:
            raise StartError(refused_settings(error)) from None

    def _delivered(self, answers: _Answers, at: int, error: KafkaError | None, message: Message) -> None:
        # An exception here would surface from poll() and hide the reports behind it.
        try:
            answers.put(at, _acknowledged(message) if error is None else self._failure(error))
        except Exception:
            log.exception("a delivery report was lost")

    def _failure(self, error: KafkaError) -> SendFailure:
        if error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001 - librdkafka's own codes are spelled so
            self._broken = True
        return SendFailure(error.name(), error.str(), error.name() in _PERMANENT)

    def _poll(self) -> None:
        while self._running:
            producer = self._producer
            if producer is None:
                return
            try:
                producer.poll(0.1)
            except Exception:
                log.exception("the Kafka producer's poll failed")
                time.sleep(0.1)


def _acknowledged(message: Message) -> Acknowledged:
    partition, offset = message.partition(), message.offset()
    return Acknowledged(_ANY if partition is None else partition, _ANY if offset is None else offset)


def _check(record: Record) -> None:
    """Raise for text that is not Unicode, such as a lone surrogate: in the client it would crash the process."""
    record.topic.encode()
    for name, _ in record.headers:
        name.encode()
