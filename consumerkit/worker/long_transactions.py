"""Findings about transactions that do not end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from consumerkit.worker.readiness import Finding


def long_transactions(ages: Mapping[str, float], limit: float) -> Iterator[Finding]:
    """Yield a finding for each handler whose oldest transaction has run for longer than `limit` seconds.

    No event reports it: a database that is frozen, or behind a network that drops everything, neither answers nor
    refuses.
    """
    for handler, seconds in ages.items():
        if seconds > limit:
            what = (
                "a transaction has not ended yet; look for a database that does not answer, for a lock, and for what "
                "the handler waits for"
            )
            yield Finding(handler, what, seconds)
