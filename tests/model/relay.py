"""The protocol of the outbox: two writers, a relay that reads pages and may die, and a broker that may refuse.

It follows `consumerkit.relay` and `consumerkit.storage.outbox_queues`. Writer A publishes m1 and, when that is
committed, m2, both under key K; writer B publishes x and y under another key. A row's sequence is drawn when it is
inserted, and the row shows when it is committed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

M1, M2, X, Y = "m1", "m2", "x", "y"
WRITERS = ((M1, M2), (X, Y))
KEY = {M1: "K", M2: "K", X: "X", Y: "X"}


@dataclass(frozen=True)
class Rules:
    """What the relay keeps to.

    Attributes:
        from_lowest: A page shows each key from its lowest row on, whatever was read before.
        one_by_one: A message is sent when the one of its key before it was acknowledged.
        stays_behind: What a refused message of the key leaves behind stays until that one goes.
        counts_as_sent: Rows that were acknowledged and are not removed yet are not read again.
    """

    from_lowest: bool = True
    one_by_one: bool = True
    stays_behind: bool = True
    counts_as_sent: bool = True


class Row(NamedTuple):
    """A row of the outbox."""

    sequence: int
    message: str
    committed: bool = False


class State(NamedTuple):
    """All there is.

    Attributes:
        written: How many steps each writer has done: an INSERT and a COMMIT for each of its messages.
        rows: The outbox, in order of sequence.
        drawn: The last sequence.
        page: What the relay has read and not sent.
        after: The last sequence that it read.
        flying: What it sent and the broker has not answered.
        acknowledged: Of what it knows to be acknowledged, and has not removed.
        log: The topic.
        deaths: How often the relay may still die.
        refusals: How often the broker may still refuse.
        died: Whether it has died.
    """

    written: tuple[int, int] = (0, 0)
    rows: tuple[Row, ...] = ()
    drawn: int = 0
    page: tuple[Row, ...] = ()
    after: int = 0
    flying: tuple[Row, ...] = ()
    acknowledged: frozenset[int] = frozenset()
    log: tuple[str, ...] = ()
    deaths: int = 1
    refusals: int = 1
    died: bool = False


Step = tuple[str, State]


def steps(state: State, rules: Rules) -> Iterator[Step]:
    """Yield what may happen next."""
    for number in range(2):
        yield from _write(state, number)
    yield from _read(state, rules)
    yield from _send(state, rules)
    yield from _answer(state, rules)
    if state.acknowledged:
        left = tuple(row for row in state.rows if row.sequence not in state.acknowledged)
        yield "the relay removes what was acknowledged", state._replace(rows=left, acknowledged=frozenset())
    if state.deaths:
        dead = state._replace(page=(), after=0, flying=(), acknowledged=frozenset())
        dead = dead._replace(deaths=state.deaths - 1, died=True)
        yield "the relay dies, and another takes its turn", dead


def _write(state: State, number: int) -> Iterator[Step]:
    done = state.written[number]
    if done == 2 * len(WRITERS[number]):
        return
    message = WRITERS[number][done // 2]
    written = (done + 1, state.written[1]) if number == 0 else (state.written[0], done + 1)
    if done % 2 == 0:
        drawn = state.drawn + 1
        rows = (*state.rows, Row(drawn, message))
        yield f"{message} is inserted with sequence {drawn}", state._replace(written=written, rows=rows, drawn=drawn)
    else:
        rows = tuple(row._replace(committed=True) if row.message == message else row for row in state.rows)
        yield f"{message} is committed", state._replace(written=written, rows=rows)


def _read(state: State, rules: Rules) -> Iterator[Step]:
    """Read a page of one row or two; a key under way is left out, as its topic is in the product."""
    if state.page:
        return
    busy = {KEY[row.message] for row in state.flying}
    sent = state.acknowledged if rules.counts_as_sent else frozenset()
    shown = [row for row in state.rows if row.committed and KEY[row.message] not in busy and row.sequence not in sent]
    beyond = shown if rules.from_lowest else [row for row in shown if row.sequence > state.after]
    for size in (1, 2):
        page = tuple(beyond[:size])
        if len(page) == size:
            told = " and ".join(f"{row.message} ({row.sequence})" for row in page)
            yield f"the relay reads {told}", state._replace(page=page, after=page[-1].sequence)
    if not beyond and state.after:
        yield "the relay begins another round", state._replace(after=0)


def _send(state: State, rules: Rules) -> Iterator[Step]:
    if not state.page:
        return
    row, *rest = state.page
    before = [one for one in state.flying if KEY[one.message] == KEY[row.message]]
    if before and rules.one_by_one:
        return
    yield f"the relay sends {row.message}", state._replace(page=tuple(rest), flying=(*state.flying, row))


def _answer(state: State, rules: Rules) -> Iterator[Step]:
    for row in state.flying:
        flying = tuple(one for one in state.flying if one != row)
        taken = state._replace(flying=flying, log=(*state.log, row.message))
        if state.log.count(row.message) < 2:
            acknowledged = state.acknowledged | {row.sequence}
            yield f"the broker takes {row.message}", taken._replace(acknowledged=acknowledged)
        if state.refusals:
            page = state.page
            if rules.stays_behind:
                page = tuple(one for one in page if KEY[one.message] != KEY[row.message])
            refused = state._replace(flying=flying, page=page, refusals=state.refusals - 1)
            yield f"the broker refuses {row.message}", refused


def wrong(state: State) -> str | None:
    """Return which promise a state breaks, or None; only where a message came first counts."""
    if M2 in state.log and M1 not in state.log[: state.log.index(M2)]:
        return "m2 has overtaken m1"
    if Y in state.log and X not in state.log[: state.log.index(Y)]:
        return "y has overtaken x"
    if not state.died and len(set(state.log)) < len(state.log):
        return "a message is sent twice, and no relay has died"
    return None


def done(state: State) -> bool:
    """Return whether all is published and removed."""
    return not state.rows and set(state.log) == {M1, M2, X, Y}


class Found(NamedTuple):
    """What an exploration came to; see `tests.model.explore.Found`."""

    states: int
    wrong: str | None = None
    trace: str = ""


def explore(rules: Rules, start: State = State()) -> Found:  # noqa: B008 - it is frozen
    """Walk through all states, the shortest ways first; then look for one from which the end cannot be reached."""
    parents: dict[State, tuple[State, str] | None] = {start: None}
    before: dict[State, list[State]] = {start: []}
    waiting = [start]
    for state in waiting:
        for told, to in steps(state, rules):
            before.setdefault(to, []).append(state)
            if to in parents:
                continue
            parents[to] = (state, told)
            if (what := wrong(to)) is not None:
                return Found(len(parents), what, _way(parents, to))
            waiting.append(to)
    good = {state for state in parents if done(state)}
    ends = list(good)
    while ends:
        for state in before[ends.pop()]:
            if state not in good:
                good.add(state)
                ends.append(state)
    stuck = next((state for state in parents if state not in good), None)
    if stuck is not None:
        return Found(len(parents), "a message is never sent", _way(parents, stuck))
    return Found(len(parents))


def _way(parents: dict[State, tuple[State, str] | None], state: State) -> str:
    told: list[str] = []
    while (parent := parents[state]) is not None:
        state, step = parent
        told.append(step)
    return "\n".join(f"{number:3}. {step}" for number, step in enumerate(reversed(told), 1))
