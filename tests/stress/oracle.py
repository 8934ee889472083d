"""The rules for a run's result. No I/O is here, so that the oracle itself can be tested."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.stress.message_faults import UNREADABLE
from tests.stress.plan import Given, Plan

PROCESSED, PARKED, DEAD = 1, 2, 3
HELD: Final = "held"
OPEN: Final = "dead"
OF_COPIES: Final = frozenset({"conflict", "failed_duplicate"})


class Logged(NamedTuple):
    """A message with its partition and offset."""

    partition: int
    offset: int
    given: Given


class Done(NamedTuple):
    """An effect."""

    sequence: int
    id: str
    partition: int
    offset: int
    attempt: int


class Dead(NamedTuple):
    """A dead letter."""

    id: str | None
    partition: int
    offset: int
    reason: str
    state: str
    attempts: int


class Parked(NamedTuple):
    """A parked message; one that is not due waits behind another."""

    id: str
    partition: int
    offset: int
    key: bytes | None
    kind: str
    attempts: int
    due: bool


class Published(NamedTuple):
    """A message in the topic that the handler publishes to: `what` is "effect" or "again"."""

    what: str
    id: str
    partition: int
    offset: int
    message_id: str


class Told(NamedTuple):
    """What a worker announced: of a message, that messages were processed, or that it does not go on as usual.

    `what` is "suspected", "attempt" or the reason of a dead letter; "committed"; "paused", "braked" or
    "slowed partition".
    """

    worker: str
    what: str
    id: str = ""
    partition: int = -1
    offset: int = -1


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The database at one moment."""

    effects: Sequence[Done] = ()
    dead: Sequence[Dead] = ()
    parked: Sequence[Parked] = ()
    ledger: Mapping[str, int] = field(default_factory=dict)
    marks: Mapping[int, int] = field(default_factory=dict)
    outbox: int = 0

    def finished(self) -> set[str]:
        """The IDs that have an outcome or are parked."""
        found = {one.id for one in self.effects} | {one.id for one in self.parked} | set(self.ledger)
        return found | {one.id for one in self.dead if one.id is not None}

    def places(self) -> set[tuple[int, int]]:
        """The places of messages that are parked or dead: of what cannot be read, nothing else is known."""
        return {(one.partition, one.offset) for found in (self.parked, self.dead) for one in found}

    def open_letters(self) -> Counter[str]:
        """How many open dead letters each ID has, without those of its copies."""
        return Counter(one.id for one in self.dead if one.state == OPEN and one.id and one.reason not in OF_COPIES)

    def conflicts(self) -> Counter[str]:
        """How many open conflicts each ID has."""
        return Counter(one.id for one in self.dead if one.state == OPEN and one.id and one.reason == "conflict")


@dataclass(frozen=True, kw_only=True)
class History:
    """Everything that a run left.

    Attributes:
        log: What was sent, in the order of the log of each partition.
        end: The database at the end.
        published: What the handler's messages came to, in the order of their topic.
        committed: Kafka's committed offsets at the end.
        ends: The offset behind the last message of each partition.
        ever_dead: IDs that were dead-lettered at any time.
        announced_from: Places of copies that were sent when their ID had been processed.
        calls: How often the handler was called for each ID.
        duplicates: How many messages were found to be processed already.
        deadlocks: Of the server.
        zombies: How many transactions a worker committed after others had taken its partitions.
        told: What the workers announced, in order.
    """

    plan: Plan
    log: Sequence[Logged]
    end: Snapshot
    published: Sequence[Published] = ()
    committed: Mapping[int, int] = field(default_factory=dict)
    ends: Mapping[int, int] = field(default_factory=dict)
    ever_dead: frozenset[str] = frozenset()
    announced_from: frozenset[tuple[int, int]] = frozenset()
    calls: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    deadlocks: int = 0
    zombies: int = 0
    told: Sequence[Told] = ()


def judge(history: History) -> list[str]:
    """Return what is wrong, in words; an empty list if nothing is."""
    rules = (_outcomes, _conflicts, _ledger, _attempts, _order, _published, _announced, _quiet, _unbroken)
    return [problem for rule in rules for problem in rule(history)]


