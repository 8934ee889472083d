"""Declarations are read from every place where a user may set them, and every wrong one is one clear line."""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import new_class
from typing import Annotated, Any

import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from consumerkit import (
    BatchContext,
    BatchHandler,
    ConfigurationError,
    Context,
    DeadLetter,
    DeadLetterContext,
    DeadLetteredMessage,
    Events,
    Handler,
    Json,
    Ordering,
    Received,
    Retry,
    coordinates,
    event_field,
    event_fields,
    header,
)
from consumerkit.handlers.attributes import in_short
from consumerkit.handlers.declaration import declare, declare_all
from consumerkit.handlers.methods import method_of

WHO = "Pay (name 'pay'): "
NO_NAME = 'Pay: name is missing; set name = "...", and never reuse it: the ledger knows the handler by it'
LONG = f"'{'x' * 37}...{'x' * 38}'"
TOPIC_RULE = "a topic's name has 1 to 249 of the characters a-z A-Z 0-9 . _ -"


class Pay(Handler[dict[str, int]]):
    name = "pay"
    topic = "payments"
    message_id = header("id")

    async def handle(self, event: dict[str, int], context: Context) -> None: ...


class Plain(Handler[dict[str, int]]): ...


def pay(**attributes: Any) -> Any:
    """Return a handler like `Pay` with some attributes replaced, or taken away by `DELETED`."""
    namespace = {**{k: v for k, v in vars(Pay).items() if not k.startswith("__")}, **attributes}
    namespace = {name: value for name, value in namespace.items() if value is not DELETED}
    return type("Pay", (Plain,), namespace)()


DELETED = object()


