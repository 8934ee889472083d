"""Events about the outbox and its relay."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from consumerkit.events.event import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxPublished(Event):
    """The relay has sent messages, and the broker has acknowledged them."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxHeldBack(Event):
    """The broker refused messages for a topic; they stay in the outbox and are tried again, less and less often.

    Announced once, and again only if the error changes.

    Attributes:
        topic: The topic that the messages are for.
        sequence: The one message at fault, which holds back only its key; None where the topic is
            at fault.
        error: What the broker or the client said.
        wait: Seconds until the next try.
        way_out: What a person can do.
    """

    topic: str
    error: str
    wait: float
    sequence: int | None = None
    way_out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxOld(Event):
    """The first message in the outbox has waited since `since`, much longer than sending takes; announced once."""

    topic: str
    sequence: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxGivenUp(Event):
    """`count` messages for a topic, the oldest written at `oldest`, were not sent in time and were given up.

    A relay that died may have published one of them without recording that. `operator_actions` has
    the record.
    """

    topic: str
    count: int
    oldest: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxResumed(Event):
    """The end of `OutboxHeldBack`, `seconds` after it began: the messages were sent or discarded."""

    topic: str
    seconds: float
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxTurnAwaited(Event):
    """Messages wait in the outbox, and another process holds the relay's turn without a sign of life. Announced once.

    Attributes:
        holder: The process that has the turn, as a person finds it.
        seconds: How long this process has waited for the turn.
    """

    holder: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxTurnCame(Event):
    """The end of `OutboxTurnAwaited`, after `seconds`: the outbox is being sent, or is empty."""

    seconds: float
