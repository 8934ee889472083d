"""What happened: frozen values, announced to observers after the fact.

An observer is any callable that takes an event. It changes no outcome; what it raises is logged and goes no further.
No event carries a payload: positions, names, counts and error types only, with the error's own text cut.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal, NamedTuple

from consumerkit.message import TopicPartition
from consumerkit.outcome import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The root of all events.

    Attributes:
        handler: The handler's name; empty where an event concerns the whole worker.
    """

    handler: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Event):
    """The worker consumes."""

    handlers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStopped(Event):
    """The worker has finished or rolled back everything it had in hand."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionsAssigned(Event):
    """The broker gave partitions to this consumer."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionsRevoked(Event):
    """The broker takes partitions away; what was in hand was finished or dropped.

    `dropped` messages were left for the next owner; `lost` tells that the partitions had gone before we knew.
    """

    partitions: tuple[TopicPartition, ...]
    dropped: int
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionsAwaited(Event):
    """A handler has had no partitions for `seconds`; told after some seconds, and again every minute.

    It ends with `PartitionsAssigned`, which may name none: then other members of the group have them all.

    Attributes:
        seconds: For how long.
        missed_after: Seconds after which the group misses a member that has died; None where that is not known.
    """

    seconds: float
    missed_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSummary(Event):
    """What a handler did in the last minute, if anything, and when the worker stops.

    Attributes:
        seconds: The time it tells of.
        processed: Messages whose handler's changes are committed.
        duplicates: Messages skipped, since their ID had been processed or dead-lettered before.
        retries: Attempts that failed and are made again.
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
class PartitionStopped(Event):
    """A partition cannot be read any further; a person must decide."""

    partition: TopicPartition
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStandsStill(Event):
    """A partition's mark has not moved for `seconds`, although its log goes on; told once, until `PartitionMoves`.

    Attributes:
        partition: Which.
        offset: Its mark: the first message without an outcome.
        end: The end of its log; None where the broker does not tell, for want of a leader.
        seconds: For how long.
        reason: What is known of the reason, and the way out.
    """

    partition: TopicPartition
    offset: int
    end: int | None
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionMoves(Event):
    """A partition that stood still moves again, is read to its end, or is another worker's."""

    partition: TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPaused(Event):
    """A partition is not fetched, since it cannot run; told once, until `PartitionResumed` or `PartitionsRevoked`.

    A full parking lot is told at once, and what waits in order behind a parked message after a minute.

    Attributes:
        partition: Which.
        reason: What keeps it from running, and the way out.
    """

    partition: TopicPartition
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionResumed(Event):
    """A partition that was paused has run for some seconds without a pause."""

    partition: TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionTaken(Event):
    """The database knows this worker as the partition's owner; `parked` messages wait there."""

    partition: TopicPartition
    parked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionDiffers(Event):
    """Kafka and the database disagree about where a partition stands; it is read from `offset`, the database's mark.

    `lost` tells that the database has lost something, so that messages are run again whose effects are gone.
    """

    partition: TopicPartition
    offset: int
    lost: bool
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitsLost(Event):
    """The database has lost transactions that it had acknowledged: all partitions go back to their marks."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionInDoubt(Event):
    """Another worker has taken a partition over, or may have: nothing of it begins until that is clear."""

    partition: TopicPartition
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceAwaited(Event):
    """A partition cannot be taken over for `seconds` now, since a transaction of its owner before is still open.

    Told once; it ends with `PartitionTaken` or `PartitionsRevoked`.
    """

    partition: TopicPartition
    seconds: float


class Stages(NamedTuple):
    """How many seconds each stage of a transaction took.

    Attributes:
        begin: From its turn to the answer of BEGIN and the fence: waiting for a connection and for SQLite's turn, too.
        claim: The claims on its message IDs.
        handle: `prefetch`, and the handler's calls with all that they wait for.
        write: The flush, and what is stored beside the handler's changes.
        commit: COMMIT.
    """

    begin: float = 0.0
    claim: float = 0.0
    handle: float = 0.0
    write: float = 0.0
    commit: float = 0.0


NO_STAGES: Final = Stages()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCommitted(Event):
    """One transaction is durable.

    Attributes:
        lane: The lane's number.
        processed: Messages whose handler's changes are in it.
        duplicates: Messages skipped, since their ID had been processed before.
        duplicates_of_dead: Messages skipped, since their ID had been dead-lettered before.
        redelivered: Those of both that may be the first message, read again by the partition's next owner; the others
            were sent more than once.
        duplicate_ages: For each of both, how many seconds before it the first message got its outcome.
        dead: Messages it dead-lettered.
        parked: Messages it parked, or parked for longer.
        fallback_ids: Messages whose ID came from a fallback source.
        unreadable_times: Messages in which `event_time` read no moment, or one far in the future; such run.
        seconds: From BEGIN to COMMIT's answer, with the wait for a connection.
        stages: The same by stage.
    """

    lane: int
    processed: int
    duplicates: int = 0
    duplicates_of_dead: int = 0
    redelivered: int = 0
    duplicate_ages: tuple[float, ...] = ()
    dead: int = 0
    parked: int = 0
    fallback_ids: int = 0
    unreadable_times: int = 0
    seconds: float = 0.0
    stages: Stages = NO_STAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesSkipped(Event):
    """Messages of an unknown event type were passed over, as declared."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRolledBack(Event):
    """A transaction failed and was rolled back whole; its messages are run again.

    `handled` messages had been through their handler and will be again.
    """

    size: int
    handled: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(Event):
    """A message failed alone; it is tried again after `wait` seconds, or not at all where that is None.

    While the handler is `braking` one message is tried at a time, so that it may take longer. `in_full` is the error's
    text and traceback, where whoever runs the worker wants to see them, and empty otherwise: it may quote a payload.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    attempt: int
    error: str
    wait: float | None
    braking: bool = False
    in_full: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSuspected(Event):
    """A message failed alone in a way that may be everybody's trouble; no attempt is counted, and others run first.

    It is tried again after `wait` seconds. If another message succeeded before, it is an attempt then; if another one
    failed in the same way, the handler pauses. `in_full` is as in `AttemptFailed`.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    error: str
    wait: float
    in_full: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsRun(Event):
    """The steps of a batch, or one in the middle of `handle`, are over; see `consumerkit.step`.

    Attributes:
        called: Calls whose results are kept.
        reused: Steps that had been done before, and were not called again.
        failed: Calls that raised an error.
        seconds: How long that took.
    """

    called: int
    reused: int
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAwaited(Event):
    """A step has begun elsewhere, or before a crash: its message is parked for `wait` seconds, without an attempt.

    With `undoing` the message was dead and runs again, and what the step did is undone first.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    step: str
    wait: float
    undoing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDoubted(Event):
    """A step has begun, its deadline has passed, and its result was not kept: it is unknown whether it was done.

    `then` is what becomes of it: "called again", "asked" or "dead-lettered". `calls` counts how often it was begun.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    step: str
    calls: int
    then: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUndone(Event):
    """What a step did is undone, since its message is dead.

    Attributes:
        message_id: The message's ID, as text.
        step: The step.
        letter: The message's dead letter.
        called: Whether its undo was called; False where the other side said that it was never done.
    """

    message_id: str
    step: str
    letter: int | None
    called: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUndoFailed(Event):
    """The undo of a step has failed; it is tried again after `wait` seconds, or not at all where that is None.

    Then it has a dead letter of its own, `letter`, and `MessageDeadLettered` tells of it, too. `in_full` is as in
    `AttemptFailed`.
    """

    message_id: str
    step: str
    attempt: int
    error: str
    wait: float | None
    letter: int | None = None
    in_full: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageDeadLettered(Event):
    """A message is in the dead letters, durably.

    Attributes:
        partition: Where the message stood, and
        offset: at which offset.
        message_id: Its ID, as text; empty where it has none.
        reason: Why it was given up.
        error: The class of the error that its handler raised; of a `Reject`, its words.
        letter: The dead letter's number, by which `consumerkit dead-letters show` finds it.
        attempts: Attempts that failed.
        summary: What failed, and where in the user's code or in the message; without a payload.
        in_full: As in `AttemptFailed`.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    reason: Reason
    error: str
    letter: int | None = None
    attempts: int = 0
    summary: str = ""
    in_full: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginClash(Event):
    """Another message's row stands where this message stood in the log: this one has a row of its own beside it.

    A dead-letter topic tells where its messages stood, and whoever writes to it may tell anything.

    Attributes:
        partition: Where the message stood, and
        offset: at which offset.
        message_id: The message's ID, as text; empty where it has none.
        table: In which table that is: "dead_letters" or "parked_messages".
        row: The number of the other message's row.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    table: str
    row: int


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
    """What `Trouble` told of works again, `seconds` after it began; told once for each handler and place."""

    where: str
    seconds: float
    work: str = ""


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
class OffsetsCommitted(Event):
    """The broker has these positions."""

    positions: tuple[tuple[TopicPartition, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxPublished(Event):
    """The relay sent messages, and the broker acknowledged them."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxHeldBack(Event):
    """The broker did not take messages of a topic; they stay in the outbox and are tried again, less and less often.

    Told once, and again only if the error becomes another one.

    Attributes:
        topic: The topic that the messages are for.
        sequence: The one message that is at fault, which holds back its key alone; None where the topic is.
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
    """What is first in the outbox has waited there since `since`, for much longer than sending takes; told once."""

    topic: str
    sequence: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxGivenUp(Event):
    """`count` messages for a topic, the oldest written at `oldest`, were not sent in time and were given up.

    A relay that died may have published one before it could record that. The record is in `operator_actions`.
    """

    topic: str
    count: int
    oldest: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxResumed(Event):
    """What `OutboxHeldBack` told of is over, `seconds` after it began: it was sent, or discarded."""

    topic: str
    seconds: float
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxTurnAwaited(Event):
    """Messages wait in the outbox, and another process has the relay's turn and shows no sign of life. Told once.

    Attributes:
        holder: Who has the turn, as a person finds it.
        seconds: For how long this process has waited for the turn.
    """

    holder: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxTurnCame(Event):
    """What `OutboxTurnAwaited` told of is over, after `seconds`: the outbox is sent, or empty."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterByReference(Event):
    """A dead letter was too large for its topic and went without its value; the table holds the whole message."""

    topic: str
    sequence: int


RequestOutcome = Literal[
    "new", "unprotected", "replayed", "conflict", "in_progress", "refused", "erased", "rolled_back", "failed",
    "client_gone", "out_of_reach",
]  # fmt: skip
"""What became of a request at the HTTP edge; see `docs/http.md`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAnswered(Event):
    """An idempotent endpoint's request is answered, or has failed; `handler` is the edge's name, such as `http:shop`.

    Attributes:
        endpoint: The endpoint's name.
        outcome: `new`: it took effect, and its answer is kept. `unprotected`: it took effect, and has no key.
            `replayed`: it is answered again. `conflict`: its key came with another request. `in_progress`: it waited in
            vain for another one with its key. `refused`: its key is missing or malformed. `erased`: the kept answer is
            gone. `rolled_back`: the endpoint answered 4xx or 5xx, and nothing is kept. `failed`: the endpoint raised,
            or was cut off. `client_gone`: the client hung up before COMMIT. `out_of_reach`: the database failed.
        status: Of the answer; None where it was left to the application.
        seconds: From the request's body to its answer.
        waited: Seconds of these for which it waited for another request with its key.
        error: The type of the database's error, where the outcome is `out_of_reach`.
    """

    endpoint: str
    outcome: RequestOutcome
    status: int | None
    seconds: float
    waited: float = 0.0
    error: str = ""


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


Observer = Callable[[Event], None]

_log = logging.getLogger(__name__)


class Announcer:
    """Tells observers of events and contains their errors.

    Several parts of a worker meet the same trouble: that it is over is told by whichever finds out first, and once.
    """

    __slots__ = ("_observers", "_trouble")

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)
        # None in a handler's, since others may tell this one of the trouble.
        self._trouble: set[tuple[str, str, str]] | None = set()

    def add(self, observer: Observer) -> None:
        """Tell another observer, too, from now on."""
        self._observers = (*self._observers, observer)

    def for_handler(self, handler: str) -> Announcer:
        """Return an announcer that puts a handler's name into each event and passes it on to this one."""
        made = Announcer([lambda event: self(replace(event, handler=handler))])
        made._trouble = None
        return made

    def __call__(self, event: Event) -> None:
        """Tell all observers, in order."""
        if self._trouble is not None and isinstance(event, Trouble | TroubleOver):
            place = (event.handler, event.work, event.where)
            if isinstance(event, Trouble):
                self._trouble.add(place)
            elif place in self._trouble:
                self._trouble.remove(place)
            else:
                return
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # noqa: BLE001 - an observer changes no outcome, whatever it raises
                _log.exception("observer %r failed on %s", observer, type(event).__name__)
