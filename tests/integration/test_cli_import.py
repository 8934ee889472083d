"""`consumerkit dead-letters import` on a real broker: topics as Spring and Kafka Connect write them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from consumerkit import Context, Handler, header
from tests.crash.model import Payment
from tests.integration.command import CommandLine
from tests.integration.kafka_stage import Given, KafkaStage, effect, payment
from tests.unit.dead_letters.records import connect, replaced, spring

APP = """
from consumerkit import Context, Handler, header
from consumerkit.transports.kafka import Kafka
from consumerkit.worker import Worker
from tests.crash.model import Payment
from tests.integration.kafka_stage import effect

class Credit(Handler[Payment]):
    name = "credit"
    topic = {topic!r}
    message_id = header("message-id")
    async def handle(self, event: Payment, context: Context) -> None:
        context.session.add(effect(event, context))

def build():
    return Worker(database={url!r}, kafka=Kafka({bootstrap!r}, transport={client!r}), handlers=[Credit()])
"""


@pytest.fixture(params=["confluent", "aiokafka"])
def target(request: pytest.FixtureRequest, stage: KafkaStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module."""
    monkeypatch.chdir(tmp_path)
    name = f"app_{tmp_path.name}".replace("-", "_")
    text = APP.format(topic=stage.topic, url=stage.url, bootstrap=stage.kafka.bootstrap, client=request.param)
    (tmp_path / f"{name}.py").write_text(text)
    return f"{name}:build"


def letter(number: int, headers: Any, *, partition: int = 0) -> Given:
    """A record of a foreign dead-letter topic: of the payment with this number."""
    value = json.dumps({"account": f"a-{number % 7}", "amount": 1, "kind": "ok"}).encode()
    return Given(value, b"p-%d" % number, b"a-%d" % (number % 7), tuple(headers), partition)


def test_springs_and_connects_topics_are_imported_and_a_second_time_add_nothing(
    stage: KafkaStage, target: str, command: CommandLine
) -> None:
    dead = stage.dead_letter_topic
    sent = [letter(n, spring(stage.topic, n % 2, n), partition=n % 2) for n in range(150)]
    sent += [letter(n, connect(stage.topic, n % 2, n), partition=n % 2) for n in range(150, 300)]
    sent.append(letter(900, replaced(spring(stage.topic), "kafka_dlt-original-partition", b"3")))
    sent.append(letter(901, connect("elsewhere", 5, 7)))
    sent.append(letter(902, ()))
    stage.send(sent, dead)
    arguments = ("dead-letters", "import", target, "--handler", "credit", "--topic", dead)

    told = command(*arguments, "--dry-run", "--limit", "2")
    assert told.code == 1
    assert "a dry run, nothing was changed: 303 records" in told.out
    assert "301 more are not shown: --limit 303 shows them" in told.out
    assert stage.dead() == []

    done = command(*arguments, "--by", "ann")
    assert done.code == 1
    assert f"303 records of {dead}: 300 imported, 1 from another topic, 1 of no convention, 1 malformed" in done.out
    assert "header 'kafka_dlt-original-partition': it has 1 bytes, not 4" in done.out
    assert "it stood in 'elsewhere'" in done.out
    found = stage.dead()
    assert sorted((row["partition"], row["offset"]) for row in found) == sorted((n % 2, n) for n in range(300))
    assert {row["topic"] for row in found} == {stage.topic}

    again = command(*arguments, "--as-topic", stage.topic, "--json")
    assert again.code == 1
    counts = json.loads(again.out)["counts"]
    assert counts == {"there already": 300, "imported": 1, "of no convention": 1, "malformed": 1}
    # Kept while it is asked: a client that is collected never answers.
    admin = AdminClient({"bootstrap.servers": stage.kafka.bootstrap})
    groups = admin.list_consumer_groups(request_timeout=60).result()
    assert "consumerkit-reader" not in {group.group_id for group in groups.valid}


