"""A database that falls silent while there is nothing to handle: `/ready` says so, `/live` stays 200."""

import asyncio
import json
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from consumerkit.events import PartitionTaken, Trouble
from consumerkit.monitoring.monitor import monitored
from consumerkit.worker import database_watch
from tests.integration.memory_stage import MemoryStage, Write
from tests.integration.test_monitoring import get
from tests.services import PostgresServer
from tests.services.tcp_proxy import TcpProxy

CONNECTIONS = 12


async def status(port: int, path: str) -> tuple[int, list[str]]:
    code, body = await asyncio.to_thread(get, port, path)
    return code, json.loads(body)["findings"]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_silent_database_is_noticed_without_messages(
    postgres: PostgresServer, database: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_watch, "ASKED_AFTER", 0.5)
    monkeypatch.setattr(database_watch, "SILENT_AFTER", 0.5)
    monkeypatch.setattr(database_watch, "GIVEN_UP_AFTER", 1.0)
    monkeypatch.setattr(database_watch, "LONGEST", 2.0)
    monkeypatch.setattr(database_watch, "BEAT", 0.1)
    stage = MemoryStage(postgres.url(database))
    await stage.create_tables()
    where = urlsplit(postgres.admin_dsn)
    async with TcpProxy(f"{where.hostname}:{where.port}") as line:
        given = f"postgresql+{driver}://postgres@{line.address}/{database}"
        worker = stage.make(Write(), database=given, transaction_timeout=600.0, stall_timeout=600.0)
        taken = asyncio.Event()
        worker.observe(lambda event: taken.set() if isinstance(event, PartitionTaken) else None)
        async with monitored(worker, ("127.0.0.1", 0)) as port, worker:
            assert port is not None
            await asyncio.wait_for(taken.wait(), 60)
            await until(port, 200)
            line.stall()
            await until(port, 503, "database trouble; the worker goes on by itself once the database works: it has not")
            assert (await status(port, "/live"))[0] == 200
            # Long enough for several questions to be given up.
            for _ in range(60):
                await asyncio.sleep(0.1)
                assert line.connections <= CONNECTIONS
                assert (await status(port, "/ready"))[0] == 503
            line.flow()
            await until(port, 200)
    await stage.close()


async def test_a_pool_that_the_program_itself_uses_up_is_no_silent_server(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"ASKED_AFTER": 0.5, "SILENT_AFTER": 0.5, "BEAT": 0.1}.items():
        monkeypatch.setattr(database_watch, name, seconds)
    stage = MemoryStage(postgres.url(database))
    await stage.create_tables()
    given = create_async_engine(postgres.url(database), pool_size=6, max_overflow=0)
    async with stage.run(Write(), database=given) as run:
        await run.until(lambda: bool(run.seen(PartitionTaken)), "the start")
        async with AsyncExitStack() as held:
            for _ in range(6):
                _ = await held.enter_async_context(given.begin())
            await run.until(lambda: bool(run.seen(Trouble)), "the trouble")
            assert {one.error.partition(",")[0] for one in run.seen(Trouble)} == {
                "all 6 connections of the engine's pool are in use"
            }
        await run.until(lambda: run.worker.readiness().ready, "its end")
    await given.dispose()
    await stage.close()


async def until(port: int, wanted: int, word: str = "") -> None:
    found = 0, [""]
    for _ in range(1200):
        found = await status(port, "/ready")
        if found[0] == wanted and (not word or any(word in finding for finding in found[1])):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"/ready does not answer {wanted}: {found}")
