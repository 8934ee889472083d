"""What the examples share: a shop's tables, where the servers are, and a stage that sends messages and runs a worker.

Without further ado the examples use the broker in memory and a SQLite file. To see them on real servers:

    export KAFKA=localhost:9092
    export DATABASE=postgresql+psycopg://consumerkit:consumerkit@localhost:5432/consumerkit
"""

import asyncio
import atexit
import json
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from consumerkit import Kafka, Worker, events
from consumerkit.storage import outbox, schema
from consumerkit.transports.base import Record, Transport
from consumerkit.transports.memory import Memory, MemoryBroker

_DIRECTORY = tempfile.TemporaryDirectory(prefix="consumerkit-example-", ignore_cleanup_errors=True)
atexit.register(_DIRECTORY.cleanup)
DATABASE = os.environ.get("DATABASE", f"sqlite:///{_DIRECTORY.name}/shop.db")
KAFKA: Kafka | Transport = Kafka(os.environ["KAFKA"]) if "KAFKA" in os.environ else Memory(MemoryBroker())


class Base(DeclarativeBase): ...


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=0)


class Payment(Base):
    __tablename__ = "payments"
    id: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[str]
    amount: Mapped[int]


class Send(NamedTuple):
    """A message to send: its ID travels in the header `message-id`, its type in the header `type`."""

    topic: str
    id: str
    key: str
    value: object
    type: str = ""

    def record(self) -> Record:
        value = self.value if isinstance(self.value, bytes) else json.dumps(self.value).encode()
        headers = (("message-id", self.id.encode()), ("type", self.type.encode()))
        return Record(self.topic, self.key.encode(), value, headers)


class Progress:
    """An observer: counts messages that are done with."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.GroupCommitted):
            self.done += event.processed + event.duplicates + event.duplicates_of_dead + event.dead
        elif isinstance(event, events.MessagesSkipped):
            self.done += event.count


progress = Progress()


async def prepare(worker: Worker, accounts: Sequence[str] = ()) -> None:
    """Make topics and tables, as `consumerkit topics create` and `consumerkit db upgrade` do, and the shop's own."""
    declared = worker.declarations
    topics = {topic for one in declared for topic in one.topics}
    topics |= {topic for one in declared for topic in one.publishes or ()}
    topics |= {one.dead_letter.topic for one in declared if one.dead_letter is not None}
    there = await worker.transport.topics(topics)
    await worker.transport.create_topics(dict.fromkeys(topics - set(there), 4))

    def make(session: Session) -> None:
        schema.apply(session, worker.tables)
        Base.metadata.create_all(session.connection())
        for name in accounts:
            session.merge(Account(id=name, balance=0))

    await worker.database.run(make)


async def send(worker: Worker, messages: Sequence[Send]) -> None:
    """Send messages with the worker's own client."""
    producer = worker.transport.producer()
    await producer.start()
    try:
        for message in messages:
            assert (await producer.send([message.record()])) == [None], "the broker refused a message"
    finally:
        await producer.stop()


async def finished(worker: Worker, count: int, within: float = 60.0) -> None:
    """Wait until so many messages are done with and the outbox is empty."""
    until = time.monotonic() + within

    def waiting(session: Session) -> dict[str, int]:
        return outbox.count(session.connection(), worker.tables)

    while progress.done < count or bool(await worker.database.run(waiting)):
        assert time.monotonic() < until, f"{progress.done} of {count} messages done within {within:.0f} s"
        await asyncio.sleep(0.1)


async def show(worker: Worker, query: Select[*tuple[Any, ...]]) -> None:
    """Print what a query finds."""

    def rows(session: Session) -> list[str]:
        return ["  ".join(map(str, row)) for row in session.execute(query)]

    print(*await worker.database.run(rows), sep="\n")


async def play(
    worker: Worker, messages: Sequence[Send], *queries: Select[*tuple[Any, ...]], accounts: Sequence[str] = ()
) -> None:
    """Send messages, run the worker until it is done with them, and print what the queries find."""
    await prepare(worker, accounts)
    await send(worker, messages)
    async with worker:
        await finished(worker, len(messages))
        for query in queries:
            await show(worker, query)
