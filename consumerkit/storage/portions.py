"""Splits values into portions that fit into one statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")
PARAMETERS: Final = 900
"""Parameters of a statement; an older SQLite allows 999, and a statement has some besides its values."""


def portions(values: Sequence[T], size: int = PARAMETERS) -> Iterator[Sequence[T]]:
    """Return the values in order, at most `size` at a time.

    Example:
        >>> list(portions([1, 2, 3], 2))
        [[1, 2], [3]]
    """
    for start in range(0, len(values), size):
        yield values[start : start + size]