def refusal(handler: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        declare(handler)
    return str(caught.value)


def test_defaults_are_what_the_handler_documents() -> None:
    handler = Pay()
    declaration = declare(handler)
    assert declaration.handler is handler
    assert (declaration.name, declaration.topics, declaration.group) == ("pay", ("payments",), "pay")
    assert (declaration.ordering, declaration.scope, declaration.start_from) == (Ordering.KEY, "consumer", "earliest")
    assert (declaration.batch_size, declaration.batch_time, declaration.concurrency) == (500, 0.5, 2)
    assert (declaration.size_limit, declaration.dead_letter) == (1_048_576, None)
    assert (declaration.is_async, declaration.is_batch) == (True, False)
    assert (declaration.prefetch, declaration.session_setup, declaration.on_duplicate) == (None, None, None)
    assert declaration.encode({"a": 1}) == b'{"a":1}'


def test_declarations_may_stand_in_a_base_class_the_class_and_the_object() -> None:
    class House(Handler[bytes]):
        message_id = header("house-id")
        ordering = Ordering.NONE

        def __init__(self, tenant: str) -> None:
            self.name = f"pay-{tenant}"
            self.topics = [f"{tenant}.a", f"{tenant}.b"]

        async def handle(self, event: bytes, context: Context) -> None: ...

    class Special(House):
        ordering = Ordering.PARTITION
        group = "special"

    declaration = declare(Special("one"))
    assert (declaration.name, declaration.topics, declaration.group) == ("pay-one", ("one.a", "one.b"), "special")
    assert (declaration.ordering, repr(declaration.identity)) == (Ordering.PARTITION, "header('house-id')")


def test_a_declaration_is_frozen_against_later_changes_of_the_object() -> None:
    handler = Pay()
    declaration = declare(handler)
    handler.batch_size = 7
    assert declaration.batch_size == 500
    with pytest.raises(AttributeError):
        declaration.batch_size = 7  # type: ignore[misc]


MISDECLARED: list[tuple[dict[str, Any], str]] = [
    ({"name": DELETED}, NO_NAME),
    ({"name": 3}, "Pay: name=3 is not text"),
    ({"name": ""}, "Pay (name ''): name='' is empty; give it at least one character"),
    ({"name": "x" * 201}, f"Pay (name {LONG}): name={LONG} has 201 characters; give it at most 200"),
    ({"name": "pay\n"}, "Pay (name 'pay\\n'): name='pay\\n' has odd characters; use letters, digits and . _ : -"),
    ({"name": "päy"}, "Pay (name 'päy'): name='päy' has odd characters; use letters, digits and . _ : -"),
    ({"topic": DELETED}, WHO + 'topic is missing; set topic = "..." or topics = ("...", "...")'),
    ({"topics": ("a",)}, WHO + "both topic and topics are set; keep one of them"),
    ({"topic": ""}, WHO + f"topic='' is not a topic name; {TOPIC_RULE}"),
    ({"topic": "a b"}, WHO + f"topic='a b' is not a topic name; {TOPIC_RULE}"),
    ({"topic": ".."}, WHO + f"topic='..' is not a topic name; {TOPIC_RULE}"),
    ({"topic": "a\n"}, WHO + f"topic='a\\n' is not a topic name; {TOPIC_RULE}"),
    ({"topic": ("a",)}, WHO + f"topic=('a',) is not a topic name; {TOPIC_RULE}"),
    ({"topic": DELETED, "topics": ()}, WHO + "topics=() names no topic; give at least one"),
    ({"topic": DELETED, "topics": "abc"}, WHO + "topics='abc' is not a sequence of names; set topics = "
        '("...", "...") or topic = "..."'),
    ({"topic": DELETED, "topics": ("a", "a")}, WHO + "topics=('a', 'a') names a topic twice; name each once"),
    ({"topic": DELETED, "topics": ("a", 5)}, WHO + f"topics=('a', 5) has 5, which is not a topic name; {TOPIC_RULE}"),
    ({"publishes": "abc"}, WHO + "publishes='abc' is not a sequence of names; set publishes = (\"...\",) or None"),
    ({"publishes": 3}, WHO + "publishes=3 is not a sequence of names; set publishes = (\"...\",) or None"),
    ({"publishes": ("a b",)}, WHO + f"publishes=('a b',) has 'a b', which is not a topic name; {TOPIC_RULE}"),
    ({"publishes": ["a", "a"]}, WHO + "publishes=['a', 'a'] names a topic twice; name each once"),
    ({"publish": "a"}, WHO + "publish is no declaration; did you mean publishes? If not, rename it"),
    ({"group": ""}, WHO + "group='' is empty; give it at least one character"),
    ({"group": 3}, WHO + "group=3 is not text"),
    ({"group": "a "}, WHO + "group='a ' has characters that cannot be seen; use letters, digits and . _ : -"),
    ({"message_id": DELETED}, WHO + 'message_id is missing; set header("..."), event_field("...") or coordinates()'),
    ({"message_id": "id"}, WHO + "message_id='id' is not an Identity; set header(...), event_field(...) or "
        "coordinates()"),
    ({"ordering": "key"}, WHO + "ordering='key' is not an Ordering; set Ordering.PARTITION, Ordering.KEY or "
        "Ordering.NONE"),
    ({"retry": 3}, WHO + "retry=3 is not a Retry; set Retry(attempts=...), Retry(deadline=...) or both"),
    ({"retry": None}, WHO + "retry=None is not a Retry; set Retry(attempts=...), Retry(deadline=...) or both"),
    ({"dead_letter": "dlq"}, WHO + "dead_letter='dlq' is not a DeadLetter; set DeadLetter(\"...\") or None"),
    ({"dead_letter": DeadLetter("payments")}, WHO + "dead_letter=DeadLetter(topic='payments') is among the topics the "
        "handler consumes; give dead letters another topic"),
    ({"dead_letter": DeadLetter("d", resend="again")}, WHO + "dead_letter: resend='again' is neither \"skip\" nor "  # type: ignore[arg-type]
        "\"run\""),
    ({"dead_letter": DeadLetter("d", hold_key=1)}, WHO + "dead_letter: hold_key=1 is neither True nor False"),  # type: ignore[arg-type]
    ({"dead_letter": DeadLetter("d", hold_key=True), "ordering": Ordering.NONE}, WHO + "dead_letter: hold_key=True "
        "holds keys, and ordering=Ordering.NONE has none; set ordering = Ordering.KEY, or leave hold_key out"),
    ({"dead_letter": DeadLetter("d", hold_key=True), "ordering": Ordering.PARTITION}, WHO + "dead_letter: "
        "hold_key=True holds keys, and ordering=Ordering.PARTITION has none; "
        "set ordering = Ordering.KEY, or leave hold_key out"),
    ({"codec": "json"}, WHO + "codec='json' is not a Codec; give an object with decoder() and encode(), such as "
        "Json()"),
    ({"codec": Json}, WHO + "codec=<class 'consumerkit.handlers.codecs.Json'> is a class; set codec = Json()"),
    ({"fingerprint": ("id",)}, WHO + "fingerprint=('id',) is not a Fingerprint; set event_fields(\"...\", \"...\")"),
    ({"events": {"a": int}}, WHO + "events={'a': <class 'int'>} is not an Events; set Events(by=header(...), "
        "types={...})"),
    ({"events": Events(by="type", types={"a": int})}, WHO + "events: by='type' is not one header or field; set "  # type: ignore[arg-type]
        "by=header(...)"),
    ({"events": Events(by=header("a", "b"), types={"a": int})}, WHO + "events: by=header('a', 'b') is not one header "
        "or field; set by=header(...)"),
    ({"events": Events(by=coordinates(), types={"a": int})}, WHO + "events: by=coordinates() is not one header or "
        "field; set by=header(...)"),
    ({"events": Events(by=header("a"), types={})}, WHO + "events: types={} is not a mapping; set "
        'types={"order.paid": OrderPaid}'),
    ({"events": Events(by=header("a"), types={"": int})}, WHO + "events: types has the name ''; give each type a name "
        "that is text"),
    ({"events": Events(by=header("a"), types={"\ud800": int})}, WHO + "events: types has the name '\\ud800'; give "
        "each type a name that is text"),
    ({"events": Events(by=header("a"), types={"a": int}, unknown="no")}, WHO + "events: unknown='no' is neither "  # type: ignore[arg-type]
        '"skip" nor "dead-letter"'),
    ({"scope": "global"}, WHO + "scope='global' is not one of 'consumer', 'topic'"),
    ({"start_from": "end"}, WHO + "start_from='end' is not one of 'earliest', 'latest'"),
    ({"start_from": ["latest"]}, WHO + "start_from=['latest'] is not one of 'earliest', 'latest'"),
    *(({attribute: value}, WHO + f"{attribute}={value!r} is not a whole number >= 1")
      for attribute in ("batch_size", "concurrency", "size_limit") for value in (0, -1, 1.5, True, "9")),
    *(({"shares_transaction": value}, f"{WHO}shares_transaction={value!r} is none of True, False and None")
      for value in (0, "yes")),
    *(({"batch_time": value}, WHO + f"batch_time={value!r} is not a number of seconds > 0")
      for value in (0, -0.5, True, "1", float("inf"), float("nan"), None)),
    ({"handle": DELETED}, WHO + "handle is missing; define handle(self, event, context)"),
    ({"handle": "x"}, WHO + "handle='x' is not a method; define handle(self, event, context)"),
    ({"prefetch": 3}, WHO + "prefetch=3 is not a method; define prefetch(self, events, session)"),
    ({"retries": 3}, WHO + "retries is no declaration; did you mean retry? If not, rename it"),
    ({"max_attempts": 3}, WHO + "max_attempts is no declaration; did you mean retry? If not, rename it"),
    ({"batch": 3}, WHO + "batch is no declaration; did you mean batch_size? If not, rename it"),
    ({"dlq": "d"}, WHO + "dlq is no declaration; did you mean dead_letter? If not, rename it"),
    ({"message_id": DELETED, "idempotency_key": header("a")}, WHO + "idempotency_key is no declaration; did you mean "
        "message_id? If not, rename it"),
    ({"ordring": Ordering.NONE}, WHO + "ordring is no declaration; did you mean ordering? If not, rename it"),
    ({"group_id": "g"}, WHO + "group_id is no declaration; did you mean group? If not, rename it"),
    ({"dead_letter_topic": "g"}, WHO + "dead_letter_topic is no declaration; did you mean dead_letter? If not, "
        "rename it"),
    ({"pre_fetch": lambda self, events, session: None}, WHO + "pre_fetch is no declaration; did you mean prefetch? If "
        "not, rename it"),
    ({"handle": DELETED, "handel": lambda self, event, context: None}, WHO + "handel is no declaration; did you mean "
        "handle? If not, rename it"),
]  # fmt: skip


@pytest.mark.parametrize("attributes, message", MISDECLARED)
def test_a_misdeclaration_is_one_line_with_the_handler_the_value_and_the_way_out(
    attributes: dict[str, Any], message: str
) -> None:
    assert refusal(pay(**attributes)) == message
    assert "\n" not in message


def test_attributes_of_the_users_own_are_left_alone() -> None:
    class Busy(Pay):
        mailer: object = None
        table = "payments"
        out_topic = "receipts"
        message_key = b"x"
        names = ("a",)
        name = "busy"
        handled = 0
        prefetched = True

        def __init__(self) -> None:
            self.seen = 0
            self.clock = lambda: 0.0

        def handle_refund(self) -> None: ...
        def setup(self) -> None: ...

    assert declare(Busy()).name == "busy"


def test_a_near_miss_set_in_init_is_found_too() -> None:
    class Typo(Pay):
        def __init__(self) -> None:
            self.batchsize = 5

    assert refusal(Typo()) == (
        "Typo (name 'pay'): batchsize is no declaration; did you mean batch_size? If not, rename it"
    )


def test_a_long_value_is_cut_and_stays_on_one_line() -> None:
    class Wordy:
        def __repr__(self) -> str:
            return "line\n" * 1000

    message = refusal(pay(ordering=Wordy()))
    assert len(message) < 250
    assert "\n" not in message


@pytest.mark.parametrize(
    "given, message",
    [
        (Pay, "Pay is a class; pass an instance, Pay(), not the class"),
        ("pay", "'pay' is not a handler; subclass Handler[...] or BatchHandler[...]"),
        (None, "None is not a handler; subclass Handler[...] or BatchHandler[...]"),
    ],
)
def test_what_is_no_handler_object_is_refused(given: Any, message: str) -> None:
    assert refusal(given) == message


async def _one(self: Any, event: Any) -> None: ...
async def _three(self: Any, event: Any, context: Any, session: Any) -> None: ...
async def _keyword_only(self: Any, event: Any, *, context: Any) -> None: ...
async def _more_with_default(self: Any, event: Any, context: Any, more: int = 0) -> None: ...
async def _whatever(*arguments: Any) -> None: ...
async def _async_generator(self: Any, event: Any, context: Any) -> Any:
    yield


def _generator(self: Any, event: Any, context: Any) -> Any:
    yield


async def _async_with_session(self: Any, event: Any, context: Context[Session]) -> None: ...
async def _async_with_strings(self: Any, event: "Nowhere", context: "Context[Session]") -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def _async_with_batch(self: Any, event: Any, context: BatchContext) -> None: ...
def _plain_with_bare_context(self: Any, event: Any, context: Context) -> None: ...
def _plain_with_async_session(self: Any, event: Any, context: Context[AsyncSession]) -> None: ...
def _plain_with_session(self: Any, event: Any, context: Context[Session]) -> None: ...
def _plain(self: Any, event, context):  # type: ignore[no-untyped-def]
    ...


@functools.wraps(Pay.handle)
def _plain_around_async(*arguments: Any) -> Any:
    return Pay.handle(*arguments)


@functools.wraps(Pay.handle)
async def _async_around_async(*arguments: Any) -> Any:
    return await Pay.handle(*arguments)


OTHER_PARAMETERS = "handle takes other parameters than consumerkit passes; define handle(self, event, context)"
GENERATOR = "handle is a generator, so it would never run; take out `yield`"
ASYNC_HOLDS_SESSION = "handle is `async def` and its context holds a Session; annotate Context, or make it plain `def`"
PLAIN_HOLDS_ASYNC = (
    "handle is plain `def` and its context holds an AsyncSession; annotate Context[Session], or make it `async def`"
)


@pytest.mark.parametrize(
    "handle, problem",
    [
        (_one, OTHER_PARAMETERS),
        (_three, OTHER_PARAMETERS),
        (_keyword_only, OTHER_PARAMETERS),
        (_async_generator, GENERATOR),
        (_generator, GENERATOR),
        (_async_with_session, ASYNC_HOLDS_SESSION),
        (_async_with_strings, ASYNC_HOLDS_SESSION),
        (_async_with_batch, "handle is annotated with BatchContext and is given a Context"),
        (_plain_with_bare_context, PLAIN_HOLDS_ASYNC),
        (_plain_with_async_session, PLAIN_HOLDS_ASYNC),
        (
            functools.partial(_plain_around_async, None),
            "handle is a plain function around a coroutine function; make the decorator's `async def`",
        ),
        (
            _plain_around_async,
            "handle is a plain function around a coroutine function; make the decorator's `async def`",
        ),
    ],
)
def test_a_handle_that_cannot_be_called_as_declared_is_refused(handle: Any, problem: str) -> None:
    assert refusal(pay(handle=handle)) == WHO + problem


async def test_a_partial_in_a_class_body_is_called_without_the_handler(recwarn: pytest.WarningsRecorder) -> None:
    """In every version of Python: one version warns, and a later one would pass the handler first."""
    seen: list[object] = []

    async def keep(given: list[object], event: object, context: object) -> None:
        given.append((event, context))

    handler: Any = pay(handle=functools.partial(keep, seen))
    declare(handler)
    await method_of(handler, "handle")("event", "context")
    assert seen == [("event", "context")]
    assert not recwarn.list


class _AsyncCallable:
    async def __call__(self, event: Any, context: Any) -> None: ...


@pytest.mark.parametrize(
    "handle, is_async",
    [
        (_more_with_default, True),
        (_whatever, True),
        (_async_around_async, True),
        (_AsyncCallable(), True),
        (functools.partial(_one, None), True),
        (functools.partial(_three, None, session=None), True),
        (_plain_with_session, False),
        (_plain, False),
    ],
)
def test_a_handle_may_be_of_either_kind_and_decorated(handle: Any, is_async: bool) -> None:
    if isinstance(handle, functools.partial) and handle.func is _one:
        handle = functools.partial(_more_with_default, None)
    assert declare(pay(handle=handle)).is_async is is_async


def test_prefetch_and_session_setup_are_bound_methods() -> None:
    class Prepared(Pay):
        async def prefetch(self, events: Sequence[dict[str, int]], session: AsyncSession) -> None: ...
        async def session_setup(self, event: dict[str, int], session: AsyncSession) -> None: ...

    handler = Prepared()
    declaration = declare(handler)
    assert declaration.prefetch == handler.prefetch
    assert declaration.session_setup == handler.session_setup
    assert inspect.iscoroutinefunction(declaration.prefetch)


def test_on_duplicate_is_a_bound_method_of_handles_own_kind_and_shape() -> None:
    class Told(Pay):
        async def on_duplicate(self, event: dict[str, int], result: Any, context: Context) -> None: ...

    class Confused(Pay):
        async def on_duplicate(self, event: dict[str, int], result: Any, context: Context[Session]) -> None: ...

    async def three(self: Any, event: Any, result: Any, context: Any) -> None: ...
    def plain(self: Any, event: Any, result: Any, context: Any) -> None: ...

    handler = Told()
    assert declare(handler).on_duplicate == handler.on_duplicate
    assert declare(pay(on_duplicate=three)).on_duplicate is not None
    assert refusal(pay(on_duplicate=plain)) == (
        f"{WHO}handle is `async def` and on_duplicate is plain `def`; make both the same"
    )
    assert refusal(pay(on_duplicate=_async_two)) == (
        f"{WHO}on_duplicate takes other parameters than consumerkit passes; define on_duplicate(self, event, "
        "result, context)"
    )
    assert refusal(Confused()).endswith(
        "on_duplicate is `async def` and its context holds a Session; annotate Context, or make it plain `def`"
    )


def test_on_dead_letter_is_a_method_of_handles_own_kind_and_shape() -> None:
    class Reacting(Pay):
        async def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext) -> None: ...

    class Confused(Pay):
        async def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext[Session]) -> None: ...

    class Mistaken(Pay):
        async def on_dead_letter(self, letter: DeadLetteredMessage, context: Context) -> None: ...  # type: ignore[override]

    class Many(Bulk):
        def on_dead_letter(self, letter: DeadLetteredMessage, context: DeadLetterContext[Session]) -> None: ...

    handler = Reacting()
    assert declare(handler).on_dead_letter == handler.on_dead_letter
    assert declare(Many()).on_dead_letter is not None
    assert refusal(pay(on_dead_letter=_plain_two)) == (
        f"{WHO}handle is `async def` and on_dead_letter is plain `def`; make both the same"
    )
    assert refusal(pay(on_dead_letter=_plain_one)) == (
        f"{WHO}on_dead_letter takes other parameters than consumerkit passes; define on_dead_letter(self, letter, "
        "context)"
    )
    assert refusal(Confused()).endswith(
        "on_dead_letter is `async def` and its context holds a Session; annotate DeadLetterContext, or make it plain "
        "`def`"
    )
    assert refusal(Mistaken()).endswith("on_dead_letter is annotated with Context and is given a DeadLetterContext")


