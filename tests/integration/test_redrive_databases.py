"""The way back on each database: the same on SQLite, and with a driver that has coroutines alone."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from consumerkit import Brake, Context, DeadLetter, Reject
from consumerkit.redrive import RedriveResult, Selection, discard, redrive, resolve
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import MemoryStage, Write, opened
from tests.integration.stage import Run

DEAD = "t.dead"


@pytest.fixture(params=["sqlite", "asyncpg"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryStage]:
    async with opened(fresh_url(request, tmp_path), partitions=1) as made:
        made.broker.create_topic(DEAD, 1)
        yield made


class Trap:
    """Rejects some messages, until it is disarmed."""

    def __init__(self, *caught: str) -> None:
        self.caught = set(caught)

    async def __call__(self, context: Context) -> None:
        if context.message_id in self.caught:
            raise Reject("trapped")


async def states(place: MemoryStage) -> list[str]:
    c = DEFAULT_TABLES.dead_letters.c

    def read(session: Session) -> list[str]:
        return list(session.scalars(select(c.state).order_by(c.id)))

    return await place.database.run(read)


async def until(place: MemoryStage, run: Run, holds: Callable[[list[str]], bool]) -> None:
    async with asyncio.timeout(120):
        while not holds(await states(place)):
            assert not run.task.done()
            await asyncio.sleep(0.05)


async def lines(place: MemoryStage) -> list[str]:
    return [line.message_id for line in await place.lines()]


async def test_dead_letters_come_back_in_order_and_may_die_again(place: MemoryStage) -> None:
    trap = Trap(*map(str, range(6)))
    for number in range(6):
        place.append(number, key=b"%d" % (number % 2))
    async with place.run(Write(trap)) as run:
        await until(place, run, lambda found: found == ["dead"] * 6)
        trap.caught = {"4"}
        report = await redrive(place.url, Selection(reason="rejected"), by="ann")
        assert report.redriven == 6
        await until(place, run, lambda found: sorted(found) == ["dead"] + ["resolved"] * 5)
        trap.caught.clear()
        assert (await redrive(place.url, Selection())).redriven == 1
        await until(place, run, lambda found: found == ["resolved"] * 6)
    written = await lines(place)
    assert sorted(written) == [str(number) for number in range(6)]
    assert [n for n in written if n in "135"] == ["1", "3", "5"]
    assert [n for n in written if n in "02"] == ["0", "2"]


async def test_a_held_key_is_let_go(place: MemoryStage) -> None:
    trap = Trap("1", "2")
    for number in range(1, 5):
        place.append(number)
    handler = Write(trap, dead_letter=DeadLetter(DEAD, hold_key=True))
    async with place.run(handler) as run:
        await until(place, run, lambda found: found == ["dead"])
        await discard(place.url, Selection(ids=[1]), note="not wanted")
        await until(place, run, lambda found: found == ["discarded", "dead"])
        assert await lines(place) == []
        trap.caught.clear()
        await redrive(place.url, Selection())
        await until(place, run, lambda found: found == ["discarded", "resolved"])
        await place.until_written(run, 3)
    assert await lines(place) == ["2", "3", "4"]


async def test_a_resend_of_a_dead_id_runs(place: MemoryStage) -> None:
    trap = Trap("1")
    place.append(1)
    async with place.run(Write(trap, dead_letter=DeadLetter(DEAD, resend="run"))) as run:
        await until(place, run, lambda found: found == ["dead"])
        trap.caught.clear()
        place.append(1)
        await until(place, run, lambda found: found == ["resolved"])
    assert await lines(place) == ["1"]


async def test_closed_by_hand(place: MemoryStage) -> None:
    trap = Trap("1")
    place.append(1)
    async with place.run(Write(trap)) as run:
        await until(place, run, lambda found: found == ["dead"])
        assert (await resolve(place.url, Selection(), note="by hand", dry_run=True)).counts == {
            RedriveResult.RESOLVED: 1
        }
        assert await states(place) == ["dead"]
        await resolve(place.url, Selection(), note="by hand")
        trap.caught.clear()
        place.append(1)
        place.append(2)
        await place.until_written(run, 1)
    assert (await lines(place), await states(place)) == (["2"], ["resolved"])


async def test_a_command_that_is_interrupted_says_so_and_is_gone_on_with(place: MemoryStage) -> None:
    trap = Trap(*map(str, range(40)))
    for number in range(40):
        place.append(number)
    async with place.run(Write(trap, brake=Brake(allowance=1000))) as run:
        await until(place, run, lambda found: found == ["dead"] * 40)
    command = [sys.executable, "-m", "consumerkit", "dead-letters", "redrive", "--all", "--database", place.url]
    slow = await asyncio.to_thread(
        lambda: subprocess.Popen([*command, "--rate", "2"], stderr=subprocess.PIPE, text=True)
    )
    for _ in range(2400):
        if "redriven" in await states(place):
            break
        await asyncio.sleep(0.05)
    slow.send_signal(signal.SIGINT)
    _, said = await asyncio.to_thread(slow.communicate, timeout=120)
    assert (slow.returncode, said) == (
        130,
        "error: interrupted: what was done so far stays done; run the same command again to go on\n",
    )
    before = (await states(place)).count("redriven")
    assert 0 < before < 40
    again = await asyncio.to_thread(subprocess.run, [*command, "--json"], capture_output=True, text=True, check=True)
    assert len([json.loads(line) for line in again.stdout.splitlines()]) == 40 - before
    assert await states(place) == ["redriven"] * 40
