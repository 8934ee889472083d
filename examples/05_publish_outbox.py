"""The outbox: a change and its message in one transaction, from a web request and from a handler."""

import asyncio

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from consumerkit import Context, Handler, Worker, header, outbox
from examples.stage import DATABASE, KAFKA, Account, Payment, finished, prepare, progress, show


class OrderPlaced(BaseModel):
    order_id: str
    account_id: str
    amount: int


class Invoice(BaseModel):
    order_id: str
    amount: int


async def place_order(session: AsyncSession, order: OrderPlaced) -> str:
    """What a web service does for a request: its own change, and the message about it."""
    async with session.begin():
        session.add(Payment(id=order.order_id, account_id=order.account_id, amount=order.amount))
        # An ID derived from the request: the same request twice is the same message twice.
        return await outbox.publish(session, "orders.placed", key=order.account_id, value=order, id=order.order_id)


class Bill(Handler[OrderPlaced]):
    name = "bill-orders"
    topic = "orders.placed"
    publishes = ("invoices",)
    message_id = header("message-id")

    async def handle(self, event: OrderPlaced, context: Context) -> None:
        # Sent once this transaction has committed, with a message ID derived from the order's.
        context.publish("invoices", key=event.account_id, value=Invoice(order_id=event.order_id, amount=event.amount))


class Collect(Handler[Invoice]):
    name = "collect-invoices"
    topic = "invoices"
    message_id = header("message-id")

    async def handle(self, event: Invoice, context: Context) -> None:
        context.session.add(Account(id=f"claim of {event.order_id}", balance=-event.amount))


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[Bill(), Collect()], observers=[progress])


async def main() -> None:
    await prepare(worker)
    sessions = worker.database.async_sessions
    assert sessions is not None
    async with worker:
        async with sessions() as session:
            await place_order(session, OrderPlaced(order_id="o-17", account_id="alice", amount=40))
        await finished(worker, 2)
        await show(worker, select(Account.id, Account.balance))


if __name__ == "__main__":
    asyncio.run(main())
    # claim of o-17  -40
