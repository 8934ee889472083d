"""Events about the worker and its handlers: start and stop, pauses, brakes, trouble, summaries."""

from __future__ import annotations

from dataclasses import dataclass

from consumerkit.events.event import Event
from consumerkit.message import TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Event):
    """The worker has started to consume."""

    handlers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStopped(Event):
    """The worker has stopped, and has finished or rolled back all its work."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSummary(Event):
    """What a handler did since the last summary; announced every minute with work, and when the worker stops.

    Attributes:
        seconds: The length of the summarised time.
        processed: Messages whose changes by the handler are committed.
        duplicates: Messages skipped, since their ID had been processed or dead-lettered before.
        retries: Failed attempts that are made again.
        dead: Messages that were dead-lettered.
        skipped: Messages of unknown types.
        rolled_back: Transactions of several messages that were rolled back and run again.
        oldest_waiting: Seconds for which the oldest parked message has waited; None where none
            waits, or where this was not read.
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
    """A handler cannot work until a person acts; it tries one message again in `wait` seconds.

    No attempt of a message counts.
    """

    error: str
    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerResumed(Event):
    """A paused handler continues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerStopped(Event):
    """A handler stopped, since trying again would not help; a person must act."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeOn(Event):
    """All messages fail: no more are dead-lettered, and one is tried from time to time, first in `wait` seconds.

    With a partition: its messages cannot be read, one after another. It is slowed down, and the
    others continue.
    """

    wait: float
    partition: TopicPartition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeOff(Event):
    """A message succeeded; the handler, or the named partition, continues."""

    partition: TopicPartition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble(Event):
    """Work failed for a reason that is no message's fault; the same work is tried again after `wait` seconds.

    `where` is "database", "broker", "codec", or "undo" for an undo that failed in consumerkit
    itself; `work` is "outbox" or "retention" where the work is no lane's.
    """

    where: str
    error: str
    wait: float
    work: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TroubleOver(Event):
    """The end of `Trouble`, `seconds` after it began; announced once for each handler, `work` and `where`."""

    where: str
    seconds: float
    work: str = ""
