"""Events about messages: committed, rolled back, tried again, dead-lettered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from consumerkit.events.event import Event
from consumerkit.message import TopicPartition
from consumerkit.outcome import Reason


class Stages(NamedTuple):
    """How many seconds each stage of a transaction took.

    Attributes:
        begin: Until the answer to BEGIN and the check of the fence, with the wait for a connection
            and for SQLite's turn.
        claim: The claims on its message IDs.
        handle: `prefetch` and the handler's calls, with everything they wait for.
        write: The flush, and the writes of consumerkit's own rows.
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
        processed: Messages whose changes by the handler are committed.
        duplicates: Messages skipped, since their ID had been processed before.
        duplicates_of_dead: Messages skipped, since their ID had been dead-lettered before.
        redelivered: Of both, those that may be the first message itself, read again by the
            partition's next owner; the others were sent more than once.
        duplicate_ages: For each of both, how many seconds earlier the first message got its
            outcome.
        dead: Messages that the transaction dead-lettered.
        parked: Messages that the transaction parked, or parked for longer.
        fallback_ids: Messages whose ID came from a fallback source.
        unreadable_times: Messages where `event_time` read no time, or one far in the future; they
            run anyway.
        seconds: From BEGIN to the answer to COMMIT, with the wait for a connection.
        stages: From BEGIN to the answer to COMMIT, by stage.
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
    """Messages of an unknown event type were skipped, as declared."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRolledBack(Event):
    """A whole transaction failed and was rolled back; its messages run again.

    The handler had handled `handled` of the messages, and handles them again.
    """

    size: int
    handled: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideWaitNoticed(Event):
    """A handler waited for something other than its session: each of its messages now has its own transaction.

    Announced once per process; see `shares_transaction` of a handler.

    Attributes:
        place: Where the handler's code waited: file, line and function.
        seconds: How long it waited.
    """

    place: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(Event):
    """A message failed alone; it is tried again after `wait` seconds, or never if `wait` is None.

    While the handler is `braking`, one message is tried at a time, and the wait may be longer. With
    `--show-errors`, `in_full` is the error's text and traceback, which may quote a payload;
    otherwise it is empty.
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
    """A message failed alone with an error that may affect all messages; no attempt counts, and others run first.

    The message is tried again after `wait` seconds. If another message has succeeded until then,
    the next failure counts as an attempt. If another message has failed in the same way, the
    handler pauses. `in_full` is as in `AttemptFailed`.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    error: str
    wait: float
    in_full: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageDeadLettered(Event):
    """A message is durably among the dead letters.

    Attributes:
        partition: The message's partition. offset: The message's offset. message_id: Its ID, as
            text; empty where it has none. reason: Why it was given up. error: The class of the
            error that its handler raised; for a `Reject`, its text.
        letter: The dead letter's number, by which `consumerkit dead-letters show` finds it.
        attempts: Attempts that failed.
        summary: What failed, and where in the user's code or in the message, without a payload.
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
    """Another message's row has this message's place in the log: this message has its own row besides.

    A dead-letter topic names the places of its messages, and any program may write wrong places
    there.

    Attributes:
        partition: Where the message stood, and
        offset: at which offset.
        message_id: The message's ID, as text; empty where it has none.
        table: The table of both rows: "dead_letters" or "parked_messages".
        row: The number of the other message's row.
    """

    partition: TopicPartition
    offset: int
    message_id: str
    table: str
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterByReference(Event):
    """A dead letter was too large for its topic and was sent without its value; the table holds the whole message."""

    topic: str
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterHookFailed(Event):
    """`on_dead_letter` failed for a dead letter; it is called again in `wait` seconds, or never if `wait` is None."""

    letter: int
    message_id: str
    attempt: int
    error: str
    wait: float | None
