"""Finds due parked messages in the database, so that messages of other writers are found, too."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from sqlalchemy import Connection

from consumerkit import events
from consumerkit.concurrency import wait_until_set
from consumerkit.engine.lanes.lane import MOST_DUE
from consumerkit.engine.lanes.lane_choice import Lanes
from consumerkit.engine.partitions.partition_store import PartitionStore
from consumerkit.engine.partitions.table import Partitions
from consumerkit.engine.transaction import failures
from consumerkit.events import Announcer
from consumerkit.message import TopicPartition
from consumerkit.storage.parking.parked import ParkedMessage

AT_ONCE: Final = 100
WHERE_ALL_ARE_FULL: Final = 0.5
SHORTEST_SLEEP: Final = 0.05
LONGEST_SLEEP: Final = 5.0


class ParkedPoller:
    """Hands the parked messages of an engine's partitions to their lanes when they are due.

    A lane takes a limited number, and the rest holds up no other lane. Each look reads the longest overdue
    messages and one more page, until it has seen all due ones.

    Args:
        partition_store: The database.
        partitions: The assigned partitions.
        lanes: Get the due messages.
        announce: Announces events.
    """

    def __init__(
        self, partition_store: PartitionStore, partitions: Partitions, lanes: Lanes, announce: Announcer
    ) -> None:
        self._lot = partition_store.lot
        self._run = partition_store.run
        self._partitions = partitions
        self._lanes = lanes
        self._announce = announce
        self._passed: ParkedMessage | None = None

    async def run(self) -> None:
        """Look for due messages until cancelled."""
        failed_turns, since = 0, 0.0
        while True:
            self._partitions.poll_due.clear()
            try:
                sleep = await self._look()
                if failed_turns:
                    seconds, failed_turns = time.monotonic() - since, 0
                    self._announce(events.TroubleOver(where="database", seconds=seconds))
            except Exception as error:  # noqa: BLE001 - announced, and tried again
                since = since if failed_turns else time.monotonic()
                failed_turns += 1
                sleep = min(LONGEST_SLEEP, 0.5 * 2**failed_turns)
                described = failures.described(error)
                self._announce(events.Trouble(where="database", error=described, wait=sleep))
            await wait_until_set(self._partitions.poll_due, sleep)

    async def _look(self) -> float:
        """Hand out due messages; return the seconds until the next look."""
        names = [partition.name for partition in self._partitions.owned()]
        in_hand = self._lanes.parked_in_hand
        if not names or len(in_hand) >= len(self._lanes) * MOST_DUE:
            # Handed-out messages stay in memory; a lane that finishes some makes room for more.
            return LONGEST_SLEEP
        due, next_due = await self._run(lambda connection: self._read(connection, names, in_hand))
        taken = [parked for parked in due if self._hand_out(parked)]
        await asyncio.sleep(SHORTEST_SLEEP)
        if due and not taken and self._passed is None:
            return WHERE_ALL_ARE_FULL
        return LONGEST_SLEEP if next_due is None else min(LONGEST_SLEEP, max(SHORTEST_SLEEP, next_due))

    def _read(self, connection: Connection, names: list[TopicPartition], in_hand: set[int]) -> Any:
        due = self._lot.due(connection, names, AT_ONCE, without=in_hand)
        if len(due) == AT_ONCE:
            more = self._lot.due(connection, names, AT_ONCE, without=in_hand, after=self._passed or due[-1])
            self._passed = more[-1] if len(more) == AT_ONCE else None
            due += more
        else:
            self._passed = None
        return due, self._lot.next_due(connection, names, without=in_hand | {one.id for one in due})

    def _hand_out(self, parked: ParkedMessage) -> bool:
        message = parked.message
        partition = self._partitions.get((message.topic, message.partition))
        if partition is None or partition.fencing_token is None:
            return False
        # A redrive may have put it there; it blocks its key from now on.
        partition.park(message, parked.id)
        return self._lanes.put_due(parked)
