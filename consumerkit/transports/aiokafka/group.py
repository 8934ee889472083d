"""One member of a consumer group on aiokafka: its listener, and its commits.

aiokafka uses the eager protocol: each rebalance takes all partitions away and assigns them again.
It rebalances in a task beside all fetching, and that task waits for `on_partitions_revoked`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import aiokafka.errors as errors  # type: ignore[import-untyped]
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import TopicPartition as ClientPartition

from consumerkit.errors import PartitionUnusable, Rebalancing, Unavailable
from consumerkit.message import TopicPartition
from consumerkit.transports.aiokafka.client import Insight, words
from consumerkit.transports.base import AssignmentListener, PartitionInfo, Position, Subscription, TopicInfo
from consumerkit.transports.notes import closed

COMMIT_TIMEOUT: Final = 5.0
"""Seconds after which a commit without an answer is given up; aiokafka itself would retry for ever."""

DRAIN_MARGIN: Final = 5.0
"""Seconds beyond `Subscription.drain_timeout` after which a listener that has not returned is given up."""

_RETRY_PAUSE: Final = 0.2

_log = logging.getLogger(__name__)

Describe = Callable[[Collection[str]], Awaitable[dict[str, TopicInfo]]]
Ask = Callable[[Collection[TopicPartition]], Awaitable[dict[TopicPartition, PartitionInfo]]]


@dataclass(slots=True)
class Held:
    """A partition under one assignment.

    Attributes:
        epoch: The assignment's number.
        topic_id: The topic's ID at assignment.
        next: The offset after the last record that was fetched.
        failed: Whether it is no longer read.
        leaving: Whether the listener is about to finish with it.
        on_hold: Whether the engine wants none of its messages for now.
    """

    epoch: int
    topic_id: str
    next: int
    failed: bool = False
    leaving: bool = False
    on_hold: bool = False

    @property
    def readable(self) -> bool:
        """Whether records may be fetched and returned."""
        return not (self.failed or self.leaving)


class Membership(ConsumerRebalanceListener):  # type: ignore[misc]
    """Tracks assignments, and calls the engine's listener for each change, one call at a time.

    Attributes:
        name: The group's name.
        held: The partitions that the listener has.
        version: Grows with every change that ends the delivery of a partition.
        error: The error that `health` must report, or None.
    """

    def __init__(
        self, client: AIOKafkaConsumer, subscription: Subscription, listener: AssignmentListener, ask: Ask
    ) -> None:
        self.name = subscription.group
        self.held: dict[TopicPartition, Held] = {}
        self.version = 0
        self.error: str | None = None
        self._client = client
        self._insight = Insight(client)
        self._subscription = subscription
        self._listener = listener
        self._ask = ask
        self._topic_ids: dict[str, str] = {}
        self._first_positions: dict[TopicPartition, int] = {}
        self._epochs = itertools.count(1)
        self._round = 0
        self._telling = asyncio.Lock()
        self._committing = asyncio.Lock()
        self._taking: asyncio.Task[None] | None = None
        self._revoked_at: float | None = time.monotonic()
        self._closed = False

    def rebalancing(self) -> float:
        """Seconds since the partitions were taken away; 0 once they are assigned again."""
        return 0.0 if self._revoked_at is None else time.monotonic() - self._revoked_at

    # -- called by aiokafka

    async def on_partitions_revoked(self, revoked: Collection[ClientPartition]) -> None:
        """Give everything back; aiokafka does not rejoin before this returns."""
        self._round += 1
        self._revoked_at = time.monotonic()
        await self.give_back()

    async def on_partitions_assigned(self, assigned: Collection[ClientPartition]) -> None:
        """Begin to take over the new partitions; returns at once, since no heartbeat is sent until then."""
        # The listener must know them before any message is read. No position is set yet, so none
        # has been read.
        self._client.pause(*assigned)
        self._revoked_at = None
        if not self._closed:
            partitions = [TopicPartition(*partition) for partition in assigned]
            self._taking = asyncio.create_task(self._take(partitions, self._round))
            self._taking.add_done_callback(self._look_at)

    # -- taking over

    async def _take(self, partitions: list[TopicPartition], turn: int) -> None:
        """Pass the partitions that the broker describes to the listener; ask again about the others."""
        waiting = set(partitions)
        if not waiting:
            async with self._telling:
                if turn == self._round:
                    await self._announce({})
        while waiting:
            try:
                told = await self._told(waiting)
            except Exception as error:  # noqa: BLE001 - otherwise the partitions would stop in silence
                if turn != self._round:
                    return
                _log.warning("%s: looking up where to start: %s", self.name, words(error))
                told = {}
            async with self._telling:
                if turn != self._round:
                    return
                if told:
                    await self._announce({at: self._start(at, info) for at, info in told.items()})
            waiting -= told.keys()
            if waiting:
                await asyncio.sleep(_RETRY_PAUSE)

    async def _announce(self, starts: Mapping[TopicPartition, int]) -> None:
        held = {at: Held(next(self._epochs), self._topic_ids[at.topic], start) for at, start in starts.items()}
        for partition, start in starts.items():
            self._client.seek(ClientPartition(*partition), start)
        self.held.update(held)
        try:
            await self._listener.assigned({at: Position(mine.next, mine.epoch) for at, mine in held.items()})
        except Exception as error:  # noqa: BLE001 - a listener must not raise; the contract says what follows
            self._report("assigned", error)
            self._end(held)
            return
        self._client.resume(*(ClientPartition(*partition) for partition, mine in held.items() if not mine.on_hold))

    async def _told(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, PartitionInfo]:
        """Ask at each assignment: a topic may have been recreated, so an earlier answer does not count.

        Raises:
            Unavailable: The broker did not answer.
        """
        told = await self._ask(partitions)
        self._topic_ids |= {at.topic: info.topic_id for at, info in told.items()}
        return told

    def _start(self, partition: TopicPartition, info: PartitionInfo) -> int:
        if info.committed is not None:
            return info.committed
        if self._subscription.start_from == "earliest":
            return info.start
        # "latest" is decided once: decided after each rebalance, it would skip the messages in
        # between.
        return self._first_positions.setdefault(partition, info.end)

    # -- giving back

    async def close(self) -> None:
        """Give everything back and accept nothing more."""
        self._closed = True
        self._round += 1
        taking = self._taking
        await self.give_back()
        if taking is not None:
            await asyncio.wait({taking})

    async def give_back(self) -> None:
        """Let the listener finish with all partitions and commit what it returns, or report them to it as lost."""
        async with self._telling:
            if self._taking is not None:
                # Not during a call of the listener, which runs under the lock.
                self._taking.cancel()
                self._taking = None
            leaving = dict(self.held)
            if not leaving:
                return
            for mine in leaving.values():
                mine.leaving = True
            self.version += 1
            if self._insight.fenced():
                await self._lose(leaving)
            else:
                await self._commit_last(await self._drain(leaving))
                self._end(leaving)

    async def _lose(self, leaving: Iterable[TopicPartition]) -> None:
        lost = list(leaving)
        self._end(lost)
        try:
            await self._listener.lost(lost)
        except Exception as error:  # noqa: BLE001 - as in `_announce`
            self._report("lost", error)

    async def _drain(self, leaving: Iterable[TopicPartition]) -> Mapping[TopicPartition, Position]:
        try:
            async with asyncio.timeout(self._subscription.drain_timeout + DRAIN_MARGIN):
                return await self._listener.revoked(list(leaving))
        except Exception as error:  # noqa: BLE001 - as in `_announce`
            self._report("revoked", error)
            return {}

    async def _commit_last(self, positions: Mapping[TopicPartition, Position]) -> None:
        try:
            await self.commit(positions)
        except Unavailable as error:
            # No loss: the next owner starts from the last commit, and reads the rest again.
            level = logging.INFO if isinstance(error, Rebalancing) else logging.WARNING
            _log.log(level, "%s: the last commit before a rebalance failed: %s", self.name, error)

    def _end(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self.held.pop(partition, None)
        self.version += 1

    # -- committing

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Commit the positions whose epochs are still current.

        Raises:
            Rebalancing: The group's members change.
            Unavailable: The broker did not confirm in time.
        """
        # One at a time, and `give_back` waits: a commit that lingered would get the next
        # generation's number.
        async with self._committing:
            current = {at: position for at, position in positions.items() if self._is_current(at, position)}
            offsets = {
                ClientPartition(*at): (position.offset, closed(position.note)) for at, position in current.items()
            }
            if not offsets:
                return
            if self._insight.fenced():
                raise Rebalancing(f"{self.name}: the broker has put this member out of its group")
            try:
                async with asyncio.timeout(COMMIT_TIMEOUT):
                    await self._client.commit(offsets)
            except TimeoutError:
                raise Unavailable(f"{self.name}: no answer to a commit in {COMMIT_TIMEOUT:g} s") from None
            except errors.CommitFailedError as error:  # raised for a rebalance only
                raise Rebalancing(f"{self.name}: commit refused: {words(error.__cause__ or error)}") from error
            except errors.KafkaError as error:
                raise Unavailable(f"{self.name}: commit refused: {words(error)}") from error

    def _is_current(self, partition: TopicPartition, position: Position) -> bool:
        mine = self.held.get(partition)
        return mine is not None and mine.epoch == position.epoch

    # -- holding

    def hold(self, partitions: Collection[TopicPartition], *, held: bool) -> None:
        """Make aiokafka return nothing of these partitions, or return it again; an assignment begins without holds."""
        for partition in partitions:
            mine = self.held.get(partition)
            if mine is None:
                continue
            mine.on_hold = held
            # A failed partition stays paused; `on_hold` decides once it is read again.
            if mine.readable:
                (self._client.pause if held else self._client.resume)(ClientPartition(*partition))

    # -- going elsewhere

    def seek(self, partition: TopicPartition, offset: int) -> int:
        """Read a partition from another offset, under a new epoch."""
        epoch = next(self._epochs)
        mine = self.held.get(partition)
        if mine is not None and not mine.leaving:
            failed, mine.failed = mine.failed, False
            mine.epoch, mine.next = epoch, offset
            # The topic may have been recreated since the assignment.
            mine.topic_id = self._topic_ids.get(partition.topic, mine.topic_id)
            # Messages read before belong to the old epoch.
            self.version += 1
            self._client.seek(ClientPartition(*partition), offset)
            if failed and not mine.on_hold:
                self._client.resume(ClientPartition(*partition))
        return epoch

    async def describe(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, PartitionInfo]:
        """Ask the broker about partitions.

        Raises:
            Unavailable: It did not answer.
        """
        found = await self._told([at for at in partitions if at in self.held])
        return {at: info for at, info in found.items() if at in self.held}

    # -- failing

    async def fail(self, partition: TopicPartition, why: str) -> None:
        """Stop reading the partition and tell the listener; does nothing if it is over or has already failed."""
        mine = self.held.get(partition)
        if mine is None or not mine.readable:
            return
        mine.failed = True
        self._client.pause(ClientPartition(*partition))
        async with self._telling:
            if self.held.get(partition) is not mine:
                return
            try:
                await self._listener.failed(partition, PartitionUnusable(f"{partition} at offset {mine.next}: {why}"))
            except Exception as error:  # noqa: BLE001 - as in `_announce`
                self._report("failed", error)
                self._end([partition])

    def _look_at(self, taking: asyncio.Task[None]) -> None:
        if not taking.cancelled() and (error := taking.exception()) is not None:
            self._report("partitions", error)

    def _report(self, call: str, error: BaseException) -> None:
        _log.error("%s: the listener's %s: %s", self.name, call, words(error))
        self.error = f"the listener's {call}: {words(error)}"
