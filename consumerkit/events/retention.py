"""What retention removes, and what it holds back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from consumerkit.events.event import Event
from consumerkit.message import TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesForgotten(Event):
    """The ledger forgot `count` message IDs that were processed before `before`: a resend of one would run again."""

    count: int
    before: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadsErased(Event):
    """`count` dead letters that were resolved or discarded long ago lost key, value and headers."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UndecidedPayloadsErased(Event):
    """`count` undecided dead letters lost key, value and headers: they cannot be redriven any more."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingHeldBack(Event):
    """A partition's position has not moved: what was processed `since` then stays in the ledger, whatever its age."""

    partition: TopicPartition
    since: datetime | None
