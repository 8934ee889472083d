"""What must not type-check: each error is expected where it stands, and mypy reports one that no longer comes."""

# mypy: disable-error-code="mutable-override"

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from consumerkit import (
    BatchContext,
    BatchHandler,
    Context,
    DeadLetter,
    Events,
    Handler,
    Ordering,
    Received,
    Retry,
    exponential,
    fixed,
    header,
    message_status,
    outbox,
    transition,
    upsert,
)
from tests.typing.accepted import Account, Captured, Refunded


class WrongEvent(Handler[Captured]):
    async def handle(self, event: Refunded, context: Context) -> None: ...  # type: ignore[override]


class NarrowEvent(Handler[Captured | None]):
    async def handle(self, event: Captured, context: Context) -> None: ...  # type: ignore[override]


class WrongContext(Handler[Captured]):
    async def handle(self, event: Captured, context: BatchContext) -> None: ...  # type: ignore[override]


class Reversed(Handler[Captured]):
    async def handle(self, context: Context, event: Captured) -> None: ...  # type: ignore[override]


class TooFew(Handler[Captured]):
    async def handle(self, event: Captured) -> None: ...  # type: ignore[override]


class TooMany(Handler[Captured]):
    async def handle(self, event: Captured, context: Context, session: AsyncSession) -> None: ...  # type: ignore[override]


class ToldOfAnotherEvent(Handler[Captured]):
    async def on_duplicate(self, event: Refunded, result: object, context: Context) -> None: ...  # type: ignore[override]


class ToldWithoutResult(Handler[Captured]):
    async def on_duplicate(self, event: Captured, context: Context) -> None: ...  # type: ignore[override]


class ToldInABatch(Handler[Captured]):
    async def on_duplicate(self, event: Captured, result: object, context: BatchContext) -> None: ...  # type: ignore[override]


class BareEvents(BatchHandler[Captured]):
    async def handle_batch(self, events: Sequence[Captured], context: BatchContext) -> None: ...  # type: ignore[override]


class BatchOfOne(BatchHandler[Captured]):
    async def handle_batch(self, events: Received[Captured], context: BatchContext) -> None: ...  # type: ignore[override]


class NoEventType(Handler):  # type: ignore[type-arg]
    async def handle(self, event: Captured, context: Context) -> None: ...


class WrongValues(Handler[Captured]):
    name = 3  # type: ignore[assignment]
    topic = ("a", "b")  # type: ignore[assignment]
    topics = 3  # type: ignore[assignment]
    group = None  # type: ignore[assignment]
    message_id = "payment_id"  # type: ignore[assignment]
    ordering = "key"  # type: ignore[assignment]
    retry = 3  # type: ignore[assignment]
    dead_letter = "payments.dlq"  # type: ignore[assignment]
    scope = "topics"  # type: ignore[assignment]
    codec = "json"  # type: ignore[assignment]
    events = (Captured,)  # type: ignore[assignment]
    fingerprint = ("payment_id", "amount")  # type: ignore[assignment]
    size_limit = "1 MB"  # type: ignore[assignment]
    batch_size = 1.5  # type: ignore[assignment]
    batch_time = "fast"  # type: ignore[assignment]
    concurrency = None  # type: ignore[assignment]
    start_from = "beginning"  # type: ignore[assignment]


class WrongValuesInInit(Handler[Captured]):
    def __init__(self) -> None:
        self.message_id = "payment_id"  # type: ignore[assignment]
        self.ordering = "key"  # type: ignore[assignment]


class AsyncForgets(Handler[Captured]):
    """A forgotten `await` is seen, whether the result is used or not."""

    async def handle(self, event: Captured, context: Context) -> None:
        context.session.flush()  # type: ignore[unused-coroutine]
        account = context.session.get_one(Account, event.account_id)
        account.balance += event.amount  # type: ignore[attr-defined]
        if context.session.get(Account, event.account_id):  # type: ignore[truthy-bool]
            await context.session.flush()
        await context.publish("receipts")  # type: ignore[func-returns-value,misc]
        context.session.query(Account)  # type: ignore[attr-defined]


class PlainAwaits(Handler[Captured]):
    async def handle(self, event: Captured, context: Context[Session]) -> None:
        await context.session.get_one(Account, event.account_id)  # type: ignore[misc]
        await context.session.flush()  # type: ignore[func-returns-value,misc]


class OtherEvent(Handler[Captured]):
    async def handle(self, event: Captured, context: Context) -> None:
        event.amuont  # type: ignore[attr-defined]  # noqa: B018
        context.message.value = "text"  # type: ignore[assignment]
        context.publish(b"receipts", value=event)  # type: ignore[arg-type]
        context.publish("receipts", event)  # type: ignore[call-arg,arg-type]
        context.commit()  # type: ignore[attr-defined]


def calls(one: Handler[Captured]) -> None:
    header(3)  # type: ignore[arg-type]
    header("a") | "b"  # type: ignore[operator]
    Retry(3)  # type: ignore[call-arg]
    Retry(attempts="3")  # type: ignore[arg-type]
    Retry(attempts=3, wait=5)  # type: ignore[arg-type]
    Retry(attempts=3, on=TimeoutError)  # type: ignore[arg-type]
    exponential(1)  # type: ignore[call-arg]
    exponential(1, 300)  # type: ignore[call-arg]
    fixed("5")  # type: ignore[arg-type]
    DeadLetter()  # type: ignore[call-arg]
    Events(by="type", types={})  # type: ignore[arg-type]
    Events(by=header("type"), types={}, unknown="ignore")  # type: ignore[arg-type]
    Ordering("key").value = "none"  # type: ignore[misc]
    DeadLetter("a").topic = "b"  # type: ignore[misc]
    many: list[Handler[Refunded]] = [one]  # type: ignore[list-item]
    del many


async def forgotten_awaits(session: AsyncSession) -> None:
    outbox.publish(session, "receipts", key="k")  # type: ignore[unused-coroutine]
    message_status(session, "credit", "pay-1")  # type: ignore[unused-coroutine]
    upsert(session, Account, {"id": "a"}, on=["id"])  # type: ignore[unused-coroutine]
    where = Account.id == "a"
    transition(session, Account.balance, before={1}, after=2, where=where)  # type: ignore[unused-coroutine]
