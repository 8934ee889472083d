"""A worker takes many partitions over together, and one that fails does not delay the others."""

import pytest

from consumerkit.engine.partitions import ownership
from consumerkit.events import PartitionTaken, Trouble
from tests.integration.payments import PaymentStage, Trial
from tests.integration.stage import Run
from tests.integration.test_statements import Meter, metered
from tests.services import PostgresServer

COUNT = 250
BAD = 7
SUSPECTS = f"UPDATE consumerkit_partition_progress SET suspects = '{{}}' WHERE partition = {BAD}"


@pytest.fixture
async def payments(postgres: PostgresServer, database: str) -> PaymentStage:
    made = PaymentStage(postgres, database, COUNT)
    await made.create_tables()
    return made


def taken(run: Run) -> set[int]:
    return {event.partition.partition for event in run.seen(PartitionTaken)}


def take_overs(meter: Meter) -> int:
    """Transactions in which a new owner was written."""
    marks = ("INSERT INTO public.consumerkit_partition_progress", "taken_at=now()")
    return sum(any(mark in each for mark in marks for each in one) for one in meter.transactions)


async def test_many_partitions_are_taken_in_few_transactions(payments: PaymentStage) -> None:
    for _ in ("a first run", "another one"):
        with metered() as meter:
            async with payments.run(Trial()) as run:
                await run.until(lambda: len(taken(run)) == COUNT, "all are taken")
        # What another transaction uses just then is taken a little later.
        assert COUNT // ownership.AT_ONCE < take_overs(meter) < COUNT // 10
    for number in (0, COUNT - 1):
        payments.send(number, partition=number)
    async with payments.run(Trial()) as run:
        await run.until(lambda: len(payments.effects()) == 2, "what came later is processed")


async def test_a_partition_that_cannot_be_taken_keeps_no_other_from_it(payments: PaymentStage) -> None:
    async with payments.run(Trial()) as run:
        await run.until(lambda: len(taken(run)) == COUNT, "all are taken")
    # What cannot be read ends the transaction of all that are taken with it.
    payments.execute(SUSPECTS.format("{"))
    for number in (BAD, BAD + 1):
        payments.send(number, partition=number)
    with metered() as meter:
        async with payments.run(Trial()) as run:
            await run.until(lambda: len(taken(run)) == COUNT - 1, "all but one are taken")
            assert BAD not in taken(run)
            assert take_overs(meter) < 30  # found by halves, and not one by one
            await run.until(lambda: bool(run.seen(Trouble)), "and that is told")
            await run.until(payments.has(BAD + 1), "the others go on")
            assert not payments.has(BAD)()
            payments.execute(SUSPECTS.format("{}"))
            await run.until(payments.has(BAD), "so does this one, once it can")
    assert {event.where for event in run.seen(Trouble)} == {"database"}
