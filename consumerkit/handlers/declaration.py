"""A handler's declarations: read once, checked, and frozen for the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.attributes import Attributes, in_short
from consumerkit.handlers.codecs import Codec, Decode
from consumerkit.handlers.declared_steps import DeclaredStep, declared_steps
from consumerkit.handlers.decoding import SKIP, decoder_of, decoder_of_several
from consumerkit.handlers.event_type import MISSING, declared_event_type
from consumerkit.handlers.handler import AnyHandler, BatchHandler, Handler, Ordering
from consumerkit.handlers.message_id import Fingerprint, Identity
from consumerkit.handlers.methods import checked_methods
from consumerkit.policies.brake import Brake
from consumerkit.policies.dead_letter import DeadLetter
from consumerkit.policies.retry import Retry

__all__ = ["SKIP", "Declaration", "declare", "declare_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What the engine needs to know about a handler.

    Attributes:
        handler: The user's object.
        decode: Returns the event, None for a tombstone that the type admits, or `SKIP`.
        is_async: Whether `handle` is a coroutine function.
        is_batch: Whether the handler is a `BatchHandler`.
        prefetch, session_setup, on_duplicate, prepare, on_dead_letter: The user's methods, or None.
        steps: The steps that `prepare` and `handle` may run, by name.
        publishes: As in `Handler`, with `topic_prefix` before each name.
        topic_prefix: Put before the name of each topic that `context.publish` is given. The topics
            in this declaration already have it.
        remembered: Seconds for which the ledger remembers a message ID, from the worker; None is
            for ever.
        undoes: Whether the record has steps of it, so that those of its dead messages are to be
            undone; a former version may have had them.
        others: As in `Handler`.
    """

    handler: AnyHandler
    name: str
    topics: tuple[str, ...]
    group: str
    identity: Identity
    scope: Literal["consumer", "topic"]
    ordering: Ordering
    retry: Retry
    brake: Brake
    dead_letter: DeadLetter | None
    decode: Decode
    encode: Callable[[object], bytes]
    fingerprint: Fingerprint
    event_time: Identity | None
    size_limit: int | None
    batch_size: int
    batch_time: float
    shares_transaction: bool | None = None
    concurrency: int
    parking_limit: int
    start_from: Literal["earliest", "latest"]
    is_async: bool
    is_batch: bool
    prefetch: Callable[..., Any] | None
    session_setup: Callable[..., Any] | None
    remembered: float | None = None
    topic_prefix: str = ""
    publishes: tuple[str, ...] | None = None
    on_duplicate: Callable[..., Any] | None
    prepare: Callable[..., Any] | None = None
    on_dead_letter: Callable[..., Any] | None = None
    steps: Mapping[str, DeclaredStep] = field(default_factory=dict)
    step_concurrency: int = 1
    undoes: bool = False

    @property
    def holds_key(self) -> bool:
        """Whether a dead message makes later messages of its key wait."""
        return self.dead_letter is not None and self.dead_letter.hold_key

    @property
    def runs_resends(self) -> bool:
        """Whether a resend of a dead message runs again."""
        return self.dead_letter is not None and self.dead_letter.resend == "run"


def declare(handler: AnyHandler) -> Declaration:
    """Read and check what a handler declares.

    Raises:
        ConfigurationError: A declaration is wrong; one line names the handler, the attribute, the
            value and the way out.
    """
    _check_is_handler(handler)
    attributes = Attributes(handler)
    attributes.refuse_near_misses()
    attributes.refuse_what_is_set_elsewhere()
    name = attributes.name()
    topics = attributes.topics()
    identity = attributes.identity()
    codec = attributes.codec()
    methods = checked_methods(attributes)
    return Declaration(
        handler=handler,
        name=name,
        topics=topics,
        publishes=attributes.publishes(),
        group=attributes.group(name),
        identity=identity,
        scope=attributes.scope(),
        ordering=attributes.ordering(),
        retry=attributes.retry(),
        brake=attributes.brake(),
        dead_letter=attributes.dead_letter(topics, attributes.ordering()),
        decode=_decoder(attributes, identity, codec),
        encode=codec.encode,
        fingerprint=attributes.fingerprint(),
        event_time=attributes.event_time(),
        size_limit=None if handler.size_limit is None else attributes.count("size_limit"),
        batch_size=attributes.count("batch_size"),
        batch_time=attributes.seconds("batch_time"),
        shares_transaction=attributes.shares_transaction(),
        concurrency=attributes.count("concurrency"),
        parking_limit=attributes.count("parking_limit"),
        start_from=attributes.start_from(),
        steps=declared_steps(attributes, is_async=methods.is_async),
        step_concurrency=attributes.count("step_concurrency"),
        **methods._asdict(),
    )


