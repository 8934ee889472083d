"""Each trouble that a lane has met is over once its work succeeds."""

import asyncio

import pytest

from consumerkit.engine.lanes import backoff
from consumerkit.engine.undo_calls import UndoTrouble
from consumerkit.events import Announcer, Event, Trouble, TroubleOver


def told_of(events: list[Event]) -> list[tuple[str, str]]:
    return [(type(event).__name__, event.where) for event in events if isinstance(event, Trouble | TroubleOver)]


async def test_two_troubles_at_once_have_two_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.0)
    told: list[Event] = []
    waits = backoff.Backoff(Announcer([told.append]))
    await waits.wait("codec", ValueError())
    await waits.wait("database", ValueError())
    waits.over()
    waits.over()
    assert told_of(told) == [
        ("Trouble", "codec"),
        ("Trouble", "database"),
        ("TroubleOver", "codec"),
        ("TroubleOver", "database"),
    ]


async def ended(error: Exception | None) -> asyncio.Task[None]:
    async def work() -> None:
        if error is not None:
            raise error

    task = asyncio.create_task(work())
    await asyncio.wait([task], timeout=60)
    return task


@pytest.mark.parametrize("how", ["undone", "nothing is left"])
async def test_trouble_of_undoing_ends(how: str) -> None:
    told: list[Event] = []
    trouble = UndoTrouble(Announcer([told.append]))
    trouble.over()
    for _ in range(2):
        trouble.ended(await ended(ValueError()), 30.0)
    if how == "undone":
        trouble.ended(await ended(None), 30.0)
    else:
        trouble.over()
    trouble.over()
    assert told_of(told) == [("Trouble", "undo"), ("Trouble", "undo"), ("TroubleOver", "undo")]
