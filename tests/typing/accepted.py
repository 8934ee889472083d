"""What type-checks under mypy strict, without a cast: each class is one way to write a handler."""

# Not part of strict, and it forbids every `dead_letter = DeadLetter(...)` over a `DeadLetter | None`.
# mypy: disable-error-code="mutable-override"

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, assert_type

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from typing_extensions import TypedDict

from consumerkit import (
    BatchContext,
    BatchHandler,
    Context,
    DeadLetter,
    Events,
    Handler,
    Identity,
    Json,
    Message,
    Ordering,
    Received,
    Reject,
    Retry,
    coordinates,
    event_field,
    event_fields,
    exponential,
    fixed,
    header,
)


class Base(DeclarativeBase): ...


class Account(Base):
    __tablename__ = "account"
    id: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


class Captured(BaseModel):
    payment_id: str
    account_id: str
    amount: int


@dataclass
class Refunded:
    payment_id: str
    account_id: str
    amount: int


class Note(TypedDict):
    text: str


class Async(Handler[Captured]):
    """`Context` alone holds an `AsyncSession`."""

    name = "async"
    topic = "payments"
    message_id = header("message-id") | event_field("payment_id")
    ordering = Ordering.PARTITION
    retry = Retry(attempts=6, wait=exponential(1, max=300), on=(TimeoutError,))
    dead_letter = DeadLetter("payments.dlq")
    fingerprint = event_fields("payment_id", "amount")
    codec = Json()
    size_limit = 1_000_000
    batch_size = 100
    batch_time = 0.25
    concurrency = 4
    scope = "topic"
    start_from = "latest"

    async def handle(self, event: Captured, context: Context) -> Captured:
        assert_type(context, Context[AsyncSession])
        assert_type(context.session, AsyncSession)
        assert_type(context.message, Message)
        assert_type(context.attempt, int)
        account = await context.session.get_one(Account, event.account_id, with_for_update=True)
        account.balance += event.amount
        context.publish("receipts", key=event.payment_id, value=event, headers={"kind": "receipt"})
        return event

    async def prefetch(self, events: Sequence[Captured], session: AsyncSession) -> None:
        await session.scalars(select(Account).where(Account.id.in_([e.account_id for e in events])))

    async def session_setup(self, event: Captured, session: AsyncSession) -> None: ...

    async def on_duplicate(self, event: Captured, result: dict[str, int] | None, context: Context) -> None:
        assert_type(context.session, AsyncSession)
        context.publish("receipts", key=event.payment_id, value=result)


class Plain(Handler[Refunded | None]):
    """A plain function with a `Session`, and an event type that admits tombstones."""

    name = "plain"
    topics = ("refunds", "refunds.old")
    message_id = coordinates()

    def handle(self, event: Refunded | None, context: Context[Session]) -> None:
        assert_type(context.session, Session)
        if event is None:
            raise Reject("a tombstone")
        account = context.session.get_one(Account, event.account_id)
        account.balance -= event.amount

    def on_duplicate(self, event: Refunded | None, result: object, context: Context[Session]) -> None:
        assert_type(context.session, Session)


class Explicit(Handler[Note]):
    """The session named."""

    name = "explicit"
    topics = ("notes", "notes.old")
    message_id = header("ce_source", "ce_id")

    async def handle(self, event: Note, context: Context[AsyncSession]) -> str:
        return event["text"]


class Undecoded(Handler[bytes]):
    name = "undecoded"
    topic = "notes"
    message_id = header("id")

    async def handle(self, event: bytes, context: Context) -> None: ...


class Several(Handler[Captured | Refunded]):
    name = "several"
    topic = "payments"
    message_id = header("id")
    events = Events(by=header("type"), types={"captured": Captured, "refunded": Refunded}, unknown="dead-letter")

    async def handle(self, event: Captured | Refunded, context: Context) -> None: ...


class Batch(BatchHandler[Captured]):
    name = "batch"
    topic = "payments"
    message_id = header("id")

    async def handle_batch(self, events: Sequence[Received[Captured]], context: BatchContext) -> None:
        assert_type(context.session, AsyncSession)
        assert_type(events[0].event, Captured)
        if events[0].event.amount < 0:
            raise Reject("a negative amount", of=events[0])


class PlainBatch(BatchHandler[Captured]):
    name = "plain-batch"
    topic = "payments"
    message_id = header("id")

    def handle_batch(self, events: Sequence[Received[Captured]], context: BatchContext[Session]) -> int:
        assert_type(context.session, Session)
        return len(events)


E = TypeVar("E")


class House(Handler[E], Generic[E]):
    """A user's generic base class with the house's choices."""

    message_id = header("message-id")
    ordering = Ordering.KEY
    retry = Retry(deadline=60, wait=fixed(5))
    scope: Literal["consumer", "topic"] = "topic"
    dead_letter: DeadLetter | None = DeadLetter("house.dlq")


class Overrides(House[Captured]):
    """Each of the base's choices can be overridden, and the event type goes through it."""

    name = "overrides"
    topic = "payments"
    message_id = event_field("payment_id")
    ordering = Ordering.NONE
    retry = Retry(attempts=1)
    dead_letter = DeadLetter("payments.dlq")
    scope = "consumer"

    async def handle(self, event: Captured, context: Context) -> None: ...


class WithoutDeadLetter(House[Captured]):
    name = "without-dead-letter"
    topic = "payments"
    dead_letter = None

    async def handle(self, event: Captured, context: Context) -> None: ...


class SetInInit(Handler[Captured]):
    """Declarations set on the object."""

    def __init__(self, tenant: str, message_id: Identity = header("id")) -> None:  # noqa: B008 - a frozen value
        self.name = f"credit-{tenant}"
        self.topics = [f"{tenant}.payments"]
        self.message_id = message_id
        self.ordering = Ordering.NONE
        self.dead_letter = DeadLetter(f"{tenant}.dlq")
        self.events = None
        self.size_limit = 10
        self.start_from = "latest"

    async def handle(self, event: Captured, context: Context) -> None: ...


handlers: list[Handler[Any] | BatchHandler[Any]] = [Async(), Plain(), Batch(), Overrides(), SetInInit("one")]