async def _async_two(self: Any, one: Any, two: Any) -> None: ...
def _plain_two(self: Any, one: Any, two: Any) -> None: ...
def _plain_one(self: Any, one: Any) -> None: ...


@pytest.mark.parametrize("name, parameters", [("prefetch", "events, session"), ("session_setup", "event, session")])
def test_optional_methods_are_of_handles_own_kind_and_shape(name: str, parameters: str) -> None:
    assert refusal(pay(**{name: _plain_two})) == (
        f"{WHO}handle is `async def` and {name} is plain `def`; make both the same"
    )
    assert refusal(pay(**{"handle": _plain, name: _async_two})) == (
        f"{WHO}handle is plain `def` and {name} is `async def`; make both the same"
    )
    assert refusal(pay(**{name: _plain_one})) == (
        f"{WHO}{name} takes other parameters than consumerkit passes; define {name}(self, {parameters})"
    )


class Bulk(BatchHandler[bytes]):
    name = "bulk"
    topic = "payments"
    message_id = header("id")

    def handle_batch(self, events: Sequence[Received[bytes]], context: BatchContext[Session]) -> None: ...


def test_a_batch_handler_is_declared_as_such() -> None:
    declaration = declare(Bulk())
    assert (declaration.is_batch, declaration.is_async) == (True, False)


