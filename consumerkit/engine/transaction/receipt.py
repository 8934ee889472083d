"""The durable results of one COMMIT, as a value."""

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
    """The durable results of one COMMIT; a transaction returns nothing else.

    Attributes:
        finished: Fresh messages that need no second read: each has its outcome, or a row in the parking lot.
        new: Those of `finished` whose outcome this transaction was the first to record.
        parked: Rows that were added to the parking lot.
        unparked: Rows that were removed from it.
        processed: Messages that the handler processed, without duplicates.
        dead: Dead letters that were written; excludes those that existed before.
        unpaid: Dead letters of `dead` without a reserved token of the brake.
        funded: The most dead letters of `unpaid` that the messages processed beside them pay for.
        clashes: Messages that name the same place as another one.
        cleared: Partitions in which this owner got further than those that died before it.
        published: Whether the outbox has new messages.
        left: Messages taken out of the transaction because `batch_time` ran out or each runs alone; they run next.
        duplicates, duplicates_of_dead, postponed: How many messages were duplicates, were duplicates of a dead ID, or
            were parked or stay parked.
        redelivered: Duplicates that may be the first message itself, read again after the partition changed its owner.
        ages: For each fresh duplicate, how many seconds ago the first message got its outcome.
        stages: How long each stage of the transaction took.
        fallback_ids: Messages whose ID came from a fallback source.
        unreadable_times: Messages without a readable event time although one is declared.
        handled: Calls of the handler.
        seconds: Seconds that these calls took.
    """

    finished: tuple[Message, ...] = ()
    new: tuple[Message, ...] = ()
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