def declare_all(handlers: Sequence[AnyHandler]) -> tuple[Declaration, ...]:
    """Read and check the handlers of one worker, each by itself and all together.

    Raises:
        ConfigurationError: As in `declare`. Also where two handlers share a name or a group, or one
            reads another's dead letters.
    """
    _check_are_several(handlers)
    declarations = tuple(map(declare, handlers))
    check_together(declarations)
    return declarations


def check_together(declarations: Sequence[Declaration]) -> None:
    """Check that the handlers of one worker do not share what they must not.

    Raises:
        ConfigurationError: Two handlers share a name or a group, or one reads another's dead
            letters.
    """
    names: dict[str, Declaration] = {}
    groups: dict[str, Declaration] = {}
    for declaration in declarations:
        if declaration.name in names:
            _refuse_pair(declaration, names[declaration.name], f"share the name {declaration.name!r}")
        if declaration.group in groups:
            _refuse_pair(declaration, groups[declaration.group], f"share the consumer group {declaration.group!r}")
        names[declaration.name] = groups[declaration.group] = declaration
    _check_dead_letter_topics(declarations)


def _check_are_several(handlers: object) -> None:
    if not isinstance(handlers, Sequence) or not handlers:
        raise ConfigurationError(
            f"handlers={in_short(handlers)} is not a list of handlers; give a list of at least one"
        )


def _check_is_handler(handler: object) -> None:
    if isinstance(handler, type) and issubclass(handler, Handler | BatchHandler):
        raise ConfigurationError(
            f"{handler.__name__} is a class; pass an instance, {handler.__name__}(), not the class"
        )
    if not isinstance(handler, Handler | BatchHandler):
        raise ConfigurationError(f"{in_short(handler)} is not a handler; subclass Handler[...] or BatchHandler[...]")


def _decoder(attributes: Attributes, identity: Identity, codec: Codec) -> Decode:
    events = attributes.events()
    try:
        event_type = declared_event_type(type(attributes.handler)) if events is None else MISSING
    except ConfigurationError as error:
        attributes.refuse(f"{error}; say it in the class, as in Handler[OrderPaid]")
    if events is None and event_type is MISSING:
        attributes.refuse("has no event type; say it in the class, as in Handler[OrderPaid]")
    event_types = [event_type] if events is None else list(events.types.values())
    if bytes in event_types and any(source.needs_event for source in identity.sources):
        attributes.refuse_value("message_id", "reads a field, and the event is bytes, which have none; read a header")
    attributes.refuse_unknown_fields(event_types)
    attributes.refuse_unstable_fields(event_types)
    try:
        return decoder_of(codec, event_type) if events is None else decoder_of_several(codec, events)
    except Exception as error:  # noqa: BLE001 - a codec may raise anything for a type that it cannot decode
        why = str(error).partition("\n")[0]
        attributes.refuse(f"{in_short(codec)} cannot decode {in_short(event_types)}: {why}")


def _check_dead_letter_topics(declarations: Sequence[Declaration]) -> None:
    consumers = {topic: declaration for declaration in declarations for topic in declaration.topics}
    for declaration in declarations:
        if declaration.dead_letter is not None and declaration.dead_letter.topic in consumers:
            reader = consumers[declaration.dead_letter.topic]
            Attributes(declaration.handler).refuse_value(
                "dead_letter", f"is among the topics of {Attributes(reader.handler).label}; use another topic"
            )


def _refuse_pair(one: Declaration, other: Declaration, problem: str) -> None:
    classes = f"{type(other.handler).__name__} and {type(one.handler).__name__}"
    raise ConfigurationError(f"{classes} {problem}; give each handler its own")
