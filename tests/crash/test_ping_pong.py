"""A partition moves to and fro between two workers, which are frozen in turn with an open transaction."""

import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from consumerkit.transports.kafka import Client
from tests.crash.ordering_run import Crew
from tests.crash.ordering_verdict import judge
from tests.crash.test_ordering import crew_of
from tests.integration.kafka_stage import Given, payment
from tests.services import KafkaServer, PostgresServer
from tests.services.process import freeze

pytestmark = [pytest.mark.calm, pytest.mark.crash, pytest.mark.slow]
IDLE = 3.0
OPEN = (
    "SELECT count(*) AS n FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND "
    "mode = 'ShareLock' AND state = 'idle in transaction' AND datname = current_database()"
)


def takes(crew: Crew) -> list[int]:
    """Which process took the partition, each time."""
    return [
        row["pid"] for row in crew.stage.rows("SELECT pid FROM told WHERE what = 'PartitionTaken' ORDER BY sequence")
    ]


def turn(crew: Crew, number: int) -> list[Given]:
    """Freeze the owner within a transaction, have the other take over, wake the first one; return what was sent."""
    sent = [payment(f"{number}-{n}", kind="open:1" if n == 0 else "ok", account=f"a-{n % 3}") for n in range(9)]
    owner = next(process for process in crew.processes if process.pid == takes(crew)[-1])
    heir = next(process for process in crew.processes if process is not owner)
    before = takes(crew).count(heir.pid)
    crew.stage.send(sent[:1])
    crew.until(
        f"SELECT count(*) > 0 FROM attempts WHERE message_id = 'p-{number}-0' AND pid = {owner.pid}", "its attempt"
    )
    freeze(owner.pid)
    try:
        assert crew.stage.rows(OPEN)[0]["n"] >= 1, "the owner holds no fence"
        crew.stage.send(sent[1:])
        heirs = f"SELECT count(*) > {before} FROM told WHERE what = 'PartitionTaken' AND pid = {heir.pid}"
        crew.until(heirs, "the other one's take-over")
    finally:
        owner.send_signal(signal.SIGCONT)
    return sent


@pytest.mark.parametrize(
    "transport, turns",
    [("confluent", 2), *(pytest.param(one, 5, marks=pytest.mark.matrix) for one in get_args(Client))],
)
def test_two_owners_do_not_alternate_for_ever(
    kafka: KafkaServer,
    postgres: PostgresServer,
    database: str,
    topic_name: str,
    tmp_path: Path,
    transport: Client,
    turns: int,
) -> None:
    with crew_of(kafka, postgres, database, topic_name, tmp_path, 1, transport, wait=0.5, timeout=IDLE) as crew:
        crew.until_owning(crew.start())
        crew.start()
        sent: list[Given] = []
        for number in range(turns):
            sent += turn(crew, number)
            crew.until_finished(sent)
        last = [payment(f"last-{n}") for n in range(3)]
        crew.stage.send(last)
        crew.until_finished([*sent, *last])
        time.sleep(2)
        settled = takes(crew), crew.told("PartitionInDoubt")
        time.sleep(5)
        assert (takes(crew), crew.told("PartitionInDoubt")) == settled, "they go on by themselves"
        judge(crew.stage, [*sent, *last], "account", 0.5)
        assert all(process.poll() is None for process in crew.processes)
    owners, doubts = settled
    changes = sum(before != after for before, after in pairwise(owners))
    assert changes >= turns, "the partition did not go to and fro"
    # Each turn: the heir's take-over; the sleeper's return may bring it back, and each may take it over once more.
    assert len(owners) <= 1 + 4 * turns
    assert doubts <= 2 * turns
