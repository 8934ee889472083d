"""What the hand-written loops share: a librdkafka consumer, and one connection's engine."""

from typing import Any

from confluent_kafka import Consumer, KafkaException, Message
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.competitors import Course
from benchmarks.shop import MESSAGE_ID_HEADER

POLL_SECONDS = 1.0


def consumer(course: Course) -> Consumer:
    """Join the group, nothing committed but by hand."""
    made = Consumer(
        {
            "bootstrap.servers": course.bootstrap,
            "group.id": course.group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "partition.assignment.strategy": "cooperative-sticky",
            "check.crcs": True,
        }
    )
    made.subscribe([course.topic])
    return made


def sessions(course: Course) -> async_sessionmaker[AsyncSession]:
    """Sessions on one connection."""
    return async_sessionmaker(create_async_engine(course.database, pool_size=1), expire_on_commit=False)


def checked(message: Message) -> Message:
    """Return a message that is none of the client's error events."""
    if (error := message.error()) is not None:
        raise KafkaException(error)
    return message


def message_id(message: Message) -> str:
    """Return the ID from the header."""
    headers: Any = message.headers()
    return str(next(value for name, value in headers if name == MESSAGE_ID_HEADER), "utf-8")


def value(message: Message) -> bytes:
    """Return the value's bytes."""
    found = message.value()
    assert isinstance(found, bytes)
    return found


def leave(consumer: Consumer) -> None:
    """Commit where the consumer stands, and leave the group."""
    positions = [position for position in consumer.position(consumer.assignment()) if position.offset >= 0]
    consumer.commit(offsets=positions, asynchronous=False)
    consumer.close()
