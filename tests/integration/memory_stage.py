"""Real workers on the broker in memory and a real database, for tests that control the broker."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy import BigInteger, Integer, LargeBinary, Text, func, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from consumerkit import Context, Handler, Message, Retry, fixed, header
from consumerkit.events import Event
from consumerkit.handlers.handler import AnyHandler
from consumerkit.message import TopicPartition
from consumerkit.storage import outbox
from consumerkit.storage.database import Database
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.memory import Memory, MemoryBroker
from consumerkit.worker import Worker
from tests.integration.stage import Run, Stage, pause

TOPIC: Final = "t"


class Base(DeclarativeBase):
    pass


class Line(Base):
    """The effect of a message."""

    __tablename__ = "lines"

    sequence: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    message_id: Mapped[str] = mapped_column(Text)
    key: Mapped[bytes | None] = mapped_column(LargeBinary)
    partition: Mapped[int] = mapped_column(Integer)
    offset: Mapped[int] = mapped_column(Integer)


def line(context: Context[Any]) -> Line:
    message = context.message
    return Line(message_id=context.message_id, key=message.key, partition=message.partition, offset=message.offset)


class Write(Handler[bytes]):
    """Adds a line for each message, after `before` has returned."""

    name = "write"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=3, wait=fixed(0))
    shares_transaction: bool | None = True  # what tests wait for has no effect

    def __init__(self, before: Callable[[Context], Awaitable[None]] | None = None, **declared: Any) -> None:
        self.before = before
        self.seen: list[str] = []
        vars(self).update(declared)

    async def handle(self, event: bytes, context: Context) -> None:
        self.seen.append(context.message_id)
        context.session.add(line(context))
        if self.before is not None:
            await self.before(context)


_COUNT = select(func.count()).select_from(Line)


class MemoryStage(Stage):
    """A broker in memory with one topic, and a database with all tables."""

    tables_of_handlers = Base.metadata

    def __init__(self, url: str, partitions: int = 4) -> None:
        self._url = url
        self.given: str | AsyncEngine | None = None
        self.broker = MemoryBroker(topics={TOPIC: partitions})
        self.database = Database(url)

    @property
    def url(self) -> str:
        return self._url

    @url.setter
    def url(self, url: str) -> None:
        self._url = url

    def append(
        self, number: int, *, key: bytes | None = b"k", value: bytes = b"v", partition: int | None = None
    ) -> Message:
        """Add a record whose ID is its number."""
        return self.broker.append(TOPIC, value, key=key, headers=(("id", b"%d" % number),), partition=partition)

    def make(self, *handlers: AnyHandler, **settings: Any) -> Worker:
        database = settings.pop("database", self.given or self.url)
        return Worker(database=database, kafka=Memory(self.broker), handlers=handlers, **settings)

    async def lines(self) -> list[Line]:
        """All lines, in the order in which they were written."""

        def work(session: Session) -> list[Line]:
            found = list(session.scalars(select(Line).order_by(Line.sequence)))
            session.expunge_all()
            return found

        return await self.database.run(work)

    async def until_written(
        self, run: Run, count: int, within: float = 120, never: type[Event] | None = None
    ) -> list[Line]:
        """Wait for so many lines; an event of the kind `never` is a failure."""
        begun = time.monotonic()
        while (found := await self.database.run(lambda session: session.scalars(_COUNT).one())) < count:
            if run.task.done():
                run.task.result()
            assert never is None or not run.seen(never), run.seen(never)
            assert time.monotonic() < begun + within, f"{found} lines of {count}; last events: {run.events[-5:]}"
            await pause(begun)
        return await self.lines()

    def committed(self, group: str = "write") -> dict[TopicPartition, int]:
        """What is committed, beyond the beginning where an assignment starts."""
        return {at: offset for at, offset in self.broker.committed(group).items() if offset}

    def ends(self) -> dict[TopicPartition, int]:
        """What is committed when all is finished."""
        logs = self.broker.logs.topics[TOPIC].partitions
        return {TopicPartition(TOPIC, n): log.end for n, log in enumerate(logs) if log.end}

    async def publish(self, *messages: OutboxMessage) -> None:
        await self.database.run(lambda session: outbox.append(session.connection(), DEFAULT_TABLES, messages))

    async def pending(self) -> list[OutboxMessage]:
        """The messages that wait in the outbox, in order."""
        found = await self.database.run(
            lambda session: outbox.page(session.connection(), DEFAULT_TABLES, 30_000, 1 << 30)
        )
        return [one.message for one in found]

    async def sequences(self) -> list[int]:
        """The numbers of what waits in the outbox, in order."""
        query = select(DEFAULT_TABLES.outbox_messages.c.sequence)
        return await self.database.run(lambda session: sorted(session.scalars(query)))

    async def close(self) -> None:
        await self.database.dispose()


@asynccontextmanager
async def opened(url: str, partitions: int = 4) -> AsyncIterator[MemoryStage]:
    """Yield a stage with all tables; close it at the end."""
    made = MemoryStage(url, partitions)
    await made.create_tables()
    try:
        yield made
    finally:
        await made.close()
