"""Was it done? A web service answers from the ledger: processed with which result, dead and why, or unknown."""

import asyncio

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from consumerkit import Context, Handler, MessageState, Reject, Worker, header, message_status
from examples.stage import DATABASE, KAFKA, Payment, Send, finished, prepare, progress, send


class Captured(BaseModel):
    payment_id: str
    amount: int


class Receipt(BaseModel):
    number: int


class Settle(Handler[Captured]):
    name = "settle-payments"
    topic = "payments.captured"
    message_id = header("message-id")

    async def handle(self, event: Captured, context: Context) -> Receipt:
        if event.amount < 0:
            raise Reject("a negative amount")
        context.session.add(Payment(id=event.payment_id, account_id="alice", amount=event.amount))
        return Receipt(number=event.amount * 1000)


async def answer(session: AsyncSession, payment_id: str) -> str:
    """What `GET /payments/{payment_id}` says."""
    status = await message_status(session, Settle, payment_id)
    if status.state is MessageState.PROCESSED:
        return f"{payment_id}: settled, receipt {Receipt(**status.result).number}"
    if status.state is MessageState.DEAD:
        return f"{payment_id}: refused ({status.reason}), see dead letter {status.letter}"
    return f"{payment_id}: {status.state}"


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[Settle()], observers=[progress])
MESSAGES = [
    Send("payments.captured", "pay-1", "alice", {"payment_id": "pay-1", "amount": 7}),
    Send("payments.captured", "pay-2", "alice", {"payment_id": "pay-2", "amount": -7}),
]


async def ask() -> None:
    sessions = worker.database.async_sessions
    assert sessions is not None
    async with sessions() as session:
        for name in ("pay-1", "pay-2", "pay-3"):
            print(await answer(session, name))


async def main() -> None:
    await prepare(worker)
    await ask()
    await send(worker, MESSAGES)
    async with worker:
        await finished(worker, len(MESSAGES))
        await ask()


if __name__ == "__main__":
    asyncio.run(main())
    # pay-1: unknown
    # pay-2: unknown
    # pay-3: unknown
    # pay-1: settled, receipt 7000
    # pay-2: refused (rejected), see dead letter 1
    # pay-3: unknown
