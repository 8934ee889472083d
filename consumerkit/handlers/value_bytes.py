"""The bytes of a value: of a message ID, whose digest is the ledger's key, and of a field in a fingerprint.

Both are the same in every process, keep the whole value, and are made without a side effect. A
value without such bytes is refused. The bytes of an ID never change from release to release; a
fingerprint is kept with its version.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence, Set
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from consumerkit.handlers.value_types import ONCE, OWN_TEXT, SECRET, SET, class_problem, has_own_text, secrets

if TYPE_CHECKING:
    from pydantic import BaseModel, RootModel

_LARGE = 10**600
# A subclass stands before its base class.
_SCALARS = (str, bool, int, float, Decimal, UUID, datetime, date, time, timedelta)
_KEYS = (str, int, Decimal, UUID, date, time, timedelta, Enum, bytes)


class NoStableBytes(Exception):
    """A value has no complete bytes that are the same in every process; the text says why, without the value."""


def read_path(event: object, path: tuple[str, ...]) -> object:
    """Return the value at a path of attributes and mapping keys; None where a name is missing or unreadable."""
    for name in path:
        try:
            event = event.get(name) if isinstance(event, Mapping) else getattr(event, name, None)
        except Exception:  # noqa: BLE001 - a user's property may raise anything; the field then counts as missing
            return None
        if event is None:
            return None
    return event


def encode_field(value: object) -> bytes | None:
    """Return a field's value as bytes of a message ID: text as UTF-8, bytes as they are, scalars as text.

    A model, mapping or list becomes its JSON; a mapping keeps its order. None where there is no
    value, or no text for it.

    Raises:
        NoStableBytes: The bytes would not be the value.
    """
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, Enum):
        return encode_field(value.value)
    for base in _SCALARS:
        if isinstance(value, base):
            if has_own_text(type(value), base):
                raise NoStableBytes(OWN_TEXT)
            return first_bytes(value)
    try:
        _check(value, in_model=False)
    except RecursionError:
        raise NoStableBytes("is nested too deeply") from None
    return first_bytes(value)


def first_bytes(value: object) -> bytes | None:
    """Return the bytes that the first release made of a field's value; it refused none."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, Enum):
        return first_bytes(value.value)
    if isinstance(value, int) and abs(value) >= _LARGE:
        # Python refuses to write very large integers in decimal.
        value = hex(value)
    if isinstance(value, _SCALARS):
        return str(value).encode("utf-8", "surrogatepass")
    from pydantic_core import PydanticSerializationError, to_json

    try:
        return to_json(value)
    except PydanticSerializationError:
        return None


@cache
def _model() -> type[BaseModel]:
    """Return pydantic's `BaseModel`, imported here so that a program that only publishes does not import it."""
    from pydantic import BaseModel

    return BaseModel


@cache
def _root_model() -> type[RootModel[Any]]:
    from pydantic import RootModel

    return RootModel


def _check(value: object, *, in_model: bool) -> None:
    """Refuse a value whose JSON does not represent the value."""
    if (problem := _refusal(value, in_model=in_model)) is not None:
        raise NoStableBytes(problem)
    in_model = in_model or isinstance(value, _model())
    for part in _parts(value):
        _check(part, in_model=in_model)


def _refusal(value: object, *, in_model: bool) -> str | None:
    if isinstance(value, _model()) or _is_dataclass(value):
        cls: Any = type(value)
        return class_problem(cls)
    if isinstance(value, Mapping):
        # 1 and "1", None and "None", ("a,b",) and ("a", "b") become the same key in JSON.
        kinds = {type(key) for key in value}
        told_apart = len(kinds) <= 1 and all(issubclass(kind, _KEYS) for kind in kinds)
        return None if told_apart else "is a mapping with keys that JSON does not tell apart"
    refused = {
        SECRET: isinstance(value, secrets()),
        SET: isinstance(value, Set),
        ONCE: isinstance(value, Iterator | AsyncIterable),
        "holds a number that JSON does not have": in_model and isinstance(value, float) and not math.isfinite(value),
    }
    return next((problem for problem, holds in refused.items() if holds), None)


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, str | bytes | bytearray):
        return ()
    if isinstance(value, Enum):
        return (value.value,)
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, Sequence):
        return value
    if isinstance(value, _model()) or _is_dataclass(value):
        return [each for _, each in _fields(value)]
    return ()


