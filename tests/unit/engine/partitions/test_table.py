"""The table of partitions: what a receipt changes, and which parts of an engine then have work."""

import asyncio
from collections.abc import Callable

import pytest

from consumerkit.engine.partitions.budget import cost
from consumerkit.engine.partitions.commit_sequence import CommitSequences
from consumerkit.engine.partitions.partition import PartitionState
from consumerkit.engine.partitions.start_position import StartPosition
from consumerkit.engine.partitions.table import Partitions, Rules
from consumerkit.engine.transaction.receipt import Receipt, Row
from consumerkit.errors import Fenced, PartitionUnusable, TransactionsLost
from consumerkit.events import Announcer, Event
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message, TopicPartition
from consumerkit.storage.fence import Taken
from consumerkit.transports.base import Position

NAME = TopicPartition("t", 0)
TOKEN = b"o" * 16
MESSAGES = [Message("t", 0, offset, b"k", b"v", (), 0, "id", 1) for offset in (5, 6, 7)]


class Table:
    """A table with one partition that has three fetched messages."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.outbox_written = asyncio.Event()
        self.sequences = CommitSequences()
        announce = Announcer([self.told.append]).for_handler("credit")
        rules = Rules(Ordering.KEY, 3, 1_000_000)
        self.partitions = Partitions(rules, self.sequences, announce, self.outbox_written)
        self.partitions.assigned({NAME: Position(5, 1)})
        [self.partition] = self.partitions
        self.partition.taken(Taken(TOKEN, 1, {}), {}, StartPosition(5, 5), 9)
        self.partitions.taken(self.partition)
        assert self.partitions.fetched(MESSAGES) == MESSAGES
        self.partitions.take_changed()
        for event in self._events.values():
            event.clear()
        self.told.clear()

    @property
    def _events(self) -> dict[str, asyncio.Event]:
        table = self.partitions
        return {
            "ownership": table.ownership_due,
            "commit": table.commit_due,
            "poll": table.poll_due,
            "settling": table.settling_due,
            "progress": table.progressed,
            "outbox": self.outbox_written,
        }

    @property
    def work(self) -> set[str]:
        """The parts that have work."""
        return {name for name, event in self._events.items() if event.is_set()}


def test_finished_messages_move_the_position_and_leave_the_budget() -> None:
    table = Table()
    table.partition.crashes = 0
    table.partitions.apply(Receipt(finished=tuple(MESSAGES[:2])))
    assert table.partition.offsets.position == 7
    assert table.partition.weight == cost(MESSAGES[2])
    assert table.work == {"commit", "progress"}


def test_what_was_parked_blocks_its_key_until_it_has_left() -> None:
    table = Table()
    table.partition.crashes = 0
    row = Row(MESSAGES[0], 17)
    table.partitions.apply(Receipt(finished=(MESSAGES[0],), parked=(row,)))
    assert table.partition.blocked(MESSAGES[1])
    assert table.work == {"commit", "progress", "poll", "settling"}
    assert table.partitions.take_changed() == [table.partition]
    table.partitions.apply(Receipt(unparked=(row,)))
    assert not table.partition.blocked(MESSAGES[1])
    assert table.partitions.take_changed() == [table.partition]


def test_an_owner_that_got_further_than_those_before_has_it_written_down() -> None:
    table = Table()
    table.partitions.apply(Receipt(finished=(MESSAGES[0],), new=(MESSAGES[0],)))
    assert table.partitions.to_clear == {NAME}
    assert table.work == {"commit", "progress", "ownership"}
    table.partitions.apply(Receipt(cleared=(NAME,), published=True))
    assert table.partition.crashes == 0
    assert "outbox" in table.work


@pytest.mark.parametrize(
    "receipt",
    [
        pytest.param(Receipt(finished=tuple(MESSAGES)), id="only-known-messages"),
        pytest.param(Receipt(finished=(MESSAGES[2],), new=(MESSAGES[2],)), id="a-new-one-behind-an-unfinished-one"),
    ],
)
def test_an_owner_that_repeats_what_those_before_did_got_no_further(receipt: Receipt) -> None:
    table = Table()
    table.partitions.apply(receipt)
    assert not table.partitions.to_clear
    assert table.partition.crashes


def test_a_receipt_that_comes_after_its_partition_has_gone_gives_its_room_back() -> None:
    table = Table()
    table.partitions.revoked([NAME], 3, lost=True)
    table.partitions.apply(Receipt(finished=tuple(MESSAGES), parked=(Row(MESSAGES[0], 17),), cleared=(NAME,)))
    assert not table.partitions.budget.is_full
    assert table.work == {"commit", "progress"}


def _doubt(table: Table) -> None:
    table.partitions.in_doubt({NAME: TOKEN}, Fenced("taken"))


def _lose(table: Table) -> None:
    table.partitions.commits_lost(TransactionsLost("gone"))


@pytest.mark.parametrize("trouble, must_reread", [(_doubt, False), (_lose, True)])
def test_what_is_in_doubt_begins_nothing_and_is_taken_over_again(
    trouble: Callable[[Table], None], must_reread: bool
) -> None:
    table = Table()
    lane = table.sequences.new()
    before = lane.lane
    trouble(table)
    assert table.partition.state is PartitionState.IN_DOUBT
    assert not table.partition.ready
    assert table.partition.must_reread is must_reread
    assert (lane.lane != before) is must_reread
    assert table.work == {"ownership"}
    told = len(table.told)
    table.partitions.in_doubt({NAME: TOKEN}, Fenced("taken"))
    assert len(table.told) == told


def test_a_partition_that_is_stopped_is_told_of_once_and_settled() -> None:
    table = Table()
    table.partition.mark_in_doubt()
    for _ in range(2):
        table.partitions.stop(table.partition, PartitionUnusable("no log"))
    assert [type(event).__name__ for event in table.told] == ["PartitionStopped"]
    assert table.told[0].handler == "credit"
    assert table.partitions.take_changed() == [table.partition]
    assert table.partitions.in_state(PartitionState.STOPPED) == [table.partition]
