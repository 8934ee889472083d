"""A mark is written only if the database has all transactions before it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, insert, select

from consumerkit.engine.partitions.commit_origin import CommitOrigin
from consumerkit.engine.partitions.commit_sequence import CommitSequences
from consumerkit.engine.partitions.partition import Partition
from consumerkit.engine.partitions.partition_store import InTransaction, PartitionStore
from consumerkit.errors import TransactionsLost
from consumerkit.handlers.handler import Ordering
from consumerkit.message import TopicPartition
from consumerkit.storage import fence, progress
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.lane_progress import LaneSequence
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.progress import Begun
from consumerkit.storage.store import Store
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.base import Position

AT = TopicPartition("t", 0)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = create_engine("sqlite://")
    DEFAULT_TABLES.metadata.create_all(made)
    yield made
    made.dispose()


class Sequences(CommitSequences):
    def __init__(self, lanes: Callable[[], list[LaneSequence]]) -> None:
        super().__init__()
        self.lanes = lanes  # type: ignore[method-assign]


def fences(run: InTransaction, lanes: Callable[[], list[LaneSequence]]) -> PartitionStore:
    lot = ParkingLot(DEFAULT_TABLES, dialect_for("sqlite", DEFAULT_TABLES), 1)
    return PartitionStore(CommitOrigin("credit"), lot, run, sequences=Sequences(lanes))


async def test_what_is_acknowledged_while_a_connection_is_waited_for_must_be_there_too(engine: Engine) -> None:
    dialect, lane = dialect_for("sqlite", DEFAULT_TABLES), LaneSequence(b"l" * 16, 5)
    partition, lanes = Partition(AT, Position(0, 1), Ordering.KEY, 100), [lane]
    with engine.begin() as connection:
        taken = fence.acquire(connection, Store(DEFAULT_TABLES, dialect, 1), AT, wait=0)
        progress.begin(connection, Store(DEFAULT_TABLES, dialect, 1), {AT: Begun("id", mark=0, start=0, end=0)}, ago=0)
        row = {"consumer": 1, "lane": lane.id, "sequence": lane.sequence}
        connection.execute(insert(DEFAULT_TABLES.lane_progress).values(row))
    assert taken is not None
    partition.fencing_token, partition.mark = taken.owner, 0
    partition.offsets.delivered(0)

    async def run(work: Callable[[Connection], Any]) -> Any:
        # The server that acknowledged one more transaction is gone, and that transaction with it.
        lanes[0] = lane.next
        partition.offsets.finished(0)
        with engine.begin() as connection:
            return work(connection)

    with pytest.raises(TransactionsLost):
        await fences(run, lambda: list(lanes)).mark([partition])
    assert partition.mark == 0


async def test_a_late_answer_about_an_old_token_says_nothing_of_the_new_one(engine: Engine) -> None:
    dialect = dialect_for("sqlite", DEFAULT_TABLES)
    partition = Partition(AT, Position(0, 1), Ordering.KEY, 100)
    with engine.begin() as connection:
        taken = fence.acquire(connection, Store(DEFAULT_TABLES, dialect, 1), AT, wait=0)
        progress.begin(connection, Store(DEFAULT_TABLES, dialect, 1), {AT: Begun("id", mark=0, start=0, end=0)}, ago=0)
    assert taken is not None
    partition.fencing_token, partition.mark = b"somebody's before" + taken.owner, 0
    anew = True

    async def run(work: Callable[[Connection], Any]) -> Any:
        with engine.begin() as connection:
            found = work(connection)
        if anew:
            partition.fencing_token = taken.owner
        return found

    ours = fences(run, list)
    partition.offsets.delivered(0)
    partition.offsets.finished(0)
    assert await ours.mark([partition]) == set()
    assert partition.mark == 0
    partition.fencing_token, anew = b"somebody's before" + taken.owner, False
    assert await ours.mark([partition]) == {AT}


async def test_a_mark_that_a_thread_writes_while_lost_commits_are_noticed_is_not_written(engine: Engine) -> None:
    """Its position depends on lanes that restart in between, and the database no longer knows about those."""
    dialect, lane = dialect_for("sqlite", DEFAULT_TABLES), LaneSequence(b"l" * 16, 5)
    partition = Partition(AT, Position(0, 1), Ordering.KEY, 100)
    with engine.begin() as connection:
        taken = fence.acquire(connection, Store(DEFAULT_TABLES, dialect, 1), AT, wait=0)
        progress.begin(connection, Store(DEFAULT_TABLES, dialect, 1), {AT: Begun("id", mark=0, start=0, end=0)}, ago=0)
    assert taken is not None
    partition.fencing_token, partition.mark = taken.owner, 0
    partition.offsets.delivered(0)
    partition.offsets.finished(0)

    async def run(work: Callable[[Connection], Any]) -> Any:
        with engine.begin() as connection:
            return work(connection)

    def lanes() -> list[LaneSequence]:
        # The engine's thread: it gives the partition up, and then restarts its lanes.
        partition.fencing_token = None
        return [LaneSequence(lane.id, 0)]

    assert await fences(run, lanes).mark([partition]) == set()
    assert partition.mark == 0
    with engine.connect() as connection:
        assert connection.execute(select(DEFAULT_TABLES.partition_progress.c.mark)).scalar_one() == 0
