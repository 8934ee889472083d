"""How long to wait between attempts: tenacity's waits as frozen, comparable values with known bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import tenacity
from tenacity.wait import wait_base

from consumerkit.errors import LONGEST_WAIT, ConfigurationError

_BASE = 2.0
_JITTER = 0.25


@dataclass(frozen=True, slots=True)
class Wait:
    """Seconds between one attempt and the next; made by this module's functions, and equal if made alike.

    `+` adds two waits.

    Example:
        >>> (fixed(3) + uniform(0, 2)).bounds(1)
        (3.0, 5.0)
    """

    strategy: wait_base = field(compare=False)
    shortest: wait_base = field(compare=False)
    longest: wait_base = field(compare=False)
    description: str

    def after(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number `attempt` (from 1) has failed."""
        return _drawn(self.strategy, attempt)

    def bounds(self, attempt: int) -> tuple[float, float]:
        """Return the shortest and the longest possible result of `after(attempt)`."""
        return _drawn(self.shortest, attempt), _drawn(self.longest, attempt)

    def __add__(self, other: Wait) -> Wait:
        if type(other) is not Wait:
            raise ConfigurationError(f"{self} + {_in_short(other)}: add a wait, such as fixed(...)")
        return _combined(tenacity.wait_combine, (self, other), f"{self} + {other}")

    def __radd__(self, other: int) -> Wait:
        """Accept the 0 with which `sum` begins."""
        if type(other) is int and other == 0:
            return self
        raise ConfigurationError(f"{_in_short(other)} + {self}: add a wait, such as fixed(...)")

    def __repr__(self) -> str:
        return self.description


class _Capped(wait_base):
    """A wait plus jitter that only adds, together never longer than the cap."""

    def __init__(self, wait: wait_base, jitter: float, cap: float) -> None:
        self.wait = wait
        self.jitter = jitter
        self.cap = cap

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        planned = self.wait(retry_state)
        return float(min(planned + self.added(planned * self.jitter, retry_state), self.cap))

    def added(self, most: float, retry_state: tenacity.RetryCallState) -> float:
        """Return the seconds that jitter adds."""
        return tenacity.wait_random(0, most)(retry_state)


class _CappedLongest(_Capped):
    """The longest possible result of `_Capped`."""

    def added(self, most: float, retry_state: tenacity.RetryCallState) -> float:
        return most


def exponential(initial: float, *, max: float, base: float = _BASE, jitter: float = _JITTER) -> Wait:
    """Wait `initial` seconds, then `base` times as long after each failure, up to `max`.

    Args:
        initial: Seconds after the first failure.
        max: The longest wait, in seconds, jitter included.
        base: The factor from one wait to the next.
        jitter: The share of each wait that is added at random; it never shortens a wait.

    Raises:
        ConfigurationError: A value is negative or no number, `max` is below `initial`, or above ten
            years.

    Example:
        >>> [exponential(1, max=10, jitter=0).after(n) for n in (1, 2, 3, 4, 5)]
        [1.0, 2.0, 4.0, 8.0, 10.0]
    """
    given = (initial, max, base, jitter)
    if not all(map(is_number, given)) or not (0 <= initial <= max and base >= 1 and jitter >= 0):
        raise ConfigurationError(
            f"exponential({initial!r}, max={max!r}, base={base!r}, jitter={jitter!r}): give numbers with "
            "0 <= initial <= max, base >= 1 and jitter >= 0"
        )
    _bound(f"exponential({initial!r}, max={max!r})", max)
    growing = tenacity.wait_exponential(multiplier=initial, max=max, exp_base=base)
    shape = ("" if base == _BASE else f", base={base}") + ("" if jitter == _JITTER else f", jitter={jitter}")
    capped, longest = _Capped(growing, jitter, max), _CappedLongest(growing, jitter, max)
    return Wait(capped, growing, longest, f"exponential({initial}, max={max}{shape})")


def fixed(seconds: float) -> Wait:
    """Wait the same number of seconds after each failure.

    Raises:
        ConfigurationError: `seconds` is negative, no number, or more than ten years.

    Example:
        >>> fixed(5).after(3)
        5.0
    """
    if not is_number(seconds) or seconds < 0:
        raise ConfigurationError(f"fixed({seconds!r}): give a number of seconds >= 0")
    _bound(f"fixed({seconds!r})", seconds)
    same = tenacity.wait_fixed(seconds)
    return Wait(same, same, same, f"fixed({seconds})")


def uniform(low: float, high: float) -> Wait:
    """Wait a random number of seconds, uniformly distributed between `low` and `high`.

    Raises:
        ConfigurationError: A value is negative or no number, `high` is below `low`, or above ten years.

    Example:
        >>> 1 <= uniform(1, 3).after(1) <= 3
        True
    """
    if not all(map(is_number, (low, high))) or not 0 <= low <= high:
        raise ConfigurationError(f"uniform({low!r}, {high!r}): give numbers of seconds with 0 <= low <= high")
    _bound(f"uniform({low!r}, {high!r})", high)
    # Capped, since rounding may push the sum above `high`.
    drawn = _Capped(tenacity.wait_random(low, high), 0, high)
    return Wait(drawn, tenacity.wait_fixed(low), tenacity.wait_fixed(high), f"uniform({low}, {high})")


def chain(*waits: Wait) -> Wait:
    """Wait by each of `waits` once, in turn, and by the last one from then on.

    A wait that grows counts from the first attempt of all, not from its place in the chain.

    Raises:
        ConfigurationError: None is given, or one is no wait.

    Example:
        >>> [chain(fixed(1), fixed(5), fixed(60)).after(n) for n in (1, 2, 3, 4)]
        [1.0, 5.0, 60.0, 60.0]
    """
    if not waits or not all(type(wait) is Wait for wait in waits):
        shown = ", ".join(map(_in_short, waits))
        raise ConfigurationError(f"chain({shown}): give one wait or more, such as chain(fixed(1), fixed(60))")
    return _combined(tenacity.wait_chain, waits, f"chain({', '.join(map(repr, waits))})")


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; True is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _bound(what: str, longest: float) -> None:
    if longest > LONGEST_WAIT:
        raise ConfigurationError(f"{what}: give at most {LONGEST_WAIT:.0f} seconds (ten years)")


def _combined(
    how: type[tenacity.wait_combine | tenacity.wait_chain], waits: tuple[Wait, ...], description: str
) -> Wait:
    """Combine waits and, in the same way, their bounds."""
    return Wait(
        how(*(wait.strategy for wait in waits)),
        how(*(wait.shortest for wait in waits)),
        how(*(wait.longest for wait in waits)),
        description,
    )


def _drawn(strategy: wait_base, attempt: int) -> float:
    state = tenacity.RetryCallState(retry_object=tenacity.Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    return min(max(0.0, float(strategy(state))), LONGEST_WAIT)


def _in_short(value: object) -> str:
    return " ".join(repr(value).split())[:100]
