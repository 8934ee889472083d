"""Where a first run begins, as a model: two workers, two partitions of a topic, a third that is added, and deaths.

It follows `engine.first_runs` and `storage.first_runs`. A message is old if it was there before any worker had asked
the broker, and new if it came after the first decision was written; what comes in between may run or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

PARTITIONS = 3
"""Two that the topic has at first, and one that may be added."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What keeps a first run right.

    Attributes:
        once: It is decided for all partitions at once, and not for one when it is taken.
        first_counts: Under a lock on the consumer's row, the decision that was written first counts.
        added_at_start: A partition that is missing from the record begins at its start, and not at its end.
    """

    once: bool = True
    first_counts: bool = True
    added_at_start: bool = True


class Worker(NamedTuple):
    """What a worker knows.

    Attributes:
        looked: It has found nothing decided.
        told: The ends that the broker told it then.
        record: What it goes by.
    """

    looked: bool = False
    told: tuple[int | None, ...] | None = None
    record: tuple[int | None, ...] | None = None


class State(NamedTuple):
    """All there is.

    Attributes:
        ends: How many messages each partition has; None where it is not there.
        begun: Where reading has begun, per partition.
        record: The decision in the database.
        firm: The ends when something was first decided: what comes later must run.
        sends, deaths: How often more may be sent, and workers may die.
    """

    workers: tuple[Worker, Worker] = (Worker(), Worker())
    ends: tuple[int | None, ...] = (1, 1, None)
    begun: tuple[int | None, ...] = (None,) * PARTITIONS
    record: tuple[int | None, ...] | None = None
    firm: tuple[int | None, ...] | None = None
    sends: int = 2
    deaths: int = 1


def wrong(state: State) -> str | None:
    """Return which promise of `latest` a state breaks, or None."""
    for number, begun in enumerate(state.begun):
        if begun is None:
            continue
        if begun == 0 and number < 2:
            return "an old message runs"
        if state.firm is not None and begun > (state.firm[number] or 0):
            return "a message that came after the first run had begun is passed over"
    return None


def steps(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """Yield what may happen next."""
    if state.sends:
        fewer = state._replace(sends=state.sends - 1)
        for number, end in enumerate(state.ends):
            sent = _with(state.ends, number, (end or 0) + 1)
            yield f"a message comes into partition {number}", fewer._replace(ends=sent)
    for number, worker in enumerate(state.workers):
        name = "AB"[number]
        if state.deaths and worker != Worker():
            yield f"{name} dies", _worker(state, number, Worker())._replace(deaths=state.deaths - 1)
        if worker.record is not None:
            yield from _takes(state, worker.record, name, rules)
        elif not worker.looked:
            told = "nothing decided" if state.record is None else "the record"
            yield f"{name} finds {told}", _worker(state, number, Worker(looked=True, record=state.record))
        elif worker.told is None:
            yield f"{name} asks the broker", _worker(state, number, Worker(looked=True, told=state.ends))
        else:
            yield _decides(state, number, worker.told, rules)


def _decides(state: State, number: int, told: tuple[int | None, ...], rules: Rules) -> tuple[str, State]:
    name = "AB"[number]
    if rules.first_counts and state.record is not None:
        return f"{name} finds another's decision", _worker(state, number, Worker(record=state.record))
    firm = state.firm or state.ends
    decided = _worker(state, number, Worker(record=told))._replace(record=told, firm=firm)
    return f"{name} decides: {told}", decided


def _takes(state: State, record: tuple[int | None, ...], name: str, rules: Rules) -> Iterator[tuple[str, State]]:
    for number, (end, begun) in enumerate(zip(state.ends, state.begun, strict=True)):
        if end is None or begun is not None:
            continue
        start = record[number]
        if start is None:
            start = 0 if rules.added_at_start else end
        elif not rules.once:
            start = end
        yield (
            f"{name} begins with partition {number} at {start}",
            state._replace(begun=_with(state.begun, number, start)),
        )


def _with(values: tuple[int | None, ...], number: int, value: int) -> tuple[int | None, ...]:
    return (*values[:number], value, *values[number + 1 :])


def _worker(state: State, number: int, worker: Worker) -> State:
    first, second = state.workers
    return state._replace(workers=(worker, second) if number == 0 else (first, worker))


def explore(rules: Rules) -> tuple[int, str | None, list[str]]:
    """Return how many states there are, what is wrong in the first that is, and the way to it."""
    seen = {State()}
    waiting: list[tuple[State, list[str]]] = [(State(), [])]
    while waiting:
        state, way = waiting.pop()
        if problem := wrong(state):
            return len(seen), problem, way
        for told, following in steps(state, rules):
            if following not in seen:
                seen.add(following)
                waiting.append((following, [*way, told]))
    return len(seen), None, []
