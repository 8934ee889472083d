"""A process is killed where a noticed wait ends its batch: nothing is lost or doubled; a lane repeats one mail at most.

The database of SQLite has one writer and short batches, and no waits are noticed there.
"""

import asyncio
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import func, select

from tests.crash.steps_app import log
from tests.crash.test_step_kills import run_until_killed
from tests.crash.waits_app import Mailing
from tests.integration.memory_stage import MemoryStage, opened
from tests.integration.step_stage import LEDGER
from tests.services import PostgresServer

pytestmark = pytest.mark.crash

MESSAGES = 8


class Killed(NamedTuple):
    """A kill around the cut.

    Attributes:
        at: The failpoint, and which of its visits.
        first: The message that is the first to wait; the batch ends after it.
        lines: What is committed before the kill.
        mails: What is sent before the kill.
    """

    at: str
    first: int
    lines: int
    mails: int


SHORT = Killed("before_commit:kill:1", 2, 0, 1)
MATRIX = [
    Killed("in_handler:kill:3", 2, 0, 0),
    Killed("after_handler:kill:1", 2, 0, 1),
    Killed("before_finalise:kill:1", 2, 0, 1),
    Killed("before_commit:kill:1", 0, 0, 1),
    Killed("after_commit:kill:1", 2, 3, 1),
    # The first message after the cut has a transaction of its own.
    Killed("before_begin:kill:2", 2, 3, 1),
    Killed("before_commit:kill:2", 2, 3, 2),
    Killed("after_commit:kill:2", 2, 4, 2),
    Killed("before_commit:kill:2", 0, 1, 2),
]


def _id(value: object) -> str:
    return f"{value.at.replace(':', '-')}-from-{value.first}" if isinstance(value, Killed) else str(value)


@pytest.mark.parametrize(
    "driver, killed",
    [
        pytest.param("psycopg", SHORT),
        pytest.param("asyncpg", SHORT, marks=pytest.mark.matrix),
        *(pytest.param(driver, one, marks=pytest.mark.matrix) for driver in ("psycopg", "asyncpg") for one in MATRIX),
    ],
    ids=_id,
)
async def test_a_kill_at_the_cut_repeats_at_most_one_mail(
    driver: str, killed: Killed, tmp_path: Path, postgres: PostgresServer, database: str
) -> None:
    async with opened(postgres.url(database, driver), partitions=1) as stage:
        await _survive(stage, killed, tmp_path / "mails", tmp_path / "fired")


async def _survive(stage: MemoryStage, killed: Killed, mails: Path, fired: Path) -> None:
    values = [f"v{number}" for number in range(MESSAGES)]
    await asyncio.to_thread(
        run_until_killed,
        {"database": stage.url, "mails": str(mails), "first": killed.first, "values": values},
        killed.at,
        fired,
        app="tests.crash.waits_app",
    )
    assert len(await stage.lines()) == killed.lines
    assert len(_sent(mails)) == killed.mails
    log(stage.broker, values)
    async with stage.run(Mailing(mails, killed.first)) as run:
        await stage.until_written(run, MESSAGES)
        await run.until(lambda: stage.committed() == stage.ends(), "all is finished")
    ids = [one.message_id for one in await stage.lines()]
    assert ids == [str(number) for number in range(MESSAGES)]
    assert await stage.database.run(lambda s: s.scalars(select(func.count()).select_from(LEDGER)).one()) == MESSAGES
    sent = Counter(_sent(mails))
    assert set(sent) == set(values[killed.first :])
    assert sum(sent.values()) <= len(sent) + 1


def _sent(mails: Path) -> list[str]:
    return mails.read_text().splitlines() if mails.exists() else []
