"""Two databases whose handlers use one consumer group: the second one is refused before it takes anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from typing_extensions import override

from consumerkit.events import PartitionStopped, Trouble
from consumerkit.handlers.handler import AnyHandler
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.worker import Worker
from tests.integration.memory_stage import MemoryStage, Write
from tests.integration.stage import Run

WORDS = "group 'write' is used by handler {!r} on another database, too"


class AdoptingStage(MemoryStage):
    """A stage whose worker is started with `--adopt` of some names."""

    adopted: tuple[str, ...] = ()

    @override
    def make(self, *handlers: AnyHandler, **settings: Any) -> Worker:
        worker = super().make(*handlers, **settings)
        worker.adopt(self.adopted)
        return worker


@pytest.fixture
async def stages(tmp_path: Path) -> AsyncIterator[tuple[AdoptingStage, AdoptingStage]]:
    """Two databases, one broker."""
    first, second = (AdoptingStage(f"sqlite+aiosqlite:///{tmp_path}/{name}.db") for name in ("first", "second"))
    second.broker = first.broker
    for stage in (first, second):
        await stage.create_tables()
    yield first, second
    for stage in (first, second):
        await stage.close()


def told(run: Run, name: str) -> bool:
    words = WORDS.format(name)
    return any(isinstance(one, Trouble | PartitionStopped) and words in one.error for one in run.events)


@pytest.mark.parametrize("name", ["write", "other"])
async def test_the_second_of_two_databases_takes_nothing(
    stages: tuple[AdoptingStage, AdoptingStage], name: str
) -> None:
    first, second = stages
    for number in range(20):
        first.append(number, partition=number % 4)
    async with first.run(Write()) as run:
        await first.until_written(run, 20)
        await run.until(lambda: first.committed() == first.ends(), "the commits")
        other = Write(name=name, group="write")
        async with second.run(other) as stranger:
            await stranger.until(lambda: told(stranger, "write"), "the refusal")
            for number in range(20, 40):
                first.append(number, partition=number % 4)
        # What it was given by the group comes back, and all of it is done once.
        lines = await first.until_written(run, 40)
    assert sorted(int(line.message_id) for line in lines) == list(range(40))
    assert await second.lines() == []
    count = select(func.count()).select_from(DEFAULT_TABLES.first_runs)
    decided = await second.database.run(lambda session: session.scalar(count))
    assert decided == 0, "a first run was decided by the other's offsets"
    assert other.seen == []


async def test_a_group_is_taken_over_by_adopt_and_is_then_refused_to_the_one_before(
    stages: tuple[AdoptingStage, AdoptingStage],
) -> None:
    first, second = stages
    for number in range(8):
        first.append(number, partition=number % 4)
    async with first.run(Write()) as run:
        await first.until_written(run, 8)
        await run.until(lambda: first.committed() == first.ends(), "the commits")
    second.adopted = ("other",)
    async with second.run(Write(name="other", group="write")) as run:
        for number in range(8, 16):
            first.append(number, partition=number % 4)
        lines = await second.until_written(run, 8)
        await run.until(lambda: second.committed() == second.ends(), "the commits")
    assert sorted(int(line.message_id) for line in lines) == list(range(8, 16))
    second.adopted = ()
    # Its own commits are its own, without the word.
    async with second.run(Write(name="other", group="write")) as run:
        first.append(16, partition=0)
        await second.until_written(run, 9)
    # The first one has marks, and finds the other's commits.
    async with first.run(Write()) as run:
        await run.until(lambda: told(run, "other"), "the refusal")
    assert len(await first.lines()) == 8
