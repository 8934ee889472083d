"""The workers of a run: what ends one by itself is a finding, unless a fault kept it from starting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from consumerkit.errors import StartError
from consumerkit.transports.memory import MemoryBroker
from tests.stress.crew import Crew
from tests.stress.draw import plan
from tests.stress.handlers import TOPIC
from tests.stress.journal import Journal
from tests.stress.plan import Step


@asynccontextmanager
async def crew_of_one(error: Exception, *faults: str) -> AsyncIterator[Crew]:
    """A crew whose worker has ended with an error."""
    planned = replace(plan(1), steps=tuple(Step(fault) for fault in faults))
    crew = Crew(planned, "sqlite://", MemoryBroker(topics={TOPIC: 1}), Journal())

    async def end() -> bool:
        raise error

    mate = crew.start()
    mate.task.cancel()
    mate.task = asyncio.create_task(end())
    await asyncio.wait([mate.task])
    yield crew
    for mate in crew.mates:
        mate.task.cancel()
    await asyncio.gather(*(mate.task for mate in crew.mates), return_exceptions=True)


@pytest.mark.parametrize("fault", ["terminate", "outage", "restore"])
async def test_a_worker_that_a_fault_kept_from_starting_is_started_again(fault: str) -> None:
    async with crew_of_one(StartError("the database is away"), fault) as crew:
        [before] = crew.mates
        crew.check()
        [after] = crew.mates
        assert after is not before
        assert not after.task.done()


@pytest.mark.parametrize(
    "error, faults", [(StartError("no table"), ["rebalance"]), (RuntimeError("a defect"), ["terminate"])]
)
async def test_any_other_end_is_a_finding(error: Exception, faults: list[str]) -> None:
    async with crew_of_one(error, *faults) as crew:
        with pytest.raises(type(error), match=str(error)):
            crew.check()
