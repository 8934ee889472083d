"""Numbers the transactions of each lane, so that the database shows it where it has lost commits."""

from __future__ import annotations

from collections.abc import Collection

from consumerkit.storage.progress import LaneSequence


class CommitSequence:
    """Numbers one lane's transactions.

    A lane changes its identity from time to time. The identities before the present one are kept until the database
    was seen to have all of their transactions.

    Attributes:
        lane: The lane's identity, and how many of its transactions are durable.
    """

    def __init__(self) -> None:
        self.lane = LaneSequence.new()
        self._before: list[LaneSequence] = []

    def committed(self, lane: LaneSequence) -> None:
        """Count a transaction that is durable and began with `lane`, unless the lane has begun again since."""
        if lane == self.lane:
            self.lane = lane.next
            if self.lane.full:
                self.leave()

    def leave(self) -> None:
        """Begin a new lane: the present one is full, or the database may have a higher number than is known."""
        self._before.append(self.lane)
        self.lane = LaneSequence.new()

    def begin_again(self) -> None:
        """Count from the beginning, as a lane that the database has never seen."""
        self.lane = LaneSequence.new()
        self._before.clear()

    def lanes(self) -> list[LaneSequence]:
        """Return how many transactions are durable, under the present identity and under those before it."""
        return [self.lane, *self._before]

    def verified(self, lanes: Collection[LaneSequence]) -> list[LaneSequence]:
        """Forget identities whose transactions the database has; return the full ones, whose rows can be removed.

        No transaction of a full one is under way. Nothing is forgotten before the present one has a transaction: a
        database that loses the older ones then loses that one, too.
        """
        if not self.lane.sequence or self.lane not in lanes:
            return []
        gone = [lane for lane in self._before if lane in lanes]
        self._before = [lane for lane in self._before if lane not in lanes]
        return [lane for lane in gone if lane.full]


class CommitSequences:
    """The sequences of all lanes of one engine.

    Attributes:
        spent: Full lanes whose rows can be removed with the next marks.
    """

    def __init__(self) -> None:
        self.spent: list[LaneSequence] = []
        self._sequences: list[CommitSequence] = []

    def new(self) -> CommitSequence:
        """Return the sequence of one more lane."""
        made = CommitSequence()
        self._sequences.append(made)
        return made

    def lanes(self) -> list[LaneSequence]:
        """Return the lanes as they stand."""
        return [lane for sequence in self._sequences for lane in sequence.lanes()]

    def verified(self, lanes: Collection[LaneSequence], removed: Collection[LaneSequence]) -> None:
        """Record that the database has some lanes, and that the rows of others were removed."""
        self.spent = [lane for lane in self.spent if lane not in removed]
        for sequence in self._sequences:
            self.spent += sequence.verified(lanes)

    def begin_again(self) -> None:
        """Have all lanes count from the beginning: the database has lost some of their transactions."""
        for sequence in self._sequences:
            sequence.begin_again()
