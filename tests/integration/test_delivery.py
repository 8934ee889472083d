"""Delivery on the real broker: whatever blocks a topic, nothing is lost and other topics continue."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from sqlalchemy.orm import Session

from consumerkit import failpoints
from consumerkit.cli import kafka_rules
from consumerkit.events import DeadLetterByReference, Event, GroupCommitted, OutboxHeldBack, OutboxResumed, Trouble
from consumerkit.handlers.declaration import declare_all
from consumerkit.storage import outbox
from consumerkit.storage.database import Database
from consumerkit.storage.outbox import OutboxMessage
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.kafka import Client, Kafka, Sasl
from consumerkit.worker import Worker
from tests.integration.credit import Credit
from tests.integration.kafka_stage import OPTIONS, Given, KafkaStage, payment
from tests.services import KafkaServer, PostgresServer
from tests.services.secure import PASSWORD, USER, SecureKafka


@pytest.fixture(params=get_args(Client))
def transport(request: pytest.FixtureRequest) -> Client:
    found: Client = request.param
    return found


async def write(stage: KafkaStage, *messages: OutboxMessage) -> None:
    """Write to the outbox as another program may."""
    database = Database(stage.url)
    try:
        await database.run(lambda session: _append(session, messages))
    finally:
        await database.dispose()


def _append(session: Session, messages: tuple[OutboxMessage, ...]) -> None:
    outbox.append(session.connection(), DEFAULT_TABLES, messages)


async def test_a_missing_topic_holds_up_no_other_and_goes_on_when_it_is_there(
    stage: KafkaStage, transport: Client
) -> None:
    others = [f"{stage.topic}-{n}" for n in range(3)]
    for name in others:
        stage.kafka.create_topic(name)
    async with stage.run(Credit(stage), transport=transport) as run:
        await run.until(lambda: run.worker.readiness().ready, "readiness")
        await asyncio.to_thread(stage.kafka.delete_topic, stage.dead_letter_topic)
        stage.send([payment(n, kind="reject", account=f"a-{n}") for n in range(8)])
        await run.until(lambda: len(stage.dead()) == 8, "the dead letters")
        await run.until(lambda: bool(run.seen(OutboxHeldBack)), "the dead letters held back")
        assert "consumerkit topics create" in str(run.worker.readiness())
        began = asyncio.get_running_loop().time()
        for n in range(5):
            await write(stage, *(OutboxMessage(name, None, b"%d" % n, ()) for name in others))
            await run.until(lambda: stage.outbox() == 8, "the other topics' messages")
        assert asyncio.get_running_loop().time() - began < 60  # each waits for none of the silent topic's attempts
        assert len(stage.dead()) == 8
        await asyncio.to_thread(stage.kafka.create_topic, stage.dead_letter_topic, 2)
        await run.until(stage.finished(0, 8), "all dead letters")
        await run.until(lambda: run.worker.readiness().ready, "readiness again")
        assert [event.topic for event in run.seen(OutboxResumed)] == [stage.dead_letter_topic]
        assert len(run.seen(OutboxHeldBack)) == 1
    assert len(stage.read(stage.dead_letter_topic)) == 8
    assert [len(stage.read(name, 1)) for name in others] == [5, 5, 5]


async def test_who_failed_is_ready_again_once_another_process_has_sent(stage: KafkaStage, transport: Client) -> None:
    """The topic works again, and the next try of the process that failed is an hour away."""
    topic = f"{stage.topic}-out"
    await asyncio.to_thread(stage.kafka.create_topic, topic)
    async with stage.run(Credit(stage), transport=transport) as run:
        await run.until(lambda: run.worker.readiness().ready, "readiness")
        await asyncio.to_thread(stage.kafka.delete_topic, topic)
        await write(stage, OutboxMessage(topic, None, b"1", ()))
        await run.until(lambda: bool(run.seen(OutboxHeldBack)), "the message held back")
        relay = run.worker._parts.relay
        assert relay is not None
        (hold,) = relay._holds._holds.values()
        hold.until += 3600
        await asyncio.to_thread(stage.kafka.create_topic, topic)
        async with stage.run(Credit(stage), transport=transport) as other:
            await other.until(lambda: stage.outbox() == 0, "the message to be sent by the other")
            await run.until(lambda: run.worker.readiness().ready, "readiness of the one that failed")
            for n in range(2, 12):
                await write(stage, OutboxMessage(topic, None, b"%d" % n, ()))
            await run.until(lambda: stage.outbox() == 0, "an empty outbox")
            assert len(run.seen(OutboxHeldBack)) == len(run.seen(OutboxResumed)) == 1
    assert sorted(int(one.value or b"") for one in stage.read(topic, 1)) == list(range(1, 12))


async def test_a_topic_too_small_gets_what_fits_whole_and_the_rest_by_reference(
    stage: KafkaStage, transport: Client
) -> None:
    stage.kafka.delete_topic(stage.dead_letter_topic)
    stage.kafka.create_topic(stage.dead_letter_topic, 2, {"max.message.bytes": "12000"})
    large = Given(b"x" * 20_000, b"large", b"k", (("own", b"header"),))
    stage.send([large, *(Given(b"bad %d" % n, b"id-%d" % n, b"k") for n in range(7))])
    async with stage.run(Credit(stage), transport=transport) as run:
        await run.until(stage.finished(0, 8), "all dead letters")
        assert len(run.seen(DeadLetterByReference)) == 1
        assert not run.seen(OutboxHeldBack)
    found = stage.read(stage.dead_letter_topic)
    (cut,) = [one for one in found if one.header("consumerkit-dlq-by-reference")]
    assert (cut.key, cut.value, cut.header("own")) == (b"k", None, "header")
    assert sorted(one.value or b"" for one in found if one is not cut) == sorted(b"bad %d" % n for n in range(7))
    (row,) = [row for row in stage.dead() if str(row["offset"]) == cut.header("consumerkit-dlq-offset")]
    assert row["value"] == large.value


async def test_two_relays_publish_each_message_once(stage: KafkaStage, transport: Client) -> None:
    count = 3000
    async with stage.run(Credit(stage), transport=transport) as run, stage.run(Credit(stage), transport=transport):
        for start in range(0, count, 300):
            rows = [
                OutboxMessage(stage.dead_letter_topic, b"k%d" % (n % 7 + n), b"%d" % n, ())
                for n in range(start, start + 300)
            ]
            await write(stage, *rows)
        await run.until(lambda: stage.outbox() == 0, "an empty outbox")
    values = sorted(int(one.value or b"") for one in stage.read(stage.dead_letter_topic))
    assert values == list(range(count))


@pytest.mark.calm  # it freezes its broker
async def test_a_broker_that_is_down_loses_no_dead_letter(
    postgres: PostgresServer, database: str, topic_name: str, transport: Client
) -> None:
    with KafkaServer.start_private() as broker:
        stage = KafkaStage(broker, postgres, database, topic_name)
        await stage.create_tables()
        stage.send([payment(n, kind="reject", account=f"a-{n}") for n in range(8)])
        async with stage.run(Credit(stage, batch_size=1), transport=transport) as run:
            await run.until(lambda: len(stage.dead()) > 0, "the first dead letter")
            broker.pause()
            await asyncio.sleep(5)
            broker.resume()
            await run.until(stage.finished(0, 8), "all dead letters")
        found = {one.header("consumerkit-dlq-offset") for one in stage.read(stage.dead_letter_topic)}
        assert found == {str(n) for n in range(8)}


CRASH = """
import asyncio, json, sys
from tests.integration.test_delivery import crash
asyncio.run(crash(*sys.argv[1:]))
"""


async def crash(bootstrap: str, url: str, topic: str) -> None:
    """Run a worker that kills itself before the first offset commit after the fourth outcome."""
    stage = KafkaStage.__new__(KafkaStage)
    stage.topic, stage.partitions = topic, 2
    kafka = Kafka(bootstrap, options=OPTIONS["confluent"])
    outcomes = 0

    def arm(event: Event) -> None:
        nonlocal outcomes
        if isinstance(event, GroupCommitted):
            outcomes += event.processed + event.dead
            if outcomes == 4:
                failpoints.arm({"CONSUMERKIT_FAILPOINT": "before_offset_commit:kill"})

    worker = Worker(database=url, kafka=kafka, handlers=[Credit(stage)], observers=[arm], failpoints=True)
    await asyncio.wait_for(worker.run(asyncio.Event()), 60)


async def test_dead_letters_without_a_ledger_row_are_not_doubled_by_a_crash(stage: KafkaStage) -> None:
    """Killed between COMMIT and offset commit, and delivered again."""
    stage.send(
        [
            payment(1),
            Given(payment(9).value, None, b"k"),
            Given(b"not json", b"x", b"k"),
            payment(1, amount=2),
        ]
    )
    arguments = [sys.executable, "-c", CRASH, stage.kafka.bootstrap, stage.url, stage.topic]
    done = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-1000:]
    assert len(stage.dead()) == 3
    # At least the last of them is delivered again.
    assert sum(max(0, offset) for offset in stage.committed(stage.topic).values()) < 4
    async with stage.run(Credit(stage)) as run:
        await run.until(lambda: sum(max(0, at) for at in stage.committed(stage.topic).values()) == 4, "the offsets")
        await run.until(stage.finished(1, 3), "an empty outbox")
    reasons = ["conflict", "undecodable", "unidentified"]
    assert sorted(row["reason"] for row in stage.dead()) == reasons
    found = [one.header("consumerkit-dlq-reason") or "" for one in stage.read(stage.dead_letter_topic)]
    # The killed process may have sent them before it could say so: a relay sends at least once.
    assert sorted(set(found)) == reasons
    assert stage.count_effects() == 1


@pytest.fixture(scope="module")
def guarded() -> Iterator[SecureKafka]:
    with SecureKafka(authorizer=True) as server:
        yield server


def allow(server: SecureKafka, kind: ResourceType, name: str, *operations: AclOperation) -> None:
    admin = AdminClient({"bootstrap.servers": server.server.bootstrap, "log_level": 0})
    rules = [
        AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{USER}", "*", operation, AclPermissionType.ALLOW)
        for operation in operations
    ]
    for answer in admin.create_acls(rules).values():
        answer.result(timeout=120)


def forbid_writing(server: SecureKafka) -> None:
    admin = AdminClient({"bootstrap.servers": server.server.bootstrap, "log_level": 0})
    anything: Any = None  # narrower in the client's stubs
    writing = AclBindingFilter(
        ResourceType.TOPIC,
        anything,
        ResourcePatternType.ANY,
        anything,
        anything,
        AclOperation.WRITE,
        AclPermissionType.ALLOW,
    )
    for answer in admin.delete_acls([writing]).values():
        answer.result(timeout=120)


async def test_a_forbidden_topic_waits_for_its_right_and_says_which(
    guarded: SecureKafka, postgres: PostgresServer, database: str, transport: Client
) -> None:
    stage = KafkaStage(guarded.server, postgres, database, f"t-{uuid4().hex[:8]}")
    await stage.create_tables()
    # A producer numbers its records: the broker wants the right to write somewhere, wherever that is.
    allow(guarded, ResourceType.TOPIC, "elsewhere", AclOperation.WRITE)
    allow(guarded, ResourceType.TOPIC, stage.topic, AclOperation.READ)
    allow(guarded, ResourceType.GROUP, stage.topic, AclOperation.READ)
    allow(guarded, ResourceType.TOPIC, stage.dead_letter_topic, AclOperation.DESCRIBE)
    stage.send([payment(n, kind="reject" if n % 2 else "ok") for n in range(10)])
    kafka = Kafka(
        guarded.sasl_plaintext,
        security=Sasl("SCRAM-SHA-256", USER, PASSWORD, tls=None),
        transport=transport,
        options=OPTIONS[transport],
    )
    async with stage.run(Credit(stage), kafka=kafka) as run:
        await run.until(lambda: bool(run.seen(OutboxHeldBack)), "the dead letters held back")
        await run.until(lambda: stage.count_effects() == 5 and len(stage.dead()) == 5, "effects and dead letters")
        assert stage.outbox() == 5
        way_out = f"allow principal User:{USER} the operation WRITE on topic '{stage.dead_letter_topic}'"
        assert way_out in str(run.worker.readiness())
        allow(guarded, ResourceType.TOPIC, stage.dead_letter_topic, AclOperation.WRITE)
        await run.until(lambda: stage.outbox() == 0, "all dead letters")
        await run.until(lambda: run.worker.readiness().ready, "readiness")
        assert len(run.seen(OutboxHeldBack)) == 1
    assert len(stage.read(stage.dead_letter_topic)) == 5


async def test_a_principal_that_may_write_nowhere_consumes_and_sends_once_it_may(
    guarded: SecureKafka, postgres: PostgresServer, database: str, transport: Client
) -> None:
    stage = KafkaStage(guarded.server, postgres, database, f"t-{uuid4().hex[:8]}")
    await stage.create_tables()
    forbid_writing(guarded)
    allow(guarded, ResourceType.TOPIC, stage.topic, AclOperation.READ)
    allow(guarded, ResourceType.GROUP, stage.topic, AclOperation.READ)
    allow(guarded, ResourceType.TOPIC, stage.dead_letter_topic, AclOperation.DESCRIBE)
    stage.send([payment(n, kind="reject" if n % 2 else "ok") for n in range(10)])
    kafka = Kafka(
        guarded.sasl_plaintext,
        security=Sasl("SCRAM-SHA-256", USER, PASSWORD, tls=None),
        transport=transport,
        options=OPTIONS[transport],
    )
    async with stage.run(Credit(stage), kafka=kafka) as run:
        await run.until(lambda: stage.count_effects() == 5 and len(stage.dead()) == 5, "effects and dead letters")
        await run.until(lambda: not run.worker.readiness().ready, "readiness to tell")
        allow(guarded, ResourceType.TOPIC, stage.dead_letter_topic, AclOperation.WRITE)
        await run.until(lambda: stage.outbox() == 0, "all dead letters")
        await run.until(lambda: run.worker.readiness().ready, "readiness")
    assert len(stage.read(stage.dead_letter_topic)) == 5


async def test_a_worker_needs_no_more_than_the_rules_that_are_printed(
    guarded: SecureKafka, postgres: PostgresServer, database: str, transport: Client
) -> None:
    stage = KafkaStage(guarded.server, postgres, database, f"t-{uuid4().hex[:8]}")
    await stage.create_tables()
    forbid_writing(guarded)
    stage.send([payment(n, kind="reject" if n % 2 else "ok") for n in range(10)])
    kafka = Kafka(
        guarded.sasl_plaintext,
        security=Sasl("SCRAM-SHA-256", USER, PASSWORD, tls=None),
        transport=transport,
        options=OPTIONS[transport],
    )
    kinds = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP}
    for rule in kafka_rules.rules(declare_all([Credit(stage)])):
        operations = [_operation(word) for word in rule.operations]
        allow(guarded, kinds[rule.kind], rule.name, *operations)
    async with stage.run(Credit(stage), kafka=kafka) as run:
        await run.until(lambda: stage.count_effects() == 5 and len(stage.dead()) == 5, "effects and dead letters")
        await run.until(lambda: stage.outbox() == 0, "all dead letters")
        await run.until(lambda: run.worker.readiness().ready, "readiness")
        assert not run.seen(OutboxHeldBack)
        assert not run.seen(Trouble)


def _operation(word: str) -> AclOperation:
    """Kafka's tool writes DescribeConfigs, its client DESCRIBE_CONFIGS."""
    return AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).upper()]