def canonical(value: object) -> bytes:
    """Return a field's value as bytes of a fingerprint: two values have the same bytes exactly if they are equal.

    Sets and mappings are sorted. Decimal("1.0") equals 1, and an instant is the same in every time
    zone. A secret counts with its hidden value. A model counts with all its fields, whatever its
    JSON leaves out or adds.

    Raises:
        NoStableBytes: The bytes would not be the value.

    Example:
        >>> canonical({"a": 1, "b": {2, 1}}) == canonical({"b": {1, 2}, "a": Decimal("1.0")})
        True
    """
    try:
        return _canonical(value)
    except RecursionError:
        raise NoStableBytes("is nested too deeply") from None


def _canonical(value: object) -> bytes:  # noqa: PLR0911 - one return for each kind of value
    if value is None:
        return b"-"
    if isinstance(value, Enum):
        return _canonical(value.value)
    if isinstance(value, bool):
        return b"+" if value else b"0"
    if isinstance(value, int | float | Decimal):
        return _tagged(b"n", _number(value).encode())
    if isinstance(value, str):
        return _tagged(b"s", str.encode(value, "utf-8", "surrogatepass"))
    if isinstance(value, bytes | bytearray | memoryview):
        return _tagged(b"b", bytes(value))
    if isinstance(value, secrets()):
        return _canonical(value.get_secret_value())
    if isinstance(value, UUID):
        return _tagged(b"u", value.int.to_bytes(16, "big"))
    if isinstance(value, date | time | timedelta):
        return _tagged(b"t", _moment(value).encode())
    return _composite(value)


def _composite(value: object) -> bytes:
    if isinstance(value, Mapping):
        return _mapping(list(value.items()))
    if isinstance(value, Set):
        return _tagged(b"S", b"".join(sorted(map(_canonical, value))))
    if isinstance(value, Iterator | AsyncIterable):
        raise NoStableBytes(ONCE)
    if isinstance(value, Sequence):
        return _tagged(b"l", b"".join(map(_canonical, value)))
    if isinstance(value, _root_model()):
        return _canonical(value.root)
    if isinstance(value, _model()) or _is_dataclass(value) or hasattr(type(value), "__attrs_attrs__"):
        return _mapping(_fields(value))
    from pydantic_core import PydanticSerializationError, to_json

    try:
        return _tagged(b"j", to_json(value))
    except (PydanticSerializationError, ValueError):
        raise NoStableBytes(f"is a {type(value).__qualname__}, which has no bytes of its own") from None


def _mapping(pairs: Sequence[tuple[object, object]]) -> bytes:
    return _tagged(b"m", b"".join(sorted(_canonical(key) + _canonical(each) for key, each in pairs)))


def _tagged(tag: bytes, raw: bytes) -> bytes:
    return tag + len(raw).to_bytes(8, "big") + raw


def _is_dataclass(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(value: Any) -> list[tuple[object, object]]:
    """Return the fields that a model, dataclass or attrs object has, with their values and in their order."""
    if isinstance(value, _model()):
        own = vars(value)
        names = [name for name in type(value).model_fields if name in own]
        return [*((name, own[name]) for name in names), *(value.__pydantic_extra__ or {}).items()]
    described = dataclasses.fields(value) if _is_dataclass(value) else type(value).__attrs_attrs__
    return [(one.name, getattr(value, one.name)) for one in described if hasattr(value, one.name)]


def _number(value: float | Decimal) -> str:
    """Return a number as digits and exponent: equal numbers have the same text, whatever their precision."""
    if isinstance(value, int) and abs(value) >= _LARGE:
        return hex(value)
    exact = Decimal(float.__repr__(value)) if isinstance(value, float) else Decimal(value)
    sign, digits, exponent = exact.as_tuple()
    if not isinstance(exponent, int):
        return str(exact).lower()
    text = "".join(map(str, digits)).lstrip("0")
    bare = text.rstrip("0")
    if not bare:
        return "0"
    return f"{'-' if sign else ''}{bare}e{exponent + len(text) - len(bare)}"


def _moment(value: date | time | timedelta) -> str:
    if isinstance(value, timedelta):
        return f"{value.days},{value.seconds},{value.microseconds}"
    if isinstance(value, datetime) and value.utcoffset() is not None:
        try:
            return datetime.isoformat(value.astimezone(UTC))
        except OverflowError:  # at the ends of the calendar
            return datetime.isoformat(value)
    kind = datetime if isinstance(value, datetime) else time if isinstance(value, time) else date
    return f"{kind.__name__} {kind.isoformat(value)}"  # type: ignore[arg-type]
