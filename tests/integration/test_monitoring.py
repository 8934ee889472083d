"""`/live`, `/ready` and `/metrics` of a worker, while it works, fails and hangs; and of a supervisor's processes."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine

from consumerkit import Brake, Context, DeadLetter, Defer, Reject
from consumerkit.engine import topic_watch
from consumerkit.events import Stages
from consumerkit.monitoring import backlog
from consumerkit.monitoring.monitor import monitored
from consumerkit.storage.outbox import OutboxMessage
from tests.integration.memory_stage import MemoryStage, Write, opened
from tests.integration.test_cli_run import Shop, shop
from tests.services import PostgresServer

__all__ = ["shop"]
Samples = dict[tuple[str, tuple[str, ...]], float]


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics(port: int) -> Samples:
    status, text = get(port, "/metrics")
    assert status == 200
    return {
        (sample.name, tuple(value for label, value in sorted(sample.labels.items()) if label not in ("pid", "le"))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Mixed(Write):
    """Refuses some messages, has others wait, and may block the event loop."""

    dead_letter = DeadLetter("t.dlq")
    brake = Brake(allowance=100)

    def __init__(self) -> None:
        super().__init__()
        self.block = threading.Event()
        self.blocked = threading.Event()
        self.holding, self.released = asyncio.Event(), asyncio.Event()

    async def handle(self, event: bytes, context: Context) -> None:
        if event == b"reject":
            raise Reject("no such account")
        if event == b"wait":
            raise Defer(3_600)
        if event == b"soon":
            raise Defer(1)
        if event == b"hold":
            self.holding.set()
            await self.released.wait()
        if event == b"block":
            self.blocked.set()
            self.block.wait()
        await super().handle(event, context)


@asynccontextmanager
async def running(stage: MemoryStage, handler: Mixed, transaction_timeout: float = 600.0) -> AsyncIterator[int]:
    stage.broker.logs.create("t.dlq", 1)
    worker = stage.make(handler, stall_timeout=600.0, transaction_timeout=transaction_timeout)
    stopping = asyncio.Event()
    async with monitored(worker, ("127.0.0.1", 0)) as port:
        assert port is not None
        task = asyncio.create_task(worker.run(stopping))
        try:
            yield port
        finally:
            handler.block.set()
            handler.released.set()
            stopping.set()
            await task


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[MemoryStage]:
    async with opened(f"sqlite:///{tmp_path}/monitored.sqlite") as made:
        yield made


@asynccontextmanager
async def closing(stage: MemoryStage) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await stage.close()


async def answered(ports: Collection[int], status: int, word: str = "") -> None:
    end = time.monotonic() + 60
    for port in ports:
        while (found := await asyncio.to_thread(get, port, "/ready"))[0] != status or word not in found[1]:
            assert time.monotonic() < end, found
            await asyncio.sleep(0.05)


async def until_metric(port: int, wanted: Samples) -> Samples:
    end = time.monotonic() + 120
    while True:
        found = await asyncio.to_thread(metrics, port)
        if all(found.get(key) == value for key, value in wanted.items()):
            return found
        assert time.monotonic() < end, str(
            {key: found.get(key) for key, value in wanted.items() if found.get(key) != value}
        )
        await asyncio.sleep(0.05)


# Its threads have Python collect what tests before it have left, such as the connection of a migration that failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_worker_is_measured(stage: MemoryStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "EVERY", 0.2)
    for number in range(20):
        stage.append(number)
    stage.append(3)  # a duplicate
    stage.append(100, value=b"reject", key=b"r")
    stage.append(101, value=b"wait", key=b"w")
    stage.append(102, key=b"w")
    async with running(stage, Mixed()) as port:
        found = await until_metric(
            port,
            {
                ("consumerkit_messages_total", ("write", "processed")): 20,
                ("consumerkit_messages_total", ("write", "duplicate")): 1,
                ("consumerkit_messages_total", ("write", "dead")): 1,
                ("consumerkit_dead_letters_total", ("write", "rejected")): 1,
                ("consumerkit_parked", ("write",)): 2,
                ("consumerkit_dead_undecided", ("write",)): 1,
                ("consumerkit_partitions", ("write",)): 4,
            },
        )
        assert found[("consumerkit_parked_due", ("write",))] == 0
        assert found[("consumerkit_duplicates_total", ("resent", "write"))] == 1
        assert found[("consumerkit_duplicate_age_seconds_count", ("write",))] == 1
        assert found[("consumerkit_stage_seconds_count", ("write", "commit"))] >= 1
        spent = sum(found[("consumerkit_stage_seconds_sum", ("write", stage))] for stage in Stages._fields)
        assert 0 < spent <= found[("consumerkit_transaction_seconds_sum", ("write",))]
        await until_metric(
            port,
            {
                ("consumerkit_lag", ("write",)): 0,
                ("consumerkit_work_left", ("write",)): 0,
                ("consumerkit_in_flight", ("write",)): 0,
            },
        )
        assert found[("consumerkit_transaction_seconds_count", ("write",))] >= 1
        assert found[("consumerkit_batch_messages_sum", ("write",))] >= 24
        status, body = await asyncio.to_thread(get, port, "/ready")
        assert (status, json.loads(body)) == (200, {"live": True, "ready": True, "findings": []})
        assert (await asyncio.to_thread(get, port, "/live"))[0] == 200
        assert await asyncio.to_thread(get, port, "/") == (404, "there is /live, /ready and /metrics\n")


# As above.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_work_left_is_what_is_not_read_and_what_is_due(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "EVERY", 0.2)
    handler = Mixed()
    handler.concurrency = 1
    stage = MemoryStage(postgres.url(database))
    await stage.create_tables()
    async with closing(stage), running(stage, handler) as port:
        stage.append(100, value=b"soon", key=b"s")
        await until_metric(port, {("consumerkit_parked", ("write",)): 1, ("consumerkit_lag", ("write",)): 0})
        stage.append(1, value=b"hold")
        await asyncio.wait_for(handler.holding.wait(), 120)
        for number in range(2, 12):
            stage.append(number)
        # What is due waits for the one lane.
        found = await until_metric(
            port,
            {
                ("consumerkit_lag", ("write",)): 11,
                ("consumerkit_parked_due", ("write",)): 1,
                ("consumerkit_work_left", ("write",)): 12,
                ("consumerkit_in_flight", ("write",)): 11,
            },
        )
        assert found[("consumerkit_work_left_oldest_seconds", ("write",))] >= max(
            found[("consumerkit_parked_due_oldest_seconds", ("write",))],
            found[("consumerkit_lag_oldest_seconds", ("write",))],
        )
        handler.released.set()
        await until_metric(port, {("consumerkit_lag", ("write",)): 0})


async def test_what_waits_says_when_it_was_measured(stage: MemoryStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the broker is away, the lag keeps its value, and its time stands still."""
    monkeypatch.setattr(backlog, "EVERY", 0.05)
    place = "consumerkit_measured_timestamp_seconds"

    async with running(stage, Mixed()) as port:
        stage.append(1)
        await until_metric(port, {("consumerkit_lag", ("write",)): 0})

        async def times() -> tuple[float, float]:
            found = await asyncio.to_thread(metrics, port)
            return found[(place, ("write", "database"))], found[(place, ("write", "broker"))]

        async def two_more_measurements() -> None:
            for _ in range(2):
                before, end = (await times())[0], time.monotonic() + 120
                while (await times())[0] == before:
                    assert time.monotonic() < end
                    await asyncio.sleep(0.02)

        with stage.broker.outage():
            await two_more_measurements()  # one may have been under way
            stopped = (await times())[1]
            await two_more_measurements()
            assert (await times())[1] == stopped
        await two_more_measurements()
        await two_more_measurements()
        assert (await times())[1] > stopped


