"""Durations as a user gives them: seconds, a timedelta, or None for ever; and moments as a database returns them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from consumerkit.errors import ConfigurationError
from consumerkit.policies.wait import is_number

DAY: Final = 86_400.0


def seconds_of(name: str, value: float | timedelta | None, *, of: str = "Worker") -> float | None:
    """Return a user's duration in seconds; None means for ever.

    Args:
        name: The argument's name.
        value: The user's value.
        of: The object that has the argument.

    Raises:
        ConfigurationError: It is no duration above 0.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds is None:
        return None
    if not is_number(seconds) or seconds <= 0:
        raise ConfigurationError(
            f"{of}({name}={value!r}): give a timedelta or a number of seconds greater than 0, or None for ever"
        )
    return float(seconds)


def in_utc(moment: datetime) -> datetime:
    """Return a moment with its zone: databases without time zones hold UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
