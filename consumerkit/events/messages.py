"""What becomes of messages: committed, rolled back, tried again, dead-lettered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from consumerkit.events.event import Event
from consumerkit.message import TopicPartition
from consumerkit.outcome import Reason


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
        stages: From BEGIN to the answer of COMMIT, by stage.
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
class OutsideWaitNoticed(Event):
    """A handler waited for something else than its session, so each of its messages has a transaction from now on.

    Told once in each process; see `shares_transaction` of a handler.

    Attributes:
        place: Where its code waited: file, line and function.
        seconds: How long.
    """

    place: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(Event):
    """A message failed alone; it is tried again after `wait` seconds, or not at all where that is None.

    While the handler is `braking` one message is tried at a time, so that it may take longer. `in_full` is the error's
    text and traceback with `--show-errors`, and empty otherwise: it may quote a payload.
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
    """A message failed alone in a way that may affect all messages; no attempt is counted, and others run first.

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

    A dead-letter topic names the places of its messages, and any program may write wrong ones there.

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
class DeadLetterByReference(Event):
    """A dead letter was too large for its topic and went without its value; the table holds the whole message."""

    topic: str
    sequence: int
