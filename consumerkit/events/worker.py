"""What the worker and its handlers do: start and stop, pauses, brakes, trouble, a minute's summary."""

from __future__ import annotations

from dataclasses import dataclass

from consumerkit.events.event import Event
from consumerkit.message import TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Event):
    """The worker consumes."""

    handlers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStopped(Event):
    """The worker has finished or rolled back everything it had in hand."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSummary(Event):
    """What a handler did in the last minute, if anything, and when the worker stops.

    Attributes:
        seconds: The length of the time that it sums up.
        processed: Messages whose handler's changes are committed.
        duplicates: Messages skipped, since their ID had been processed or dead-lettered before.
        retries: Failed attempts that are made again.
        dead: Messages that were dead-lettered.
        skipped: Messages of unknown types.
        rolled_back: Transactions of several messages that were rolled back and run again.
        oldest_waiting: For how many seconds the oldest parked message waits; None where none does, or it was not read.
    """

    seconds: float
    processed: int = 0
    duplicates: int = 0
    retries: int = 0
    dead: int = 0
    skipped: int = 0
    rolled_back: int = 0
    oldest_waiting: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerPaused(Event):
    """A handler cannot do its work before a person acts; it tries one message again in `wait` seconds.

    Nothing is counted against a message.
    """

    error: str
    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerResumed(Event):
    """A handler that had paused goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerStopped(Event):
    """A handler stopped, since trying again would not help; a person must act."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeOn(Event):
    """Everything fails: nothing more is dead-lettered, and one message is tried from time to time, first in `wait`.

    Where it names a partition, messages of it cannot be read one after another: it is slowed down, and others go on.
    """

    wait: float
    partition: TopicPartition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeOff(Event):
    """A message succeeded, and the handler, or the partition that is named, goes on."""

    partition: TopicPartition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble(Event):
    """Something that is not a message's fault: the same work is tried again after `wait` seconds.

    `where` is "database", "broker" or "codec"; `work` is "outbox" or "retention" where that is no handler's.
    """

    where: str
    error: str
    wait: float
    work: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TroubleOver(Event):
    """The trouble of `Trouble` is over, `seconds` after it began; announced once for each handler and place."""

    where: str
    seconds: float
    work: str = ""
