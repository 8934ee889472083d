"""What every competitor does: one natural handler, its event, its row, and the ledger that a hand-written one keeps."""

from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import BigInteger, DateTime, Identity, Text, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MESSAGE_ID_HEADER = "message-id"
HANDLER = "record-payment"


class Payment(BaseModel):
    """One event; `payment_id` is in the header too."""

    payment_id: str
    account: str
    amount: int
    currency: str
    captured_at: datetime


class Base(DeclarativeBase):
    pass


class Entry(Base):
    """The effect: append-only and without a unique key of its own, so that a doubled effect would be two rows."""

    __tablename__ = "entries"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    payment_id: Mapped[str] = mapped_column(Text)
    account: Mapped[str] = mapped_column(Text)
    amount: Mapped[int] = mapped_column(BigInteger)


class Inbox(Base):
    """The ledger as one writes it by hand: a row for each message ID that was handled."""

    __tablename__ = "inbox"

    consumer: Mapped[str] = mapped_column(Text, primary_key=True)
    message_id: Mapped[str] = mapped_column(Text, primary_key=True)
    processed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


async def record(payment: Payment, session: AsyncSession) -> None:
    """The handler."""
    session.add(Entry(payment_id=payment.payment_id, account=payment.account, amount=payment.amount))
