"""What users subclass: one class per effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal

from typing_extensions import TypeVar

from consumerkit.handlers.codecs import Codec, Json
from consumerkit.handlers.context import BatchContext, Context
from consumerkit.handlers.message_id import WHOLE_VALUE, Fingerprint, Identity
from consumerkit.message import Message
from consumerkit.policies.brake import Brake
from consumerkit.policies.dead_letter import DeadLetter
from consumerkit.policies.retry import Retry, exponential

SIZE_LIMIT: Final = 1_048_576
"""Bytes: a broker's own `message.max.bytes` is 1,048,588, for a batch with what belongs to it."""

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
        by: Where the name of a message's type is read.
        types: The event type for each name.
        unknown: What becomes of a message of another type or of none: "skip" counts it, leaves no row and goes on;
            "dead-letter" keeps it as `undecodable`.

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
    """The declarations that both kinds of handler share; plain attributes, read once, when the worker is built.

    Set them on the class, on a base class of yours, or in `__init__`.

    Attributes:
        name: The name under which the ledger keeps what was handled. Required; never reuse it for something else.
        topic: The topic to read; or
        topics: several.
        publishes: The topics that the handler publishes to, checked when the worker starts and made by
            `consumerkit topics create`. `context.publish` to any other topic is then an error. None: not declared,
            and any topic may be published to.
        group: The consumer group; the name by default.
        message_id: Where the message ID is read. Required.
        scope: "consumer" shares IDs across all topics of the handler, "topic" keeps them apart.
        ordering: See `Ordering`.
        retry: See `Retry`.
        brake: See `Brake`.
        dead_letter: The topic for dead letters; without one they are kept in the table alone.
        codec: See `Codec`.
        events: Several event types on one topic.
        fingerprint: What tells a resend from a conflict; the whole value by default.
        event_time: Where the time is read at which an event happened. A message whose event is older than the worker's
            `retention`, and which the ledger does not know, is dead-lettered as `stale`. None: any message runs.
        size_limit: Bytes of key, value and headers, decompressed, above which a message is dead-lettered as
            `oversized`, by reference: its facts are kept and its payload is not. Each header counts 24 bytes more
            than its name and value. 1 MiB by default, which no record of less than some thousand headers exceeds
            that a broker takes uncompressed by its own default. None is no limit.
        batch_size: The most messages that share a transaction; 1 opts out.
        batch_time: Seconds of handling after which a transaction takes no further message.
        shares_transaction: Whether messages may share a transaction although `handle` waits for something else than
            its session. None: where a coroutine handler is seen to do so, each message has a transaction of its own
            from then on, in this process. True: the wait is harmless, so they share one all the same. False: each
            has one of its own from the beginning, as with `batch_size = 1`.
        concurrency: Lanes in each process: transactions in flight at once.
        step_concurrency: Calls of steps that are under way at once in each process; see `step`.
        parking_limit: How many messages of one partition may be parked; with more, the partition waits.
        start_from: Where the first run on a topic begins, in partitions without a committed offset: "earliest" or
            "latest". It is decided once, for all partitions that the topic then has.
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

    OPTIONAL_METHODS: ClassVar = ("prefetch", "session_setup", "on_duplicate", "prepare")


class Handler(_Declared, Generic[E]):
    """Handles one event after another; many share a transaction.

    `E` is the event type: a pydantic model, a dataclass, a TypedDict, a union of them, or bytes for the undecoded
    value. It is read from `Handler[E]`, also through generic bases.

    `handle` may be a coroutine function with `Context` (an `AsyncSession`), or a plain function with
    `Context[Session]`, which runs in a thread. What it returns is kept with the message ID, unless it is None.

    Optional methods, of the same kind as `handle`:

    * `prefetch(self, events, session)`: load what a group of events needs in one query; the session's identity map then
      serves each `handle`. Lock rows in key order.
    * `session_setup(self, event, session)`: called before each `handle`, for settings such as `SET LOCAL`.
    * `on_duplicate(self, event, result, context)`: called for a message whose ID was processed before, with what
      `handle` returned then, decoded from JSON, or None. It may announce that result again: what it publishes has IDs
      that are the same whenever this very message is delivered. A redelivery is a duplicate too, so changes of its own
      must be idempotent. Where it raises, `retry` is met as for `handle`; the first message's outcome stays as it is.
    * `prepare(self, event, effects)`: called before the transaction, for messages that the ledger does not know: it
      runs the steps of a message, whose effects are outside the database; see `step`. Those of a batch run at once,
      except that messages of one key, in their `ordering`, follow one another. What it raises meets `retry`.

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
            Reject: To have the message dead-lettered at once.
            Exception: Any other error meets the handler's `retry`.
        """
        raise NotImplementedError

    if TYPE_CHECKING:  # optional: what is not defined is not called

        def on_duplicate(self, event: E, result: Any, context: Context[Any]) -> object:
            """Handle a copy of a message that was processed before; see the class."""

        def prepare(self, event: E, effects: Any) -> object:
            """Run the steps of a message before its transaction; see the class."""


class BatchHandler(_Declared, Generic[E]):
    """Handles a whole batch in one call, for handlers that work in bulk.

    Any error fails the batch; `Reject("why", of=events[3])` blames one of it. A batch that fails without saying whose
    fault it was is halved until the culprit stands alone.
    """

    def handle_batch(self, events: Sequence[Received[E]], context: BatchContext[Any]) -> object:
        """Make the changes for all events through `context.session`.

        Raises:
            Reject: To have one message dead-lettered at once: `of` names it.
            Exception: Any other error; alone, it meets the handler's `retry`.
        """
        raise NotImplementedError


AnyHandler = Handler[Any] | BatchHandler[Any]
