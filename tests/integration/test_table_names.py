"""All statements use one set of tables, whatever a search path, a map or a temporary table says."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from sqlalchemy import CursorResult, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from consumerkit import ConfigurationError, Context, Handler, header, message_status, outbox
from consumerkit.events import GroupCommitted, HandlerStopped
from consumerkit.message import Message, TopicPartition
from consumerkit.outcome import MessageState
from consumerkit.storage import fence, schema
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.tables import DEFAULT_TABLES, Tables
from consumerkit.transports.memory import MemoryBroker
from tests.integration.memory_stage import TOPIC, MemoryStage, Write
from tests.services import PostgresServer


@pytest.fixture
async def place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    """A database with our tables in `public`, and in `a` and `b`."""
    made = MemoryStage(postgres.url(database))
    made.broker = MemoryBroker(topics={TOPIC: 4, "out": 1})
    await made.create_tables()
    for name in ("a", "b"):
        await made.database.run(partial(schema.apply, tables=Tables(schema=name)))
    yield made
    await made.close()


def by_path(url: str, path: str) -> str:
    return f"{url}?options=-csearch_path%3D{path}"


async def rows(place: MemoryStage, query: str) -> list[Any]:
    def work(session: Session) -> list[Any]:
        result = session.execute(text(query))
        return list(result.all()) if cast(CursorResult[Any], result).returns_rows else []

    return await place.database.run(work)


async def counts(place: MemoryStage, table: str) -> dict[str, int]:
    """How many rows a table of ours has in each schema."""
    return {
        name: (await rows(place, f"SELECT count(*) FROM {name}.consumerkit_{table}"))[0][0]
        for name in ("public", "a", "b")
    }


def sent(place: MemoryStage) -> list[Message]:
    return place.broker.records("out")


# A map of schemas.


@pytest.mark.parametrize("tables", [DEFAULT_TABLES, Tables(schema="a")], ids=["default", "named"])
async def test_a_map_that_reaches_our_tables_is_refused_at_the_start(place: MemoryStage, tables: Tables) -> None:
    engine = create_async_engine(place.url, execution_options={"schema_translate_map": {tables.schema: "b"}})
    worker = place.make(Write(), database=engine, tables=tables)
    with pytest.raises(ConfigurationError) as caught:
        await worker.start()
    assert "\n" not in str(caught.value)
    assert f"schema_translate_map={{{tables.schema!r}: 'b'}}" in str(caught.value)
    await engine.dispose()


async def test_a_map_that_leaves_our_tables_alone_serves_the_handler(place: MemoryStage) -> None:
    """The user's unqualified tables go where the map says, ours stay in the schema that was named."""
    await rows(place, "CREATE TABLE b.lines (LIKE public.lines INCLUDING ALL)")
    engine = create_async_engine(place.url, execution_options={"schema_translate_map": {None: "b"}})
    place.append(1)
    async with place.run(Write(), database=engine, tables=Tables(schema="a")) as run:
        await run.until(lambda: bool(run.seen(GroupCommitted)), "the group")
    assert (await rows(place, "SELECT count(*) FROM b.lines"))[0][0] == 1
    assert await counts(place, "processed_messages") == {"public": 0, "a": 1, "b": 0}
    await engine.dispose()


@pytest.mark.parametrize("call", ["publish", "status"])
async def test_a_map_of_a_web_services_session_is_refused_too(place: MemoryStage, call: str) -> None:
    engine = create_async_engine(place.url, execution_options={"schema_translate_map": {None: "b"}})
    async with AsyncSession(engine) as session:
        with pytest.raises(ConfigurationError, match="schema_translate_map"):
            await (outbox.publish(session, "x", value=b"1") if call == "publish" else message_status(session, "w", "1"))
        await outbox.publish(session, "x", value=b"1", tables=Tables(schema="a"))
        await session.commit()
    assert await counts(place, "outbox_messages") == {"public": 0, "a": 1, "b": 0}
    await engine.dispose()


# Search paths.


