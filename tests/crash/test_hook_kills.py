"""A process that is killed at the COMMIT of `on_dead_letter`: what the call changes and publishes is there once."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consumerkit.events import DeadLetterHookFailed
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.crash.hook_app import KINDS
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import MemoryStage, opened
from tests.integration.step_stage import LETTERS, rows, until
from tests.integration.test_on_dead_letter import sent, waits

pytestmark = pytest.mark.crash


@pytest.fixture(params=["postgresql", "sqlite"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryStage]:
    async with opened(fresh_url(request, tmp_path), partitions=1) as made:
        made.broker.create_topic("told", 1)
        yield made


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_kill_at_the_commit_of_a_call_loses_and_doubles_nothing(
    stage: MemoryStage, kind: str, after: bool
) -> None:
    settings = json.dumps({"database": stage.url, "kind": kind, "after": after})
    command = [sys.executable, "-m", "tests.crash.hook_app", settings]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    [letter] = await rows(stage, LETTERS)
    assert (letter.hook_at is None, letter.hook_tries) == (after, 1)
    assert len(await stage.lines()) == len(await rows(stage, DEFAULT_TABLES.outbox_messages)) == int(after)
    handler = KINDS[kind](publishes=("told",))
    async with stage.run(handler, transaction_timeout=1.0) as run:
        await until(stage, run, LETTERS, waits(stage))
        await sent(stage, run, 1)
        assert not run.seen(DeadLetterHookFailed)
    assert [one.message_id for one in await stage.lines()] == ["0 rejected 0"]
    assert len(stage.broker.records("told")) == 1
