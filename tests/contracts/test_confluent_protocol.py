"""The transport through librdkafka keeps the contract with the group protocol of KIP-848, on a real broker.

`make test` runs what is about groups; `make test-crash` runs the whole suite of `test_confluent`.
"""

from __future__ import annotations

import asyncio

import pytest
from typing_extensions import override

from consumerkit.message import TopicPartition
from consumerkit.transports.base import Transport
from consumerkit.transports.confluent.transport import ConfluentTransport
from tests.contracts import test_confluent
from tests.contracts.control import BrokerControl
from tests.contracts.kafka_control import KafkaControl
from tests.contracts.member import Member, offsets, until
from tests.contracts.rebalance_contract import RebalanceContract
from tests.contracts.transport_contract import numbered
from tests.services import KafkaServer


def transport(bootstrap: str, protocol: str = "consumer") -> Transport:
    return ConfluentTransport({"bootstrap.servers": bootstrap, "group.protocol": protocol})


class ExpiringControl(KafkaControl):
    """Puts members out of their group by a request: here a client never ends its session by its own clock."""

    @override
    async def expire(self, group: str) -> None:
        await self.transport.leave(group, await self.members(group))


class TestConsumerProtocol(RebalanceContract):
    @pytest.fixture
    @override
    def control(self, kafka: KafkaServer) -> KafkaControl:
        return KafkaControl(kafka, transport(kafka.bootstrap))

    @pytest.fixture
    @override
    def private_control(self, kafka: KafkaServer) -> KafkaControl:
        return ExpiringControl(kafka, transport(kafka.bootstrap))

    # It stops a broker of its own: `TestTheRest` has it.
    test_an_outage_is_survived = None  # type: ignore[assignment]

    async def test_the_broker_knows_the_group_as_one_of_the_new_protocol(
        self, control: KafkaControl, topic: str, group: str
    ) -> None:
        async with Member(control.transport.consumer(control.subscription(group, topic))) as member:
            await member.holds(2)
            assert await control.kind(group) == "CONSUMER"

    async def test_a_topic_that_is_made_anew_is_assigned_anew(
        self, control: KafkaControl, topic: str, group: str
    ) -> None:
        """Assignments are by the topic's ID here: the old one's partitions go, and the new one's come."""
        await control.append(topic, numbered(3))
        async with Member(control.transport.consumer(control.subscription(group, topic)), finishes=False) as member:
            old = {message.topic_id for message in await member.reads(3)}
            await control.delete(topic)
            await control.create(topic, 2)
            await control.append(topic, numbered(5))
            new = await control.topic_id(topic)
            await until(lambda: offsets([m for m in member.seen if m.topic_id == new], 0)[-5:] == [*range(5)], "them")
        assert old != {new}

    async def test_members_of_both_protocols_share_a_group(
        self, kafka: KafkaServer, control: BrokerControl, wide: str, group: str
    ) -> None:
        """A rolling restart changes the protocol process by process, there and back."""
        other = transport(kafka.bootstrap, "classic")
        async with Member(other.consumer(control.subscription(group, wide))) as old:
            await old.reads(100)
            async with self.member(control, group, wide) as new:
                await asyncio.gather(old.holds(2), new.holds(2))
                await old.stop()
                await new.holds(4)
                async with Member(other.consumer(control.subscription(group, wide))) as back:
                    await asyncio.gather(back.holds(2), new.holds(2))
                    for partition in range(4):
                        await control.append(wide, numbered(5), partition)
                    members = (old, new, back)
                    await until(lambda: sum(len(one.seen) for one in members) >= 120, "all messages")
        seen = [(m.partition, m.offset) for one in members for m in one.seen]
        assert len(seen) == len(set(seen)) == 120
        assert await control.committed(group, wide) == {TopicPartition(wide, number): 30 for number in range(4)}


@pytest.mark.matrix
class TestTheRest(test_confluent.TestConfluent):
    """All tests of `TestConfluent` that `TestConsumerProtocol` does not have."""

    @override
    def config(self, bootstrap: str, session: float | None = None) -> dict[str, object]:
        # The broker decides how long a session lasts.
        return {"bootstrap.servers": bootstrap, "group.protocol": "consumer"}

    @pytest.fixture
    @override
    def private_control(self, private_kafka: KafkaServer) -> KafkaControl:
        return KafkaControl(private_kafka, self.transport(private_kafka.bootstrap), outage=8.0)

    @override
    async def commits_after_outage(self, member: Member, control: BrokerControl, topic: str, group: str) -> None:
        """The client reads on before it learns that its session has ended: what it then commits may be dropped."""
        async with asyncio.timeout(60):
            while await control.committed(group, topic) != {TopicPartition(topic, 0): 10}:
                await asyncio.sleep(0.5)
                await member.commit()

    # A recreated topic is assigned again at once, by its new ID: no member can keep the old assignment.
    # `test_a_topic_that_is_made_anew_is_assigned_anew` takes its place.
    test_after_a_seek_messages_carry_the_id_of_a_topic_made_anew = None  # type: ignore[assignment]

    # A dead member holds up no other: no member waits until all have joined.
    test_a_stop_leaves_a_group_that_waits_for_a_member_that_has_died = None  # type: ignore[assignment]


for _name in {name for name in dir(RebalanceContract) if name.startswith("test_")} - {"test_an_outage_is_survived"}:
    setattr(TestTheRest, _name, None)
