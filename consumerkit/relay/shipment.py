"""A shipment sends a topic its messages of a page; each key's messages go one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from consumerkit.dead_letters.formats.consumerkit import is_dead_letter, shortened
from consumerkit.failpoints import reach
from consumerkit.observability.spans import NO_TRACES, Traces
from consumerkit.relay.refusals import Cause, cause_of
from consumerkit.storage.outbox import MESSAGE_ID_HEADER, OutboxMessage, Pending, size
from consumerkit.transports.base import Producer, Record, SendFailure


@dataclass
class ShipmentResult:
    """The result of a shipment.

    Attributes:
        acknowledged: Messages that the broker has.
        refused: Messages that it refused, and why.
        by_reference: Messages of `acknowledged` that were sent without their value.
    """

    acknowledged: list[Pending] = field(default_factory=list)
    refused: list[tuple[Pending, SendFailure]] = field(default_factory=list)
    by_reference: list[Pending] = field(default_factory=list)

    @property
    def topic_failed(self) -> bool:
        """Whether the topic itself is at fault."""
        return any(not cause_of(failure).of_record for _, failure in self.refused)


class Shipment:
    """Sends messages of one topic in a task of its own.

    Args:
        producer: Sends messages.
        pending: The messages to send, in order; all of one topic.
        kept: Tells whether the table holds the whole message of a dead letter.
        may_send: Tells whether the relay's turn is still ours.
        traces: Makes a span for each sent message.
    """

    def __init__(
        self,
        producer: Producer,
        pending: Sequence[Pending],
        kept: Callable[[OutboxMessage], Awaitable[bool]],
        may_send: Callable[[], Awaitable[bool]],
        traces: Traces = NO_TRACES,
    ) -> None:
        self.size = sum(map(size, pending))
        self.delivery = ShipmentResult()
        self.task = asyncio.create_task(ship(producer, pending, kept, may_send, self.delivery, traces))


async def ship(
    producer: Producer,
    pending: Sequence[Pending],
    kept: Callable[[OutboxMessage], Awaitable[bool]],
    may_send: Callable[[], Awaitable[bool]],
    delivery: ShipmentResult,
    traces: Traces = NO_TRACES,
) -> None:
    """Send messages of one topic, and record the results in `delivery`.

    If a message fails, its key's later messages stay; if the topic fails, all stay. Without the turn all stay.
    """
    left = list(pending)
    while left and not delivery.topic_failed and await may_send():
        wave, left = _wave(left)
        with traces.sending([one.message for one in wave], MESSAGE_ID_HEADER) as spans:
            reach("before_dlq_produce")
            answers = await producer.send([Record(*one.message) for one in wave])
            reach("dlq_produced_unacked")
            for place, (one, first) in enumerate(zip(wave, answers, strict=True)):
                cut = first is not None and cause_of(first) is Cause.TOO_LARGE and is_dead_letter(one.message)
                answer = await _by_reference(producer, one, first, kept, delivery) if first and cut else first
                if answer is None:
                    delivery.acknowledged.append(one)
                else:
                    delivery.refused.append((one, answer))
                    spans.refused(place, answer.code)
        failed = {one.message.key for one, _ in delivery.refused} - {None}
        left = [one for one in left if one.message.key not in failed]


def _wave(pending: Sequence[Pending]) -> tuple[list[Pending], list[Pending]]:
    """Split messages into those that may go at once, one per key, and those that follow."""
    keys: set[bytes] = set()
    wave, rest = [], []
    for one in pending:
        key = one.message.key
        if key is None or key not in keys:
            wave.append(one)
        else:
            rest.append(one)
        if key is not None:
            keys.add(key)
    return wave, rest


async def _by_reference(
    producer: Producer,
    pending: Pending,
    refused: SendFailure,
    kept: Callable[[OutboxMessage], Awaitable[bool]],
    delivery: ShipmentResult,
) -> SendFailure | None:
    """Send a dead letter without its large parts; return the last refusal, or None."""
    # The table's payload may have been erased since; this copy is then the last one.
    if not await kept(pending.message):
        return refused
    answer: SendFailure | None = refused
    for message in shortened(pending.message):
        (answer,) = await producer.send([Record(*message)])
        if answer is None:
            delivery.by_reference.append(pending)
        if answer is None or cause_of(answer) is not Cause.TOO_LARGE:
            return answer
    return answer
