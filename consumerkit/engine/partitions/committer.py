"""Writes positions in the background: marks in the database, then offsets in Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Final

from consumerkit import events
from consumerkit.concurrency import wait_until_set
from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.engine.partitions.rebalances import Rebalances
from consumerkit.engine.partitions.table import Partitions
from consumerkit.engine.transaction import failures
from consumerkit.errors import Fenced, TransactionsLost, Unavailable
from consumerkit.events import Announcer
from consumerkit.failpoints import reach
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Consumer, Position

INTERVAL: Final = 0.25
LONGEST_WAIT: Final = 10.0
# Seconds after which an idle owner asks the database whether it still is the owner and nothing was lost.
CHECKED_EVERY: Final = 5.0
TOUCHED_EVERY: Final = 86_400.0
# Seconds after which offsets are committed again although the broker should have them. A client may send a commit of
# an earlier assignment late, under the new one. That takes an idle partition's offset back until the next commit.
REPEATED_EVERY: Final = 30.0


class Committer:
    """Writes one engine's marks, and commits its offsets.

    Args:
        consumer: Commits the offsets.
        partitions: The assigned partitions.
        partition_store: The database.
        announce: Announces events.
    """

    def __init__(
        self,
        consumer: Consumer,
        partitions: Partitions,
        partition_store: PartitionStore,
        announce: Announcer,
    ) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._partition_store = partition_store
        self._announce = announce
        self._rebalances = Rebalances()
        self._checking = False
        self._touched = self._repeated = time.monotonic()

    def check(self) -> None:
        """Request a check now that the database has everything, since the connection is new."""
        self._checking = True
        self._partitions.commit_due.set()

    async def run(self) -> None:
        """Write the positions of finished messages, at most once in `INTERVAL` seconds, until cancelled."""
        failed_turns, failed, since, topic = 0, "", 0.0, ""
        while True:
            if not await wait_until_set(self._partitions.commit_due, CHECKED_EVERY):
                self._checking = True
            self._partitions.commit_due.clear()
            wait, where = INTERVAL, "database"
            try:
                await self._mark()
                where = "broker"
                if positions := self._due():
                    topic = next(iter(positions)).topic
                    await self._commit(positions)
                elif failed_turns and failed == where:
                    # The partitions are gone, maybe since the broker is away: only its answer ends the trouble.
                    await self._consumer.survey(topic)
                self._rebalances.over()
                if failed_turns:
                    seconds, failed_turns = time.monotonic() - since, 0
                    self._announce(events.TroubleOver(where=failed, seconds=seconds))
            except Exception as error:
                if where == "broker" and not isinstance(error, Unavailable):
                    raise
                self._partitions.commit_due.set()
                if self._rebalances.explains(error):
                    await asyncio.sleep(wait)
                    continue
                since, failed = since if failed_turns else time.monotonic(), where
                failed_turns += 1
                wait = min(LONGEST_WAIT, INTERVAL * 2**failed_turns)
                told = str(error) if isinstance(error, Unavailable) else failures.described(error)
                self._announce(events.Trouble(where=where, error=told, wait=wait))
            await asyncio.sleep(wait)

    async def _mark(self) -> None:
        """Write the marks of owned partitions that moved; all marks if the database is to be checked."""
        checking, self._checking = self._checking, False
        owned = self._partitions.owned()
        moved = owned if checking else [one for one in owned if one.offsets.position != one.mark]
        if not moved:
            return
        reach("before_mark")
        try:
            gone = await self._partition_store.mark(moved)
        except TransactionsLost as error:
            self._partitions.commits_lost(error)
            return
        except BaseException:
            self._checking = self._checking or checking
            raise
        reach("after_mark")
        if gone:
            self._partitions.fenced(gone, Fenced(f"{len(gone)} of {len(moved)} partitions were taken over"))
        if time.monotonic() - self._touched > TOUCHED_EVERY:
            self._touched = time.monotonic()
            await self._partition_store.touch()

    async def mark_last(self, names: Iterable[TopicPartition]) -> None:
        """Write the last marks of partitions that are given back."""
        found = [one for name in names if (one := self._partitions.get(name)) is not None]
        moved = [one for one in found if one.fencing_token is not None and one.offsets.position != one.mark]
        if moved:
            await self._partition_store.mark(moved)

    def positions(self, names: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        """Return the marks that the broker does not have yet."""
        return self._marks(names, again=False)

    def _due(self) -> dict[TopicPartition, Position]:
        """Return the marks to commit now; from time to time these are all."""
        again = time.monotonic() - self._repeated > REPEATED_EVERY
        if again:
            self._repeated = time.monotonic()
        return self._marks([partition.name for partition in self._partitions], again=again)

    def _marks(self, names: Iterable[TopicPartition], *, again: bool) -> dict[TopicPartition, Position]:
        found = {}
        for name in names:
            partition = self._partitions.get(name)
            if partition is None or partition.fencing_token is None or partition.mark is None:
                continue
            if again or partition.mark != partition.offsets.committed:
                found[name] = self._partition_store.position(partition, partition.mark)
        return found

    async def _commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        reach("before_offset_commit")
        commit = asyncio.ensure_future(self._consumer.commit(positions))
        # One turn of the loop puts it on its way.
        await asyncio.sleep(0)
        reach("offset_commit_sent")
        await commit
        reach("after_offset_commit")
        for name, position in positions.items():
            partition = self._partitions.get(name)
            if partition is not None and partition.offsets.epoch == position.epoch:
                partition.offsets.committed = position.offset
        told = tuple((name, position.offset) for name, position in positions.items())
        self._announce(events.OffsetsCommitted(positions=told))
