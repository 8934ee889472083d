"""A process is killed around an undo: the next one continues with the same key, in the same order."""

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import update

from consumerkit.storage.step_values import StepState
from tests.crash.steps_app import UNDONE, log, rejected
from tests.crash.test_step_kills import run_until_killed
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import MemoryStage, opened
from tests.integration.step_stage import LETTERS, STEPS, Provider, rows, until

pytestmark = pytest.mark.crash


class Killed(NamedTuple):
    """A kill at the undo of the last step.

    Attributes:
        at: The failpoint.
        kind: The handler.
        before: How often the step was undone before the kill.
        after: How often it is undone in the end.
    """

    at: str
    kind: str
    before: int
    after: int


SHORT = Killed("undo_called", "Refunding", 1, 2)
MATRIX = [
    Killed("undo_started", "Refunding", 0, 1),
    Killed("undo_started", "PlainRefunding", 0, 1),
    # The other side recognises the repetition by its key.
    Killed("undo_called", "PlainRefunding", 1, 2),
    Killed("undo_done", "Refunding", 1, 1),
    Killed("undo_done", "PlainRefunding", 1, 1),
]


def _id(value: object) -> str:
    return f"{value.at}-{value.kind}" if isinstance(value, Killed) else str(value)


@pytest.mark.parametrize(
    "server, killed",
    [
        pytest.param("sqlite", SHORT),
        pytest.param("postgresql", SHORT, marks=pytest.mark.matrix),
        *(pytest.param(server, one, marks=pytest.mark.matrix) for server in ("postgresql", "sqlite") for one in MATRIX),
    ],
    ids=_id,
)
async def test_an_undo_whose_process_is_killed(
    server: str, killed: Killed, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with opened(fresh_url(request, tmp_path, server), partitions=2) as stage:
        await _survive(stage, killed, Provider(tmp_path / "charges"), tmp_path / "fired")


async def _survive(stage: MemoryStage, killed: Killed, provider: Provider, fired: Path) -> None:
    await asyncio.to_thread(
        run_until_killed,
        {"database": stage.url, "charges": str(provider.path), "kind": killed.kind, "values": ["v0"]},
        killed.at,
        fired,
    )
    assert len(await rows(stage, LETTERS)) == 1
    assert provider.count("refunded-v0") == killed.before
    assert provider.count("released-v0") == 0
    # The steps are held for the process that has died: they are due when that is over.
    await stage.database.run(
        lambda s: s.execute(
            update(STEPS).where(STEPS.c.state == StepState.UNDOING.value).values(undo_at=STEPS.c.started_at)
        )
    )
    log(stage.broker, ["v0"])
    handler: Any = UNDONE[killed.kind](provider, in_handle=rejected)
    async with stage.run(handler) as run:
        await until(stage, run, STEPS, lambda found: {row.state for row in found} == {StepState.UNDONE.value})
    assert provider.count("refunded-v0") == killed.after
    assert provider.count("released-v0") == 1
    assert (provider.count("v0"), provider.count("reserved-v0")) == (1, 1)
    assert provider.charges().index("refunded-v0") < provider.charges().index("released-v0")
    assert len(await rows(stage, LETTERS)) == 1
    keys = {line.split()[1] for line in provider.path.read_text().splitlines() if line.startswith("refunded")}
    assert len(keys) == 1
