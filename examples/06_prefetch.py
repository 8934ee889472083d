"""Prefetch: load what a whole batch needs in one query; `session.get` in `handle` then finds it in the session."""

import asyncio
from collections.abc import Sequence

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from consumerkit import Context, Handler, Worker, header
from examples.stage import DATABASE, KAFKA, Account, Send, play, progress


class Transfer(BaseModel):
    source: str
    target: str
    amount: int


class Book(Handler[Transfer]):
    name = "book-transfers"
    topic = "transfers"
    message_id = header("message-id")

    async def prefetch(self, events: Sequence[Transfer], session: AsyncSession) -> None:
        wanted = {name for event in events for name in (event.source, event.target)}
        # Locked in the order of the key, so that two lanes never wait for each other in a circle.
        query = select(Account).where(Account.id.in_(wanted)).order_by(Account.id).with_for_update()
        (await session.scalars(query)).all()

    async def handle(self, event: Transfer, context: Context) -> None:
        source = await context.session.get_one(Account, event.source)
        target = await context.session.get_one(Account, event.target)
        source.balance -= event.amount
        target.balance += event.amount


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[Book()], observers=[progress])

if __name__ == "__main__":
    accounts = ["alice", "bob", "carol"]
    circle = [(n, accounts[n % 3], accounts[(n + 1) % 3]) for n in range(300)]
    sent = [
        Send("transfers", f"t-{n}", here, {"source": here, "target": there, "amount": 1}) for n, here, there in circle
    ]
    asyncio.run(play(worker, sent, select(Account.id, Account.balance).order_by(Account.id), accounts=accounts))
    # alice  0
    # bob  0
    # carol  0
