"""A charge outside the database is made once, although `handle` fails at first and is run again."""

import asyncio

from pydantic import BaseModel
from sqlalchemy import select

from consumerkit import Context, Effects, Handler, IdempotencyKey, Retry, Worker, fixed, header, step
from examples.stage import DATABASE, KAFKA, Payment, Send, finished, prepare, progress, send, show


class Ordered(BaseModel):
    order_id: str
    amount: int


class Charge(BaseModel):
    number: str


class Provider:
    """Stands for a payment provider; it charges as often as it is asked to."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def charge(self, key: str, amount: int) -> Charge:
        self.calls.append(key)
        return Charge(number=f"charge {len(self.calls)}")


class ChargeOrder(Handler[Ordered]):
    name = "charge-order"
    topic = "orders.to-charge"
    message_id = header("message-id")
    retry = Retry(attempts=5, wait=fixed(0.01))

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.handled = 0

    @step
    async def charge(self, key: IdempotencyKey, order: Ordered) -> Charge:
        return await self.provider.charge(key, order.amount)

    async def prepare(self, event: Ordered, effects: Effects) -> None:
        await effects.run(self.charge, event)

    async def handle(self, event: Ordered, context: Context) -> None:
        charge = context.done(self.charge)
        context.session.add(Payment(id=event.order_id, account_id=charge.number, amount=event.amount))
        self.handled += 1
        if self.handled < 3:
            raise ConnectionError("something is down")


provider = Provider()
worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[ChargeOrder(provider)], observers=[progress])
ORDER = Send("orders.to-charge", "o-1", "alice", {"order_id": "o-1", "amount": 7})


async def main() -> None:
    await prepare(worker)
    await send(worker, [ORDER, ORDER])
    async with worker:
        await finished(worker, 2)
        await show(worker, select(Payment.id, Payment.account_id, Payment.amount))
    print("calls", len(provider.calls))


if __name__ == "__main__":
    asyncio.run(main())
    # o-1  charge 1  7
    # calls 1
