"""What becomes of an order: stock, payment, mail and points, each a handler with a ledger of its own."""

import smtplib
from typing import Any, cast

import httpx
from sqlalchemy import CursorResult, update
from sqlalchemy.orm import Session

from consumerkit import (
    AlreadyDone,
    Context,
    Effects,
    Handler,
    IdempotencyKey,
    PlainEffects,
    Reject,
    Retry,
    Transition,
    exponential,
    header,
    step,
    transition,
    upsert,
)
from examples.shop.services import Charge, MailService, PaymentProvider
from examples.shop.tables import Item, Order, Placed, Points

# A provider that is down for long: it is asked for a day before an order is given up.
FOR_A_DAY = Retry(deadline=86_400, wait=exponential(0.2, max=10), on=(httpx.HTTPError, smtplib.SMTPException, OSError))


class ReserveStock(Handler[Placed]):
    """Takes an order's goods from the stock, or refuses the order."""

    name = "shop-stock"
    topic = "shop.placed"
    publishes = ("shop.reserved",)
    message_id = header("message-id")

    async def handle(self, event: Placed, context: Context) -> str:
        session, this = context.session, Order.id == event.order_id
        if not await moved(context, event, "placed", "reserved"):
            return "cancelled"  # the customer was faster
        enough = (Item.name == event.item) & (Item.left >= event.quantity)
        taken = await session.execute(update(Item).where(enough).values(left=Item.left - event.quantity))
        if cast(CursorResult[Any], taken).rowcount == 0:
            await transition(session, Order.status, before={"reserved"}, after="refused", where=this)
            return "sold out"
        context.publish("shop.reserved", key=event.item, value=event, id=event.order_id)
        return "reserved"


class TakePayment(Handler[Placed]):
    """Charges the customer, and gives the money back where the order was cancelled before that."""

    name = "shop-payment"
    topic = "shop.reserved"
    publishes = ("shop.paid",)
    message_id = header("message-id")
    retry = FOR_A_DAY

    def __init__(self, provider: PaymentProvider) -> None:
        self.provider = provider

    @step(deadline=10)
    async def charge(self, key: IdempotencyKey, order: Placed) -> Charge:
        return await self.provider.charge(key, order.order_id, order.cents)

    @charge.confirm
    async def find(self, key: IdempotencyKey, order: Placed) -> AlreadyDone | None:
        found = await self.provider.find(key)
        return None if found is None else AlreadyDone(found)

    @charge.undo(retry=FOR_A_DAY)
    async def refund(self, key: IdempotencyKey, done: Charge, order: Placed) -> None:
        await self.provider.refund(key, done)

    async def prepare(self, event: Placed, effects: Effects) -> None:
        await effects.run(self.charge, event)

    async def handle(self, event: Placed, context: Context) -> str:
        if not await moved(context, event, "reserved", "paid"):
            raise Reject("the order was cancelled while it was being paid")  # which has the charge refunded
        context.publish("shop.paid", key=event.customer, value=event, id=event.order_id)
        return "paid"


class SendMail(Handler[Placed]):
    """Tells the customer. A plain handler: SMTP's client waits in a thread."""

    name = "shop-mail"
    topic = "shop.paid"
    message_id = header("message-id")
    retry = FOR_A_DAY

    def __init__(self, mails: MailService) -> None:
        self.mails = mails

    @step(deadline=10)
    def send(self, key: IdempotencyKey, order: Placed) -> str:
        return self.mails.send(key, order.customer, f"Thank you for order {order.order_id}.")

    @send.confirm
    def find(self, key: IdempotencyKey, order: Placed) -> AlreadyDone | None:
        found = self.mails.find(key)
        return None if found is None else AlreadyDone(found)

    def prepare(self, event: Placed, effects: PlainEffects) -> None:
        effects.run(self.send, event)

    def handle(self, event: Placed, context: Context[Session]) -> str:
        return "sent"


class GivePoints(Handler[Placed]):
    """Gives the customer a point for each whole euro."""

    name = "shop-points"
    topic = "shop.paid"
    message_id = header("message-id")

    async def handle(self, event: Placed, context: Context) -> str:
        values = {"customer": event.customer, "total": event.cents // 100}
        more = await upsert(
            context.session, Points, values, on=["customer"], change=lambda new: {"total": Points.total + new.total}
        )
        return f"{0 if more is None else more.total} points"


async def moved(context: Context, order: Placed, before: str, after: str) -> bool:
    """Move an order on; return whether it was where it was expected."""
    this = Order.id == order.order_id
    done = await transition(context.session, Order.status, before={before}, after=after, where=this)
    return done is Transition.APPLIED