def test_a_batch_handler_defines_handle_batch_and_nothing_of_a_handlers() -> None:
    class WithHandle(Bulk):
        def handle(self, event: bytes, context: Context[Session]) -> None: ...

    class WithPrefetch(Bulk):
        def prefetch(self, events: Sequence[bytes], session: Session) -> None: ...

    class Told(Bulk):
        def on_duplicate(self, event: bytes, result: Any, context: Context[Session]) -> None: ...

    assert refusal(Told()) == ("Told (name 'bulk'): is a BatchHandler and defines on_duplicate; only a Handler has it")

    class Missing(BatchHandler[bytes]):
        name, topic, message_id = "missing", "payments", header("id")

    class WrongContext(BatchHandler[bytes]):
        name, topic, message_id = "bulk", "payments", header("id")

        async def handle_batch(self, events: Any, context: BatchContext[Session]) -> None: ...

    assert refusal(WithHandle()) == (
        "WithHandle (name 'bulk'): is a BatchHandler and defines handle; define handle_batch, or make it a Handler"
    )
    assert refusal(WithPrefetch()) == (
        "WithPrefetch (name 'bulk'): is a BatchHandler and defines prefetch; do that work in handle_batch"
    )
    assert refusal(Missing()) == (
        "Missing (name 'missing'): handle_batch is missing; define handle_batch(self, events, context)"
    )
    assert refusal(WrongContext()) == (
        "WrongContext (name 'bulk'): handle_batch is `async def` and its context holds a Session; annotate "
        "BatchContext, or make it plain `def`"
    )


