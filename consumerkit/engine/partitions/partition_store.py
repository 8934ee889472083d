"""Writes a partition's ownership to the database: takeovers, marks, and records of runs alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Connection

from consumerkit.engine.partitions.commit_origin import CommitNote, CommitOrigin
from consumerkit.engine.partitions.commit_sequence import CommitSequences
from consumerkit.engine.partitions.partition import Partition
from consumerkit.engine.partitions.start_position import StartPosition
from consumerkit.errors import Fenced, PartitionUnusable, TransactionsLost
from consumerkit.message import TopicPartition
from consumerkit.storage import fence, first_runs, lane_progress, progress
from consumerkit.storage.fence import Taken
from consumerkit.storage.first_runs import FirstStart
from consumerkit.storage.lane_progress import LaneSequence
from consumerkit.storage.parking.lot import ParkingLot
from consumerkit.storage.parking.parked import ParkedMessage
from consumerkit.storage.progress import Begun, Mark, Standing
from consumerkit.transports.base import PartitionInfo, Position

InTransaction = Callable[[Callable[[Connection], Any]], Awaitable[Any]]


class Wanted(NamedTuple):
    """A partition to take over.

    Attributes:
        partition: The partition.
        info: The broker's answer about it.
        place: Decides from the database's knowledge where to begin, or raises `PartitionUnusable`.
    """

    partition: Partition
    info: PartitionInfo
    place: Callable[[Standing], StartPosition]


_Work = tuple[
    dict[TopicPartition, Taken],
    dict[TopicPartition, dict[bytes | None, set[int]]],
    dict[TopicPartition, StartPosition | PartitionUnusable],
]


@dataclass(frozen=True)
class PartitionStore:
    """Writes the owners and positions of one handler's partitions."""

    origin: CommitOrigin
    """The handler, with the identity that distinguishes its commits from another database's."""
    lot: ParkingLot
    run: InTransaction
    """Runs work in its own READ COMMITTED transaction: parked messages are read after the wait for the fence."""
    tokens: dict[TopicPartition, bytes] = field(default_factory=dict)
    """The last tokens that this process wrote."""
    sequences: CommitSequences = field(default_factory=CommitSequences)
    """The numbers of this worker's transactions; the marks rely on them."""
    any_key: bool = False
    """Whether a parked message waits behind all parked ones of its partition, not only those of its key."""

    @property
    def handler(self) -> str:
        """The handler's name."""
        return self.origin.handler

    def position(self, partition: Partition, mark: int) -> Position:
        """Return what to commit to Kafka for a partition at a mark."""
        note = CommitNote(self.handler, partition.start, self.origin.database)
        return Position(mark, partition.offsets.epoch, note.written())

    async def probe(self) -> None:
        """Ask the database something simple.

        Raises:
            Exception: It does not answer.
        """
        await self.run(self.lot.dialect.probe)

    async def acquire(
        self, wanted: Sequence[Wanted], ago: Callable[[], float], *, wait: float
    ) -> dict[TopicPartition, StartPosition | PartitionUnusable]:
        """Take partitions over in one transaction; its cost grows with their parked messages.

        Args:
            wanted: The partitions; only one if there is a wait.
            ago: The age of the broker's answer in seconds.
            wait: Seconds to wait for transactions of the previous owner.

        Returns:
            Where to begin, or why that is impossible; the database is then unchanged for that partition. Leaves out
            partitions that another transaction holds.
        """
        known = {one.partition.name: one for one in wanted}
        lanes = self.sequences.lanes()

        def work(connection: Connection) -> _Work:
            held = fence.hold(connection, self.lot, list(known), wait=wait)
            found = fence.look(connection, self.lot, held, self.tokens, wait=wait > 0)
            decided = {name: _placed(known[name], taken) for name, taken in found.items()}
            begins = {name: one for name, one in decided.items() if isinstance(one, StartPosition)}
            if any(one.intact for one in begins.values()) and not lane_progress.are_kept(connection, self.lot, lanes):
                begins = {name: one._replace(intact=False) for name, one in begins.items()}
            taken = {name: found[name] for name in begins}
            fence.write(connection, self.lot, taken)
            begun = {name: _begun(known[name].info, one) for name, one in begins.items()}
            progress.begin(connection, self.lot, begun, ago=ago())
            return taken, self.lot.load(connection, list(begins), any_key=self.any_key), decided | begins

        taken, parked, decided = await self.run(work)
        for name, one in taken.items():
            partition, info = known[name].partition, known[name].info
            partition.taken(one, parked[name], decided[name], info.end)
            partition.topic_id = info.topic_id
            self.tokens[name] = one.owner
        return decided  # type: ignore[no-any-return]

    async def first_run(self, topic: str, topic_id: str) -> dict[int, FirstStart]:
        """Return where the first run on a topic begins; empty if that is undecided."""
        return await self.run(  # type: ignore[no-any-return]
            lambda connection: first_runs.recorded(connection, self.lot, topic, topic_id)
        )

    async def had_another(self, topic: str, topic_id: str) -> bool:
        """Return whether the handler has begun with an earlier topic of this name."""
        return await self.run(  # type: ignore[no-any-return]
            lambda connection: first_runs.had_another(connection, self.lot, topic, topic_id)
        )

    async def decide_first_run(
        self, topic: str, topic_id: str, wanted: Mapping[int, FirstStart]
    ) -> dict[int, FirstStart]:
        """Record where the first run on a topic begins; return another worker's record if that came first."""
        return await self.run(  # type: ignore[no-any-return]
            lambda connection: first_runs.decide(connection, self.lot, topic, topic_id, wanted)
        )

    async def mark(self, partitions: Iterable[Partition]) -> set[TopicPartition]:
        """Write the marks of partitions.

        Returns:
            The partitions that are no longer ours.

        Raises:
            TransactionsLost: The database lacks transactions that the lanes made durable.
        """
        held = [partition for partition in partitions if partition.fencing_token is not None]
        written: dict[TopicPartition, Mark] = {}

        def marks() -> dict[TopicPartition, Mark]:
            for one in held:
                owner, position = one.fencing_token, one.offsets.position
                if owner is not None and position is not None and one.mark is not None:
                    written[one.name] = Mark(owner, position, one.mark, max(one.end, one.offsets.next or 0))
            return written

        def work(connection: Connection) -> tuple[set[TopicPartition], Sequence[LaneSequence]]:
            # Messages fetched after this transaction began cannot have been processed before it.
            self.lot.dialect.probe(connection)
            found = marks()
            # Read after the marks, so that it has all transactions that the marks rely on. Some may have been
            # acknowledged during the wait for this connection.
            known = self.sequences.lanes()
            # This may run in a thread. A partition given up since its position was read relies on forgotten lanes.
            for one in held:
                if one.name in found and one.fencing_token != found[one.name].owner:
                    del found[one.name]
            if not lane_progress.are_kept(connection, self.lot, known):
                raise TransactionsLost("the database has lost transactions that it had acknowledged")
            lane_progress.drop(connection, self.lot, spent)
            return progress.advance(connection, self.lot, found), known

        trackers = {one.name: one.offsets for one in held}
        spent = list(self.sequences.spent)
        gone, known = await self.run(work)
        self.sequences.verified(() if gone else known, removed=spent)
        for one in held:
            if one.name in written and one.name not in gone and one.offsets is trackers[one.name]:
                one.mark = written[one.name].offset
        # A partition that was taken over again has another token and stays as it is.
        return {one.name for one in held if one.name in gone and one.fencing_token == written[one.name].owner}

    async def release(self, partitions: Iterable[Partition]) -> None:
        """Record that nothing of these partitions is under way any more."""
        owners = {
            partition.name: partition.fencing_token for partition in partitions if partition.fencing_token is not None
        }
        if owners:
            await self.run(lambda connection: fence.release(connection, self.lot, owners))

    async def end(self) -> None:
        """Remove the rows of this worker's lanes, which have ended."""
        ended = [*self.sequences.lanes(), *self.sequences.spent]
        await self.run(lambda connection: lane_progress.forget(connection, self.lot, ended))

    async def touch(self) -> None:
        """Keep the rows of idle lanes."""
        lanes = self.sequences.lanes()
        await self.run(lambda connection: lane_progress.touch(connection, self.lot, lanes))

    async def clear_crashes(self, partition: Partition) -> None:
        """Record that this owner got further than those that died before it."""
        if (owner := partition.fencing_token) is not None:
            await self.run(lambda connection: fence.clear_crashes(connection, self.lot, partition.name, owner))
            partition.crashes, partition.suspect_offsets = 0, {}

    async def suspect(self, partition: Partition) -> None:
        """Record which of a partition's messages run alone, or did so when a process died."""
        owner, suspects = partition.fencing_token or b"", dict(partition.suspect_offsets)
        await self.run(lambda connection: fence.suspect(connection, self.lot, partition.name, owner, suspects))

    async def deliver(self, partition: Partition, parked: ParkedMessage, *, begins: bool) -> None:
        """Record that a run of a parked message begins, or that the process has survived it.

        Raises:
            Fenced: The partition is no longer ours.
        """
        owners = {partition.name: partition.fencing_token or b""}

        def write(connection: Connection) -> None:
            if not fence.count_owned(connection, self.lot, owners):
                raise Fenced(f"{partition.name} was taken over")
            self.lot.deliver(connection, parked, begins=begins)

        await self.run(write)


def _placed(wanted: Wanted, taken: Taken) -> StartPosition | PartitionUnusable:
    """Decide where to begin; messages in hand stay valid if the database has all that they rely on."""
    try:
        begins = wanted.place(taken.standing)
    except PartitionUnusable as error:
        return error
    mark = wanted.partition.mark
    return begins._replace(intact=taken.ours and mark is not None and begins.offset >= mark)


def _begun(info: PartitionInfo, begins: StartPosition) -> Begun:
    return Begun(info.topic_id, begins.offset, begins.start, info.end)
