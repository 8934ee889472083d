"""A batch handler: one call for a whole batch, here one INSERT. Blame one message with `Reject(..., of=...)`."""

import asyncio
from collections.abc import Sequence

from pydantic import BaseModel
from sqlalchemy import func, insert, select

from consumerkit import BatchContext, BatchHandler, Ordering, Received, Reject, Worker, header
from examples.stage import DATABASE, KAFKA, Payment, Send, play, progress


class Line(BaseModel):
    account_id: str
    amount: int


class Import(BatchHandler[Line]):
    name = "import-statement"
    topic = "statement.lines"
    message_id = header("message-id")
    ordering = Ordering.NONE

    async def handle_batch(self, events: Sequence[Received[Line]], context: BatchContext) -> None:
        for received in events:
            if received.event.amount == 0:
                raise Reject("a line without an amount", of=received)
        rows = [{"id": r.message_id, "account_id": r.event.account_id, "amount": r.event.amount} for r in events]
        await context.session.execute(insert(Payment), rows)


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[Import()], observers=[progress])

if __name__ == "__main__":
    sent = [
        Send("statement.lines", f"line-{n}", "alice", {"account_id": "alice", "amount": 0 if n == 77 else 1})
        for n in range(1000)
    ]
    dead = worker.tables.dead_letters.c
    asyncio.run(play(worker, sent, select(func.count(Payment.id)), select(dead.message_id, dead.reason, dead.error)))
    # 999
    # line-77  rejected  a line without an amount
