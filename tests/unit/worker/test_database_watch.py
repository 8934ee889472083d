"""A silent database is noticed without messages: one question at a time, and none while other requests are answered."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from consumerkit.events import Announcer, Event, Trouble, TroubleOver
from consumerkit.worker import database_watch
from consumerkit.worker.database_watch import ASKED_AFTER, GIVEN_UP_AFTER, SILENT_AFTER, DatabaseWatch, in_a_thread


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Silent:
    """A database that answers when the test lets it."""

    def __init__(self, clock: Clock, *, in_threads: bool) -> None:
        self.clock, self.answered, self.runs_in_threads = clock, clock.now, in_threads
        self.questions: list[asyncio.Future[None]] = []
        self.limits: list[float | None] = []
        self.used_up: int | None = None

    def run(self, work: Callable[[Session], None], *, within: float | None = None) -> asyncio.Future[None]:
        self.limits.append(within)
        self.questions.append(asyncio.get_running_loop().create_future())
        return self.questions[-1]

    def answer(self) -> None:
        self.clock.now += 0.01
        self.answered = self.clock.now
        self.questions[-1].set_result(None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Watched:
    def __init__(self, clock: Clock) -> None:
        self.clock, self.told = clock, list[Event]()
        self.database = Silent(clock, in_threads=False)
        given: Any = self.database
        self.watch = DatabaseWatch(given, Announcer([self.told.append]), clock)

    async def after(self, seconds: float) -> list[str]:
        """Look each second; return what was announced by then."""
        for _ in range(int(seconds)):
            self.clock.now += 1.0
            self.watch.look()
            await asyncio.sleep(0)
        found, self.told[:] = [type(event).__name__ for event in self.told], []
        return found


async def test_nothing_is_asked_while_other_requests_are_answered(clock: Clock) -> None:
    watched = Watched(clock)
    for _ in range(100):
        watched.database.answered = clock.now
        assert await watched.after(ASKED_AFTER - 1) == []
    assert watched.database.questions == []


async def test_an_idle_database_that_answers_is_asked_from_time_to_time(clock: Clock) -> None:
    watched = Watched(clock)
    for number in range(1, 11):
        assert await watched.after(ASKED_AFTER) == []
        assert len(watched.database.questions) == number
        watched.database.answer()
        assert await watched.after(1) == []


async def test_a_silent_database_is_trouble_until_it_answers(clock: Clock) -> None:
    watched = Watched(clock)
    assert await watched.after(ASKED_AFTER + SILENT_AFTER - 1) == []
    assert await watched.after(1) == [Trouble.__name__]
    assert await watched.after(3) == []
    assert len(watched.database.questions) == 1
    watched.database.answer()
    assert await watched.after(1) == [TroubleOver.__name__]


async def test_the_trouble_ends_when_the_database_answers_anything(clock: Clock) -> None:
    watched = Watched(clock)
    await watched.after(ASKED_AFTER + SILENT_AFTER)
    watched.clock.now += 1.0
    watched.database.answered = clock.now
    assert await watched.after(1) == [TroubleOver.__name__]
    assert len(watched.database.questions) == 1


async def test_one_question_at_a_time_and_ever_fewer(clock: Clock) -> None:
    """A question that is given up closes its connection, and the server may keep it: they must not pile up."""
    watched = Watched(clock)
    seconds = 0
    while seconds < 600:
        await watched.after(1)
        seconds += 1
        open_ones = [one for one in watched.database.questions if not one.done()]
        assert len(open_ones) <= 1
        asked = watched.watch._asked
        if open_ones and clock.now - asked >= (watched.database.limits[-1] or 0):
            open_ones[0].set_exception(TimeoutError())
    assert watched.database.limits[:4] == [GIVEN_UP_AFTER, 2 * GIVEN_UP_AFTER, 4 * GIVEN_UP_AFTER, 4 * GIVEN_UP_AFTER]
    assert len(watched.database.questions) <= 13


async def test_a_database_that_refuses_is_trouble_at_once(clock: Clock) -> None:
    watched = Watched(clock)
    await watched.after(ASKED_AFTER)
    watched.database.questions[-1].set_exception(ConnectionRefusedError())
    assert await watched.after(1) == [Trouble.__name__]
    await watched.after(2)
    assert len(watched.database.questions) == 2
    watched.database.answer()
    assert await watched.after(1) == [TroubleOver.__name__]


async def test_a_pool_without_a_free_connection_is_no_silent_server(clock: Clock) -> None:
    watched = Watched(clock)
    watched.database.used_up = 6
    await watched.after(ASKED_AFTER + SILENT_AFTER - 1)
    assert watched.told == []
    clock.now += 1.0
    watched.watch.look()
    [told] = watched.told
    assert isinstance(told, Trouble)
    assert told.error.startswith("all 6 connections of the engine's pool are in use, and none was free for 5 s;")


async def test_a_pool_that_the_question_itself_fills_is_a_silent_server(clock: Clock) -> None:
    """The connection that cannot be made is one of those in use."""
    watched = Watched(clock)
    await watched.after(ASKED_AFTER)
    watched.database.used_up = 6
    await watched.after(SILENT_AFTER - 1)
    clock.now += 1.0
    watched.watch.look()
    [told] = watched.told
    assert isinstance(told, Trouble)
    assert told.error.startswith("it has not answered for 5 s; look for a server that is frozen")


async def test_a_question_in_a_thread_does_not_delay_the_end() -> None:
    answer = in_a_thread(lambda: None)
    await asyncio.wait_for(answer, 60)

    def fails() -> None:
        raise ValueError("as asked")

    with pytest.raises(ValueError, match="as asked"):
        await asyncio.wait_for(in_a_thread(fails), 60)


def test_the_documented_seconds() -> None:
    assert (database_watch.ASKED_AFTER, database_watch.SILENT_AFTER, database_watch.BEAT) == (5.0, 5.0, 1.0)
