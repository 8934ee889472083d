"""A plain handler: `def` instead of `async def`, a `Session` instead of an `AsyncSession`. It runs in a thread."""

import asyncio
import threading

from pydantic import BaseModel
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from consumerkit import Context, Handler, Worker, event_field
from examples.stage import DATABASE, KAFKA, Account, Send, play, progress


class Deposit(BaseModel):
    deposit_id: str
    account_id: str
    amount: int


class Credit(Handler[Deposit]):
    name = "credit-deposits"
    topic = "deposits"
    message_id = event_field("deposit_id")

    def handle(self, event: Deposit, context: Context[Session]) -> None:
        assert threading.current_thread() is not threading.main_thread()
        # An UPDATE that computes in the database needs no lock beforehand.
        credit = update(Account).where(Account.id == event.account_id)
        context.session.execute(credit.values(balance=Account.balance + event.amount))


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[Credit()], observers=[progress])

if __name__ == "__main__":
    sent = [
        Send("deposits", "", "alice", {"deposit_id": f"d-{n % 5}", "account_id": "alice", "amount": 10})
        for n in range(10)
    ]
    asyncio.run(play(worker, sent, select(Account.id, Account.balance), accounts=["alice"]))
    # alice  50
