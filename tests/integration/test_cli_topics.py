"""`consumerkit topics` on a real broker."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from consumerkit.transports.kafka import Kafka
from tests.integration.command import CommandLine
from tests.services import KafkaServer

APP = """
from consumerkit import Context, DeadLetter, Handler, header
from consumerkit.transports.kafka import Kafka
from consumerkit.worker import Worker

class Base(Handler[bytes]):
    message_id = header("message-id")
    async def handle(self, event: bytes, context: Context) -> None: ...

def handler(name_, topics_, dead_letter_):
    class Made(Base):
        name = name_
        topics = topics_
        dead_letter = DeadLetter(dead_letter_) if dead_letter_ else None
        publishes = {publishes!r}
    return Made()

def build():
    return Worker(
        database="sqlite:///unused.sqlite",
        kafka=Kafka({bootstrap!r}, transport={client!r}),
        handlers=[handler(*each) for each in {handlers!r}],
    )
"""
Handlers = list[tuple[str, list[str], str | None]]
Write = Callable[..., str]


@pytest.fixture(params=["confluent", "aiokafka"])
def target(
    request: pytest.FixtureRequest, kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Write:
    """Writes a user's module with these handlers."""
    monkeypatch.chdir(tmp_path)

    def write(handlers: Handlers, publishes: tuple[str, ...] | None = None) -> str:
        name = f"app_{tmp_path.name}".replace("-", "_")
        text = APP.format(bootstrap=kafka.bootstrap, client=request.param, handlers=handlers, publishes=publishes)
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}:build"

    return write


async def _partitions(kafka: KafkaServer, *topics: str) -> dict[str, int]:
    found = await Kafka(kafka.bootstrap).connect().topics(topics)
    return {name: info.partitions for name, info in found.items()}


def test_check_tells_what_is_missing(target: Write, kafka: KafkaServer, topic_name: str, command: CommandLine) -> None:
    app = target([("credit", [topic_name], f"{topic_name}.dlq"), ("mail", [topic_name], None)])

    answer = command("topics", "check", app)
    assert answer.code == 1
    assert [line.split() for line in answer.out.splitlines()] == [
        ["topic", "partitions", "use", "state"],
        [topic_name, "read", "by", "credit,", "mail", "missing"],
        [f"{topic_name}.dlq", "dead", "letters", "of", "credit", "missing"],
    ]

    kafka.create_topic(topic_name, 3)
    kafka.create_topic(f"{topic_name}.dlq", 2)
    answer = command("topics", "check", app)
    assert answer.code == 1
    assert "too few partitions: its source has 3" in answer.out


def test_create_makes_dead_letter_topics_as_large_as_their_largest_source(
    target: Write, kafka: KafkaServer, topic_name: str, command: CommandLine
) -> None:
    small, large, dead, other = (f"{topic_name}.{suffix}" for suffix in ("small", "large", "dlq", "other.dlq"))
    kafka.create_topic(small, 1)
    kafka.create_topic(large, 5)
    app = target([("credit", [small, large], dead), ("mail", [small], other)])

    answer = command("topics", "create", app)

    assert answer == (0, f"created {dead} with 5 partitions\ncreated {other} with 1 partition\n", "")
    assert command("topics", "create", app) == (0, "all topics are there\n", "")
    checked = command("topics", "check", app)
    assert (checked.code, checked.out.count(" ok\n")) == (0, 4)


def test_create_leaves_missing_sources_unless_told_their_size(
    target: Write, topic_name: str, command: CommandLine
) -> None:
    app = target([("credit", [topic_name], f"{topic_name}.dlq")])

    answer = command("topics", "create", app)
    assert (answer.code, answer.out) == (1, "")
    assert f"error: topic {topic_name!r} (read by credit): missing; --partitions N creates it\n" in answer.err

    answer = command("topics", "create", app, "--partitions", "4")
    assert answer.code == 0
    assert answer.out == f"created {topic_name} with 4 partitions\ncreated {topic_name}.dlq with 4 partitions\n"


def test_what_handlers_publish_to_is_checked_and_made(target: Write, topic_name: str, command: CommandLine) -> None:
    receipts = f"{topic_name}.receipts"
    app = target([("credit", [topic_name], None)], (topic_name, receipts))

    checked = command("topics", "check", app)
    assert [line.split()[1:] for line in checked.out.splitlines()[1:]] == [
        ["read", "by", "credit;", "published", "to", "by", "credit", "missing"],
        ["published", "to", "by", "credit", "missing"],
    ]

    answer = command("topics", "create", app, "--partitions", "2")
    assert answer.out == f"created {topic_name} with 2 partitions\ncreated {receipts} with 2 partitions\n"


def test_create_changes_no_topic_that_exists(
    target: Write, kafka: KafkaServer, topic_name: str, command: CommandLine
) -> None:
    dead = f"{topic_name}.dlq"
    kafka.create_topic(topic_name, 3)
    kafka.create_topic(dead, 2)

    answer = command("topics", "create", target([("credit", [topic_name], dead)]), "--partitions", "9")

    assert (answer.code, answer.out) == (1, "")
    assert answer.err == f"error: topic {dead!r} (dead letters of credit): too few partitions: its source has 3\n"
    assert asyncio.run(_partitions(kafka, topic_name, dead)) == {topic_name: 3, dead: 2}


@pytest.mark.parametrize("client", ["confluent", "aiokafka"])
def test_a_broker_out_of_reach_is_one_line(
    client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: CommandLine
) -> None:
    name = f"lost_{client}"
    text = APP.format(bootstrap="127.0.0.1:1", client=client, handlers=[("credit", ["payments"], None)], publishes=None)
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)

    answer = command("topics", "check", f"{name}:build")

    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert answer.err.startswith("error: ")