def unfinished_below(offsets: Mapping[int, int], log: Iterable[Logged], found: Snapshot) -> list[Logged]:
    """Return the messages below these offsets without a durable outcome."""
    ids, places = found.finished(), found.places()

    def is_open(one: Logged) -> bool:
        if one.given.kind in UNREADABLE:
            return (one.partition, one.offset) not in places
        return one.given.id not in ids

    return [one for one in log if one.offset < offsets.get(one.partition, 0) and is_open(one)]


def _outcomes(history: History) -> Iterator[str]:
    """Each ID has one effect, or one open dead letter, or waits behind a held key."""
    plan, end = history.plan, history.end
    effects = Counter(one.id for one in end.effects)
    letters = end.open_letters()
    stale = Counter(one.id for one in end.dead if one.reason == "stale" and one.state == OPEN)
    waiting = Counter(one.id for one in end.parked if one.kind == "message")
    for name in {one.given.id for one in history.log if one.given.kind not in UNREADABLE}:
        dead = letters[name]
        if effects[name] and plan.has("prune") and plan.has("rewind"):
            # A message that a rewind reads again, and that the ledger may have forgotten, cannot be proven new.
            dead -= stale[name]
        # Copies of a dead message run where that is declared, and each may die.
        allowed = dead and not effects[name] and plan.resend_runs
        if effects[name] > 1:
            yield f"{name} has {effects[name]} effects"
        elif effects[name] + dead + waiting[name] == 0:
            yield f"{name} is lost: no effect, no open dead letter, and it does not wait"
        elif effects[name] + dead + waiting[name] > 1 and not allowed:
            yield f"{name} has {effects[name]} effects, {dead} open dead letters, and waits {waiting[name]} times"


def _conflicts(history: History) -> Iterator[str]:
    variants: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for one in history.log:
        variants[one.given.id][one.given.variant] += 1
    letters = history.end.conflicts()
    for name, sent in variants.items():
        most = sent.total() - 1 if len(sent) > 1 else 0
        if letters[name] > most:
            yield f"{name} has {letters[name]} conflicts, and at most {most} of its copies differ"


def _ledger(history: History) -> Iterator[str]:
    """The ledger has each ID's outcome; it may have forgotten processed ones."""
    end = history.end
    effects = {one.id for one in end.effects}
    forgotten = history.plan.has("prune")
    for name, outcome in end.ledger.items():
        if (outcome == PROCESSED) != (name in effects):
            yield f"{name} is {outcome} in the ledger, and has {'an' if name in effects else 'no'} effect"
    if not forgotten and (unknown := effects - set(end.ledger)):
        yield f"the ledger does not know of {_some(unknown)}, which have effects"


def _attempts(history: History) -> Iterator[str]:
    for one in history.end.dead:
        if one.reason == "exhausted" and one.state == OPEN and one.attempts != history.plan.attempts:
            yield f"{one.id} was exhausted after {one.attempts} attempts, and has {history.plan.attempts}"


def _order(history: History) -> Iterator[str]:
    """The effects of each key or partition are in the order of the log, except for dead messages."""
    if history.plan.ordering == "none":
        return
    given = {(one.partition, one.offset): one.given for one in history.log}
    firsts = _first_occurrences(history.log)
    last: dict[object, Done] = {}
    for one in history.end.effects:
        key = given[one.partition, one.offset].key
        ordered = history.plan.ordering == "partition" or key is not None
        if not ordered or one.id in history.ever_dead or (one.partition, one.offset) not in firsts:
            continue
        stream = (one.partition, None if history.plan.ordering == "partition" else key)
        before = last.get(stream)
        if before is not None and before.offset > one.offset:
            yield f"{one.id} at {one.partition}@{one.offset} comes after {before.id} at @{before.offset}, key {key}"
        else:
            last[stream] = one


def _first_occurrences(log: Iterable[Logged]) -> set[tuple[int, int]]:
    """Return the offsets at which each ID comes first in its partition."""
    seen: set[tuple[str, int]] = set()
    found = set()
    for one in log:
        if (one.given.id, one.partition) not in seen:
            seen.add((one.given.id, one.partition))
            found.add((one.partition, one.offset))
    return found


