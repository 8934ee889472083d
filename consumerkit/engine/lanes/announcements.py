"""The events that a lane announces."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context

from consumerkit import events
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.batch import Batch
from consumerkit.engine.transaction.delivery import Delivery
from consumerkit.engine.transaction.receipt import Receipt
from consumerkit.events import Announcer
from consumerkit.message import Message, TopicPartition


class Announcements:
    """Announces for one lane of one handler."""

    def __init__(self, lane: int, announce: Announcer) -> None:
        self._lane = lane
        self.announce = announce

    def skipped(self, count: int) -> None:
        """Announce messages of an unknown type."""
        self.announce(events.MessagesSkipped(count=count))

    def committed(self, batch: Batch, receipt: Receipt, seconds: float) -> None:
        """Announce a durable transaction, and the seconds that it took."""
        _within(batch)(
            self.announce,
            events.GroupCommitted(
                lane=self._lane,
                processed=len(receipt.processed),
                duplicates=receipt.duplicates,
                duplicates_of_dead=receipt.duplicates_of_dead,
                dead=len(receipt.dead),
                redelivered=receipt.redelivered,
                duplicate_ages=receipt.ages,
                parked=receipt.postponed,
                fallback_ids=receipt.fallback_ids,
                unreadable_times=receipt.unreadable_times,
                seconds=seconds,
                stages=receipt.stages,
            ),
        )
        self.dead(receipt)

    def dead(self, receipt: Receipt) -> None:
        """Announce dead letters."""
        at = {
            (_partition(one), one.offset): one for one in (*receipt.finished, *(dead.message for dead in receipt.dead))
        }
        for clash in receipt.clashes:
            self.announce(events.OriginClash(**clash._asdict()), at.get((clash.partition, clash.offset)))
        for dead in receipt.dead:
            self.announce(
                events.MessageDeadLettered(
                    partition=_partition(dead.message),
                    offset=dead.message.offset,
                    message_id=dead.message_id or "",
                    reason=dead.reason,
                    error=failures.told(dead),
                    letter=dead.id,
                    attempts=dead.attempts,
                    summary=failures.summary(dead),
                    in_full=dead.in_full,
                ),
                dead.message,
            )

    def rolled_back(self, batch: Batch, error: BaseException) -> None:
        """Announce a failed transaction."""
        _within(batch)(
            self.announce,
            events.GroupRolledBack(
                size=len(batch.items),
                handled=batch.handled,
                error=failures.described(error),
            ),
        )

    def attempt_failed(
        self, delivery: Delivery, error: BaseException, wait: float | None, *, braking: bool = False
    ) -> None:
        """Announce a message that failed alone."""
        self.announce(
            events.AttemptFailed(
                partition=_partition(delivery.message),
                offset=delivery.message.offset,
                message_id=delivery.message_id,
                attempt=delivery.attempt,
                error=failures.described(error),
                wait=wait,
                braking=braking,
                in_full=failures.in_full(error),
            ),
            delivery.message,
        )

    def suspected(self, delivery: Delivery, error: BaseException, wait: float, *, overload: bool) -> None:
        """Announce a message that failed alone without a counted attempt.

        `overload` also announces database trouble.
        """
        if overload:
            told = failures.described(error)
            self.announce(events.Trouble(where="database", error=told, wait=wait), delivery.message)
        self.announce(
            events.MessageSuspected(
                partition=_partition(delivery.message),
                offset=delivery.message.offset,
                message_id=delivery.message_id,
                error=failures.described(error),
                wait=wait,
                in_full=failures.in_full(error),
            ),
            delivery.message,
        )


def _within(batch: Batch) -> Callable[..., object]:
    """Return what calls a function as if it ran within a batch's span."""
    context = copy_context()
    batch.spans.surround(context)
    return context.run


def _partition(message: Message) -> TopicPartition:
    return TopicPartition(message.topic, message.partition)
