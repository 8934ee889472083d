"""Numbers the transactions of each lane; the numbers reveal commits that the database has lost."""

from __future__ import annotations

from collections.abc import Collection

from consumerkit.storage.lane_progress import LaneSequence


class CommitSequence:
    """Numbers one lane's transactions.

    A lane changes its identity from time to time. Earlier identities are kept until the database was seen to have
    all of their transactions.

    Attributes:
        lane: The lane's identity, and how many of its transactions are durable.
    """

    def __init__(self) -> None:
        self.lane = LaneSequence.new()
        self._before: list[LaneSequence] = []

    def committed(self, lane: LaneSequence) -> None:
        """Count a durable transaction that began with `lane`, unless the lane has a new identity."""
        if lane == self.lane:
            self.lane = lane.next
            if self.lane.full:
                self.leave()

    def leave(self) -> None:
        """Take a new identity: the present one is full, or the database may have a higher number than known."""
        self._before.append(self.lane)
        self.lane = LaneSequence.new()

    def begin_again(self) -> None:
        """Count from the beginning, as a lane that is new to the database."""
        self.lane = LaneSequence.new()
        self._before.clear()

    def lanes(self) -> list[LaneSequence]:
        """Return the counts of durable transactions, of the present identity and of earlier ones."""
        return [self.lane, *self._before]

    def verified(self, lanes: Collection[LaneSequence]) -> list[LaneSequence]:
        """Forget identities whose transactions the database has; return full ones, whose rows can go.

        No transaction of a full one is under way. Nothing is forgotten before the present one has a transaction:
        a database that then loses older transactions loses that one, too.
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
        """Return the present counts of all lanes."""
        return [lane for sequence in self._sequences for lane in sequence.lanes()]

    def verified(self, lanes: Collection[LaneSequence], removed: Collection[LaneSequence]) -> None:
        """Record the lanes that the database has, and those whose rows were removed."""
        self.spent = [lane for lane in self.spent if lane not in removed]
        for sequence in self._sequences:
            self.spent += sequence.verified(lanes)

    def begin_again(self) -> None:
        """Restart the count of all lanes: the database has lost some of their transactions."""
        for sequence in self._sequences:
            sequence.begin_again()
