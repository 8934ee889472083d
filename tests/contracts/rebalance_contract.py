"""The contract's part about assignments: who gets which calls and when, and who commits what."""

from __future__ import annotations

import asyncio
import contextlib
from uuid import uuid4

import pytest

from consumerkit.errors import Unavailable
from consumerkit.message import TopicPartition
from consumerkit.transports.base import Position
from tests.contracts.control import BrokerControl
from tests.contracts.member import Member, offsets, until
from tests.contracts.transport_contract import TransportContract, numbered


class RebalanceContract(TransportContract):
    """Inherit this one: it contains `TransportContract`."""

    @pytest.fixture
    async def wide(self, control: BrokerControl) -> str:
        """A topic of four partitions with 25 messages in each."""
        name = f"topic-{uuid4().hex[:8]}"
        await control.create(name, 4)
        for partition in range(4):
            await control.append(name, numbered(25), partition)
        return name

    def member(
        self, control: BrokerControl, group: str, topic: str, *, finishes: bool = True, **settings: object
    ) -> Member:
        consumer = control.transport.consumer(control.subscription(group, topic, **settings))
        return Member(consumer, finishes=finishes)

    async def test_members_share_and_inherit_the_partitions(
        self, control: BrokerControl, wide: str, group: str
    ) -> None:
        async with self.member(control, group, wide) as first:
            await first.reads(100)
            async with self.member(control, group, wide) as second:
                await asyncio.gather(first.holds(2), second.holds(2))
                assert not first.listener.held.keys() & second.listener.held.keys()
                for partition in range(4):
                    await control.append(wide, numbered(5), partition)
                await until(lambda: len(first.seen) + len(second.seen) >= 120, "all messages")
            await first.holds(4)
            for partition in range(4):
                await control.append(wide, numbered(5), partition)
            await until(lambda: len(first.seen) + len(second.seen) >= 140, "all messages after the hand-back")
        both = first.seen + second.seen
        assert len({(m.partition, m.offset) for m in both}) == len(both) == 140
        assert set((await control.committed(group, wide)).values()) == {35}

    async def test_epochs_grow_with_every_assignment(self, control: BrokerControl, wide: str, group: str) -> None:
        async with self.member(control, group, wide) as first:
            await first.holds(4)
            async with self.member(control, group, wide) as second:
                await asyncio.gather(first.holds(2), second.holds(2))
            await first.holds(4)
            history = first.listener.history
        moved = [epochs for epochs in history.values() if len(epochs) > 1]
        assert len(moved) >= 2
        for epochs in moved:
            assert epochs == sorted(set(epochs))
        newest = [epochs[-1] for epochs in moved]
        oldest = [epochs[0] for epochs in history.values()]
        assert min(newest) > max(oldest)

    async def test_the_next_owner_starts_after_the_drain_and_its_commit(
        self, control: BrokerControl, wide: str, group: str
    ) -> None:
        async with self.member(control, group, wide, finishes=False) as first:
            await first.reads(100)
            first.listener.drain = 1.5
            for message in first.seen:
                if message.offset < 10:
                    first.finish(message)
            async with self.member(control, group, wide, finishes=False) as second:
                await second.holds(2)
                moved = second.listener.held.keys()
                revocation = first.listener.calls("revoked")[0]
                assert moved <= revocation.partitions
                assert revocation.ended - revocation.began >= 1.5
                assert second.listener.calls("assigned")[0].ended >= revocation.ended
                committed = await control.committed(group, wide)
                assert {committed[partition] for partition in moved} == {10}
                await second.reads(30)
                for partition in moved:
                    assert offsets(second.seen, partition.partition) == list(range(10, 25))
                first.listener.drain = 0.0

    async def test_a_draining_listener_may_wait_for_commits(
        self, control: BrokerControl, wide: str, group: str
    ) -> None:
        """One commit begins before the revocation, one within it: both must be answered before it ends."""
        async with self.member(control, group, wide, finishes=False) as first:
            for message in await first.reads(100):
                if message.offset < 10:
                    first.finish(message)
            enough = asyncio.Event()
            earlier = asyncio.create_task(self._commit_until(first, enough))

            async def wait_for_commits() -> None:
                enough.set()
                await earlier
                for message in first.seen:
                    if message.offset < 20:
                        first.finish(message)
                await first.commit()

            first.listener.before_leaving = wait_for_commits
            async with self.member(control, group, wide, finishes=False) as second:
                await second.holds(2)
                revocation = first.listener.calls("revoked")[0]
                assert revocation.ended - revocation.began < 5.0
                committed = await control.committed(group, wide)
                assert {committed[partition] for partition in second.listener.held} == {20}

    async def _commit_until(self, member: Member, enough: asyncio.Event) -> None:
        while not enough.is_set():
            with contextlib.suppress(Unavailable):
                await member.commit()
            await asyncio.sleep(0)

    async def test_positions_from_before_a_rebalance_are_dropped(
        self, control: BrokerControl, wide: str, group: str
    ) -> None:
        async with self.member(control, group, wide, finishes=False) as first:
            seen = list(await first.reads(100))
            async with self.member(control, group, wide, finishes=False) as second:
                await asyncio.gather(first.holds(2), second.holds(2))
                stale = {TopicPartition(wide, m.partition): Position(m.offset + 1, m.epoch) for m in seen}
                gone = second.listener.held.keys()
                await first.consumer.commit({partition: stale[partition] for partition in gone})
                assert not gone & (await control.committed(group, wide)).keys()
            await first.holds(4)
            await first.consumer.commit({partition: stale[partition] for partition in gone})
            assert not gone & (await control.committed(group, wide)).keys()

    async def test_a_listener_that_raises_gives_its_partitions_up_without_positions(
        self, control: BrokerControl, wide: str, group: str
    ) -> None:
        async with self.member(control, group, wide) as first:
            await first.reads(100)
            first.listener.raises = RuntimeError("out of order")
            async with self.member(control, group, wide, finishes=False) as second:
                await asyncio.gather(first.holds(2), second.holds(2))
                moved = second.listener.held.keys()
                assert "out of order" in (first.consumer.health().error or "")
                assert not moved & (await control.committed(group, wide)).keys()
                await second.reads(50)
                for partition in moved:
                    assert offsets(second.seen, partition.partition) == list(range(25))

    async def test_a_member_for_which_nothing_is_left_is_told_so(
        self, control: BrokerControl, topic: str, group: str
    ) -> None:
        async with (
            self.member(control, group, topic) as first,
            self.member(control, group, topic) as second,
            self.member(control, group, topic) as third,
        ):
            listeners = [one.listener for one in (first, second, third)]

            def told() -> bool:
                return [one.without for one in listeners if not one.held] == [True]

            await until(told, "one without, which was told so")

    async def test_another_client_leaves_a_group_for_a_member(
        self, control: BrokerControl, wide: str, group: str
    ) -> None:
        async with self.member(control, group, wide) as first:
            await first.holds(4)
            async with self.member(control, group, wide) as second:
                await asyncio.gather(first.holds(2), second.holds(2))
                ids = [first.consumer.member(), second.consumer.member()]
                assert all(ids)
                assert ids[0] != ids[1]

                await control.transport.leave(group, ["unknown", ids[0]])

                # The member is alive after all: it learns that it was removed, and joins again.
                await until(lambda: first.listener.calls("lost"), "the loss")
                await asyncio.gather(first.holds(2), second.holds(2))
                assert not second.listener.calls("lost")
        assert first.consumer.member() == ""

    async def test_a_pause_outlasts_a_rebalance(self, control: BrokerControl, wide: str, group: str) -> None:
        async with self.member(control, group, wide) as first:
            await first.reads(100)
            await first.consumer.pause()
            async with self.member(control, group, wide) as second:
                await asyncio.gather(first.holds(2), second.holds(2))
            await first.holds(4)
            seen = len(first.seen)
            for partition in range(4):
                await control.append(wide, numbered(5), partition)
            await asyncio.sleep(2.0)
            assert len(first.seen) == seen
            await first.consumer.resume()
            await until(lambda: len(first.seen) >= seen + 20, "the messages that waited")
        assert len({(m.partition, m.offset) for m in first.seen}) == len(first.seen) == 120

    async def test_an_assignment_tells_where_reading_starts(
        self, control: BrokerControl, wide: str, group: str
    ) -> None:
        async with self.member(control, group, wide) as first:
            await first.reads(100)
            assert first.listener.starts == {TopicPartition(wide, number): 0 for number in range(4)}
        async with self.member(control, group, wide) as second:
            await second.holds(4)
            assert second.listener.starts == {TopicPartition(wide, number): 25 for number in range(4)}

    async def test_a_held_partition_waits_while_the_others_go_on(
        self, control: BrokerControl, wide: str, group: str
    ) -> None:
        async with self.member(control, group, wide) as member:
            await member.reads(100)
            held = TopicPartition(wide, 1)
            await member.consumer.hold([held, TopicPartition(wide, 99)])
            await asyncio.sleep(0.6)  # a fetch that was under way may still return messages
            for partition in range(4):
                await control.append(wide, numbered(5), partition)
            await member.reads(115)
            await asyncio.sleep(1.0)
            assert offsets(member.seen, 1) == list(range(25))
            await member.consumer.pause()
            await asyncio.sleep(1.5)
            await member.consumer.resume()
            await asyncio.sleep(1.0)
            assert offsets(member.seen, 1) == list(range(25)), "the end of a pause is not the end of a hold"
            await member.consumer.release([held])
            await member.reads(120)
            assert offsets(member.seen, 1) == list(range(30))

    async def test_a_hold_ends_with_the_assignment(self, control: BrokerControl, wide: str, group: str) -> None:
        everything = [TopicPartition(wide, number) for number in range(4)]
        async with self.member(control, group, wide) as first:
            await first.reads(100)
            await first.consumer.hold(everything)
            await asyncio.sleep(0.6)
            async with self.member(control, group, wide) as second:
                await asyncio.gather(first.holds(2), second.holds(2))
                for partition in range(4):
                    await control.append(wide, numbered(5), partition)
                moved = {message.partition for message in await second.reads(10)}
            await first.holds(4)
            for partition in moved:
                await control.append(wide, numbered(5), partition)
            await until(
                lambda: all(len(offsets(first.seen, at)) == 30 for at in moved), "the partitions that came back"
            )

    async def test_a_pause_before_the_first_assignment_holds(
        self, control: BrokerControl, wide: str, group: str
    ) -> None:
        member = self.member(control, group, wide)
        async with member:
            await member.consumer.pause()
            await member.holds(4)
            seen = len(member.seen)  # a fetch that was under way may still return messages
            await asyncio.sleep(1.5)
            assert len(member.seen) == seen
            await member.consumer.resume()
            await member.reads(100)
        assert len({(m.partition, m.offset) for m in member.seen}) == len(member.seen) == 100

    async def test_a_member_without_partitions_takes_over(self, control: BrokerControl, topic: str, group: str) -> None:
        first, second, third = (self.member(control, group, topic) for _ in range(3))
        async with third:
            async with first, second:
                await until(
                    lambda: sum(len(member.listener.held) for member in (first, second, third)) == 2, "two in use"
                )
                await asyncio.sleep(1.0)
            await third.holds(2)
            await control.append(topic, numbered(5))
            assert offsets(await third.reads(5), 0) == list(range(5))

    async def test_what_a_lost_partition_had_in_hand_is_not_committed(
        self, private_control: BrokerControl, group: str
    ) -> None:
        control, topic = private_control, f"topic-{uuid4().hex[:8]}"
        await control.create(topic, 2)
        await control.append(topic, numbered(10))
        async with self.member(control, group, topic, finishes=False) as member:
            seen = list(await member.reads(10))
            member.finish(seen[4])
            stale = dict(member.listener.finished)
            await control.expire(group)
            told = "lost" if self.tells_lost else "revoked"
            await until(lambda: member.listener.calls(told), f"the listener is told: {told}")
            await member.holds(2)
            assert await control.committed(group, topic) == {}
            await member.consumer.commit(stale)
            assert await control.committed(group, topic) == {}
            await until(lambda: offsets(member.seen, 0)[10:] == list(range(10)), "everything read again")
            member.listener.finished.clear()