async def test_services_told_apart_by_their_path_do_not_wait_for_each_other(place: MemoryStage) -> None:
    """The locks of a's relay, pruning and fences block nothing in b."""
    here = {name: DEFAULT_TABLES.within(name) for name in "ab"}
    dialects = {name: dialect_for("postgresql", tables) for name, tables in here.items()}
    at = TopicPartition(TOPIC, 0)
    async with place.database.transaction() as run:

        def lock(session: Session) -> None:
            assert dialects["a"].lock_relay(session)
            assert dialects["a"].lock_pruning(session.connection())
            assert dialects["a"].take_over(session.connection(), fence.number(here["a"], 1, at), wait=5)

        await run(lock)
        place.append(1, partition=0)
        async with place.run(Publishing(), database=by_path(place.url, "b,public")) as worker:
            await worker.until(lambda: bool(sent(place)), "b's message, though a holds its locks")
    assert await counts(place, "processed_messages") == {"public": 0, "a": 0, "b": 1}


class Publishing(Handler[bytes]):
    name = "write"
    topic = TOPIC
    message_id = header("id")

    async def handle(self, event: bytes, context: Context) -> None:
        context.publish("out", value=b"1")


async def test_one_set_of_tables_has_one_fence_however_it_is_configured(place: MemoryStage) -> None:
    at = TopicPartition(TOPIC, 0)
    numbers = set()
    for url, tables in (
        (place.url, DEFAULT_TABLES),
        (place.url, Tables(schema="public")),
        (by_path(place.url, "nowhere,public,a"), DEFAULT_TABLES),
    ):
        database = Database(url)
        numbers.add(fence.number(await database.locate(tables), 1, at))
        await database.dispose()
    assert len(numbers) == 1
    other = Database(by_path(place.url, "a,public"))
    assert fence.number(await other.locate(DEFAULT_TABLES), 1, at) not in numbers
    await other.dispose()