def test_a_handler_that_defines_handle_batch_or_is_both_kinds_is_refused() -> None:
    class WithBatch(Pay):
        def handle_batch(self, events: Any, context: Any) -> None: ...

    class Both(Handler[bytes], BatchHandler[bytes]):
        name, topic, message_id = "both", "payments", header("id")

    assert refusal(WithBatch()) == (
        "WithBatch (name 'pay'): is a Handler and defines handle_batch; define handle, or make it a BatchHandler"
    )
    assert refusal(Both()) == "Both (name 'both'): is both a Handler and a BatchHandler; make two handlers of it"


def test_a_batch_handler_declares_nothing_about_sharing() -> None:
    class Bulk(BatchHandler[bytes]):
        name, topic, message_id = "bulk", "payments", header("id")
        shares_transaction = True

        def handle_batch(self, events: Any, context: Any) -> None: ...

    assert refusal(Bulk()) == (
        "Bulk (name 'bulk'): shares_transaction=True says nothing of a batch handler, whose events share one; "
        "set batch_size = 1"
    )


def test_a_field_cannot_be_read_from_bytes() -> None:
    class Raw(Handler[bytes]):
        name, topic = "raw", "payments"
        message_id = header("id") | event_field("id")

        async def handle(self, event: bytes, context: Context) -> None: ...

    assert refusal(Raw()) == (
        "Raw (name 'raw'): message_id=header('id') | event_field('id') reads a field, and the event is bytes, which "
        "have none; read a header"
    )


