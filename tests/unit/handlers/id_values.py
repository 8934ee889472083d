"""Values of each type that the first release takes for a message ID or a fingerprint; their bytes never change."""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

from pydantic import AnyUrl, BaseModel, ConfigDict, Field, RootModel
from typing_extensions import TypedDict

EAST = timezone(timedelta(hours=2))


class Colour(Enum):
    RED = 1
    NONE = "none"


class Size(StrEnum):
    BIG = "big"


class Level(IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()


class Cents(int):
    __slots__ = ()


class Money(BaseModel):
    amount: Decimal
    currency: str = Field(default="EUR", alias="cur")


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    id: str


class Payment(BaseModel):
    id: str
    money: Money
    tags: list[str] = []
    at: datetime | None = None
    extra: Any = None


class Names(RootModel[list[str]]):
    pass


@dataclass
class Line:
    order: Payment | None
    number: int


@dataclass(frozen=True, slots=True)
class Slotted:
    a: int
    b: float


class Point(NamedTuple):
    x: int
    y: int


class Row(TypedDict):
    b: int
    a: int


VALUES: Final[dict[str, Any]] = {
    "text": "pay-1",
    "text beyond ASCII": "Zürich \U0001f600",
    "text with NUL": "a\x00b",
    "a lone surrogate": "\ud800",
    "empty text": "",
    "a subclass of str": Text("pay-1"),
    "bytes": b"\x00\xff",
    "a whole number": 42,
    "a negative one": -7,
    "a subclass of int": Cents(1234),
    "a number of 700 digits": 10**699 + 1,
    "true": True,
    "false": False,
    "a float": 1.5,
    "a whole float": 1.0,
    "minus zero": -0.0,
    "a small float": 1e-7,
    "a large float": 1e16,
    "nan": float("nan"),
    "infinity": float("-inf"),
    "decimal 1": Decimal(1),
    "decimal 1.0": Decimal("1.0"),
    "decimal 1E+3": Decimal("1E+3"),
    "decimal -0.00": Decimal("-0.00"),
    "UUID": UUID(int=7),
    "date": date(2024, 2, 29),
    "datetime in UTC": datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
    "datetime in another zone": datetime(2024, 1, 2, 5, 4, 5, 6, tzinfo=EAST),
    "datetime without a zone": datetime(2024, 1, 2, 3, 4, 5),  # noqa: DTZ001
    "time": time(3, 4, 5, 6),
    "timedelta": timedelta(days=-1, seconds=2),
    "enum of a number": Colour.RED,
    "enum of text": Colour.NONE,
    "StrEnum": Size.BIG,
    "IntEnum": Level.HIGH,
    "a list": [1, "a", None, 1.5, True],
    "a tuple": (1, (2, 3)),
    "a NamedTuple": Point(1, 2),
    "a deque": deque([1, 2]),
    "a mapping in its own order": {"b": 1, "a": [2]},
    "a mapping with keys of numbers": {1: "x", 2: "y"},
    "an OrderedDict": OrderedDict(z=1, a=2),
    "a Counter": Counter("aab"),
    "a TypedDict": Row(b=1, a=2),
    "a list of odd things": [
        Decimal("1.0"),
        UUID(int=1),
        date(2024, 1, 1),
        datetime(2024, 1, 1, tzinfo=EAST),
        datetime(2024, 1, 1),  # noqa: DTZ001
        timedelta(days=1, microseconds=1),
        b"ascii",
        Colour.RED,
        -0.0,
        time(1, 2),
    ],
    "a list of numbers that JSON lacks": [float("nan"), float("inf")],
    "an address": IPv4Address("10.0.0.1"),
    "a path": Path("/a/b"),
    "a URL": AnyUrl("https://example.com/a?b=c"),
    "a model": Payment(id="p", money=Money(amount=Decimal("1.50"), cur="CHF"), tags=["b", "a"]),
    "a model with a time": Payment(
        id="p", money=Money(amount=Decimal(1)), at=datetime(2024, 1, 1, tzinfo=EAST), extra={"z": 1, "a": None}
    ),
    "a model with more fields": Open(id="o", z=1, a="x"),
    "a root model": Names(["b", "a"]),
    "a dataclass": Line(Payment(id="p", money=Money(amount=Decimal(2))), 3),
    "a dataclass with slots": Slotted(1, 2.0),
}
