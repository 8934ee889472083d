"""When a partition that keeps the ledger from forgetting is reported."""

from datetime import UTC, datetime
from typing import Any

from consumerkit.events import Announcer
from consumerkit.maintenance.pruner import Retention
from consumerkit.message import TopicPartition
from consumerkit.storage.maintenance.pruning import HoldingPartition, PrunePlan

FIRST, SECOND = TopicPartition("t", 0), TopicPartition("t", 1)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def plan(*holders: HoldingPartition, handler: str = "credit") -> PrunePlan:
    return PrunePlan(handler, 1, None, holders, True, (), ("t",))


def test_a_partition_that_has_just_begun_is_told_at_the_second_turn() -> None:
    told: list[Any] = []
    nothing: Any = None
    retention = Retention(
        nothing, nothing, (), seconds=60.0, expiry=nothing, announce=Announcer([told.append]), look=nothing
    )

    def turn(*holders: HoldingPartition, handler: str = "credit") -> list[TopicPartition]:
        told.clear()
        retention._tell_holders(plan(*holders, handler=handler))
        return [event.partition for event in told]

    assert turn(HoldingPartition(FIRST, LONG_AGO), HoldingPartition(SECOND, None)) == [FIRST]
    assert turn(HoldingPartition(FIRST, None), handler="another") == []
    assert turn(HoldingPartition(FIRST, LONG_AGO), HoldingPartition(SECOND, None)) == [SECOND]
    assert turn(HoldingPartition(FIRST, LONG_AGO), HoldingPartition(SECOND, None)) == []
    assert turn() == []
    assert turn(HoldingPartition(FIRST, None)) == []
    assert turn(HoldingPartition(FIRST, LONG_AGO)) == [FIRST]
