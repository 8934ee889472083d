"""Numbers on the command line, limited to those that the tables hold."""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import typer

HIGHEST: Final = 2**63 - 1
"""The highest ID, offset and count that the tables hold."""
HIGHEST_PARTITION: Final = 2**31 - 1
"""Kafka's partitions are numbers of 32 bits."""
Number = TypeVar("Number", int, list[int] | None, int | None)


def storable(value: Number) -> Number:
    """Return an option's number; used as an option's callback.

    Raises:
        typer.BadParameter: The database cannot hold the number.

    Example:
        >>> storable(118)
        118
    """
    return _bounded(value, HIGHEST, "the tables hold")


def partition_number(value: Number) -> Number:
    """Return an option's partition number or number of partitions; used as an option's callback.

    Raises:
        typer.BadParameter: Kafka has no such number.

    Example:
        >>> partition_number(12)
        12
    """
    return _bounded(value, HIGHEST_PARTITION, "Kafka counts")


def _bounded(value: Number, highest: int, who: str) -> Number:
    for number in value if isinstance(value, list) else [value]:
        if number is not None and abs(number) > highest:
            raise typer.BadParameter(f"{number} is beyond what {who}: the highest is {highest}")
    return value


def whole(text: str, highest: int = HIGHEST) -> int | None:
    """Return a text of digits as a number; None where it is no such text, or above `highest`.

    Example:
        >>> whole("7"), whole("-7"), whole("9" * 5000)
        (7, None, None)
    """
    if not text.isdecimal() or len(text) > len(str(highest)):
        return None
    return number if (number := int(text)) <= highest else None


LimitOption = Annotated[int, typer.Option(min=1, metavar="N", callback=storable, help="Show at most this many.")]
AfterOption = Annotated[
    int,
    typer.Option(
        metavar="ID",
        callback=storable,
        help="Only higher IDs: the next page.",
        show_default=False,
    ),
]
