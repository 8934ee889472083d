"""A state machine whose events come in any order, and twice: a guarded transition tells what to do with each."""

import asyncio
from typing import Literal

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Mapped, mapped_column

from consumerkit import Context, Defer, Handler, Ordering, Transition, Worker, header, transition, upsert
from examples.stage import DATABASE, KAFKA, Base, Send, play, progress


class Order(Base):
    __tablename__ = "orders_by_event"
    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    times_paid: Mapped[int] = mapped_column(default=0)


class OrderEvent(BaseModel):
    order_id: str
    happened: Literal["placed", "paid", "shipped"]


# What each event leads to, and from where.
BEFORE = {"paid": {"placed"}, "shipped": {"paid"}}


class FollowOrder(Handler[OrderEvent]):
    name = "follow-order"
    topic = "orders.events"
    message_id = header("message-id")
    ordering = Ordering.NONE  # an event that comes too early must not hold back the one it waits for

    async def handle(self, event: OrderEvent, context: Context) -> str:
        session, happened = context.session, event.happened
        if happened == "placed":
            values = {"id": event.order_id, "status": "placed"}
            await upsert(session, Order, values, on=["id"], change=lambda _: {})  # placed again changes nothing
            return "placed"
        done = await transition(
            session,
            Order.status,
            before=BEFORE[happened],
            after=happened,
            where=Order.id == event.order_id,
            values={"times_paid": Order.times_paid + 1} if happened == "paid" else None,
        )
        if done is Transition.MISSING or (done is Transition.REFUSED and happened == "shipped"):
            raise Defer(0.1)  # the event before this one is still on its way
        return done  # applied; already; or refused, since the order was shipped before


worker = Worker(database=DATABASE, kafka=KAFKA, handlers=[FollowOrder()], observers=[progress])

if __name__ == "__main__":
    backwards = ["shipped", "paid", "placed", "paid"]  # the second "paid" has a message ID of its own
    sent = [
        Send("orders.events", f"{order}-{n}", order, {"order_id": order, "happened": happened})
        for order in ("o-1", "o-2")
        for n, happened in enumerate(backwards)
    ]
    asyncio.run(play(worker, sent, select(Order.id, Order.status, Order.times_paid).order_by(Order.id)))
    # o-1  shipped  1
    # o-2  shipped  1