def _published(history: History) -> Iterator[str]:
    """Each effect is published under one ID, and the messages of a key in the order of their effects."""
    plan, effects = history.plan, history.end.effects
    if not plan.publishing:
        return
    sent = [one for one in history.published if one.what == "effect"]
    if missing := {one.id for one in effects} - {one.id for one in sent}:
        yield f"{_some(missing)} took effect, and nothing of them was published"
    if not plan.has("restore") and (idle := {one.id for one in sent} - {one.id for one in effects}):
        yield f"{_some(idle)} were published, and have no effect"
    names = defaultdict(set)
    for one in sent:
        names[one.id].add(one.message_id)
    if doubled := {one for one, found in names.items() if len(found) > 1}:
        yield f"{_some(doubled)} were published under several message IDs"
    if plan.ordering != "none":
        yield from _published_in_order(history, sent)


def _published_in_order(history: History, sent: Sequence[Published]) -> Iterator[str]:
    keys = {(one.partition, one.offset): one.given.key for one in history.log}
    sequence = {one.id: one.sequence for one in history.end.effects}
    seen: set[str] = set()
    last: dict[object, tuple[int, str]] = {}
    for one in sent:
        key = keys[one.partition, one.offset]
        if one.id in seen or key is None or one.id in history.ever_dead or one.id not in sequence:
            continue
        seen.add(one.id)
        before = last.get((one.partition, key))
        if before is not None and before[0] > sequence[one.id]:
            yield f"{one.id} was published after {before[1]}, and took effect before it; both are of key {key}"
        else:
            last[one.partition, key] = (sequence[one.id], one.id)


def _announced(history: History) -> Iterator[str]:
    """A copy that came after its ID was processed is announced."""
    if not history.plan.on_duplicate or history.plan.has("restore", "prune"):
        return
    told = {(one.partition, one.offset) for one in history.published if one.what == "again"}
    variants = {(one.partition, one.offset): one.given for one in history.log}
    odd = {one.given.id for one in history.log if one.given.variant}
    for place in sorted(history.announced_from - told):
        if variants[place].id not in odd:
            yield f"the copy of {variants[place].id} at {place[0]}@{place[1]} was not announced"


def _quiet(history: History) -> Iterator[str]:
    end = history.end
    for partition, offset in history.ends.items():
        if history.committed.get(partition, 0) < offset:
            yield f"partition {partition} ends with a lag: {history.committed.get(partition)} of {offset}"
        if end.marks.get(partition, 0) < offset:
            yield f"partition {partition} has the mark {end.marks.get(partition)}, and ends at {offset}"
    if end.outbox:
        yield f"{end.outbox} messages are left in the outbox"
    held = {(one.partition, one.key) for one in end.parked if one.kind == HELD}
    for one in end.parked:
        if one.due or (one.kind != HELD and (one.partition, one.key) not in held):
            yield f"{one.id} at {one.partition}@{one.offset} is parked at the end, behind nothing that holds its key"


def _unbroken(history: History) -> Iterator[str]:
    if history.deadlocks:
        yield f"{history.deadlocks} deadlocks: claims are not in one order"
    if history.zombies:
        yield f"{history.zombies} transactions were committed by a worker after others had taken its partitions"
    if history.plan.profile == "calm":
        yield from _nothing_twice(history)


def _nothing_twice(history: History) -> Iterator[str]:
    """If nothing breaks, no message is handled twice, and few are delivered twice.

    A partition is handed over at its lowest unfinished offset. Several lanes finish messages out of order, so one that
    was finished above that offset is delivered to the next owner, who finds it in the ledger. Any other is not.
    """
    if again := {one for one, times in history.calls.items() if times > 1}:
        yield f"{_some(again)} were handled twice, though nothing broke"
    told = {(one.partition, one.offset) for one in history.published if one.what == "again"}
    if history.duplicates and not told:
        yield f"{history.duplicates} messages were delivered twice, and the handler saw none"
    for partition, offset in sorted(told - _overtaking(history.end.effects)):
        yield f"{partition}@{offset} was delivered twice, though nothing broke and nothing below it was unfinished"


def _overtaking(effects: Iterable[Done]) -> set[tuple[int, int]]:
    """Return the effects that came before one of a lower offset in the same partition."""
    lowest: dict[int, int] = {}
    found = set()
    for one in sorted(effects, reverse=True):
        if lowest.setdefault(one.partition, one.offset) < one.offset:
            found.add((one.partition, one.offset))
        lowest[one.partition] = min(lowest[one.partition], one.offset)
    return found


def _some(ids: set[str]) -> str:
    shown = sorted(ids)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