@pytest.mark.parametrize("name", ["Tenant A", "user", 'quo"te', "percent%", "x" * 63, "col:on"])
async def test_a_schema_may_have_any_name(place: MemoryStage, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    with psycopg.connect(place.url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(f"CREATE SCHEMA {quoted}".encode())
        admin.execute(
            f"ALTER ROLE CURRENT_USER IN DATABASE {admin.info.dbname} SET search_path TO {quoted}, public".encode()
        )
        admin.execute(b"DROP TABLE public.consumerkit_alembic_version, public.consumerkit_consumers")
        for (table,) in admin.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE 'consumerkit%'"
        ).fetchall():
            admin.execute(f"DROP TABLE public.{table}".encode())
    fresh = MemoryStage(place.url)
    await fresh.database.run(schema.apply)
    fresh.append(1)
    async with fresh.run(Write()) as run:
        await run.until(lambda: bool(run.seen(GroupCommitted)), "the group")
    found = await rows(fresh, f"SELECT message_id FROM {quoted}.consumerkit_processed_messages".replace(":", "\\:"))
    assert [row[0] for row in found] == ["1"]
    await fresh.close()


async def test_tables_in_several_schemas_of_one_path_are_refused(place: MemoryStage) -> None:
    await rows(place, "DROP TABLE a.consumerkit_outbox_messages")
    worker = place.make(Write(), database=by_path(place.url, "a,public"))
    with pytest.raises(ConfigurationError) as caught:
        await worker.start()
    assert "\n" not in str(caught.value)
    assert "several schemas" in str(caught.value)
    assert "in 'public': consumerkit_outbox_messages" in str(caught.value)


async def test_a_path_without_a_schema_is_refused(place: MemoryStage) -> None:
    worker = place.make(Write(), database=by_path(place.url, "nowhere"))
    with pytest.raises(ConfigurationError) as caught:
        await worker.start()
    assert "search_path of this connection (nowhere) names no schema that exists" in str(caught.value)


# Sessions of a web service.


async def test_each_request_publishes_where_its_own_path_finds_the_tables(place: MemoryStage) -> None:
    await rows(place, "CREATE SCHEMA empty")
    engine = create_async_engine(place.url)
    for path in ("a", "b, public", "a"):
        async with AsyncSession(engine) as session:
            await session.execute(text(f"SET LOCAL search_path TO {path}"))
            await outbox.publish(session, "x", value=b"1")
            status = await message_status(session, "write", "1")
            assert status.state is MessageState.UNKNOWN
            await session.commit()
    assert await counts(place, "outbox_messages") == {"public": 0, "a": 2, "b": 1}
    async with AsyncSession(engine) as session:
        await session.execute(text("SET LOCAL search_path TO empty"))
        with pytest.raises(ConfigurationError) as caught:
            await outbox.publish(session, "x", value=b"1")
        assert "\n" not in str(caught.value)
        assert "(empty) finds none of consumerkit's tables" in str(caught.value)
        # The request's own transaction goes on.
        await outbox.publish(session, "x", value=b"1", tables=Tables(schema="public"))
        await session.commit()
    assert await counts(place, "outbox_messages") == {"public": 1, "a": 2, "b": 1}
    await engine.dispose()


# What a claim proves.


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
async def test_tables_that_were_replaced_under_a_worker_stop_its_handler(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    if kind == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        place = MemoryStage(server.url(request.getfixturevalue("database")))
    else:
        place = MemoryStage(f"sqlite:///{tmp_path}/shop.sqlite")
    await place.create_tables()
    place.append(1, partition=0)
    async with place.run(Write(), Write(name="other", topic="t")) as run:
        await place.until_written(run, 2)
        await run.until(lambda: len(run.seen(GroupCommitted)) >= 2, "both groups")
        await rows(place, "UPDATE consumerkit_consumers SET id = id + 10 RETURNING id")
        place.append(2, partition=0)
        error = await run.failure()
        assert "stopped, and no other is left" in str(error)
        assert "the tables were replaced while it ran; restart it" in str(error)
        assert {one.handler for one in run.seen(HandlerStopped)} == {"write", "other"}
        assert len(await place.lines()) == 2
    await place.close()


# SQLite.


async def test_a_temporary_table_on_sqlite_hides_none_of_ours(tmp_path: Path) -> None:
    place = MemoryStage(f"sqlite:///{tmp_path}/shop.sqlite")
    place.broker = MemoryBroker(topics={TOPIC: 4, "out": 1})
    await place.create_tables()

    async def before(context: Context) -> None:
        for table in ("outbox_messages", "lane_progress", "processed_messages"):
            await context.session.execute(text(f"CREATE TEMP TABLE IF NOT EXISTS consumerkit_{table} (x)"))
        context.publish("out", value=b"1")

    place.append(1)
    place.append(2)
    async with place.run(Write(before, batch_size=1)) as run:
        await place.until_written(run, 2)
        await run.until(lambda: len(sent(place)) == 2, "both messages")
    found = await rows(place, "SELECT message_id FROM main.consumerkit_processed_messages ORDER BY 1")
    assert [row[0] for row in found] == ["1", "2"]
    await place.close()


def test_relays_of_one_sqlite_file_find_each_other_by_any_path(tmp_path: Path) -> None:
    file = tmp_path / "shop.sqlite"
    sqlite3.connect(file).close()
    (tmp_path / "link.sqlite").symlink_to(file)
    (tmp_path / "sub").mkdir()
    names = [str(file), f"{tmp_path}/sub/../shop.sqlite", f"{tmp_path}/link.sqlite", os.path.relpath(file)]
    urls = [f"sqlite:///{name}" for name in names] + [f"sqlite:///file:{file}?mode=rwc&uri=true"]
    databases = [Database(url) for url in urls]
    assert {database.location for database in databases} == {str(file.resolve())}
    dialect = dialect_for("sqlite", DEFAULT_TABLES)
    with dialect.relay_guard(databases[0].location) as mine, dialect.relay_guard(databases[2].location) as second:
        assert (mine, second) == (True, False)
        other = dialect_for("sqlite", Tables(prefix="other_"))
        with other.relay_guard(databases[0].location) as apart:
            assert apart
    for database in databases:
        asyncio.run(database.dispose())
