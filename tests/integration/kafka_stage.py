"""A topic on a real Kafka, a database on a real PostgreSQL, and workers in this process."""

import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from confluent_kafka import Consumer, Producer, TopicPartition

from consumerkit import Context
from consumerkit.handlers.handler import AnyHandler
from consumerkit.transports.kafka import Client, Kafka, Option
from consumerkit.worker import Worker
from tests.crash.model import Base, Effect, Payment
from tests.integration.inspector import Inspector
from tests.integration.postgres_stage import PostgresStage
from tests.services import KafkaServer, PostgresServer

OPTIONS: dict[str, dict[str, Option]] = {
    "confluent": {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500},
    "aiokafka": {"session_timeout_ms": 6000, "heartbeat_interval_ms": 500},
}
LARGEST_RECORD = 30_000_000


@functools.lru_cache(maxsize=4)
def _producer(bootstrap: str) -> Producer:
    """Return the producer of all stages on one broker: a new one waits half a second for its number."""
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "message.max.bytes": LARGEST_RECORD,
            "linger.ms": 20,
            # So that a slow acknowledgement leaves no second copy, and the offsets are those a test counts on.
            "enable.idempotence": True,
            "log_level": 0,  # it outlives a test's own broker
        }
    )


class Given(NamedTuple):
    """One record to send; without an ID there is no header for it."""

    value: bytes | None
    id: bytes | None = None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    partition: int = 0

    @property
    def all_headers(self) -> list[tuple[str, bytes | None]]:
        return [*self.headers, *([("message-id", self.id)] if self.id is not None else [])]


class Found(NamedTuple):
    """One record read."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        last = _bytes(values[-1]) if values else None
        return None if last is None else last.decode()


def payment(number: int | str, *, kind: str = "ok", account: str = "a-1", amount: int = 1, partition: int = 0) -> Given:
    """A payment as the tests of failures send it; its ID is `p-<number>`."""
    value = json.dumps({"account": account, "amount": amount, "kind": kind}).encode()
    return Given(value, f"p-{number}".encode(), account.encode(), partition=partition)


def effect(event: Payment, context: Context[Any]) -> Effect:
    """The row that a handler adds for a payment."""
    message = context.message
    return Effect(
        message_id=context.message_id,
        partition=message.partition,
        offset=message.offset,
        account=event.account,
        amount=event.amount,
        pid=os.getpid(),
    )


@dataclass
class KafkaStage(PostgresStage):
    """A topic of its own and a database of its own."""

    tables_of_handlers = Base.metadata

    kafka: KafkaServer
    postgres: PostgresServer
    database: str
    topic: str
    partitions: int = 2

    def __post_init__(self) -> None:
        sizes = {"max.message.bytes": str(LARGEST_RECORD)}
        self.kafka.create_topic(self.topic, self.partitions, sizes)
        self.kafka.create_topic(self.dead_letter_topic, self.partitions, sizes)

    @property
    def dead_letter_topic(self) -> str:
        return f"{self.topic}.dlq"

    def _made_inspector(self) -> Inspector:
        return Inspector(self.postgres.dsn(self.database), self.kafka.bootstrap)

    def _observed(self) -> AbstractContextManager[object]:
        # Conditions are asked many times, and the offsets over a connection that takes long to make.
        return self._inspected(kept=True)

    def send(self, records: Sequence[Given], topic: str | None = None) -> None:
        """Send records, in order, each acknowledged."""
        refused: list[str] = []
        topic = topic or self.topic
        producer = _producer(self.kafka.bootstrap)
        # The topic may have been created again or have more partitions; a broker knows that a moment later.
        most = max((record.partition for record in records), default=0)
        until = time.monotonic() + 120
        while most not in producer.list_topics(topic, timeout=120).topics[topic].partitions:
            assert time.monotonic() < until, f"{topic} has no partition {most}"
            time.sleep(0.05)
        for record in records:
            producer.produce(
                topic,
                record.value,
                key=record.key,
                partition=record.partition,
                headers=cast(Any, record.all_headers),  # narrower than its stubs' invariant list
                on_delivery=lambda error, _: refused.append(str(error)) if error else None,
            )
        assert producer.flush(30) == 0
        assert not refused

    def make(self, *handlers: AnyHandler, transport: Client = "confluent", **settings: Any) -> Worker:
        """Build a worker on this stage; `database=` and `bootstrap=` put something between, `kafka=` is another way."""
        bootstrap = settings.pop("bootstrap", self.kafka.bootstrap)
        kafka = settings.pop("kafka", None) or Kafka(bootstrap, transport=transport, options=OPTIONS[transport])
        return Worker(database=settings.pop("database", self.url), kafka=kafka, handlers=handlers, **settings)

    def effects(self) -> list[dict[str, Any]]:
        """All effects, in the order in which they were inserted."""
        return self.rows("SELECT * FROM effects ORDER BY sequence")

    def count_effects(self) -> int:
        return int(self.rows("SELECT count(*) AS n FROM effects")[0]["n"])

    def dead(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM consumerkit_dead_letters ORDER BY id")

    def ledger(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM consumerkit_processed_messages")

    def outbox(self) -> int:
        return int(self.rows("SELECT count(*) AS n FROM consumerkit_outbox_messages")[0]["n"])

    def finished(self, effects: int, dead: int = 0) -> Callable[[], bool]:
        """The condition that so many effects and dead letters are there and the outbox is empty."""
        return lambda: self.count_effects() >= effects and len(self.dead()) >= dead and self.outbox() == 0

    def committed(self, group: str) -> dict[int, int]:
        """The group's committed offsets by partition."""
        with self._inspected() as inspector:
            return inspector.committed(group, self.topic, self.partitions)

    def read(self, topic: str, partitions: int | None = None) -> list[Found]:
        """All records of a topic."""
        consumer = Consumer(
            {"bootstrap.servers": self.kafka.bootstrap, "group.id": "unused", "fetch.message.max.bytes": LARGEST_RECORD}
        )
        numbers = range(partitions or self.partitions)
        try:
            ends = [consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=120)[1] for n in numbers]
            consumer.assign([TopicPartition(topic, n, 0) for n in numbers])
            found: list[Found] = []
            while len(found) < sum(ends):
                message = consumer.poll(60)
                assert message is not None, f"{topic} could not be read to its end"
                key, value = message.key(), message.value()
                found.append(Found(_bytes(key), _bytes(value), _headers(message.headers())))
            return found
        finally:
            consumer.close()

    def check_ledger(self) -> None:
        """No effect without a claim, no claim without an effect, both counted as multisets."""
        processed = sorted(row["message_id"] for row in self.ledger() if row["outcome"] == 1)
        assert sorted(row["message_id"] for row in self.effects()) == processed
        dead = sorted(row["message_id"] for row in self.ledger() if row["outcome"] == 3)
        kept = ("rejected", "exhausted")
        assert sorted(row["message_id"] for row in self.dead() if row["reason"] in kept) == dead


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _headers(found: Any) -> list[tuple[str, bytes | None]]:
    return [(name, _bytes(value)) for name, value in found or ()]
