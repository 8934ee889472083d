"""A coroutine handler: each payment is credited once, however often it is sent.

The same on your servers, with two processes: `consumerkit run examples.01_credit_account:worker --workers 2`, after
`consumerkit db upgrade` and `consumerkit topics create --partitions 4` with the same target.
"""

# mypy: disable-error-code="mutable-override"

import asyncio

from pydantic import BaseModel
from sqlalchemy import select

from consumerkit import Context, DeadLetter, Handler, Reject, Worker, header
from examples.stage import DATABASE, KAFKA, Account, Payment, Send, play, progress


class PaymentCaptured(BaseModel):
    payment_id: str
    account_id: str
    amount: int


class CreditAccount(Handler[PaymentCaptured]):
    name = "credit-account"
    topic = "payments.captured"
    message_id = header("message-id")
    dead_letter = DeadLetter("payments.captured.dlq")

    async def handle(self, event: PaymentCaptured, context: Context) -> None:
        # The lock keeps two payments on one account from overwriting each other; see docs/concepts.md.
        account = await context.session.get(Account, event.account_id, with_for_update=True)
        if account is None:
            raise Reject(f"there is no account {event.account_id}")
        account.balance += event.amount
        context.session.add(Payment(id=event.payment_id, account_id=account.id, amount=event.amount))


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[CreditAccount()], observers=[progress])


def captured(payment_id: str, account_id: str, amount: int) -> Send:
    value = {"payment_id": payment_id, "account_id": account_id, "amount": amount}
    return Send("payments.captured", payment_id, account_id, value)


if __name__ == "__main__":
    sent = [
        captured("pay-1", "alice", 5),
        captured("pay-2", "bob", 7),
        captured("pay-1", "alice", 5),  # the producer sends it again
        captured("pay-3", "alice", 20),
        captured("pay-4", "nobody", 1),
    ]
    asyncio.run(
        play(
            worker,
            sent,
            select(Account.id, Account.balance).order_by(Account.id),
            select(worker.tables.dead_letters.c.message_id, worker.tables.dead_letters.c.reason),
            accounts=["alice", "bob"],
        )
    )
    # alice  25
    # bob  7
    # pay-4  rejected
