import math
from collections.abc import Mapping
from typing import Any

import pytest

from consumerkit import Context, Handler, Retry, exponential, fixed, header
from consumerkit.handlers.declaration import declare
from consumerkit.maintenance.retention_warnings import parked_warnings, retry_horizon, span, warnings

DAY = 86_400.0


@pytest.mark.parametrize(
    "retry, seconds",
    [
        (Retry(attempts=1), 0.0),
        (Retry(attempts=4, wait=fixed(10)), 30.0),
        (Retry(attempts=4, wait=exponential(1, max=60, jitter=1)), 2.0 + 4.0 + 8.0),
        (Retry(attempts=4, wait=fixed(10), deadline=25), 25.0),
        (Retry(deadline=7200), 7200.0),
        (Retry(attempts=3, wait=fixed(10), retry_after="seconds", retry_after_max=600), 1200.0),
        (Retry(attempts=1_000_001, wait=fixed(60)), 60e6),
        (Retry(on={OSError: Retry(attempts=2, wait=fixed(500)), ValueError: None}), 500.0),
    ],
)
def test_the_horizon_is_that_of_the_longest_schedule(retry: Retry, seconds: float) -> None:
    assert math.isclose(retry_horizon(retry), seconds)


@pytest.mark.parametrize(
    "seconds, text", [(604800, "7 d"), (90, "1.5 min"), (3600, "1 h"), (0.25, "0.25 s"), (1e9 * DAY, "1000000000 d")]
)
def test_spans_for_people(seconds: float, text: str) -> None:
    assert span(seconds) == text


class Credit(Handler[bytes]):
    name = "credit"
    topics = ("payments", "refunds")
    message_id = header("id")
    retry = Retry(attempts=3, wait=fixed(DAY))

    async def handle(self, event: bytes, context: Context) -> None: ...


@pytest.mark.parametrize(
    "days, keeps, letters, words",
    [
        (3, {}, {}, []),
        (3, {"payments": 3 * DAY, "other": math.inf}, {"mail": 9 * DAY}, []),
        (3, {"refunds": math.inf}, {}, ["topic 'refunds' keeps its messages for ever"]),
        (3, {"payments": 4 * DAY}, {}, ["topic 'payments' keeps its messages for 4 d"]),
        (1, {}, {}, ["its retries may take 2 d"]),
        (3, {}, {"credit": 9 * DAY}, ["its oldest dead letter has waited for 9 d"]),
    ],
)
def test_what_the_ledger_forgets_too_soon_for(
    days: float, keeps: Mapping[str, float], letters: Mapping[str, float], words: list[Any]
) -> None:
    told = list(warnings(days * DAY, [declare(Credit())], keeps, letters))
    assert len(told) == len(words)
    for line, part in zip(told, words, strict=True):
        assert line.startswith(f"handler 'credit': its ledger remembers for {days} d, and ")
        assert part in line


def test_what_ends_in_the_lot_before_its_retries_do() -> None:
    [line] = parked_warnings(DAY, [declare(Credit())])
    assert "its retries may take 2 d, and PayloadRetention(parked=...) ends them after 1 d" in line
    assert not list(parked_warnings(3 * DAY, [declare(Credit())]))
