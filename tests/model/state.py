"""The state of the protocol's model at one moment, and its rules; each rule can be taken out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

# Two messages of one key; m1 may fail once and is then parked.
M1, M2 = 0, 1
NAMES = ("m1", "m2")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What keeps the protocol right.

    Attributes:
        lock: A take-over waits for the transactions that are open under the fence.
        token: A transaction checks at its end that its worker's token is the partition's.
        load: What is parked is read after that wait, not before it.
        net: A claim that finds a parked row that its worker does not know gives up.
        claim: Parking claims first.
        reread: What the winner of a claim left is read in a second statement.
        confirm: An owner in doubt takes back only what Kafka confirms.
        confirm_idle: So it does where nothing was delivered to it yet.
        want: A take-over that ends after its assignment is not taken for one of the next assignment.
        decide: Whether a message waits behind another is decided again whenever its transaction begins.
    """

    lock: bool = True
    token: bool = True
    load: bool = True
    net: bool = True
    claim: bool = True
    reread: bool = True
    confirm: bool = True
    confirm_idle: bool = True
    want: bool = True
    decide: bool = True


class Left(NamedTuple):
    """How often the world may still interfere.

    Attributes:
        moves: Kafka gives the partition to a worker, be it the same.
        crashes: A process dies; it starts again with nothing in memory.
        unknown: A COMMIT is not answered: it lands later, or never.
        faults: A transaction is lost before COMMIT, and its lane waits to begin it again.
        doubts: Another lane of a worker puts the partition in doubt.
        copies: A copy of m1 is handled by a process that owns another partition.
        deaths: A retry is dead-lettered instead of succeeding.
    """

    moves: int = 0
    crashes: int = 0
    unknown: int = 0
    faults: int = 0
    doubts: int = 0
    copies: int = 0
    deaths: int = 0


class Number(IntEnum):
    """An enumeration that is hashed as a number, which is much faster."""

    __hash__ = int.__hash__


class Outcome(Number):
    """A ledger row's."""

    NONE = 0
    PROCESSED = 1
    PARKED = 2
    DEAD = 3


class Kind(Number):
    """What a transaction is for."""

    RUN = 0
    PARK = 1
    BEHIND = 2
    RETRY = 3


class Phase(Number):
    """How far a transaction has come; before BEGUN it is only intended, and holds nothing in the database."""

    INTENDED = 0
    BEGUN = 1
    WAITING = 2
    CLAIMED = 3
    FINALISED = 4


class Verdict(Number):
    """What a claim, or the lock of a parked row, said; BLIND: lost, and the winner's row was not seen."""

    OPEN = 0
    WON = 1
    LOST = 2
    BLIND = 3


class Token(Number):
    """The owner token that a worker holds, compared with the database's."""

    NONE = 0
    STALE = 1
    CURRENT = 2


class Wanted(Number):
    """What a worker has still to do to take the partition over."""

    NO = 0
    TAKE = 1
    CONFIRM = 2


class Tx(NamedTuple):
    """A transaction: of a worker, or on its own after its COMMIT was sent.

    Attributes:
        mine: Whether its token is still the partition's.
        current: Whether its message came under its worker's present assignment.
        dead: Whether it writes a dead letter.
    """

    kind: Kind
    message: int
    phase: Phase = Phase.INTENDED
    verdict: Verdict = Verdict.OPEN
    mine: bool = False
    current: bool = True
    dead: bool = False


class Worker(NamedTuple):
    """What a worker believes.

    Attributes:
        assigned: It believes that Kafka gave it the partition.
        fresh: That is so: its generation is the group's.
        idle: Nothing was delivered to it under this assignment.
        token: What it holds.
        wanted: What is to be done to take over.
        late: A take-over begun under the assignment before is still under way.
        loaded: What it read as parked before it waited for the fence (only where that rule is out).
        parked: The messages that it knows to be parked.
        next: The offset that it handles next.
        tx: What its lane does.
    """

    assigned: bool = False
    fresh: bool = False
    idle: bool = False
    token: Token = Token.NONE
    wanted: Wanted = Wanted.NO
    late: bool = False
    loaded: frozenset[int] | None = None
    parked: frozenset[int] = frozenset()
    next: int = 0
    tx: Tx | None = None


class State(NamedTuple):
    """All there is.

    Attributes:
        lot: Parked messages in their order, each with whether it is due.
        effects: What the handlers' committed changes are, in the order of their commits.
        orphans: Transactions whose COMMIT was sent, and not answered.
        copying: Whether another partition's owner has claimed its copy of m1, and not committed.
        owner: To whom Kafka gave the partition.
        committed: Kafka's committed offset.
    """

    workers: tuple[Worker, Worker]
    left: Left
    ledger: tuple[Outcome, Outcome] = (Outcome.NONE, Outcome.NONE)
    lot: tuple[tuple[int, bool], ...] = ()
    effects: tuple[int, ...] = ()
    orphans: tuple[Tx, ...] = ()
    copying: bool = False
    owner: int = 0
    committed: int = 0


def wrong(state: State) -> str | None:
    """Return which promise a state breaks, or None."""
    for message, name in enumerate(NAMES):
        times, outcome = state.effects.count(message), state.ledger[message]
        if times > 1:
            return f"{name} has {times} effects"
        if times != (outcome is Outcome.PROCESSED):
            return f"{name} has {times} effects, and is {outcome.name} in the ledger"
        if (outcome is Outcome.PARKED) != (message in [row for row, _due in state.lot]):
            return f"{name} is {outcome.name} in the ledger, which the parking lot contradicts"
    if M2 in state.effects and state.ledger[M1] in (Outcome.NONE, Outcome.PARKED):
        return "m2 has overtaken m1"
    return None


def decided(state: State) -> bool:
    """Return whether everything has its outcome."""
    return all(outcome in (Outcome.PROCESSED, Outcome.DEAD) for outcome in state.ledger)