def test_bytes_among_several_event_types_have_no_field_either() -> None:
    several = Events(by=header("type"), types={"raw": bytes, "json": dict})
    assert refusal(pay(events=several, message_id=event_field("id"))) == (
        WHO + "message_id=event_field('id') reads a field, and the event is bytes, which have none; read a header"
    )


class Charge(BaseModel):
    charge_id: str
    amount: int

    @property
    def key(self) -> str:
        return self.charge_id.lower()


@dataclass
class Refund:
    refund_id: str


class Open(BaseModel, extra="allow"): ...


class Note(TypedDict):
    note_id: str


def reading(event_type: Any, **attributes: Any) -> Any:
    async def handle(self: Any, event: Any, context: Any) -> None: ...

    namespace = {"name": "pay", "topic": "payments", "message_id": header("id"), "handle": handle, **attributes}
    return new_class("Pay", (Handler[event_type],), {}, lambda body: body.update(namespace))()


@pytest.mark.parametrize(
    "event_type, attributes, problem",
    [
        (
            Charge,
            {"message_id": event_field("chargeid")},
            (
                "message_id=event_field('chargeid') reads 'chargeid', and no event (Charge) has it; did you mean "
                "'charge_id'?"
            ),
        ),
        (
            Refund,
            {"message_id": header("id") | event_field("x.y")},
            (
                "message_id=header('id') | event_field('x.y') reads 'x', and no event (Refund) has it; there are "
                "'refund_id'"
            ),
        ),
        (
            Note | Refund,
            {"message_id": event_field("noteid")},
            (
                f"message_id=event_field('noteid') reads 'noteid', and no event ({in_short(Note | Refund)}) has it; "
                "did you mean 'note_id'?"
            ),
        ),
        (
            Charge,
            {"fingerprint": event_fields("amuont")},
            "fingerprint=event_fields('amuont') reads 'amuont', and no event (Charge) has it; did you mean 'amount'?",
        ),
        (
            Charge,
            {"events": Events(by=header("t"), types={"a": Charge, "b": Refund}), "message_id": event_field("no")},
            (
                "message_id=event_field('no') reads 'no', and no event (Charge or Refund) has it; there are 'amount', "
                "'charge_id', 'key', 'refund_id'"
            ),
        ),
    ],
)
def test_a_field_that_no_event_has_is_refused(event_type: Any, attributes: dict[str, Any], problem: str) -> None:
    assert refusal(reading(event_type, **attributes)) == WHO + problem


