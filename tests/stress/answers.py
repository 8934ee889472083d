"""Decides how the broker answers what the relays send."""

from __future__ import annotations

import random
from collections import Counter
from typing import Final

from consumerkit.transports.base import Record, SendFailure
from consumerkit.transports.memory import Acknowledgement
from tests.stress.plan import Plan

_LOST: Final = SendFailure("REQUEST_TIMED_OUT", "the answer was lost", permanent=False)
_REFUSED: Final = SendFailure("NOT_ENOUGH_REPLICAS", "not now", permanent=False)
_FAILURES: Final = 3  # a relay waits a while after each


class Answers:
    """Answers as a plan says: late, or sometimes not at all.

    Attributes:
        fired: How often it did so.
    """

    def __init__(self, plan: Plan) -> None:
        self.fired: Counter[str] = Counter()
        self._acks = plan.acks
        self._chance = random.Random(plan.seed + 1)

    def __call__(self, _: Record) -> Acknowledgement:
        """Return the answer to one record."""
        if self._acks == "at once":
            return Acknowledgement()
        delay = self._chance.choice([0.0, 0.03, 0.06, 0.1])
        fails = (
            self._acks in ("lost", "refused") and self.fired[self._acks] < _FAILURES and self._chance.random() < 0.05
        )
        if not fails:
            self.fired["late"] += 1
            return Acknowledgement(delay=delay)
        self.fired[self._acks] += 1
        if self._acks == "lost":
            return Acknowledgement(delay=delay, failure=_LOST)
        return Acknowledgement(delay=delay, failure=_REFUSED, written=False)
