"""Several event types on one topic: a header names the type, and messages of other types are skipped."""

# mypy: disable-error-code="mutable-override"

import asyncio

from pydantic import BaseModel
from sqlalchemy import select, update

from consumerkit import Context, Events, Handler, Worker, header
from examples.stage import DATABASE, KAFKA, Account, Send, play, progress


class Paid(BaseModel):
    account_id: str
    amount: int


class Refunded(BaseModel):
    account_id: str
    amount: int
    why: str


class Book(Handler[Paid | Refunded]):
    name = "book-orders"
    topic = "orders"
    message_id = header("message-id")
    events = Events(by=header("type"), types={"order.paid": Paid, "order.refunded": Refunded}, unknown="skip")

    async def handle(self, event: Paid | Refunded, context: Context) -> None:
        change = event.amount if isinstance(event, Paid) else -event.amount
        book = update(Account).where(Account.id == event.account_id)
        await context.session.execute(book.values(balance=Account.balance + change))


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[Book()], observers=[progress])

if __name__ == "__main__":
    sent = [
        Send("orders", "o-1", "alice", {"account_id": "alice", "amount": 30}, "order.paid"),
        Send("orders", "o-2", "alice", {"account_id": "alice", "amount": 12, "why": "broken"}, "order.refunded"),
        Send("orders", "o-3", "alice", {"carrier": "a type this handler does not declare"}, "order.shipped"),
    ]
    asyncio.run(play(worker, sent, select(Account.id, Account.balance), accounts=["alice"]))
    # alice  18