@pytest.mark.parametrize(
    "event_type, name",
    [
        (Charge, "charge_id"), (Charge, "key"), (Charge | Refund, "refund_id"), (Annotated[Refund, "x"], "refund_id"),
        (Note, "note_id"), (Open, "whatever"), (dict[str, str], "whatever"), (Any, "whatever"),
        (Charge | dict[str, str], "whatever"),
    ],
)  # fmt: skip
def test_a_field_that_an_event_has_or_may_have_is_read(event_type: Any, name: str) -> None:
    handler = reading(event_type, message_id=event_field(name), fingerprint=event_fields(name))
    assert declare(handler).identity == handler.message_id


def test_no_event_type_and_one_that_cannot_be_decoded_are_refused() -> None:
    class Bare(Handler):  # type: ignore[type-arg]
        name, topic, message_id = "bare", "payments", header("id")

        async def handle(self, event: Any, context: Context) -> None: ...

    class Odd(Handler[inspect.Signature]):
        name, topic, message_id = "odd", "payments", header("id")

        async def handle(self, event: inspect.Signature, context: Context) -> None: ...

    assert refusal(Bare()) == ("Bare (name 'bare'): has no event type; say it in the class, as in Handler[OrderPaid]")
    message = refusal(Odd())
    assert message.startswith("Odd (name 'odd'): Json() cannot decode [<class 'inspect.Signature'>]: ")
    assert "\n" not in message