@contextmanager
def shut(postgres: PostgresServer, database: str) -> Iterator[None]:
    """Refuse new connections to a database, and end the open ones."""
    admin = create_engine(postgres.url("postgres"), isolation_level="AUTOCOMMIT")
    try:
        with admin.connect() as connection:
            connection.exec_driver_sql(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
            connection.exec_driver_sql(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
            )
            yield
            connection.exec_driver_sql(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
    finally:
        admin.dispose()


# As above.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_ready_names_each_part_that_is_away_and_live_does_not(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_watch, "ASKED_EVERY", 0.5)
    stage = MemoryStage(postgres.url(database))
    await stage.create_tables()
    async with closing(stage), running(stage, Mixed()) as port:

        async def until(status: int, word: str = "") -> None:
            end = time.monotonic() + 240
            while True:
                found, body = await asyncio.to_thread(get, port, "/ready")
                if found == status and word in body:
                    return
                assert time.monotonic() < end, (found, body)
                assert (await asyncio.to_thread(get, port, "/live"))[0] == 200
                await asyncio.sleep(0.1)

        await until(200)
        with shut(postgres, database):
            await until(503, "database trouble")
        await until(200)
        await stage.database.dispose()  # the stage's own connection was ended, too
        with stage.broker.outage():
            stage.append(1)
            await until(503, "broker trouble")
        await until(200)
        await stage.publish(OutboxMessage("gone", None, b"v", ()))
        await until(503, "topic 'gone' stays in the outbox")
        stage.broker.create_topic("gone", 1)
        await until(200)


async def test_a_process_without_partitions_names_a_broker_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_watch, "ASKED_EVERY", 0.2)
    stage = MemoryStage(f"sqlite:///{tmp_path}/monitored.sqlite", partitions=1)
    await stage.create_tables()
    async with closing(stage), running(stage, Mixed()) as first, running(stage, Mixed()) as second:
        ports = first, second  # one of them has the only partition
        await answered(ports, 200)
        with stage.broker.outage():
            await answered(ports, 503, "broker trouble")
        await answered(ports, 200)


async def test_a_blocked_event_loop_is_told_while_it_is_blocked(stage: MemoryStage) -> None:
    handler = Mixed()
    stage.append(1, value=b"block")
    answers: list[tuple[int, str]] = []

    def ask(port: int) -> None:
        assert handler.blocked.wait(120)
        end = time.monotonic() + 120
        while True:
            answers.append(get(port, "/ready"))
            if answers[-1][0] == 503 or time.monotonic() > end:
                break
            time.sleep(0.2)
        answers.append(get(port, "/live"))
        handler.block.set()

    async with running(stage, handler) as port:
        asking = threading.Thread(target=ask, args=(port,))
        asking.start()
        await asyncio.to_thread(asking.join)
        await until_metric(port, {("consumerkit_messages_total", ("write", "processed")): 1})
        assert (await asyncio.to_thread(get, port, "/ready"))[0] == 200
    (status, body), (lives, _) = answers[-2:]
    assert status == 503
    assert "the event loop has been blocked for" in body
    assert lives == 200  # not for as long as the watchdog allows


async def test_a_transaction_that_does_not_end_is_told(stage: MemoryStage) -> None:
    handler = Mixed()
    stage.append(1, value=b"hold")
    async with running(stage, handler, transaction_timeout=8.0) as port:
        await asyncio.wait_for(handler.holding.wait(), 120)
        assert (await asyncio.to_thread(get, port, "/ready"))[0] == 200  # younger than half of the timeout
        status, body = await asyncio.to_thread(_until_not_ready, port)
        handler.released.set()
        await until_metric(port, {("consumerkit_messages_total", ("write", "processed")): 1})
        assert (await asyncio.to_thread(get, port, "/ready"))[0] == 200
    assert status == 503
    assert "write: a transaction has not ended yet; look for a database that does not answer" in body


def _until_not_ready(port: int) -> tuple[int, str]:
    end = time.monotonic() + 120
    while (answer := get(port, "/ready"))[0] == 200 and time.monotonic() < end:
        time.sleep(0.1)
    return answer


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.calm
@pytest.mark.slow
def test_several_processes_are_served_as_one(shop: Shop) -> None:
    port = _free_port()
    process = shop.run("record", "--workers", "2", "--http", f"127.0.0.1:{port}")

    def answers(path: str, status: int) -> bool:
        try:
            return get(port, path)[0] == status
        except OSError:
            return False

    shop.until(lambda: answers("/ready", 200), "both processes to be ready")
    shop.send(0, 200)
    processed = ("consumerkit_messages_total", ("record", "processed"))
    shop.until(lambda: metrics(port).get(processed) == 200, "200 messages to be counted over both")

    os.kill(shop.children()[0], signal.SIGKILL)
    shop.until(lambda: answers("/ready", 503), "the missing process to be told")
    assert answers("/live", 200)
    shop.until(lambda: answers("/ready", 200), "the new process to be ready")
    assert metrics(port)[processed] == 200  # what the dead one counted stays
    owned = ("consumerkit_partitions", ("record",))
    shop.until(lambda: metrics(port).get(owned) == 4, "the partitions of the living to be counted")

    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
