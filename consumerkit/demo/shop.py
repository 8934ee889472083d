"""A shop that credits captured payments: what a user writes.

Copy from here: the tables are the shop's own, the handler holds the whole of its trade, and everything that makes it
safe (each payment once, retries, dead letters) is declared, not programmed.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, PositiveInt
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consumerkit.demo.broker import EmbeddedTransport
from consumerkit.demo.reports import Reporter
from consumerkit.errors import ConfigurationError, Reject
from consumerkit.handlers.context import Context
from consumerkit.handlers.handler import Handler, Ordering
from consumerkit.handlers.message_id import header
from consumerkit.policies.dead_letter import DeadLetter
from consumerkit.policies.retry import Retry, exponential
from consumerkit.worker import Worker

TOPIC = "payments.captured"
DEAD_LETTER_TOPIC = "payments.captured.dlq"


class Base(DeclarativeBase):
    """The shop's tables."""


class Account(Base):
    """A customer's account; money is counted in cents."""

    __tablename__ = "accounts"

    id: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=0)
    closed: Mapped[bool] = mapped_column(default=False)


class JournalEntry(Base):
    """One credited payment. Nothing here is unique but the row's number: a payment credited twice would show twice."""

    __tablename__ = "journal"

    number: Mapped[int] = mapped_column(primary_key=True)
    payment_id: Mapped[str]
    account_id: Mapped[str]
    cents: Mapped[int]


class PaymentCaptured(BaseModel):
    """The event: a customer has paid."""

    payment_id: str
    account_id: str
    cents: PositiveInt


class AccountUnknown(Exception):
    """The account is not there; it may still be on its way."""


class CreditAccount(Handler[PaymentCaptured]):
    """Credits each payment to its account, once."""

    name = "credit-account"
    topic = TOPIC
    message_id = header("message-id")
    ordering = Ordering.KEY  # the key is the account: its payments are handled in order
    retry = Retry(attempts=3, wait=exponential(0.05, max=0.5), on=(AccountUnknown,))
    dead_letter = DeadLetter(DEAD_LETTER_TOPIC)
    concurrency = 1  # SQLite lets one transaction write at a time

    async def handle(self, event: PaymentCaptured, context: Context) -> None:
        """Credit one payment."""
        # The lock keeps two payments to one account from overwriting each other.
        account = await context.session.get(Account, event.account_id, with_for_update=True)
        if account is None:
            raise AccountUnknown(f"there is no account {event.account_id}")
        if account.closed:
            raise Reject(f"account {event.account_id} is closed")
        account.balance += event.cents
        context.session.add(JournalEntry(payment_id=event.payment_id, account_id=account.id, cents=event.cents))


def worker() -> Worker:
    """Return what `consumerkit run consumerkit.demo.shop:worker` runs.

    Your own would have `kafka=Kafka("broker:9092")`, no reporter, and be a plain `worker = Worker(...)`.

    Raises:
        ConfigurationError: The demo's variables are not set.
    """
    try:
        broker, directory = os.environ["DEMO_BROKER"], Path(os.environ["DEMO_DIRECTORY"])
    except KeyError as error:
        raise ConfigurationError(f"{error.args[0]} is not set; `consumerkit demo --stay` prints its value") from None
    return Worker(
        database=f"sqlite:///{directory / 'shop.db'}",
        kafka=EmbeddedTransport(broker),
        handlers=[CreditAccount()],
        observers=[Reporter(directory / "reports")],
        grace=10.0,
    )
