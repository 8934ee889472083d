"""Warns at the worker's start if the ledger's memory is shorter than another time span of a handler."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from consumerkit.handlers.declaration import Declaration
from consumerkit.policies.retry import Retry

_COUNTED: Final = 1_000


def retry_horizon(retry: Retry) -> float:
    """Return the most seconds that can lie between a message's first failure and its last attempt.

    It assumes that the handler itself takes no time.

    Example:
        >>> from consumerkit.policies.retry import fixed
        >>> retry_horizon(Retry(attempts=3, wait=fixed(60)))
        120.0
    """
    return max(
        (_longest(policy) for _, policy in retry.policies() if policy is not None),
        default=0.0,
    )


def _longest(policy: Retry) -> float:
    deadline = math.inf if policy.deadline is None else policy.deadline
    if policy.attempts is None:
        return deadline
    asked = policy.retry_after_max if policy.retry_after is not None else 0.0
    waits = policy.attempts - 1
    counted = [max(policy.wait.bounds(attempt)[1], asked) for attempt in range(1, min(waits, _COUNTED) + 1)]
    # After so many attempts a wait has long reached its cap.
    rest = (waits - len(counted)) * counted[-1] if counted else 0.0
    return min(deadline, math.fsum(counted) + rest)


def warnings(
    retention: float, declarations: Sequence[Declaration], keeps: Mapping[str, float], letters: Mapping[str, float]
) -> Iterator[str]:
    """Yield a line for each span that is longer than the ledger's memory.

    Args:
        retention: Seconds for which the ledger remembers.
        declarations: The handlers.
        keeps: Seconds for which the broker keeps each topic's records, if known.
        letters: The age in seconds of each handler's oldest undecided dead letter.
    """
    remembers = f"its ledger remembers for {span(retention)}"
    for declared in declarations:
        for topic in declared.topics:
            if (kept := keeps.get(topic, 0.0)) > retention:
                yield (
                    f"handler {declared.name!r}: {remembers}, and topic {topic!r} keeps its messages "
                    f"{'for ever' if kept == math.inf else f'for {span(kept)}'}: if its position is moved back "
                    "beyond that, messages that cannot be proven new are dead-lettered as stale; change it by "
                    "Worker(retention=...)"
                )
        if (horizon := retry_horizon(declared.retry)) > retention:
            yield (
                f"handler {declared.name!r}: {remembers}, and its retries may take {span(horizon)}: the ledger may "
                "forget a message whose copy still waits behind a retry, and the copy runs again; lengthen the "
                "retention, or shorten the retries"
            )
        if (age := letters.get(declared.name, 0.0)) > retention:
            yield (
                f"handler {declared.name!r}: {remembers}, and its oldest dead letter has waited for {span(age)}: the "
                "ledger may have forgotten the messages after it when it is redriven; redrive, resolve or discard it"
            )


def parked_warnings(parked: float, declarations: Sequence[Declaration]) -> Iterator[str]:
    """Yield a line for each handler whose retries may take longer than a message may be parked."""
    for declared in declarations:
        if (horizon := retry_horizon(declared.retry)) > parked:
            yield (
                f"handler {declared.name!r}: its retries may take {span(horizon)}, and PayloadRetention(parked=...) "
                f"ends them after {span(parked)}; lengthen the retention, or shorten the retries"
            )


def span(seconds: float) -> str:
    """Return a span for people, in the largest unit that fits.

    Example:
        >>> span(7 * 86400), span(5400), span(0.5)
        ('7 d', '1.5 h', '0.5 s')
    """
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.3g} s"
