"""Maintenance that failed is tried again soon: readiness reports the trouble until it succeeds."""

import pytest

from consumerkit import events
from consumerkit.events import Announcer, Event
from consumerkit.maintenance.pruner import INTERVAL, LONGEST_WAIT, Retention


class Failing(Retention):
    """Fails in its first turns, and notes its waits instead of sleeping."""

    def __init__(self, failures: int, told: list[Event]) -> None:
        super().__init__(None, None, (), seconds=None, expiry=None, announce=Announcer([told.append]), look=None)  # type: ignore[arg-type]
        self.failures = failures
        self.waits: list[float] = []

    async def turn(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        if len(self.waits) > 1 and not self.failures and seconds > LONGEST_WAIT:
            self.stop()


@pytest.mark.parametrize("failures", [1, 3, 12])
async def test_waits_after_failures_are_short_and_grow_and_a_good_turn_ends_them(failures: int) -> None:
    told: list[Event] = []
    made = Failing(failures, told)
    await made.run()
    begin, *waits, end = made.waits
    assert begin <= INTERVAL
    assert len(waits) == failures
    assert waits[0] <= 2.0
    assert max(waits) <= LONGEST_WAIT
    assert end > LONGEST_WAIT
    assert [one.wait for one in told if isinstance(one, events.Trouble)] == waits
    assert [type(one) for one in told[failures:]] == [events.TroubleOver]
