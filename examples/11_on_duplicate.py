"""A sender that asks twice gets two answers for one effect: `on_duplicate` announces the first result again."""

import asyncio

from pydantic import BaseModel
from sqlalchemy import func, select

from consumerkit import Context, Handler, Worker, header
from examples.stage import DATABASE, KAFKA, Payment, Send, finished, prepare, progress, send, show


class Captured(BaseModel):
    payment_id: str
    amount: int


class Receipt(BaseModel):
    payment_id: str
    number: int


class Settle(Handler[Captured]):
    name = "settle-and-answer"
    topic = "payments.to-settle"
    publishes = ("receipts",)
    message_id = header("message-id")

    async def handle(self, event: Captured, context: Context) -> Receipt:
        context.session.add(Payment(id=event.payment_id, account_id="settled", amount=event.amount))
        receipt = Receipt(payment_id=event.payment_id, number=event.amount * 1000)
        context.publish("receipts", key=event.payment_id, value=receipt)
        return receipt

    async def on_duplicate(self, event: Captured, result: dict[str, object], context: Context) -> None:
        # The same receipt under an ID of its own, so that no consumer takes it for the first one.
        context.publish("receipts", key=event.payment_id, value=result)


class Deliver(Handler[Receipt]):
    name = "deliver-receipts"
    topic = "receipts"
    message_id = header("message-id")

    async def handle(self, event: Receipt, context: Context) -> None:
        context.session.add(Payment(id=context.message_id, account_id="delivered", amount=event.number))


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[Settle(), Deliver()], observers=[progress])
PAYMENT = Send("payments.to-settle", "pay-1", "alice", {"payment_id": "pay-1", "amount": 7})
BOOKS = select(Payment.account_id, func.count(), func.max(Payment.amount)).group_by(Payment.account_id)


async def main() -> None:
    await prepare(worker)
    await send(worker, [PAYMENT, PAYMENT, PAYMENT])
    async with worker:
        await finished(worker, 6)  # three payments, three receipts
        await show(worker, BOOKS.order_by(Payment.account_id.desc()))


if __name__ == "__main__":
    asyncio.run(main())
    # settled  1  7
    # delivered  3  7000
