"""Order, attempts and due times survive kills, pauses and rebalances, on the real broker and database."""

import random
import time
from pathlib import Path
from typing import get_args

import pytest

from consumerkit import Ordering
from consumerkit.transports.kafka import Client
from tests.crash.ordering_app import Settings
from tests.crash.ordering_run import Crew, expected_retries, workload
from tests.crash.ordering_verdict import Probe, judge
from tests.integration.kafka_stage import KafkaStage, payment
from tests.services import KafkaServer, PostgresServer

pytestmark = [pytest.mark.calm, pytest.mark.crash, pytest.mark.slow]
WHOLE, SHORT = 5_000, 1_000
KEYS, PARTITIONS = 200, 8
# With order per partition each retry makes its partition wait, so that its waits add up.
WAITS = {Ordering.KEY: 0.5, Ordering.PARTITION: 0.1, Ordering.NONE: 0.5}
WITHIN = {Ordering.KEY: "account", Ordering.PARTITION: "partition", Ordering.NONE: None}
# Half a minute on a quiet machine of two cores; on one with ten others at work it took four minutes.
FINISHED_WITHIN = 400.0


def crew_of(
    kafka: KafkaServer, postgres: PostgresServer, database: str, topic: str, directory: Path, partitions: int,
    transport: Client = "confluent", **settings: object,
) -> Crew:  # fmt: skip
    stage = KafkaStage(kafka, postgres, database, topic, partitions)
    given = Settings(
        bootstrap=kafka.bootstrap,
        database=stage.url,
        dsn=postgres.dsn(database),
        transport=transport,
        topic=topic,
        **settings,  # type: ignore[arg-type] # the settings' own types
    )
    return Crew(stage, given, directory)


@pytest.mark.matrix
@pytest.mark.parametrize("ordering", Ordering)
@pytest.mark.parametrize("transport", get_args(Client))
def test_order_attempts_and_due_times_hold_while_processes_die_and_freeze(
    kafka: KafkaServer,
    postgres: PostgresServer,
    database: str,
    topic_name: str,
    tmp_path: Path,
    transport: Client,
    ordering: Ordering,
) -> None:
    wait = WAITS[ordering]
    sent = workload(WHOLE, KEYS, PARTITIONS, topic_name)
    chance = random.Random(topic_name)
    crew = crew_of(
        kafka, postgres, database, topic_name, tmp_path, PARTITIONS, transport, ordering=ordering.name, wait=wait
    )
    with crew, Probe(postgres.dsn(database)) as probe:
        first, second = crew.start(), crew.start()
        crew.stage.send(sent[: WHOLE // 4])
        crew.until("SELECT count(*) > 100 FROM effects", "the first effects")
        time.sleep(chance.uniform(0, 1))
        crew.kill(first)
        third = crew.start()
        crew.stage.send(sent[WHOLE // 4 : WHOLE // 2])
        crew.until_owning(third)
        crew.stage.send(sent[WHOLE // 2 : 3 * WHOLE // 4])
        time.sleep(chance.uniform(0, 0.5))
        crew.freeze(second, 4.5)  # longer than its session: the other goes on without it
        crew.stage.send(sent[3 * WHOLE // 4 :])
        fourth = crew.start()
        crew.until_owning(fourth)
        crew.leave(third)
        crew.until_finished(sent, within=FINISHED_WITHIN)
        found = judge(crew.stage, sent, WITHIN[ordering], wait)
        crew.leave(second)
        crew.leave(fourth)
    print(f"{transport}, {ordering.name}:", found.told(probe))
    assert len(found.retries) == expected_retries(sent)
    # Each kill and each fence may cut off an attempt in each lane, which is made again under its number.
    assert found.repeated <= 16
    # A message is late if it was due while its owner was dead or frozen, or if it waits behind such messages.
    assert found.on_time > 0.95 or not probe.quiet


@pytest.mark.parametrize(
    "ordering, transport",
    [
        (Ordering.KEY, "confluent"),
        pytest.param(Ordering.PARTITION, "aiokafka", marks=pytest.mark.variant),
        pytest.param(Ordering.NONE, "confluent", marks=pytest.mark.variant),
    ],
)
def test_order_and_attempts_hold_through_a_kill_and_two_rebalances(
    kafka: KafkaServer,
    postgres: PostgresServer,
    database: str,
    topic_name: str,
    tmp_path: Path,
    ordering: Ordering,
    transport: Client,
) -> None:
    wait = WAITS[ordering]
    sent = workload(SHORT, KEYS, PARTITIONS, topic_name)
    crew = crew_of(
        kafka, postgres, database, topic_name, tmp_path, PARTITIONS, transport, ordering=ordering.name, wait=wait
    )
    with crew, Probe(postgres.dsn(database)) as probe:
        first, second = crew.start(), crew.start()
        crew.stage.send(sent[: SHORT // 2])
        crew.until("SELECT count(*) > 100 FROM effects", "the first effects")
        crew.kill(random.Random(topic_name).choice([first, second]))
        third = crew.start()
        crew.until_owning(third)
        crew.stage.send(sent[SHORT // 2 :])
        crew.until("SELECT count(*) > 500 FROM effects", "effects of the second half")
        crew.leave(third)
        crew.until_finished(sent, within=FINISHED_WITHIN)
        found = judge(crew.stage, sent, WITHIN[ordering], wait)
    print(f"{transport}, {ordering.name}:", found.told(probe))
    assert len(found.retries) == expected_retries(sent)
    # How many are late depends on the machine's speed: this test prints it, and the long one above judges it.
    assert found.repeated <= 8


MOMENTS = (
    "before_begin:kill:3", "after_begin:kill:3", "in_handler:kill:2", "after_handler:kill:3", "before_finalise:kill:2",
    "before_commit:kill:2", "commit_sent:kill:2", "after_commit:kill:2",
)  # fmt: skip


def test_a_kill_at_any_moment_of_a_retry_neither_doubles_nor_loses_nor_resets(
    kafka: KafkaServer, postgres: PostgresServer, database: str, topic_name: str, tmp_path: Path
) -> None:
    crew = crew_of(kafka, postgres, database, topic_name, tmp_path, 1, wait=0.3)
    sent = [payment(n, kind="fail:4" if n % 3 == 0 else "ok", account=f"a-{n % 6}") for n in range(24)]
    sent += [payment(n, kind="forever", account=f"a-{n % 6}") for n in range(24, 26)]
    with crew:
        crew.stage.send(sent[:2])
        left = list(MOMENTS)
        while left:
            failpoint = left.pop(0)
            process = crew.start(failpoint)
            crew.until_owning(process)
            # Always something to try again, until it dies.
            crew.stage.send(sent[2 * (len(MOMENTS) - len(left)) : 2 * (len(MOMENTS) - len(left)) + 2])
            assert process.wait(120) < 0, crew.last_words(process)
        assert crew.fired == {name.split(":")[0]: 1 for name in MOMENTS}
        crew.stage.send(sent[2 * len(MOMENTS) + 2 :])
        survivor = crew.start()
        crew.until_finished(sent)
        found = judge(crew.stage, sent, "account", 0.3)
        crew.leave(survivor)
    assert found.repeated <= len(MOMENTS)
