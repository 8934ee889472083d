"""The worker: `consumerkit run examples.shop.worker:worker`. What it talks to is read from the environment."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx

from consumerkit import Kafka, Worker
from consumerkit.settings import Settings
from consumerkit.transports.base import Transport
from examples.shop.handlers import GivePoints, ReserveStock, SendMail, TakePayment
from examples.shop.services import TIMEOUT, MailService, PaymentProvider


@asynccontextmanager
async def opened(kafka: Kafka | Transport, outside: str, smtp: int, settings: Settings) -> AsyncGenerator[Worker]:
    """Give the worker of the shop's four handlers, and close what they hold at the end."""
    mails = MailService("127.0.0.1", smtp, outside)
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        handlers = [ReserveStock(), TakePayment(PaymentProvider(outside, client)), SendMail(mails), GivePoints()]
        yield Worker(kafka=kafka, handlers=handlers, settings=settings)


@asynccontextmanager
async def worker() -> AsyncGenerator[Worker]:
    """Give the worker on the servers that the environment names; its database is `CONSUMERKIT_DATABASE`."""
    # A member that was killed is missed after six seconds, so that its partitions go to others soon.
    kafka = Kafka(os.environ["KAFKA"], options={"session.timeout.ms": 6_000, "heartbeat.interval.ms": 1_000})
    async with opened(kafka, os.environ["SHOP_OUTSIDE"], int(os.environ["SHOP_SMTP"]), Settings()) as made:
        yield made
