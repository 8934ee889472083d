"""Events about what retention removes, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from consumerkit.events.event import Event
from consumerkit.message import TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesForgotten(Event):
    """The ledger forgot `count` message IDs, processed earlier than `before`: a resend of one would run again."""

    count: int
    before: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadsErased(Event):
    """`count` dead letters, resolved or discarded long ago, lost their key, value and headers."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UndecidedPayloadsErased(Event):
    """`count` undecided dead letters lost their key, value and headers: they can no longer be redriven."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingHeldBack(Event):
    """A partition's position has not moved: messages processed `since` then stay in the ledger, at any age."""

    partition: TopicPartition
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsLeftBehind(Event):
    """`count` rows wait for code that the handler no longer has; announced when they are first seen.

    `what` is "undos" (steps to undo, and the handler has none) or "messages" (parked ones of
    `topic`, which it no longer consumes). `reason` says so and has the way out.
    """

    what: str
    topic: str
    count: int
    reason: str
