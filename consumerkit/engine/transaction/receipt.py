"""What one COMMIT made durable, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from consumerkit.events import NO_STAGES, Stages
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.origins import Clash


class Row(NamedTuple):
    """A row of the parking lot: the message, and the number of the row."""

    message: Message
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one COMMIT made durable; nothing else comes back from a transaction.

    Attributes:
        finished: Fresh messages that need not be read again: each has its outcome, or a row in the parking lot.
        parked: Rows that the parking lot has since.
        unparked: Rows that it has no longer.
        processed: Messages that the handler processed, without duplicates.
        dead: Dead letters that were written, without those that were there before.
        unpaid: Those of `dead` for which no token of the brake was reserved.
        funded: How many of `unpaid` the messages processed beside them pay for, at most.
        clashes: Messages that name the same place as another one.
        cleared: Partitions in which this owner got further than those that died before it.
        published: Whether the outbox has new messages.
        left: Messages that were taken out of the transaction, since `batch_time` ran out: they are to run next.
        duplicates, duplicates_of_dead, postponed: Messages that were found to be duplicates, or were parked or left in
            the lot.
        redelivered: Duplicates that may be the first message itself, read again after the partition changed its owner.
        ages: For each fresh duplicate, how many seconds before it the first message got its outcome.
        stages: How long each stage of the transaction took.
        fallback_ids: Messages whose ID came from a fallback source.
        unreadable_times: Messages without a readable event time, where one is declared.
        handled: Calls of the handler.
        seconds: How long these took.
    """

    finished: tuple[Message, ...] = ()
    parked: tuple[Row, ...] = ()
    unparked: tuple[Row, ...] = ()
    processed: tuple[Message, ...] = ()
    dead: tuple[DeadMessage, ...] = ()
    unpaid: tuple[DeadMessage, ...] = ()
    funded: int = 0
    clashes: tuple[Clash, ...] = ()
    cleared: tuple[TopicPartition, ...] = ()
    published: bool = False
    left: tuple[Message, ...] = ()
    duplicates: int = 0
    duplicates_of_dead: int = 0
    redelivered: int = 0
    ages: tuple[float, ...] = ()
    postponed: int = 0
    fallback_ids: int = 0
    unreadable_times: int = 0
    handled: int = 0
    seconds: float = 0.0
    stages: Stages = NO_STAGES
