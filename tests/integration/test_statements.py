"""The cost in statements of the parking lot, the fence and the crash protection, on a real PostgreSQL."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from consumerkit import Ordering, Retry, fixed
from consumerkit.engine.lanes import parked_poller
from consumerkit.events import AttemptFailed, GroupCommitted, PartitionTaken
from tests.integration.payments import PaymentStage, PlainTrial, Trial
from tests.services import PostgresServer

# consumerkit's statements in a batch's transaction of any size: begin, claim, and the final checks.
GROUP = (
    "SELECT set_config",
    "WITH won AS INSERT INTO consumerkit_processed_messages",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "SELECT current_setting",
    "SELECT count FROM consumerkit_partition_progress",
    "the lane moves on",
)
LANE = "public.consumerkit_lane_progress"
LOT = "public.consumerkit_parked_messages"
PROGRESS = "UPDATE public.consumerkit_partition_progress"


@pytest.fixture
async def payments(postgres: PostgresServer, database: str) -> PaymentStage:
    made = PaymentStage(postgres, database)
    await made.create_tables()
    return made


@dataclass
class Meter:
    """The transactions that were made, each as its statements."""

    transactions: list[list[str]] = field(default_factory=list)
    open: dict[int, list[str]] = field(default_factory=dict)

    def executed(self, connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "INTO effects" in statement:
            return  # the handler's own
        self.open.setdefault(id(connection.connection.dbapi_connection), []).append(" ".join(statement.split()))

    def ended(self, connection: Connection) -> None:
        if statements := self.open.pop(id(connection.connection.dbapi_connection), None):
            self.transactions.append(statements)

    @property
    def groups(self) -> list[list[str]]:
        """The transactions that claimed messages."""
        return [one for one in self.transactions if "consumerkit.claim" in one[0]]

    def count(self, *marks: str) -> int:
        """How many statements hold all of these marks."""
        return sum(all(mark in each for mark in marks) for one in self.transactions for each in one)


@contextmanager
def metered() -> Iterator[Meter]:
    """Count the statements of all engines."""
    meter = Meter()
    listeners: dict[str, Callable[..., Any]] = {
        "before_cursor_execute": meter.executed,
        "commit": meter.ended,
        "rollback": meter.ended,
    }
    for name, listener in listeners.items():
        event.listen(Engine, name, listener)
    try:
        yield meter
    finally:
        for name, listener in listeners.items():
            event.remove(Engine, name, listener)


def kind(statement: str) -> str:
    """The beginning of a statement: what it does, and to which table."""
    if LANE in statement:
        return GROUP[-1]
    for known in GROUP[:-1]:
        verb, _, table = known.partition(" FROM ") if " FROM " in known else known.partition(" INSERT INTO ")
        if statement.startswith(verb) and (not table or re.search(rf"\b{table}\b", statement)):
            return known
    return statement


@pytest.mark.parametrize("handler", [Trial, PlainTrial])
@pytest.mark.parametrize("ordering", Ordering)
async def test_nothing_parked_costs_nothing(
    payments: PaymentStage, ordering: Ordering, handler: type[Trial | PlainTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parked_poller, "LONGEST_SLEEP", 3_600.0)
    for number in range(600):
        payments.send(number, key=b"%d" % (number % 20), partition=number % 2)
    with metered() as meter:
        async with payments.run(handler(ordering=ordering, batch_size=20, batch_time=60.0)) as run:
            await run.until(lambda: sum(one.processed for one in run.seen(GroupCommitted)) == 600, "all effects")
            taken = len(run.seen(PartitionTaken))
            groups = len(run.seen(GroupCommitted))
    assert len(meter.groups) == groups >= 30
    assert {tuple(map(kind, one)) for one in meter.groups} == {GROUP}
    # The lot is looked at when a partition is taken, and now and then, here never, for what somebody else put there.
    assert meter.count(LOT) <= 4 * taken
    assert meter.count(LOT) == sum(LOT in each for one in meter.transactions if one not in meter.groups for each in one)


async def test_a_group_has_as_many_statements_however_large_it_is(payments: PaymentStage) -> None:
    with metered() as meter:
        async with payments.run(Trial(batch_size=500, concurrency=1, batch_time=60.0)) as run:
            for number in range(500):
                payments.send(number)
            await run.until(lambda: len(payments.effects()) == 500, "all effects")
            payments.send("last")
            await run.until(payments.has("last"), "a message by itself")
    sizes = {event.processed for event in run.seen(GroupCommitted)}
    assert 1 in sizes
    assert max(sizes) > 100
    kinds = [tuple(map(kind, one)) for one in meter.groups]
    assert Counter(kinds).most_common(1)[0][0] == GROUP
    # A machine that stands still for seconds may have one of them look once more at what it did not know in time.
    assert max(map(len, kinds)) <= len(GROUP) + 1, set(kinds)


async def test_protection_from_poison_messages_costs_at_most_one_statement_in_a_thousand_messages(
    payments: PaymentStage,
) -> None:
    total, failing = 5_000, 50
    for number in range(total):
        bad = number % (total // failing) == 7
        payments.send(number, "fail:1" if bad else "ok", key=b"%d" % (number % 500), partition=number % 2)
    with metered() as meter:
        async with payments.run(Trial(retry=Retry(attempts=3, wait=fixed(0.1)))) as run:
            await run.until(lambda: len(payments.effects()) == total, "all effects")
    retried = {event.message_id for event in run.seen(AttemptFailed)}
    taken = len(run.seen(PartitionTaken))
    assert len(retried) == failing
    # The marks are the position's, four times a second at most, whatever is protected.
    written = meter.count(PROGRESS) - meter.count(PROGRESS, "marked_at") - taken_over(meter)
    runs_counted = meter.count(f"UPDATE {LOT}", "deliveries=(")
    assert written + runs_counted <= total // 1_000
    # Once for all partitions at the end, to record a clean end.
    assert (written, taken) == (1, 2)
    assert runs_counted == 0


def taken_over(meter: Meter) -> int:
    """Updates that write a new owner, rather than anything about deaths."""
    return meter.count(PROGRESS, "owner=", "taken_at=")


async def test_after_a_death_only_what_was_in_the_lot_has_its_runs_counted(payments: PaymentStage) -> None:
    retry = Retry(attempts=9, wait=fixed(0.3))
    payments.send("old", "fail:3", key=b"old")
    async with payments.run(Trial(retry=retry)) as run:
        await run.until(payments.holds(1), "the parking")
    died = "UPDATE consumerkit_partition_progress SET given_back = false, deaths = 0"
    payments.execute(died)
    with metered() as meter:
        async with payments.run(Trial(retry=retry)) as run:
            payments.send("new", "fail:3", key=b"new")
            await run.until(payments.has("old", "new"), "both effects")
    made = Counter(event.message_id for event in run.seen(AttemptFailed))
    assert made["p-new"] == 3
    # Each later run of the old one, and none of the new one's.
    assert meter.count(f"UPDATE {LOT}", "deliveries=(") == made["p-old"] + 1
    payments.check()


async def test_a_retry_of_a_parked_message_costs_a_known_number_of_statements(payments: PaymentStage) -> None:
    with metered() as meter:
        async with payments.run(Trial(retry=Retry(attempts=9, wait=fixed(0.3)))) as run:
            payments.send("bad", "fail:4")
            await run.until(payments.has("bad"), "its effect")
    assert len(run.seen(AttemptFailed)) == 4
    assert Counter(tuple(map(doing, one)) for one in meter.groups) == {
        # The first attempt and its parking.
        ("begin", "claim", "token"): 1,
        ("begin", "claim", "look", "park", "fence", "lane"): 1,
        # Three more, of each its failure and what is written down about it.
        ("begin", "lock", "token"): 3,
        ("begin", "postpone", "fence", "lane"): 3,
        ("begin", "lock", "constraints", "token", "settle", "remove", "promote", "fence", "lane"): 1,
    }


DOING = {
    "begin": "SELECT set_config",
    "claim": "WITH won",
    "lock": f"SELECT {LOT}.*FOR UPDATE",
    "look": f"SELECT {LOT}.id",
    "park": f"INSERT INTO {LOT}",
    "settle": "UPDATE public.consumerkit_processed_messages",
    "remove": f"DELETE FROM {LOT}",
    "postpone": f"UPDATE {LOT} SET .*attempts=",
    "promote": f"UPDATE {LOT} SET due_at",
    "constraints": "SET CONSTRAINTS",
    "token": "SELECT current_setting",
    "fence": "SELECT count.*FROM public.consumerkit_partition_progress",
    "lane": f"(UPDATE|INSERT INTO) {LANE}",
}


def doing(statement: str) -> str:
    """What a statement of a retry is for."""
    return next((name for name, pattern in DOING.items() if re.match(pattern, statement)), statement)
