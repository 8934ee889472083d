"""Explores every state that a protocol can reach, and looks for what must not be."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.protocol import Protocol
from tests.model.state import M1, M2, Left, Outcome, Rules, State, Wanted, Worker, decided, wrong

LOG = (M1, M2)
NOTHING = State((Worker(), Worker()), Left())
# A owns the partition and is about to take it; B owned it before and does not know yet that it lost it.
_ASSIGNED = Worker(assigned=True, wanted=Wanted.TAKE, next=1)
M1_PARKED = State(
    (_ASSIGNED._replace(fresh=True), _ASSIGNED),
    Left(),
    ledger=(Outcome.PARKED, Outcome.NONE),
    lot=((M1, True),),
    committed=1,
)


@dataclass(frozen=True)
class Found:
    """What an exploration came to.

    Attributes:
        states: How many were seen; all that there are, unless something is wrong.
        wrong: What is wrong, in a few words; None when nothing is.
        trace: The shortest way there, a step a line.
    """

    states: int
    wrong: str | None = None
    trace: str = ""


class Exploration:
    """A breadth-first walk, which remembers who may follow whom.

    Args:
        rules: Those kept.
        left: How often the world may interfere.
        log: The messages of the partition.
        start: Where to begin; by default nothing has happened yet.
    """

    def __init__(self, rules: Rules, left: Left, log: tuple[int, ...] = LOG, start: State = NOTHING) -> None:
        self._protocol = Protocol(rules, log)
        self._states = [start._replace(left=left)]
        self._parents = [(0, "")]
        # Steps that need no luck: source, target, and which worker takes over by it (0 for none).
        self._sources, self._targets, self._takers = array("l"), array("l"), array("b")

    def run(self, *, live: bool = True) -> Found:
        """Explore; with `live`, look also for states that lead nowhere, and for take-overs without end."""
        found = self._safe()
        if found is None and live:
            found = self._dead_end() or self._ping_pong()
        if found is None:
            return Found(len(self._states))
        what, at = found
        return Found(len(self._states), what, "\n".join([*self._way(at), f"=> {what}"]))

    def _safe(self) -> tuple[str, int] | None:
        numbers = {self._states[0]: 0}
        for number, state in enumerate(self._states):
            for step in self._protocol.steps(state):
                to = numbers.setdefault(step.state, len(self._states))
                if to == len(self._states):
                    self._states.append(step.state)
                    self._parents.append((number, step.told))
                    if (what := wrong(step.state)) is not None:
                        return what, to
                if not step.world:
                    self._sources.append(number)
                    self._targets.append(to)
                    self._takers.append(0 if step.taker is None else step.taker + 1)
        return None

    def _dead_end(self) -> tuple[str, int] | None:
        """Find a state from which, if the world leaves it alone, the end cannot be reached."""
        before: list[list[int]] = [[] for _ in self._states]
        for source, target in zip(self._sources, self._targets, strict=True):
            before[target].append(source)
        waiting = [number for number, state in enumerate(self._states) if decided(state)]
        good = bytearray(len(self._states))
        for number in waiting:
            good[number] = 1
        while waiting:
            for number in before[waiting.pop()]:
                if not good[number]:
                    good[number] = 1
                    waiting.append(number)
        at = good.find(0)
        return None if at < 0 else ("a message is lost: nothing leads to its outcome", at)

    def _ping_pong(self) -> tuple[str, int] | None:
        """Find a way round on which both workers take over, again and again."""
        after: list[list[int]] = [[] for _ in self._states]
        for source, target in zip(self._sources, self._targets, strict=True):
            after[source].append(target)
        part = _parts(after)
        takers: dict[int, set[int]] = {}
        for source, target, taker in zip(self._sources, self._targets, self._takers, strict=True):
            if taker and part[source] == part[target]:
                takers.setdefault(part[source], set()).add(taker)
                if len(takers[part[source]]) == 2:
                    return "two owners alternate for ever", source
        return None

    def _way(self, at: int) -> Iterator[str]:
        steps = []
        while at:
            at, told = self._parents[at]
            steps.append(told)
        yield from (f"{number:3}. {told}" for number, told in enumerate(reversed(steps), 1))


def _parts(after: list[list[int]]) -> array[int]:
    """Return the number of each node's strongly connected part (Tarjan's algorithm, without recursion)."""
    count = len(after)
    order, low, part = array("l", [0]) * count, array("l", [0]) * count, array("l", [-1]) * count
    clock, stack = 0, []
    for root in range(count):
        if order[root]:
            continue
        path = [(root, iter(after[root]))]
        clock += 1
        order[root] = low[root] = clock
        stack.append(root)
        while path:
            node, rest = path[-1]
            for target in rest:
                if not order[target]:
                    clock += 1
                    order[target] = low[target] = clock
                    stack.append(target)
                    path.append((target, iter(after[target])))
                    break
                if part[target] < 0:
                    low[node] = min(low[node], order[target])
            else:
                path.pop()
                if path:
                    above = path[-1][0]
                    low[above] = min(low[above], low[node])
                if low[node] == order[node]:
                    while part[node] < 0:
                        part[stack.pop()] = node
    return part