def test_what_is_asked_for_wrongly_is_one_line(stage: KafkaStage, target: str, command: CommandLine) -> None:
    dead = stage.dead_letter_topic
    arguments = ("dead-letters", "import", target, "--handler", "credit", "--topic", dead)
    for more, said in (
        (("--from-offset", "x"), "error: --from-offset 'x': write OFFSET or PARTITION:OFFSET, such as 3:1200"),
        (("--from-offset", "2:1"), "error: --from-offset '2:1': the topic has partitions 0 to 1"),
        (("--as-topic", "y"), f"error: --as-topic 'y': handler 'credit' does not read it; name one of '{stage.topic}'"),
        (("--topic", "nowhere"), "error: no such topic: nowhere"),
        (("--handler", "debit"), "error: no handler is called 'debit'; the handlers are 'credit'"),
    ):
        answer = command(*arguments, *more)
        assert (answer.code, answer.out, answer.err) == (2, "", f"{said}\n")


def test_it_begins_where_it_is_told(stage: KafkaStage, target: str, command: CommandLine) -> None:
    dead = stage.dead_letter_topic
    sent = [letter(n, spring(stage.topic, 0, n), partition=n % 2) for n in range(20)]
    stage.send(sent, dead)
    arguments = ("dead-letters", "import", target, "--handler", "credit", "--topic", dead)
    answer = command(*arguments, "--from-offset", "8", "--from-offset", "1:9")
    assert (answer.code, answer.out) == (0, f"3 records of {dead}: 3 imported\n")
    assert sorted(row["offset"] for row in stage.dead()) == [16, 18, 19]


class Credit(Handler[Payment]):
    """The handler of the user's module, for a worker in this process."""

    name = "credit"
    message_id = header("message-id")
    batch_size = 20

    def __init__(self, topic: str) -> None:
        self.topic = topic

    async def handle(self, event: Payment, context: Context) -> None:
        context.session.add(effect(event, context))


async def test_springs_and_connects_letters_are_redriven_to_a_running_worker_each_once_and_in_order(
    stage: KafkaStage, target: str, command: CommandLine
) -> None:
    dead = stage.dead_letter_topic
    sent = [letter(n, spring(stage.topic, n % 2, n), partition=n % 2) for n in range(140)]
    sent += [letter(n, connect(stage.topic, n % 2, n), partition=n % 2) for n in range(140, 280)]
    # From another topic, each twice, as after a producer's timeout; and one that was processed in between.
    sent += [letter(n, connect("elsewhere", 0, n)) for n in range(280, 350) for _ in range(2)]
    sent.append(letter(999, spring(stage.topic, 0, 999)))
    await asyncio.to_thread(stage.send, sent, dead)
    arguments = ("dead-letters", "redrive", target, "--handler", "credit", "--from-topic", dead)
    async with stage.run(Credit(stage.topic)) as run:
        await asyncio.to_thread(stage.send, [payment(999, account="a-5")])
        await run.until(stage.finished(1), "the effect of the one that was processed before")
        told = await asyncio.to_thread(command, *arguments, "--dry-run")
        assert stage.dead() == []
        done = await asyncio.to_thread(command, *arguments, "--as-topic", stage.topic)
        again = await asyncio.to_thread(command, *arguments, "--as-topic", stage.topic)
        await run.until(stage.finished(351), "all effects")
        await run.until(lambda: {row["state"] for row in stage.dead()} == {"resolved"}, "all letters resolved")
    assert (told.code, done.code, again.code) == (1, 0, 0)
    assert "the imported letters would then be redriven" in told.out
    assert "350 imported, 70 there already, 1 processed already" in done.out
    assert "350 redriven" in done.out
    assert "420 there already, 1 processed already" in again.out
    effects = stage.effects()
    assert sorted(row["message_id"] for row in effects) == sorted(f"p-{n}" for n in [*range(350), 999])
    home = [row for row in effects if int(row["message_id"][2:]) < 280]
    for partition in (0, 1):
        for account in {row["account"] for row in home}:
            order = [row["offset"] for row in home if (row["partition"], row["account"]) == (partition, account)]
            assert order == sorted(order)
    assert {row["topic"] for row in stage.dead()} == {stage.topic}


def test_a_topic_chooses_the_letters_alone_and_needs_a_handler(
    stage: KafkaStage, target: str, command: CommandLine
) -> None:
    arguments = ("dead-letters", "redrive", target, "--from-topic", stage.dead_letter_topic)
    answer = command(*arguments)
    assert (answer.code, answer.err.count("whose dead letters they are with --handler")) == (2, 1)
    answer = command(*arguments, "--handler", "credit", "--reason", "exhausted")
    assert (answer.code, answer.err.count("only --handler goes with it")) == (2, 1)
