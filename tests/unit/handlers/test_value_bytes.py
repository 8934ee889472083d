"""The bytes of a value are the value: the same in every process, whole, and made without a side effect."""

import os
import subprocess
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Set
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path
from re import Pattern
from typing import Annotated, Any, Generic, Literal, NewType, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    PlainSerializer,
    Secret,
    SecretBytes,
    SecretStr,
    WrapSerializer,
    computed_field,
    field_serializer,
    model_serializer,
)
from typing_extensions import TypedDict

from consumerkit import ConfigurationError, Context, Handler, Message, event_field, event_fields, header
from consumerkit.handlers.declaration import declare
from consumerkit.handlers.value_bytes import NoStableBytes, canonical, encode_field

EAST = timezone(timedelta(hours=2))
T = TypeVar("T")
Names = NewType("Names", set[str])


class Masked(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "****"


class Shown(int):
    def __repr__(self) -> str:
        return "a number"


class Plain(BaseModel):
    id: str
    n: int = 0


class Hiding(BaseModel):
    id: str
    n: int = Field(default=0, exclude=True)


class Rounding(BaseModel):
    id: str
    n: float = 0

    @field_serializer("n")
    def rounded(self, n: float) -> int:
        return round(n)


class OneWord(BaseModel):
    id: str

    @model_serializer
    def shown(self) -> str:
        return "payment"


class Timed(BaseModel):
    id: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def asked(self) -> str:
        raise AssertionError("a fingerprint or an ID ran the user's code")


class Lowered(BaseModel):
    id: Annotated[str, PlainSerializer(str.lower)]


class Wrapped(BaseModel):
    id: Annotated[str, WrapSerializer(lambda value, handler: "x")]


class Holding(BaseModel):
    plain: Plain
    secret: SecretStr


@dataclass
class Deep(Generic[T]):
    inner: T


class Ordinary(BaseModel):
    path: Path
    ip: IPv4Address
    url: AnyUrl
    at: AwareDatetime
    every: timedelta
    number: Decimal
    id: UUID
    pattern: Pattern[str]
    queue: deque[int]
    encoded: Base64Bytes
    json_text: Json[int]
    counted: Counter[str]
    either: int | str | None
    whole: Annotated[int, Field(gt=0)]
    chosen: Literal["a", "b"]
    me: "Ordinary | None" = None


class Row(TypedDict):
    tags: frozenset[str]


class Kind(Enum):
    ANY = frozenset({"a", "b"})


class Event(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    id: str
    names: set[str] = set()
    frozen: frozenset[int] = frozenset()
    abstract: Set[str] = frozenset()
    maybe: set[str] | str | None = None
    aliased: Names = Names(set())
    nested: list[dict[str, set[str]]] = []
    secret: SecretStr = SecretStr("")
    secret_bytes: SecretBytes = SecretBytes(b"")
    secret_number: Secret[int] = Secret(0)
    holding: Holding | None = None
    once: Iterable[int] = ()
    generator: Generator[int, None, None] | None = None
    iterator: Iterator[int] | None = None
    later: AsyncIterator[int] | None = None
    hiding: Hiding = Hiding(id="")
    rounding: Rounding = Rounding(id="")
    one_word: OneWord = OneWord(id="")
    timed: Timed = Timed(id="")
    lowered: Lowered = Lowered(id="")
    wrapped: Wrapped = Wrapped(id="")
    masked: Annotated[Masked, Field()] = Masked()
    shown: Shown = Shown()
    row: Row | None = None
    deep: Deep[set[str]] | None = None
    kind: Kind = Kind.ANY
    # These are what they are.
    excluded: str = Field(default="", exclude=True)
    lower: Annotated[str, PlainSerializer(str.lower)] = ""
    number: Decimal = Decimal(0)
    plain: Plain = Plain(id="")
    listed: list[Plain] = []
    mapped: dict[str, Any] = {}
    anything: Any = None
    at: datetime | None = None
    ordinary: Ordinary | None = None

    @property
    def some(self) -> set[str]:
        return self.names


def handler(**declared: Any) -> Handler[Event]:
    class Some(Handler[Event]):
        name = "some"
        topic = "t"
        message_id = header("id")

        async def handle(self, event: Event, context: Context) -> None: ...

    made = Some()
    vars(made).update(declared)
    return made


UNSTABLE = ["names", "frozen", "abstract", "maybe", "aliased", "nested", "row.tags", "deep.inner", "some"]
SECRET = ["secret", "secret_bytes", "secret_number", "holding", "holding.secret"]
ONCE = ["once", "generator", "iterator", "later"]
LOSSY = ["hiding", "rounding", "one_word", "timed", "lowered", "wrapped", "masked", "shown"]
STABLE = [
    "id",
    "excluded",
    "lower",
    "number",
    "plain",
    "plain.id",
    "listed",
    "mapped",
    "anything",
    "at",
    "hiding.n",
    "ordinary",
]


@pytest.mark.parametrize("path", [*UNSTABLE, *SECRET, *ONCE, *LOSSY])
def test_a_message_id_whose_bytes_would_not_be_its_value_is_refused_when_the_worker_is_built(path: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^Some .*: message_id=event_field.* reads '{path}', which .*; name"):
        declare(handler(message_id=event_field(path)))
    with pytest.raises(ConfigurationError, match=f"event_time=.* reads '{path}', which"):
        declare(handler(event_time=event_field(path)))


@pytest.mark.parametrize("path", ONCE)
def test_a_fingerprint_of_what_can_be_read_once_is_refused_when_the_worker_is_built(path: str) -> None:
    with pytest.raises(ConfigurationError, match=f"fingerprint=.* reads '{path}', which can be read only once"):
        declare(handler(fingerprint=event_fields("id", path)))


@pytest.mark.parametrize("path", STABLE)
def test_a_plain_field_is_an_id(path: str) -> None:
    assert repr(declare(handler(message_id=event_field(path))).identity) == repr(event_field(path))


@pytest.mark.parametrize("path", [*STABLE, *UNSTABLE, *SECRET, *LOSSY])
def test_what_can_be_unwrapped_or_sorted_is_part_of_a_fingerprint(path: str) -> None:
    assert declare(handler(fingerprint=event_fields(path))).fingerprint == event_fields(path)


def once() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    "value",
    [
        {"a"},
        frozenset({1}),
        {}.keys(),
        [{"a"}],
        {"a": {"b"}},
        SecretStr("s"),
        [SecretBytes(b"s")],
        {"s": Secret(1)},
        iter([1]),
        once(),
        [once()],
        Kind.ANY,
        Masked("pay-1"),
        Shown(3),
        Hiding(id="a", n=1),
        [Rounding(id="a")],
        OneWord(id="a"),
        Timed(id="a"),
        Holding(plain=Plain(id="a"), secret=SecretStr("s")),
        Deep({"a"}),
        Deep(Hiding(id="a")),
        {1: "a", "1": "b"},
        {("a,b", "c"): 1},
        {None: 1},
    ],
)
def test_a_value_whose_bytes_would_not_be_the_value_is_refused_where_only_the_value_tells(value: object) -> None:
    with pytest.raises(NoStableBytes):
        encode_field(value)
    with pytest.raises(NoStableBytes, match=r"^'x' "):
        event_field("x").find(Message("t", 0, 0), {"x": value})


def test_a_refusal_never_shows_the_value() -> None:
    with pytest.raises(NoStableBytes) as caught:
        encode_field({"card": SecretStr("4111")})
    assert "4111" not in str(caught.value)


def test_a_value_that_refers_to_itself_is_refused() -> None:
    around: list[object] = []
    around.append(around)
    for make in (encode_field, canonical):
        with pytest.raises(NoStableBytes, match="nested too deeply"):
            make(around)


SAME = [
    ({"a", "b", "c"}, frozenset({"c", "b", "a"})),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (Decimal("1.0"), Decimal(1)),
    (Decimal("1E+3"), 1000),
    (1.0, 1),
    (-0.0, 0),
    (float("nan"), Decimal("NaN")),
    (datetime(2024, 1, 1, 2, tzinfo=EAST), datetime(2024, 1, 1, tzinfo=UTC)),
    (SecretStr("a"), "a"),
    ([1, 2], (1, 2)),
    (Plain(id="a", n=1), {"n": 1, "id": "a"}),
    (Masked("pay"), "pay"),
    (bytearray(b"a"), b"a"),
    (Kind.ANY, {"a", "b"}),
]
OTHER = [
    ({"a", "b"}, {"a", "c"}),
    ({"ab"}, {"a", "b"}),
    ([1, 2], [2, 1]),
    ([1, 2], [[1, 2]]),
    ("1", 1),
    (True, 1),
    (False, None),
    ("", None),
    (b"a", "a"),
    (Decimal("1.10"), Decimal("1.01")),
    (Decimal(10), Decimal(1)),
    (100, 1),
    (-1, 1),
    (float("inf"), float("-inf")),
    (10**700, 10**700 + 1),
    (SecretStr("a"), SecretStr("b")),
    (SecretBytes(b"a"), SecretBytes(b"b")),
    (Secret(1), Secret(2)),
    (Hiding(id="a", n=1), Hiding(id="a", n=2)),
    (Rounding(id="a", n=1.2), Rounding(id="a", n=1.3)),
    (OneWord(id="a"), OneWord(id="b")),
    (Lowered(id="A"), Lowered(id="a")),
    (Masked("a"), Masked("b")),
    (Shown(1), Shown(2)),
    ({1: "a"}, {"1": "a"}),
    ({("a,b", "c"): 1}, {("a", "b,c"): 1}),
    ([b"\xff"], [b"\xfe"]),
    ({"a": None}, {}),
    ("\ud800", "\ud801"),
    (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1)),  # noqa: DTZ001
    (date(2024, 1, 1), datetime(2024, 1, 1)),  # noqa: DTZ001
    (time(1), time(1, tzinfo=UTC)),
    (timedelta(1), timedelta(1, microseconds=1)),
    (UUID(int=1), UUID(int=2)),
    (datetime.max.replace(tzinfo=timezone(timedelta(hours=-2))), datetime.max.replace(tzinfo=UTC)),
]


@pytest.mark.parametrize("one, other", SAME)
def test_equal_values_have_one_fingerprint(one: object, other: object) -> None:
    assert canonical(one) == canonical(other)
    assert canonical([one]) == canonical([other])


@pytest.mark.parametrize("one, other", OTHER)
def test_other_values_have_another_fingerprint(one: object, other: object) -> None:
    assert canonical(one) != canonical(other)
    assert canonical({"x": [one]}) != canonical({"x": [other]})


@given(st.decimals(allow_nan=False, allow_infinity=False), st.decimals(allow_nan=False, allow_infinity=False))
def test_decimals_are_told_apart_exactly_where_they_differ(one: Decimal, other: Decimal) -> None:
    with localcontext() as context:
        context.prec = 3  # what a handler sets makes no difference
        assert (canonical(one) == canonical(other)) == (one == other)


@given(st.integers(), st.integers(0, 10))
def test_a_decimals_zeros_make_no_difference(number: int, zeros: int) -> None:
    assert canonical(Decimal(f"{number}.{'0' * zeros}") if zeros else number) == canonical(number)


@pytest.mark.parametrize("value", [object(), complex, [object()], {"a": type}])
def test_what_has_no_bytes_is_no_fingerprint(value: object) -> None:
    with pytest.raises(NoStableBytes, match="no bytes of its own"):
        canonical(value)


@dataclass
class Bag:
    id: str
    once: Any
    marks: set[str] = field(default_factory=set)


def test_reading_an_id_or_a_fingerprint_leaves_the_event_as_it_was() -> None:
    bag = Bag("a", iter([1, 2]))
    with pytest.raises(NoStableBytes, match="read only once"):
        event_field("once").find(Message("t", 0, 0), bag)
    with pytest.raises(NoStableBytes, match="read only once"):
        event_fields("once").of(Message("t", 0, 0), bag, 2)
    assert list(bag.once) == [1, 2]


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    program = (
        "from consumerkit import Message, event_fields;"
        "event = {'tags': {'a', 'b', 'c', 'd'}, 'by': {frozenset({'x', 'y'}): {'p', 'q'}}};"
        "print(event_fields('tags', 'by').of(Message('t', 0, 0), event, 2).hex())"
    )
    found = set()
    for seed in ("0", "1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1
