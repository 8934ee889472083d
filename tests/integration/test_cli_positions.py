"""`consumerkit rewind` and `skip` as a person types them, on a real broker and database."""

import asyncio
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import pytest

from consumerkit import Context, Handler, header
from consumerkit.events import GroupCommitted
from consumerkit.transports.kafka import Client
from tests.crash.model import Effect
from tests.integration.command import CommandLine
from tests.integration.kafka_stage import KafkaStage, payment
from tests.services import KafkaServer, PostgresServer

APP = """
from consumerkit import Context, Handler, Kafka, Worker, header

class Apply(Handler[bytes]):
    name = {topic!r}
    topic = {topic!r}
    message_id = header("message-id")
    async def handle(self, event: bytes, context: Context) -> None: ...

worker = Worker(database={url!r}, kafka=Kafka({bootstrap!r}, transport={client!r}), handlers=[Apply()])
"""


class Apply(Handler[bytes]):
    """Adds an effect for each message."""

    message_id = header("message-id")

    def __init__(self, topic: str) -> None:
        self.name = self.topic = topic

    async def handle(self, event: bytes, context: Context) -> None:
        message = context.message
        context.session.add(
            Effect(
                message_id=context.message_id,
                partition=message.partition,
                offset=message.offset,
                account="a",
                amount=1,
                pid=0,
            )
        )


@pytest.fixture(params=get_args(Client))
def stage(
    request: pytest.FixtureRequest,
    kafka: KafkaServer,
    postgres: PostgresServer,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> KafkaStage:
    """A topic whose twenty messages were processed, and a module that leads to its worker."""
    made = KafkaStage(kafka, postgres, database, f"t-{uuid4().hex[:8]}", 2)
    monkeypatch.chdir(tmp_path)
    name = f"app_{uuid4().hex[:8]}"
    app = APP.format(topic=made.topic, url=made.url, bootstrap=kafka.bootstrap, client=request.param)
    (tmp_path / f"{name}.py").write_text(app)
    monkeypatch.setenv("CONSUMERKIT_APP", f"{name}:worker")
    made.send([payment(n, partition=n % 2) for n in range(20)])
    asyncio.run(made.create_tables())
    asyncio.run(_consume(made, 20))
    return made


async def _consume(stage: KafkaStage, effects: int, duplicates: int = 0) -> None:
    async with stage.run(Apply(stage.topic)) as run:
        await run.until(lambda: stage.count_effects() >= effects, f"{effects} effects")
        await run.until(lambda: sum(g.duplicates for g in run.seen(GroupCommitted)) >= duplicates, "duplicates")
        ends = stage.rows("SELECT max(mark) AS n FROM consumerkit_partition_progress")
        assert ends[0]["n"] <= 30


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line, with the target that the stage puts into the environment."""
    return CommandLine(monkeypatch, capsys)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("│", "  ").split("  ") if cell.strip()]


def _marks(stage: KafkaStage) -> list[int]:
    return [row["mark"] for row in stage.rows("SELECT mark FROM consumerkit_partition_progress ORDER BY partition")]


def test_rewind_and_skip_move_the_mark_and_say_so(stage: KafkaStage, command: CommandLine) -> None:
    topic = ["--topic", stage.topic]
    dry = command("rewind", stage.topic, *topic, "--to", "start", "--dry-run")
    assert dry.code == 0, dry.err
    assert "nothing was changed" in dry.out
    assert _marks(stage) == [10, 10]

    moved = command("rewind", stage.topic, *topic, "--partition", "1", "--to", "4", "--by", "ann")
    assert moved.code == 0, moved.err
    row = next(line for line in moved.out.splitlines() if f"{stage.topic}[1]" in line)
    assert _cells(row)[1:] == ["10", "4", "0 to 10"]
    assert _marks(stage) == [10, 4]
    asyncio.run(_consume(stage, 20, duplicates=6))
    assert stage.count_effects() == 20

    stage.send([payment(n, partition=n % 2) for n in range(20, 40)])
    assert command("skip", stage.topic, *topic, "--partition", "0", "--to", "end").code == 0
    asyncio.run(_consume(stage, 30))
    assert {row["partition"] for row in stage.effects() if row["offset"] >= 10} == {1}
    actions: list[dict[str, Any]] = stage.rows("SELECT actor, action FROM consumerkit_operator_actions ORDER BY id")
    assert [action["action"] for action in actions] == ["rewind", "skip"]
    assert actions[0]["actor"] == "ann"


def test_what_makes_no_sense_is_one_line(stage: KafkaStage, command: CommandLine) -> None:
    topic = ["--topic", stage.topic]
    wrong = command("rewind", stage.topic, *topic, "--to", "yesterday")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err == "error: --to 'yesterday': give an offset, start or end\n"
    several = command("rewind", stage.topic, *topic, "--to", "3")
    assert "offset 3: name the one partition that it is meant for, with --partition" in several.err
    assert _marks(stage) == [10, 10]