class Other(Pay):
    name = "other"
    topic = "orders"


def test_several_handlers_are_declared_in_order() -> None:
    assert [declaration.name for declaration in declare_all([Pay(), Other()])] == ["pay", "other"]


def _set(handler: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(handler, name, value)
    return handler


@pytest.mark.parametrize(
    "handlers, message",
    [
        ([], "handlers=[] is not a list of handlers; give a list of at least one"),
        ([Pay(), Pay()], "Pay and Pay share the name 'pay'; give each handler its own"),
        (
            [Pay(), _set(Other(), group="pay")],
            "Pay and Other share the consumer group 'pay'; give each handler its own",
        ),
        (
            [_set(Pay(), dead_letter=DeadLetter("orders")), Other()],
            WHO
            + "dead_letter=DeadLetter(topic='orders') is among the topics of Other (name 'other'); use another topic",
        ),
    ],
)
def test_handlers_that_cannot_run_together_are_refused(handlers: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        declare_all(handlers)
    assert str(caught.value) == message


def test_a_handler_alone_is_no_list() -> None:
    with pytest.raises(ConfigurationError, match="is not a list of handlers"):
        declare_all(Pay())  # type: ignore[arg-type]


def test_retry_survives_as_given() -> None:
    retry = Retry(deadline=60)
    assert declare(pay(retry=retry)).retry is retry


@pytest.mark.parametrize(
    "attribute, meant",
    [
        ("timeout", "Worker(transaction_timeout=...)"),
        ("workers", "consumerkit run --workers"),
        ("middlewares", "Worker(observers=...)"),
        ("middleware", "Worker(observers=...)"),
    ],
)
def test_what_is_set_elsewhere_is_refused_in_a_class_and_left_alone_in_an_instance(attribute: str, meant: str) -> None:
    said = refusal(pay(**{attribute: 5}))
    assert said.startswith(WHO + f"{attribute} is no declaration: ")
    assert meant in said
    handler = Pay()
    setattr(handler, attribute, 5)  # as a constructor keeps its own arguments
    assert declare(handler).handler is handler


@pytest.mark.parametrize("topic", ["", "a b", 5, None])
def test_a_dead_letter_without_a_topic_is_refused_where_it_is_written(topic: Any) -> None:
    with pytest.raises(ConfigurationError, match="is not the name of a topic; a topic's name has 1 to 249"):
        DeadLetter(topic)
