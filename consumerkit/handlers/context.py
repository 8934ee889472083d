"""What a handler gets besides its event."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, Generic, NamedTuple, ParamSpec, overload

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import TypeVar

from consumerkit.errors import SessionOver
from consumerkit.handlers.effects import StepCalls
from consumerkit.handlers.no_steps import NO_STEPS
from consumerkit.handlers.steps import BoundStep
from consumerkit.message import TOPIC_RULE, Headers, Message, is_topic_name

S = TypeVar("S", default=AsyncSession)
P = ParamSpec("P")
T = TypeVar("T")


class Publication(NamedTuple):
    """A message that a handler wants published, once its transaction has committed.

    `id` is None where consumerkit derives one.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    id: str | None


def check_publication(topic: object, key: object, id: object) -> None:
    """Refuse a message that cannot be sent: in the outbox it would hold up the messages after it.

    Raises:
        TypeError: The key is neither text nor bytes, or the message ID is not text.
        ValueError: The name is not a valid name of a Kafka topic.
    """
    if not is_topic_name(topic):
        raise ValueError(f"publish: {topic!r} is not the name of a topic; {TOPIC_RULE}")
    if key is not None and not isinstance(key, str | bytes):
        raise TypeError(f"publish: a key is text or bytes, not {type(key).__name__}; give key=str(...)")
    if id is not None and not isinstance(id, str):
        raise TypeError(f"publish: a message ID is text, not {type(id).__name__}; give id=str(...)")


class Publisher:
    """Collects the messages that one transaction publishes."""

    __slots__ = ("_declared", "_encode", "_prefix", "publications")

    def __init__(
        self, encode: Callable[[object], bytes], topic_prefix: str = "", declared: Collection[str] | None = None
    ) -> None:
        self._encode = encode
        self._prefix = topic_prefix
        self._declared = declared
        self.publications: list[Publication] = []

    def publish(
        self,
        topic: str,
        *,
        key: str | bytes | None = None,
        value: object = None,
        id: str | None = None,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> None:
        """Add a message for `topic`, which is sent after the transaction has committed; see `Context.publish`."""
        check_publication(self._prefix + topic if isinstance(topic, str) else topic, key, id)
        if self._declared is not None and self._prefix + topic not in self._declared:
            raise ValueError(f"publish: {topic!r} is not in the handler's publishes; add it there, or set none at all")
        self.publications.append(
            Publication(
                self._prefix + topic,
                key.encode() if isinstance(key, str) else key,
                None if value is None else self._encode(value),
                encoded_headers(headers),
                id,
            )
        )


def encoded_headers(headers: Mapping[str, str | bytes] | None) -> Headers:
    """Return a user's headers in the form that a record holds."""
    if not headers:
        return ()
    given: Mapping[Any, Any] = headers  # a user may pass other types than the annotation says
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str | bytes):
            kinds = f"{type(name).__name__}: {type(value).__name__}"
            raise TypeError(f"publish: headers are text with text or bytes, not {kinds}")
    return tuple((name, value.encode() if isinstance(value, str) else value) for name, value in headers.items())


class Publishing:
    """The part of a context that publishes messages."""

    __slots__ = ("_over", "_publisher")
    _publisher: Publisher
    _over: str | None

    def close(self, handler: str) -> None:
        """Refuse further messages; consumerkit calls this when the handler has returned."""
        self._over = handler

    def publish(
        self,
        topic: str,
        *,
        key: str | bytes | None = None,
        value: object = None,
        id: str | None = None,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> None:
        """Publish a message in the handler's own transaction.

        The message is written to the outbox table together with the handler's changes, so it exists
        exactly if they do. The relay sends it to Kafka at least once, each time with the same
        message ID. A consumer with a ledger handles it once.

        Args:
            topic: The topic to publish to.
            key: The record's key; text is sent as UTF-8.
            value: The record's value, encoded by the handler's codec; bytes are sent as they are, None is a tombstone.
            id: The message ID, sent as the header `message-id`. Where None, it is derived from the
                ID of the message that is being handled.
            headers: Headers besides `message-id`.

        Raises:
            TypeError: The value cannot be encoded, or key, ID or a header is neither text nor bytes.
            ValueError: The name is not a valid name of a Kafka topic, or the handler's `publishes`
                is set and does not contain it.
            SessionOver: The handler has returned.
        """
        if self._over is not None:
            raise SessionOver(
                f"handler {self._over!r}: publish({topic!r}) was called after the handler had returned, so the "
                "message would be lost; await what handle started before it returns"
            )
        self._publisher.publish(topic, key=key, value=value, id=id, headers=headers)


class Context(Publishing, Generic[S]):
    """What `Handler.handle` gets besides its event.

    Attributes:
        session: The session whose transaction also holds the claim on the message ID. Only
            consumerkit commits, rolls back and closes it: a handler that does so fails.
        message: The record: key, headers, timestamp and coordinates.
        message_id: The message ID as text for people.
        attempt: The number of this attempt, from 1; only failures of the message alone count.
    """

    __slots__ = ("_steps", "attempt", "message", "message_id", "session")

    def __init__(
        self,
        session: S,
        message: Message,
        message_id: str,
        attempt: int,
        publisher: Publisher,
        steps: StepCalls = NO_STEPS,
    ) -> None:
        self.session = session
        self.message = message
        self.message_id = message_id
        self.attempt = attempt
        self._publisher = publisher
        self._steps = steps
        self._over = None

    def done(self, step: BoundStep[..., T]) -> T:
        """Return the result of a step that `prepare` or `run` has run for this message.

        Raises:
            LookupError: The step has not been run.
        """
        result: T = self._steps.done(step)
        return result

    @overload
    def run(
        self: Context[AsyncSession], step: BoundStep[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def run(self: Context[Session], step: BoundStep[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...

    def run(self: Context[Any], step: BoundStep[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run a step within `handle`, where the step needs what `handle` has read.

        Prefer `prepare`: while the step runs, the transaction stays open, with its locks, for this
        message and for the messages that share it. It does not work on SQLite, since this
        transaction is its only writer. With an `AsyncSession` the call must be awaited.

        Raises:
            SessionOver: The handler has returned.
            Exception: As for `Effects.run`.
        """
        if self._over is not None:
            raise SessionOver(f"handler {self._over!r}: {step!r} was run after the handler had returned")
        return self._steps.run(step, args, kwargs, inside=True)


class BatchContext(Publishing, Generic[S]):
    """What `BatchHandler.handle_batch` gets besides its events.

    Attributes:
        session: As in `Context`.
    """

    __slots__ = ("session",)

    def __init__(self, session: S, publisher: Publisher) -> None:
        self.session = session
        self._publisher = publisher
        self._over = None


AnyContext = Context[Any] | BatchContext[Any]
