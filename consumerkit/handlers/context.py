"""What a handler gets besides its event."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, Generic, NamedTuple, ParamSpec, overload

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import TypeVar

from consumerkit.errors import SessionOver
from consumerkit.handlers.no_steps import NO_STEPS
from consumerkit.handlers.steps import BoundStep, StepCalls
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
    """Refuse what cannot be sent, at the call that says it: in the outbox it would hold up what comes after it.

    Raises:
        TypeError: The key is neither text nor bytes, or the message ID is not text.
        ValueError: Kafka has no topics of such a name.
    """
    if not is_topic_name(topic):
        raise ValueError(f"publish: {topic!r} is not the name of a topic; {TOPIC_RULE}")
    if key is not None and not isinstance(key, str | bytes):
        raise TypeError(f"publish: a key is text or bytes, not {type(key).__name__}; give key=str(...)")
    if id is not None and not isinstance(id, str):
        raise TypeError(f"publish: a message ID is text, not {type(id).__name__}; give id=str(...)")


class Publisher:
    """Collects what is published within one transaction."""

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
        """Have a message sent to `topic` once, after the transaction has committed; see `Context.publish`."""
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
    """Return headers given by a user as they go into a record."""
    if not headers:
        return ()
    given: Mapping[Any, Any] = headers  # whatever its type says
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str | bytes):
            kinds = f"{type(name).__name__}: {type(value).__name__}"
            raise TypeError(f"publish: headers are text with text or bytes, not {kinds}")
    return tuple((name, value.encode() if isinstance(value, str) else value) for name, value in headers.items())


class _Publishes:
    """The part of a context that publishes."""

    __slots__ = ("_over", "_publisher")
    _publisher: Publisher
    _over: str | None

    def close(self, handler: str) -> None:
        """Refuse what is published from now on; called by consumerkit when the handler has returned."""
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

        The message is written to the outbox table beside the handler's changes, so it exists exactly if they do; the
        relay sends it to Kafka, at least once, with the same message ID each time, so that a consumer with a ledger
        handles it once.

        Args:
            topic: Where to.
            key: The record's key; text is sent as UTF-8.
            value: The record's value, encoded by the handler's codec; bytes are sent as they are, None is a tombstone.
            id: The message ID, sent as the header `message-id`; derived from this message's own where None.
            headers: Further headers.

        Raises:
            TypeError: The value cannot be encoded, or key, ID or a header is neither text nor bytes.
            ValueError: Kafka has no topics of such a name, or the handler's `publishes` is set and does not name it.
            SessionOver: The handler has returned.
        """
        if self._over is not None:
            raise SessionOver(
                f"handler {self._over!r}: publish({topic!r}) was called after the handler had returned, so the "
                "message would be lost; await what handle started before it returns"
            )
        self._publisher.publish(topic, key=key, value=value, id=id, headers=headers)


class Context(_Publishes, Generic[S]):
    """One message's surroundings, passed to `Handler.handle`.

    Attributes:
        session: The session whose transaction also holds the claim on the message ID. Commit, rollback and close are
            consumerkit's: a handler that calls them fails.
        message: The record: key, headers, timestamp and coordinates.
        message_id: The message ID as text for people.
        attempt: 1 at first; only failures of the message alone count.
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
        """Return the result of a step that `prepare`, or `run`, has run for this message.

        Raises:
            LookupError: It has not been run.
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
        """Run a step in the middle of `handle`, for one that needs what `handle` has just read.

        The message's transaction stays open, with its locks, and those of the messages that share it: prefer
        `prepare`. Not on SQLite, whose one writer is this transaction. With an `AsyncSession` the call must be awaited.

        Raises:
            SessionOver: The handler has returned.
            Exception: As for `Effects.run`.
        """
        if self._over is not None:
            raise SessionOver(f"handler {self._over!r}: {step!r} was run after the handler had returned")
        return self._steps.run(step, args, kwargs, inside=True)


class BatchContext(_Publishes, Generic[S]):
    """A batch's surroundings, passed to `BatchHandler.handle_batch`.

    Attributes:
        session: As in `Context`.
    """

    __slots__ = ("session",)

    def __init__(self, session: S, publisher: Publisher) -> None:
        self.session = session
        self._publisher = publisher
        self._over = None


AnyContext = Context[Any] | BatchContext[Any]
