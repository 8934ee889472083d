"""A process is killed around the call of a step: the next one does what the step declares."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import update

from consumerkit.events import StepAwaited, StepDoubted
from tests.crash.steps_app import IN_HANDLE, KINDS, log
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import MemoryStage, opened
from tests.integration.step_stage import LETTERS, LOT, STEPS, Provider, rows, until

pytestmark = pytest.mark.crash


class Killed(NamedTuple):
    """A kill, and what it leaves to the next process.

    Attributes:
        at: The failpoint.
        kind: The handler.
        charged: How often the provider was called before the kill.
        again: How often it is called after it.
        then: What is said of the step in doubt; nothing where its result was kept.
        dead: Whether the message is given up.
    """

    at: str
    kind: str
    charged: int
    again: int
    then: str = ""
    dead: bool = False


SHORT = Killed("step_called", "Asking", 1, 0, "asked")
MATRIX = [
    Killed("step_started", "Charging", 0, 1, "called again"),
    Killed("step_started", "PlainCharging", 0, 1, "called again"),
    Killed("step_started", "Asking", 0, 1, "asked"),
    Killed("step_started", "Refusing", 0, 0, "dead-lettered", dead=True),
    # The other side recognises the repetition by its key.
    Killed("step_called", "Charging", 1, 1, "called again"),
    Killed("step_called", "PlainCharging", 1, 1, "called again"),
    Killed("step_called", "Refusing", 1, 0, "dead-lettered", dead=True),
    Killed("step_started", "PlainAsking", 0, 1, "asked"),
    Killed("step_called", "PlainAsking", 1, 0, "asked"),
    Killed("step_started", "PlainRefusing", 0, 0, "dead-lettered", dead=True),
    Killed("step_called", "PlainRefusing", 1, 0, "dead-lettered", dead=True),
    *(Killed("step_done", kind, 1, 0) for kind in KINDS),
]
WITHIN_HANDLE = [
    Killed("step_started", "ChargingInHandle", 0, 1, "called again"),
    Killed("step_called", "ChargingInHandle", 1, 1, "called again"),
    Killed("step_started", "AskingInHandle", 0, 1, "asked"),
    Killed("step_called", "AskingInHandle", 1, 0, "asked"),
    Killed("step_started", "RefusingInHandle", 0, 0, "dead-lettered", dead=True),
    Killed("step_called", "RefusingInHandle", 1, 0, "dead-lettered", dead=True),
    *(Killed("step_done", kind, 1, 0) for kind in IN_HANDLE),
]


def _id(value: object) -> str:
    return f"{value.at}-{value.kind}" if isinstance(value, Killed) else str(value)


@pytest.mark.parametrize(
    "server, killed",
    [
        pytest.param("postgresql", SHORT),
        *(pytest.param("postgresql", one, marks=pytest.mark.matrix) for one in (*MATRIX, *WITHIN_HANDLE)),
        *(pytest.param("sqlite", one, marks=pytest.mark.matrix) for one in (SHORT, *MATRIX)),
    ],
    ids=_id,
)
async def test_a_step_whose_process_is_killed(
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
    assert provider.count("v0") == killed.charged
    log(stage.broker, ["v0"])
    handler: Any = (KINDS | IN_HANDLE)[killed.kind](provider)
    async with stage.run(handler) as run:
        if killed.then:
            # Before its deadline it is unknown whether the call is still running.
            await until(stage, run, LOT, lambda found: len(found) == 1)
            assert run.seen(StepAwaited)
            assert provider.count("v0") == killed.charged
            await stage.database.run(lambda s: s.execute(update(STEPS).values(deadline_at=STEPS.c.started_at)))
            await stage.database.run(lambda s: s.execute(update(LOT).values(due_at=LOT.c.parked_at)))
        if killed.dead:
            await until(stage, run, LETTERS, lambda found: len(found) == 1)
        else:
            await stage.until_written(run, 1)
        assert [one.then for one in run.seen(StepDoubted)] == [killed.then] * bool(killed.then)
    assert provider.count("v0") == killed.charged + killed.again
    assert len(await stage.lines()) == (0 if killed.dead else 1)
    assert len({row.state for row in await rows(stage)}) == 1
    keys = {line.split()[1] for line in provider.path.read_text().splitlines()} if provider.path.exists() else set()
    assert len(keys) <= 1  # the other side can tell a repetition


def run_until_killed(
    settings: Mapping[str, Any], failpoint: str, fired: Path, *, app: str = "tests.crash.steps_app"
) -> None:
    """Run a worker until a failpoint kills it, at its first visit if it names none."""
    environment = {
        **os.environ,
        "CONSUMERKIT_FAILPOINT": failpoint if ":" in failpoint else f"{failpoint}:kill",
        "CONSUMERKIT_FAILPOINT_LOG": str(fired),
    }
    done = subprocess.run(
        [sys.executable, "-m", app, json.dumps(settings)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert fired.read_text().split()[:2] == [failpoint.partition(":")[0], "kill"]
