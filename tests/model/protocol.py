"""The protocol of two workers, one partition and one key: every step that may be taken next.

It follows `engine.ownership` (taking over), `engine.pipeline` and `engine.transaction` (a transaction), and
`storage.fence`. A pause is a step not taken for a while; a zombie is a worker that does not take the step by which it
learns that the partition is not its own any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.state import M1, NAMES, Kind, Outcome, Phase, Rules, State, Token, Tx, Verdict, Wanted, Worker


class Step(NamedTuple):
    """One thing that may happen.

    Attributes:
        told: In words.
        state: What is then.
        world: Whether it is the world's interference, on which no worker may rely.
        taker: The worker that takes the partition over by it, else None.
    """

    told: str
    state: State
    world: bool = False
    taker: int | None = None


class Protocol:
    """The steps that follow from a state.

    Args:
        rules: Those kept.
        log: The messages of the partition, by offset; a message may be there twice.
    """

    def __init__(self, rules: Rules, log: tuple[int, ...]) -> None:
        self.rules = rules
        self.log = log

    def steps(self, state: State) -> Iterator[Step]:
        """Yield what may happen next."""
        yield from self._kafka(state)
        yield from _copy(state)
        for at, orphan in enumerate(state.orphans):
            rest = state._replace(orphans=state.orphans[:at] + state.orphans[at + 1 :])
            yield Step(f"the unanswered COMMIT ({_of(orphan)}) lands", _applied(rest, orphan))
            yield Step(f"the unanswered COMMIT ({_of(orphan)}) is lost", rest)
        for number, worker in enumerate(state.workers):
            name = "AB"[number]
            yield from self._membership(state, number, worker, name)
            yield from self._ownership(state, number, worker, name)
            if worker.tx is None:
                yield from self._lane(state, number, worker, name)
            elif worker.tx.phase is Phase.INTENDED:
                yield from self._begin(state, number, worker, worker.tx, name)
            else:
                yield from self._transaction(state, number, worker, worker.tx, name)

    def _kafka(self, state: State) -> Iterator[Step]:
        if not state.left.moves:
            return
        left = state.left._replace(moves=state.left.moves - 1)
        stale = tuple(worker._replace(fresh=False) for worker in state.workers)
        for owner in range(2):
            moved = state._replace(left=left, owner=owner, workers=(stale[0], stale[1]))
            yield Step(f"Kafka gives the partition to {'AB'[owner]}", moved, world=True)

    def _membership(self, state: State, number: int, worker: Worker, name: str) -> Iterator[Step]:
        tx = worker.tx and worker.tx._replace(current=False)
        if state.owner == number and not worker.fresh:
            late = worker.late or (worker.assigned and worker.wanted is Wanted.TAKE)
            idle = state.committed == len(self.log)
            now = Worker(True, True, idle, wanted=Wanted.TAKE, late=late, next=state.committed, tx=tx)
            yield Step(f"{name} is assigned the partition", _with(state, number, now))
        elif worker.assigned and not worker.fresh:
            late = worker.late or worker.wanted is Wanted.TAKE
            yield Step(f"{name} learns that it lost the partition", _with(state, number, Worker(late=late, tx=tx)))
        if worker.fresh and worker.next > state.committed:
            yield Step(f"{name} commits offset {worker.next}", state._replace(committed=worker.next))
        if state.left.crashes and (worker.assigned or worker.tx):
            gone = _with(state, number, Worker())._replace(
                left=state.left._replace(crashes=state.left.crashes - 1),
            )
            yield Step(f"{name} crashes", gone, world=True)
            if worker.tx and worker.tx.phase is Phase.FINALISED:
                yield Step(f"{name} crashes, its COMMIT under way", _orphaned(gone, worker.tx), world=True)

    def _ownership(self, state: State, number: int, worker: Worker, name: str) -> Iterator[Step]:
        rules = self.rules
        if worker.wanted is Wanted.CONFIRM and (
            worker.fresh or not rules.confirm or (worker.idle and not rules.confirm_idle)
        ):
            yield Step(f"{name} is sure of its assignment", _with(state, number, worker._replace(wanted=Wanted.TAKE)))
        if worker.token is not Token.NONE and state.left.doubts:
            doubting = _with(state, number, _doubting(worker))
            left = state.left._replace(doubts=state.left.doubts - 1)
            yield Step(f"another lane of {name} is in doubt", doubting._replace(left=left), world=True)
        free = not (rules.lock and (state.orphans or any(one.tx and one.tx.phase for one in state.workers)))
        if worker.late and free:
            wanted = worker.wanted if rules.want else Wanted.NO
            owned = _outdated(_with(state, number, worker._replace(late=False, wanted=wanted)))
            yield Step(f"{name} ends a take-over begun under its last assignment", owned, taker=number)
        if worker.wanted is not Wanted.TAKE:
            return
        there = frozenset(message for message, _due in state.lot)
        if not rules.load and worker.loaded is None:
            yield Step(f"{name} reads what is parked", _with(state, number, worker._replace(loaded=there)))
        elif free:
            found = there if worker.loaded is None else worker.loaded
            taken = (
                _outdated(state)
                .workers[number]
                ._replace(wanted=Wanted.NO, token=Token.CURRENT, parked=found, loaded=None)
            )
            told = f"{name} takes the partition over, and knows to be parked: {_listed(found)}"
            yield Step(told, _with(_outdated(state), number, taken), taker=number)

    def _lane(self, state: State, number: int, worker: Worker, name: str) -> Iterator[Step]:
        """What a lane may turn to: what is due in the lot, and what comes next in the log."""
        for message, due in state.lot:
            if due:
                known = worker._replace(parked=worker.parked | {message})
                yield from self._begin(state, number, known, Tx(Kind.RETRY, message), name)
        if worker.next < len(self.log):
            kind = Kind.BEHIND if worker.parked else Kind.RUN
            yield from self._begin(state, number, worker, Tx(kind, self.log[worker.next]), name)

    def _begin(self, state: State, number: int, worker: Worker, tx: Tx, name: str) -> Iterator[Step]:
        """Begin under the fence and with the present token, or give up the intent."""
        if not worker.assigned or worker.token is Token.NONE or not tx.current:
            if worker.tx is not None:
                yield Step(f"{name} lets go of {NAMES[tx.message]}", _with(state, number, worker._replace(tx=None)))
            return
        if self.rules.decide and tx.kind in (Kind.RUN, Kind.BEHIND):
            tx = tx._replace(kind=Kind.BEHIND if worker.parked else Kind.RUN)
        begun = tx._replace(phase=Phase.BEGUN, mine=worker.token is Token.CURRENT)
        yield Step(f"{name} begins ({_of(tx)})", _with(state, number, worker._replace(tx=begun)))

    def _transaction(self, state: State, number: int, worker: Worker, tx: Tx, name: str) -> Iterator[Step]:
        if state.left.faults:
            left = state.left._replace(faults=state.left.faults - 1)
            again = worker._replace(tx=tx._replace(phase=Phase.INTENDED, verdict=Verdict.OPEN, mine=False))
            yield Step(f"{name}'s transaction is lost", _with(state, number, again)._replace(left=left), world=True)
        if tx.phase in (Phase.BEGUN, Phase.WAITING):
            yield from self._claim(state, number, worker, tx, name)
        elif tx.phase is Phase.CLAIMED:
            yield from self._handle(state, number, worker, tx, name)
        else:
            yield from _commit(state, number, worker, tx, name)

    def _claim(self, state: State, number: int, worker: Worker, tx: Tx, name: str) -> Iterator[Step]:
        if _taken(state, number, tx):
            if not self.rules.reread and tx.phase is Phase.BEGUN and tx.kind is not Kind.RETRY:
                waiting = worker._replace(tx=tx._replace(phase=Phase.WAITING))
                yield Step(f"{name} waits for a claim on {NAMES[tx.message]}", _with(state, number, waiting))
            return
        verdict = self._verdict(state, tx)
        known = tx.kind is Kind.RETRY or tx.message in worker.parked or not self.rules.net
        if verdict is Verdict.LOST and state.ledger[tx.message] is Outcome.PARKED and not known:
            told = f"{name} finds {NAMES[tx.message]} parked unknown to it, and gives up"
            yield Step(told, _with(state, number, _doubting(worker._replace(tx=None))))
            return
        claimed = tx._replace(phase=Phase.CLAIMED, verdict=verdict)
        told = f"{name}'s claim on {NAMES[tx.message]} is {verdict.name}"
        yield Step(told, _with(state, number, worker._replace(tx=claimed)))

    def _verdict(self, state: State, tx: Tx) -> Verdict:
        if tx.kind is Kind.RETRY:
            there = tx.message in [message for message, _due in state.lot]
            return Verdict.WON if there else Verdict.LOST
        if tx.kind is not Kind.RUN and not self.rules.claim:
            return Verdict.WON
        if state.ledger[tx.message] is Outcome.NONE:
            return Verdict.WON
        # One statement's snapshot is older than the wait: the row is there, and cannot be seen.
        return Verdict.BLIND if tx.phase is Phase.WAITING else Verdict.LOST

    def _handle(self, state: State, number: int, worker: Worker, tx: Tx, name: str) -> Iterator[Step]:
        """Handle and finalise; the first time, m1 may fail and is then to be parked."""
        if tx.kind is Kind.RUN and tx.message == M1 and tx.verdict is not Verdict.LOST:
            failed = Tx(Kind.PARK, M1, current=tx.current)
            yield Step(f"m1 fails in {name}, and is to be parked", _with(state, number, worker._replace(tx=failed)))
        if self.rules.token and not tx.mine:
            fenced = _doubting(worker._replace(tx=None))
            yield Step(f"{name} is fenced ({_of(tx)})", _with(state, number, fenced))
            return
        done = tx._replace(phase=Phase.FINALISED)
        yield Step(f"{name} finalises ({_of(tx)})", _with(state, number, worker._replace(tx=done)))
        if tx.kind is Kind.RETRY and tx.verdict is Verdict.WON and state.left.deaths:
            left = state.left._replace(deaths=state.left.deaths - 1)
            dead = _with(state, number, worker._replace(tx=done._replace(dead=True)))
            yield Step(f"{name} dead-letters {NAMES[tx.message]}", dead._replace(left=left), world=True)


def _copy(state: State) -> Iterator[Step]:
    """What the owner of another partition does with a copy of m1: claim it; then its effect, or a rollback."""
    if state.copying:
        over = state._replace(copying=False)
        done = over._replace(effects=(*state.effects, M1), ledger=(Outcome.PROCESSED, state.ledger[1]))
        yield Step("a copy of m1 in another partition is processed", done)
        yield Step("a copy of m1 in another partition is rolled back", over)
    elif state.left.copies and state.ledger[M1] is Outcome.NONE and not _taken(state, -1, Tx(Kind.RUN, M1)):
        left = state.left._replace(copies=state.left.copies - 1)
        yield Step("a copy of m1 in another partition is claimed", state._replace(copying=True, left=left), world=True)


def _commit(state: State, number: int, worker: Worker, tx: Tx, name: str) -> Iterator[Step]:
    done = worker._replace(tx=None)
    if worker.assigned:
        if tx.kind is Kind.RETRY:
            done = done._replace(parked=worker.parked - {tx.message})
        elif tx.kind is not Kind.RUN and tx.verdict is Verdict.WON:
            done = done._replace(parked=worker.parked | {tx.message})
        if tx.kind is not Kind.RETRY and tx.current:
            done = done._replace(next=worker.next + 1)
    yield Step(f"{name} commits ({_of(tx)})", _with(_applied(state, tx), number, done))
    if state.left.unknown:
        left = state.left._replace(unknown=state.left.unknown - 1)
        asked = _with(state, number, _doubting(worker._replace(tx=None)))._replace(left=left)
        yield Step(f"{name}'s COMMIT is not answered ({_of(tx)})", _orphaned(asked, tx), world=True)


def _applied(state: State, tx: Tx) -> State:
    """Return what a transaction leaves when it is committed."""
    if tx.verdict is Verdict.LOST:
        return state
    outcome, lot, effects = Outcome.PROCESSED, state.lot, state.effects
    if tx.kind in (Kind.PARK, Kind.BEHIND):
        outcome = Outcome.PARKED
        lot = (*lot, (tx.message, tx.kind is Kind.PARK))
    elif tx.kind is Kind.RETRY:
        outcome = Outcome.DEAD if tx.dead else Outcome.PROCESSED
        lot = tuple(row for row in lot if row[0] != tx.message)
        # The next of the key is due at once.
        lot = tuple((message, due or at == 0) for at, (message, due) in enumerate(lot))
    if outcome is Outcome.PROCESSED:
        effects = (*effects, tx.message)
    ledger = (outcome, state.ledger[1]) if tx.message == M1 else (state.ledger[0], outcome)
    return state._replace(ledger=ledger, lot=lot, effects=effects)


def _taken(state: State, number: int, tx: Tx) -> bool:
    """Return whether an open transaction holds the claim, or the row, that another one needs."""
    others = [one.tx for at, one in enumerate(state.workers) if at != number and one.tx] + list(state.orphans)
    held = [one for one in others if one.verdict is Verdict.WON and one.message == tx.message]
    if tx.kind is Kind.RETRY:
        return any(one.kind is Kind.RETRY for one in held)
    return (state.copying and tx.message == M1) or any(one.kind is not Kind.RETRY for one in held)


def _outdated(state: State) -> State:
    """Return a state in which another token was written: no worker has the partition's token any more."""
    first, second = (
        worker._replace(token=min(worker.token, Token.STALE), tx=worker.tx._replace(mine=False) if worker.tx else None)
        for worker in state.workers
    )
    return state._replace(workers=(first, second))


def _doubting(worker: Worker) -> Worker:
    return worker._replace(token=Token.NONE, wanted=Wanted.CONFIRM) if worker.token else worker


def _orphaned(state: State, tx: Tx) -> State:
    return state._replace(orphans=tuple(sorted((*state.orphans, tx._replace(mine=False, current=False)))))


def _with(state: State, number: int, worker: Worker) -> State:
    first, second = state.workers
    return state._replace(workers=(worker, second) if number == 0 else (first, worker))


def _listed(messages: frozenset[int]) -> str:
    return ", ".join(NAMES[message] for message in sorted(messages)) or "nothing"


def _of(tx: Tx) -> str:
    return f"{tx.kind.name.lower()} {NAMES[tx.message]}"
