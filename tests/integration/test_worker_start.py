"""What a worker checks when it is built and when it starts: each mistake is one line that names the way out."""

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from consumerkit import ConfigurationError, Context, DeadLetter, Handler, StartError, header
from consumerkit.transports.memory import Memory
from consumerkit.worker import Worker
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, opened
from tests.integration.step_stage import Charging, Provider
from tests.services import PostgresServer


class Plain(Handler[bytes]):
    name = "plain"
    topic = TOPIC
    message_id = header("id")

    def handle(self, event: bytes, context: Context[Session]) -> None: ...


@pytest.fixture
async def place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    async with opened(postgres.url(database)) as made:
        yield made


async def refusal(worker: Worker) -> str:
    """Why a worker does not start, in one line; it can be stopped all the same."""
    with pytest.raises(StartError) as caught:
        await worker.start()
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.__cause__ is None
    assert await worker.stop()
    return line


# When it is built.


@pytest.mark.parametrize("name", ["memory_budget", "transaction_timeout", "drain_timeout", "grace", "stall_timeout"])
@pytest.mark.parametrize("value", [0, -1, "5", True, None, float("nan"), float("inf")])
def test_a_number_that_is_none(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MemoryStage("sqlite://").make(Write(), **{name: value})
    assert str(caught.value) == f"Worker({name}={value!r}): give a number greater than 0"


@pytest.mark.parametrize(
    "argument, message",
    [
        ({"kafka": "localhost:9092"}, "Worker(kafka='localhost:9092'): give kafka=Kafka('localhost:9092')"),
        ({"kafka": None}, "Worker has no kafka: give kafka=..., or set CONSUMERKIT_KAFKA__BOOTSTRAP"),
        ({"tables": "shop_"}, "Worker(tables='shop_'): give Tables(prefix=..., schema=...)"),
        ({"observers": [3]}, "Worker(observers=[3]): give a list of functions of one event"),
        ({"observers": 3}, "Worker(observers=3): give a list of functions of one event"),
    ],
)
def test_an_argument_of_another_kind(argument: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "database": "sqlite://",
        "kafka": Memory(MemoryStage("sqlite://").broker),
        "handlers": [Write()],
    }
    with pytest.raises(ConfigurationError) as caught:
        Worker(**(given | argument))
    assert str(caught.value) == message


def test_a_coroutine_on_a_database_for_threads() -> None:
    place = MemoryStage("sqlite://")
    with pytest.raises(ConfigurationError) as caught:
        Worker(
            database=create_engine("postgresql+psycopg://u:secret@h/x"), kafka=Memory(place.broker), handlers=[Write()]
        )
    assert str(caught.value) == (
        "handler 'write': its handle is a coroutine function, and Database(postgresql+psycopg://u:***@h/x) is for "
        "threads only; give database= a URL, an AsyncEngine or an async_sessionmaker, or write a plain `def handle`"
    )


@pytest.mark.parametrize("given", ["engine", "url"])
def test_a_plain_function_on_a_database_for_coroutines(given: str) -> None:
    place = MemoryStage("sqlite://")
    url = "postgresql+asyncpg://u:secret@h/x"
    database = url if given == "url" else create_async_engine(url)
    with pytest.raises(ConfigurationError) as caught:
        Worker(database=database, kafka=Memory(place.broker), handlers=[Plain()])
    assert str(caught.value) == (
        "handler 'plain': its handle is a plain function, and Database(postgresql+asyncpg://u:***@h/x) is for "
        "coroutines only; give database= a postgresql+psycopg URL, an Engine or a sessionmaker, or write "
        "`async def handle`"
    )


@pytest.mark.parametrize("option", ["only", "adopt"])
def test_a_handler_that_is_not_there(option: str) -> None:
    worker = MemoryStage("sqlite://").make(Write(), Plain())
    with pytest.raises(ConfigurationError) as caught:
        getattr(worker, option)(["wriet"])
    assert str(caught.value) == f"--{option} 'wriet': no handler has this name; did you mean 'write'?"
    with pytest.raises(ConfigurationError) as caught:
        getattr(worker, option)(["x"])
    assert str(caught.value) == f"--{option} 'x': no handler has this name; the handlers are 'write', 'plain'"


def test_only_some_of_the_handlers() -> None:
    worker = MemoryStage("sqlite://").make(Write(), Plain())
    worker.only(["plain"])
    assert [declared.name for declared in worker.declarations] == ["plain"]


# When it starts: topics.


async def test_a_missing_topic(place: MemoryStage) -> None:
    assert await refusal(place.make(Write(topic="paymnts"))) == (
        "handler 'write': topic 'paymnts' does not exist; correct it, or make it with "
        "`consumerkit topics create --partitions N`"
    )


async def test_a_missing_topic_that_is_published_to(place: MemoryStage) -> None:
    assert await refusal(place.make(Write(publishes=("receipts",)))) == (
        "handler 'write': topic 'receipts', which it publishes to, does not exist; correct it, or make it with "
        "`consumerkit topics create --partitions N`"
    )


async def test_a_missing_dead_letter_topic(place: MemoryStage) -> None:
    assert await refusal(place.make(Write(dead_letter=DeadLetter("t.dlq")))) == (
        "handler 'write': dead-letter topic 't.dlq' does not exist; `consumerkit topics create` makes it"
    )


async def test_a_broker_out_of_reach(place: MemoryStage) -> None:
    with place.broker.outage():
        assert await refusal(place.make(Write())) == "the broker in memory is down"


async def test_a_dead_letter_topic_of_fewer_partitions_is_warned_of(
    place: MemoryStage, caplog: pytest.LogCaptureFixture
) -> None:
    place.broker.create_topic("t.dlq", 1)
    with caplog.at_level(logging.WARNING, "consumerkit"):
        async with place.make(Write(dead_letter=DeadLetter("t.dlq"))):
            pass
    assert (
        "handler 'write': dead-letter topic 't.dlq' has 1 partitions, its source 4; give it as many" in caplog.messages
    )


# When it starts: the database.


async def test_missing_tables(postgres: PostgresServer, database: str) -> None:
    assert await refusal(MemoryStage(postgres.url(database)).make(Write())) == (
        "database: consumerkit's tables (consumerkit_*) are missing; run consumerkit db upgrade"
    )


async def test_a_name_that_belongs_to_another_group(place: MemoryStage) -> None:
    place.broker.create_topic("u", 1)
    async with place.make(Write()):
        pass
    other = Write(topic="u", group="other")
    assert await refusal(place.make(other)) == (
        "handler 'write': this name is bound to group 'write' and topics t, not to group 'other' and topics u; "
        "rename the handler, or start once with --adopt write if the change is meant"
    )
    worker = place.make(other)
    worker.adopt(["write"])
    async with worker:
        pass
    async with place.make(other):
        pass


async def test_two_names_do_not_share_a_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = MemoryStage(f"sqlite+aiosqlite:///{tmp_path}/t.db")
    await place.create_tables()
    renamed = Write(name="renamed", group="write")
    async with place.make(Write()):
        pass
    assert await refusal(place.make(renamed)) == (
        "handler 'renamed': group 'write' belongs to handler 'write' on this database, and each would get a part "
        "of the messages; give 'renamed' a group of its own, or start once with --adopt renamed if 'write' never "
        "runs again"
    )
    worker = place.make(renamed)
    worker.adopt(["renamed"])
    async with worker:
        pass
    assert "group 'write' belongs to handler 'renamed'" in await refusal(place.make(Write()))

    # As an earlier release has left it: both have the group.
    both = text("UPDATE consumerkit_consumers SET group_name = :group")
    await place.database.run(lambda session: session.execute(both, {"group": "write"}))
    with caplog.at_level(logging.WARNING, "consumerkit"):
        async with place.make(renamed):
            pass
    told = (
        "handler 'renamed': group 'write' also belongs to handler 'write', and each gets a part of the messages; "
        "give one a group of its own, or start once with --adopt renamed if 'write' never runs again"
    )
    assert caplog.messages.count(told) == 1
    await place.close()


async def test_more_connections_than_the_server_has(place: MemoryStage) -> None:
    worker = place.make(Write(), Plain())
    worker.processes = 1000
    line = await refusal(worker)
    assert line.startswith("database: this worker may need 7000 connections (processes x (lanes + 3)), and the server ")
    assert line.endswith("; lower --workers or concurrency, or raise max_connections")


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_server_that_is_not_there(place: MemoryStage, driver: str) -> None:
    url = make_url(place.url).set(port=1, drivername=f"postgresql+{driver}", password="secret")
    place.url = url.render_as_string(hide_password=False)
    line = await refusal(place.make(Write()))
    assert line.startswith(f"Database(postgresql+{driver}://postgres:***@127.0.0.1:1/")
    assert line.endswith("; check that the server runs and that the URL is right")
    assert "secret" not in line


@pytest.fixture
def stranger(postgres: PostgresServer) -> Iterator[str]:
    name = f"ck_{uuid4().hex[:12]}"
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN".encode())
        yield name
        connection.execute(f"DROP ROLE {name}".encode())


async def test_a_role_without_rights(place: MemoryStage, stranger: str) -> None:
    place.url = make_url(place.url).set(username=stranger).render_as_string()
    line = await refusal(place.make(Write()))
    assert "permission denied for table consumerkit_" in line
    assert line.endswith("; check the user's rights")


async def test_a_worker_that_runs_already(place: MemoryStage) -> None:
    async with place.make(Write()) as worker:
        with pytest.raises(StartError) as caught:
            await worker.start()
        assert str(caught.value) == "this worker runs already; build another Worker"


@pytest.mark.parametrize("size, overflow", [(1, 0), (2, 2), (4, 0)])
async def test_a_pool_in_which_something_would_wait_for_ever(place: MemoryStage, size: int, overflow: int) -> None:
    engine = create_async_engine(place.url, pool_size=size, max_overflow=overflow)
    line = await refusal(place.make(Write(concurrency=2), database=engine))
    assert line == (
        "database: this worker may need 5 connections at once (lanes + 3), and the engine's pool gives "
        f"{size + overflow}; make it with pool_size=5, or lower concurrency"
    )
    await engine.dispose()


async def test_a_lane_with_steps_needs_a_second_connection(place: MemoryStage, tmp_path: Path) -> None:
    engine = create_async_engine(place.url, pool_size=6, max_overflow=0)
    line = await refusal(place.make(Charging(Provider(tmp_path / "charges"), concurrency=2), database=engine))
    assert line == (
        "database: this worker may need 7 connections at once (lanes + 3, a lane with steps counts twice), and the "
        "engine's pool gives 6; make it with pool_size=7, or lower concurrency"
    )
    await engine.dispose()


@pytest.mark.parametrize(
    "pool",
    [
        {"pool_size": 5, "max_overflow": 0},
        {"pool_size": 0},
        {"pool_size": 1, "max_overflow": -1},
        {"poolclass": NullPool},
    ],
)
async def test_a_pool_that_is_large_enough_empties_the_outbox_too(place: MemoryStage, pool: dict[str, Any]) -> None:
    async def publish(context: Context[Any]) -> None:
        await context.session.flush()
        context.publish("out", value=b"v", key=b"k")

    place.broker.create_topic("out", 1)
    for number in range(40):
        place.append(number, key=b"%d" % number)
    engine = create_async_engine(place.url, **pool)
    async with place.run(Write(publish, concurrency=2), database=engine) as run:
        await run.until(lambda: place.broker.logs.topics["out"].partitions[0].end == 40, "all that was published")
    await engine.dispose()
