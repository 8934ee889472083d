"""A backfill's position: the last row's key, stored as JSON that gives the same values back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from consumerkit.errors import ConfigurationError

_KINDS: Final[dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]]] = {
    # A subclass stands before its base class.
    "int": (int, int, int),
    "str": (str, str, str),
    "uuid": (UUID, str, UUID),
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "decimal": (Decimal, str, Decimal),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
}


@dataclass(frozen=True, slots=True)
class BackfillPosition:
    """The position of a backfill.

    Attributes:
        key: The names of the key's columns.
        after: Their values in the last row that was handled; None before the first.
        rows: How many rows were handled.
        finished: Whether the last look found no more rows.
    """

    key: tuple[str, ...]
    after: tuple[Any, ...] | None = None
    rows: int = 0
    finished: bool = False

    def moved(self, after: Sequence[Any], rows: int) -> BackfillPosition:
        """Return the position behind this many more rows."""
        return BackfillPosition(self.key, tuple(after), self.rows + rows)

    def ended(self) -> BackfillPosition:
        """Return the position where no more rows were found."""
        return replace(self, finished=True)

    def text(self, label: str) -> str:
        """Return the position as JSON.

        Raises:
            ConfigurationError: A value of the key is of a kind that cannot be stored.
        """
        after = (
            None
            if self.after is None
            else [_encoded(label, name, one) for name, one in zip(self.key, self.after, strict=True)]
        )
        return json.dumps({"key": self.key, "after": after, "rows": self.rows, "finished": self.finished})


def parsed(text: str) -> BackfillPosition:
    """Return the position that `BackfillPosition.text` has written."""
    found = json.loads(text)
    after = found["after"]
    values = None if after is None else tuple(_KINDS[kind][2](value) for kind, value in after)
    return BackfillPosition(tuple(found["key"]), values, found["rows"], found["finished"])


def _encoded(label: str, name: str, value: object) -> tuple[str, object]:
    for kind, (type_, encode, _) in _KINDS.items():
        if isinstance(value, type_) and not isinstance(value, bool):
            return kind, encode(value)
    raise ConfigurationError(
        f"{label}: the key's column {name} holds a {type(value).__name__}; follow a column of numbers, text, UUIDs, "
        "dates or bytes"
    )
