"""Idempotent message consumers for Kafka.

A handler's database changes are committed exactly once per message ID, whatever the broker
redelivers, the producer sends again or the process does. A message whose changes cannot be
committed becomes a dead letter with its reason.

    class CreditAccount(Handler[PaymentCaptured]):
        name = "credit-account"
        topic = "payments.captured"
        message_id = header("message-id")
        dead_letter = DeadLetter("payments.captured.dlq")

        async def handle(self, event: PaymentCaptured, context: Context) -> None:
            account = await context.session.get_one(Account, event.account_id, with_for_update=True)
            account.balance += event.amount

This module has everything that most programs need; the modules behind it are not part of the
interface.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumerkit import outbox
from consumerkit.errors import (
    AlreadyDone,
    ConfigurationError,
    ConsumerkitError,
    Defer,
    Reject,
    StartError,
    StepChanged,
    StepInDoubt,
    StepUnderWay,
    Unavailable,
    Undecodable,
    Unsatisfied,
)
from consumerkit.guards import Transition, transition, upsert
from consumerkit.handlers.codecs import Codec, Json
from consumerkit.handlers.context import BatchContext, Context
from consumerkit.handlers.dead_lettered import DeadLetterContext, DeadLetteredMessage
from consumerkit.handlers.effects import Effects, PlainEffects
from consumerkit.handlers.handler import BatchHandler, Events, Handler, Ordering, Received
from consumerkit.handlers.message_id import Identity, coordinates, event_field, event_fields, header, record_timestamp
from consumerkit.handlers.steps import BoundStep, IdempotencyKey, Step, step
from consumerkit.message import Message, TopicPartition
from consumerkit.outcome import MessageState, Outcome, Reason
from consumerkit.policies.brake import Brake
from consumerkit.policies.dead_letter import DeadLetter
from consumerkit.policies.payload_retention import PayloadRetention
from consumerkit.policies.retry import Retry, Wait, chain, exponential, fixed, uniform
from consumerkit.status import message_status
from consumerkit.storage.payload import Sealer
from consumerkit.storage.status import MessageStatus
from consumerkit.storage.tables import Tables
from consumerkit.transports.kafka import AccessToken, Kafka, Kerberos, OAuthBearer, Sasl, TokenEndpoint
from consumerkit.transports.tls import Tls

if TYPE_CHECKING:  # see `__getattr__`
    from consumerkit.worker import Worker

__all__ = [  # noqa: RUF022 - in the order of a contents page
    # What a user subclasses, and what a handler is given
    "Handler",
    "BatchHandler",
    "Context",
    "BatchContext",
    "Received",
    "Message",
    "TopicPartition",
    # Declarations: where the message ID is read
    "Identity",
    "header",
    "event_field",
    "coordinates",
    "event_fields",
    "record_timestamp",
    # ... what the value becomes
    "Codec",
    "Json",
    "Events",
    # ... in which order, how often, and then where to
    "Ordering",
    "Retry",
    "Wait",
    "exponential",
    "fixed",
    "uniform",
    "chain",
    "Brake",
    "DeadLetter",
    "DeadLetterContext",
    "DeadLetteredMessage",
    # Running: the worker, its broker, its tables; and the outbox for code beside it
    "Worker",
    "Kafka",
    "Sasl",
    "OAuthBearer",
    "Kerberos",
    "TokenEndpoint",
    "AccessToken",
    "Tls",
    "Tables",
    "Sealer",
    "PayloadRetention",
    "outbox",
    # Steps: effects outside the database
    "step",
    "Step",
    "BoundStep",
    "IdempotencyKey",
    "Effects",
    "PlainEffects",
    "AlreadyDone",
    # Guards for a handler's own tables
    "transition",
    "Transition",
    "upsert",
    # What became of a message
    "message_status",
    "MessageStatus",
    "MessageState",
    "Outcome",
    "Reason",
    # Errors: raised by handlers and codecs
    "Reject",
    "Defer",
    "Undecodable",
    "Unavailable",
    # ... raised where a step is run
    "StepChanged",
    "StepInDoubt",
    "StepUnderWay",
    # ... recorded where `on_result` refuses what a handler returned
    "Unsatisfied",
    # ... and to code that starts a worker
    "ConsumerkitError",
    "ConfigurationError",
    "StartError",
]


def __getattr__(name: str) -> object:
    """Import `Worker` at its first use: a web service that only publishes or asks does not need the engine."""
    if name == "Worker":
        from consumerkit.worker import Worker

        globals()[name] = Worker
        return Worker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
