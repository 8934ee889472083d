"""The classes that users subclass, one subclass per effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal

from typing_extensions import TypeVar

from consumerkit.handlers.codecs import Codec, Json
from consumerkit.handlers.context import BatchContext, Context
from consumerkit.handlers.dead_lettered import DeadLetterContext, DeadLetteredMessage
from consumerkit.handlers.message_id import WHOLE_VALUE, Fingerprint, Identity
from consumerkit.message import Message
from consumerkit.policies.brake import Brake
from consumerkit.policies.dead_letter import DeadLetter
from consumerkit.policies.retry import Retry, exponential

SIZE_LIMIT: Final = 1_048_576
"""In bytes. A broker's default `message.max.bytes` is 1,048,588, for a record batch with its overhead."""

E = TypeVar("E")


class Ordering(Enum):
    """Which messages of a partition are handled one after another.

    PARTITION: all of them. KEY: those of one key; a message without a key has no order. NONE: any order.
    """

    PARTITION = "partition"
    KEY = "key"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Several event types on one topic.

    Args:
        by: The place where the name of a message's type is read.
        types: The event type for each name.
        unknown: What happens to a message of another type or of none: "skip" counts it and writes
            no row; "dead-letter" keeps it as `undecodable`.

    Example:
        >>> from consumerkit.handlers.message_id import header
        >>> Events(by=header("ce_type"), types={"order.paid": dict}).unknown
        'skip'
    """

    by: Identity
    types: Mapping[str, Any]
    unknown: Literal["skip", "dead-letter"] = "skip"


@dataclass(frozen=True, slots=True)
class Received(Generic[E]):
    """One event of a batch, with its record.

    Attributes:
        event: The decoded event.
        message: The record.
        message_id: The message ID as text for people.
        attempt: As in `Context`.
    """

    event: E
    message: Message
    message_id: str
    attempt: int


class _Declared:
    """The declarations that both kinds of handler share: plain attributes, read once, when the worker is built.

    Set them on the class, on your own base class, or in `__init__`.

    Attributes:
        name: The name under which the ledger records handled messages. Required; never reuse it for
            another handler.
        topic: The topic to read. Set this or `topics`.
        topics: The topics to read, where there are several.
        publishes: The topics that the handler publishes to. The worker checks them when it starts,
            and `consumerkit topics create` creates them. `context.publish` to any other topic is
            then an error. None: the handler may publish to any topic.
        group: The consumer group; the name by default.
        message_id: The place where the message ID is read. Required.
        scope: "consumer" shares IDs across all topics of the handler, "topic" keeps them apart.
        ordering: See `Ordering`.
        retry: See `Retry`.
        brake: See `Brake`.
        dead_letter: The topic for dead letters. Without one, only the table keeps them.
        codec: See `Codec`.
        events: The event types, where one topic has several.
        fingerprint: What tells a resend from a conflict; the whole value by default.
        event_time: The place where an event's time is read. A message that the ledger does not know
            is dead-lettered as `stale` if its event is older than the worker's `retention`. None: a
            message of any age runs.
        size_limit: Decompressed bytes of key, value and headers, above which a message is
            dead-lettered as `oversized`, by reference: its facts are kept and its payload is not.
            Each header counts 24 bytes more than its name and value. 1 MiB by default: an
            uncompressed record that a broker accepts by its default is smaller, unless it has some
            thousand headers. None is no limit.
        batch_size: The most messages that share a transaction; with 1 each has its own.
        batch_time: Seconds of handling after which a transaction takes no further message.
        shares_transaction: Whether messages may share a transaction although `handle` waits for
            something other than its session. None: once consumerkit sees a coroutine handler do so,
            each message has its own transaction from then on, in this process. True: the wait is
            harmless, and messages share a transaction anyway. False: each message has its own from
            the beginning, as with `batch_size = 1`.
        concurrency: The number of lanes in each process, which is the most transactions at once.
        step_concurrency: The most calls of steps at once in each process; see `step`.
        parking_limit: How many messages of one partition may be parked; with more, the partition waits.
        start_from: Where the first run on a topic begins in partitions without a committed offset:
            "earliest" or "latest". It is decided once, for all partitions that the topic has at
            that time.
    """

    name: str
    topic: str
    topics: Sequence[str]
    publishes: Sequence[str] | None = None
    group: str
    message_id: Identity
    scope: Literal["consumer", "topic"] = "consumer"
    ordering: Ordering = Ordering.KEY
    retry: Retry = Retry(attempts=5, wait=exponential(1, max=60))
    brake: Brake = Brake()
    dead_letter: DeadLetter | None = None
    codec: Codec = Json()
    events: Events | None = None
    fingerprint: Fingerprint = WHOLE_VALUE
    event_time: Identity | None = None
    size_limit: int | None = SIZE_LIMIT
    batch_size: int = 500
    batch_time: float = 0.5
    shares_transaction: bool | None = None
    concurrency: int = 2
    step_concurrency: int = 100
    parking_limit: int = 10_000
    start_from: Literal["earliest", "latest"] = "earliest"

    OPTIONAL_METHODS: ClassVar = ("prefetch", "session_setup", "on_duplicate", "prepare", "on_dead_letter")


class Handler(_Declared, Generic[E]):
    """Handles one event after another; many share a transaction.

    `E` is the event type: a pydantic model, a dataclass, a TypedDict, a union of them, or bytes for the undecoded
    value. It is read from `Handler[E]`, also through generic bases.

    `handle` may be a coroutine function with `Context` (an `AsyncSession`), or a plain function
    with `Context[Session]`, which runs in a thread. Its result is kept with the message ID, unless
    it is None.

    Optional methods, of the same kind as `handle`:

    * `prefetch(self, events, session)`: loads what a batch of events needs in one query. The
      session's identity map then serves each `handle`. Lock rows in key order.
    * `session_setup(self, event, session)`: called before each `handle`, for settings such as `SET LOCAL`.
    * `on_duplicate(self, event, result, context)`: called for a message whose ID was processed
      before. `result` is what `handle` returned then, decoded from JSON, or None. The method may
      publish that result again: the published messages have the same IDs at each delivery of this
      message. A redelivery is a duplicate too, so the method's own changes must be idempotent. An
      error meets `retry` as in `handle`; the first message's outcome does not change.
    * `prepare(self, event, effects)`: called before the transaction, for a message that the ledger
      does not know. It runs the message's steps, whose effects are outside the database; see
      `step`. The messages of a batch run it concurrently, except that messages which `ordering`
      keeps in order follow one another. An error meets `retry`.
    * `on_dead_letter(self, letter, context)`: called for each dead letter, after it is recorded, in
      a transaction of its own. `letter` is a `DeadLetteredMessage`. What the method writes through
      `context.session` and publishes is committed once for each letter. An error never changes the
      letter: the call is tried again, ten times within about half an hour. On SQLite the call is
      the only writer until it ends, so a slow one holds up all messages.

    Example:
        >>> from consumerkit.handlers.message_id import header
        >>> class Greet(Handler[bytes]):
        ...     name = "greet"
        ...     topic = "greetings"
        ...     message_id = header("message-id")
        ...
        ...     async def handle(self, event: bytes, context: Context) -> None: ...
    """

    def handle(self, event: E, context: Context[Any]) -> object:
        """Make the changes for one event through `context.session`.

        Raises:
            Reject: Dead-letters the message at once.
            Exception: Any other error meets the handler's `retry`.
        """
        raise NotImplementedError

    if TYPE_CHECKING:  # optional methods: consumerkit calls only those that a handler defines

        def on_duplicate(self, event: E, result: Any, context: Context[Any]) -> object:
            """Handle a copy of a message that was processed before; see the class."""

        def prepare(self, event: E, effects: Any) -> object:
            """Run the steps of a message before its transaction; see the class."""

        def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext[Any]) -> object:
            """React to a message that became a dead letter; see the class."""


class BatchHandler(_Declared, Generic[E]):
    """Handles a whole batch in one call, for handlers that work in bulk.

    Any error fails the batch; `Reject("why", of=events[3])` blames one event of it. A batch whose
    error blames no event is halved until the failing event is alone.

    Optional: `on_dead_letter(self, letter, context)`, as in `Handler`.
    """

    def handle_batch(self, events: Sequence[Received[E]], context: BatchContext[Any]) -> object:
        """Make the changes for all events through `context.session`.

        Raises:
            Reject: Dead-letters one message at once; `of` names it.
            Exception: Any other error; it meets the handler's `retry` once the event is alone in
                its batch.
        """
        raise NotImplementedError


AnyHandler = Handler[Any] | BatchHandler[Any]
