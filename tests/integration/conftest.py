"""A stage, a database or a command line for each test."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from consumerkit.engine import undoing
from consumerkit.engine.lanes import parked_poller
from tests.integration.command import CommandLine
from tests.integration.fresh_url import fresh_url
from tests.integration.kafka_stage import KafkaStage
from tests.services import KafkaServer, PostgresServer
from tests.services.databases import Databases


@pytest.fixture(params=["postgresql", "sqlite"])
def each_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database on PostgreSQL, then one in a file of SQLite."""
    return fresh_url(request, tmp_path)


@pytest.fixture(autouse=True)
def _looks_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that waits for what another program did looks every half second; users' workers look every five."""
    for module in (parked_poller, undoing):
        monkeypatch.setattr(module, "LONGEST_SLEEP", 0.5)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line, without a target or a database in its environment."""
    for variable in ("CONSUMERKIT_APP", "CONSUMERKIT_DATABASE"):
        monkeypatch.delenv(variable, raising=False)
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
async def stage(kafka: KafkaServer, postgres: PostgresServer, databases: Databases) -> AsyncIterator[KafkaStage]:
    """A topic of two partitions and a database with all tables."""
    async for made in _stage(kafka, postgres, databases, 2):
        yield made


@pytest.fixture
async def other_stage(kafka: KafkaServer, postgres: PostgresServer, databases: Databases) -> AsyncIterator[KafkaStage]:
    """A second one, for a run to compare with."""
    async for made in _stage(kafka, postgres, databases, 2):
        yield made


@pytest.fixture
async def narrow_stage(kafka: KafkaServer, postgres: PostgresServer, databases: Databases) -> AsyncIterator[KafkaStage]:
    """A topic of one partition, and a database."""
    async for made in _stage(kafka, postgres, databases, 1):
        yield made


async def _stage(
    kafka: KafkaServer, postgres: PostgresServer, databases: Databases, partitions: int
) -> AsyncIterator[KafkaStage]:
    with databases.lend() as database:
        made = KafkaStage(kafka, postgres, database, f"t-{uuid4().hex[:12]}", partitions)
        await made.create_tables()
        yield made
