"""The worker: `consumerkit run examples.shop.worker:worker`. What it talks to is read from the environment."""

import os

from consumerkit import Kafka, Worker
from consumerkit.settings import Settings
from consumerkit.transports.base import Transport
from examples.shop.handlers import GivePoints, ReserveStock, SendMail, TakePayment
from examples.shop.services import MailService, PaymentProvider


def made(kafka: Kafka | Transport, outside: str, smtp: int, settings: Settings) -> Worker:
    """Return the worker of the shop's four handlers."""
    mails = MailService("127.0.0.1", smtp, outside)
    handlers = [ReserveStock(), TakePayment(PaymentProvider(outside)), SendMail(mails), GivePoints()]
    return Worker(kafka=kafka, handlers=handlers, settings=settings)


def worker() -> Worker:
    """Return the worker on the servers that the environment names; its database is `CONSUMERKIT_DATABASE`."""
    # A member that was killed is missed after six seconds, so that its partitions go to others soon.
    kafka = Kafka(os.environ["KAFKA"], options={"session.timeout.ms": 6_000, "heartbeat.interval.ms": 1_000})
    return made(kafka, os.environ["SHOP_OUTSIDE"], int(os.environ["SHOP_SMTP"]), Settings())
