"""Faults that single messages cause, and the messages that cause them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, Literal

from tests.stress.plan import TWO_WORKERS, Given, Plan, Step

# The server's error does not show whether the message or the whole database is at fault.
_SUSPECTS: Final = {
    "unknown table": ("SELECT * FROM tenant_9.lines",),
    "unknown function": ("SELECT make_interval(days => 3000000000)",),
    "own timeout": ("SET LOCAL statement_timeout = 20", "SELECT pg_sleep(30)"),
    "temporary file": (
        "SET LOCAL temp_file_limit = '64kB'",
        "SET LOCAL work_mem = '64kB'",
        "SELECT count(*) FROM (SELECT n FROM generate_series(1, 20000) AS n ORDER BY n DESC) AS sorted",
    ),
    "locked row": ("SELECT n FROM stress_rows WHERE n = {row} FOR UPDATE NOWAIT",),
}
# Whatever the SQLSTATE, the message is at fault.
_CODES: Final = ("42501", "57014", "55P03", "40001", "53100")
_OWN: Final = {
    "policy": ("SET LOCAL ROLE pg_monitor", "INSERT INTO stress_guarded VALUES (2)"),
    **{f"trigger {code}": (f"INSERT INTO stress_refused VALUES ('{code}')",) for code in _CODES},
}
# One alone succeeds; two of them cannot share a transaction or a connection.
_PRESENT: Final = {
    "temporary table": ("CREATE TEMP TABLE scratch (n int) ON COMMIT DROP",),
    "cursor": ("DECLARE rows CURSOR FOR SELECT 1",),
    "prepared": ("PREPARE one AS SELECT 1",),
}
_SQLITE: Final = {"unknown table": ("SELECT * FROM tenant_9",)}
STATEMENTS: Final = {**_SUSPECTS, **_OWN, **_PRESENT}

SUSPECTS: Final = frozenset(_SUSPECTS)
OWN: Final = frozenset(_OWN)
PRESENT: Final = frozenset(_PRESENT)
GROUPS: Final = frozenset(
    {"group of errors", "group with a Reject", "group with a Defer", "group with a lost connection"}
)
UNREADABLE: Final = frozenset({"undecodable", "unidentified", "oversized"})
SLOWED: Final = "slowed partition"
DROPPED: Final = "dropped and read again"
NEVER_COUNTED: Final = PRESENT | {"group with a Defer", "group with a lost connection", "refused by the client"}
"""These faults count as no attempt of their message."""
REJECTED: Final = frozenset({"burst of Rejects", "group with a Reject"})
KINDS: Final = SUSPECTS | OWN | PRESENT | GROUPS | UNREADABLE | NEVER_COUNTED | REJECTED

SIZE_LIMIT: Final = 4096
ROWS: Final = 64
TABLES: Final = f"""
    CREATE TABLE stress_rows (n int PRIMARY KEY);
    INSERT INTO stress_rows SELECT generate_series(0, {ROWS - 1});
    CREATE TABLE stress_guarded (n int);
    ALTER TABLE stress_guarded ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON stress_guarded USING (n = 1);
    GRANT ALL ON stress_guarded TO pg_monitor;
    CREATE TABLE stress_refused (code text);
    CREATE FUNCTION stress_refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = NEW.code; END $$;
    CREATE TRIGGER stress_refuse BEFORE INSERT ON stress_refused FOR EACH ROW EXECUTE FUNCTION stress_refuse()
"""


def is_permanent(given: Given) -> bool:
    """Return whether a message can only end as a dead letter, before its fault is repaired."""
    always = given.kind in REJECTED | UNREADABLE | {"dead", "reject"}
    return always or (given.kind in SUSPECTS | OWN | {"group of errors"} and not given.times)


def statements(given: Given, *, server: bool) -> tuple[str, ...]:
    """Return the statement that a message makes its handler execute."""
    found = STATEMENTS.get(given.kind, ()) if server else _SQLITE.get(given.kind, ())
    return tuple(one.format(row=row_of(given)) for one in found)


def row_of(given: Given) -> int:
    """Return the row that a message locks."""
    return sum(given.id.encode()) % ROWS


def with_message_faults(plan: Plan, chance: random.Random) -> Plan:
    """Return the plan with faults of messages added; most plans stay as they are."""
    if plan.profile != "general":
        return plan
    drawn = chance.random()
    if drawn < 0.12:
        return _slowed(plan, chance)
    if drawn >= 0.44:
        return _narrow(plan, chance) if drawn < 0.5 else plan
    return _faulty(plan, chance)


def _faulty(plan: Plan, chance: random.Random) -> Plan:
    """Add one or two kinds of fault, with a few messages of each."""
    possible = _possible(plan)
    names = list(dict.fromkeys(chance.choice(possible) for _ in range(chance.choice([1, 1, 2]))))
    if "burst of Rejects" in names:
        names, plan = ["burst of Rejects"], _of_few_attempts(plan, chance)
    plan = replace(plan, message_faults=tuple(names))
    waves = [list(wave) for wave in plan.waves]
    number = 0
    for name in names:
        made = _messages(plan, chance, name, number)
        number += len(made)
        wave = chance.choice(waves)
        at = chance.randrange(len(wave) + 1)
        wave[at:at] = made
    return replace(plan, waves=tuple(map(tuple, waves)))


def _possible(plan: Plan) -> list[str]:
    found = [*GROUPS, *UNREADABLE, "unknown table"]
    if plan.database == "postgresql":
        found += [*SUSPECTS - {"unknown table"}, *OWN, *PRESENT, "refused by the client"]
    if plan.batch_size == 1:
        found = [name for name in found if name not in ("temporary table", "cursor")]
    if not plan.hold_key and not plan.has("prune"):
        found += ["burst of Rejects"] * 2
    # As often as those above, which are more kinds.
    found += ["unknown table"] * 3
    return sorted(found)


def _of_few_attempts(plan: Plan, chance: random.Random) -> Plan:
    """Add Rejects only: few other dead letters are allowed without a success, and Rejects spend nothing."""
    waves = tuple(
        tuple(one._replace(kind="ok") if one.kind in ("dead", "swallow") else one for one in wave)
        for wave in plan.waves
    )
    return replace(plan, waves=waves, allowance=chance.randint(1, 10))


def _messages(plan: Plan, chance: random.Random, name: str, number: int) -> list[Given]:
    # Nothing takes effect behind a key that stays held.
    key = chance.choice([None, 50] if plan.hold_key else [None, 0, 1, 50])
    if name in PRESENT:
        return _row(plan, number, 50 if plan.hold_key else 0, name, chance.randint(3, 6))
    if name == "burst of Rejects":
        sent = _row(plan, number, 50, name, chance.randint(11, 14))
        return sent + _row(plan, number + len(sent), 50, "ok", 5)
    made = []
    for at in range(number, number + chance.choice([1, 1, 2, 3])):
        partition = chance.randrange(plan.partitions) if key is None else key % plan.partitions
        made.append(Given(f"odd-{at}", key, partition, name, _times(plan, chance, name), 0, first=True))
        made += _row(plan, at + 100, key, "ok", 1) if chance.random() < 0.5 else []
    return made


def _row(plan: Plan, number: int, key: int | None, kind: str, count: int) -> list[Given]:
    partition = 0 if key is None else key % plan.partitions
    return [Given(f"odd-{at}", key, partition, kind, 0, 0, first=True) for at in range(number, number + count)]


def _times(plan: Plan, chance: random.Random, name: str) -> int:
    if name in SUSPECTS:
        # The first failure alone counts as no attempt.
        return chance.choice([0, chance.randint(1, plan.attempts)])
    if name in OWN or name == "group of errors":
        return chance.choice([0, chance.randint(1, plan.attempts - 1)])
    return chance.randint(1, 2) if name in NEVER_COUNTED else 0


# A partition that is slowed down.

_AROUND: Final = ("restart", "rebalance", "expire", "terminate", "outage", "cancel", "leaderless", "zombie between two")


def _slowed(plan: Plan, chance: random.Random) -> Plan:
    """Many records of one partition cannot be read: only it is slowed down, and its messages keep their order.

    A lane that takes a few messages at a time has those of several partitions in turn, so that it looks at those of the
    slowed one at different moments.
    """
    kinds = tuple(chance.sample(sorted(UNREADABLE), chance.randint(1, 3)))
    plan = replace(
        plan,
        profile="slowed",
        # In the order of a whole partition one that waits for a token would hold up all that could earn it.
        ordering="key",
        workers=chance.choice([1, plan.workers]),
        partitions=chance.choice([2, 4]),
        lanes=chance.choice([1, 1, 2]),
        batch_size=chance.choice([1, 2, 5]),
        attempts=4,
        wait=chance.choice([0.0, 0.02, 0.05]),
        pause=0.002,
        slow_outbox=False,
        hold_key=False,
        resend_runs=False,
        allowance=chance.randint(1, 2),
        earned=chance.choice([0.25, 0.5, 0.5]),
        message_faults=(*kinds, SLOWED),
    )
    numbers = iter(range(1_000_000))
    keys = chance.choice([1, 1, 2])
    waves = tuple(tuple(_wave(plan, chance, kinds, keys, numbers)) for _ in range(chance.randint(2, 3)))
    return replace(plan, waves=waves, steps=tuple(_steps(plan, chance, waves)))


def _wave(
    plan: Plan, chance: random.Random, kinds: Sequence[str], keys: int, numbers: Iterator[int]
) -> Iterator[Given]:
    for _ in range(chance.randint(15, 25)):
        key = chance.randrange(keys) * plan.partitions
        weights = [0.3 / len(kinds)] * len(kinds) + [0.5, 0.12, 0.08]
        kind = chance.choices([*kinds, "ok", "fail", "defer"], weights)[0]
        times = chance.randint(1, 2) if kind in ("fail", "defer") else 0
        # What cannot be read has keys of its own, as a rule: it blocks them, and nothing else would ever be set aside.
        key += 10 * plan.partitions * (kind in UNREADABLE and chance.random() < 0.8)
        yield Given(f"m-{next(numbers)}", key, 0, kind, times, 0, first=True)
        partition = chance.randrange(1, plan.partitions)
        yield Given(f"m-{next(numbers)}", 100 + partition, partition, "ok", 0, 0, first=True)


def _steps(plan: Plan, chance: random.Random, waves: Sequence[Sequence[Given]]) -> Iterator[Step]:
    for number, wave in enumerate(waves):
        yield Step("send", number, chance.randint(0, 3))
        if chance.random() < 0.4:
            around = [one for one in _AROUND if plan.workers > 1 or one not in (*TWO_WORKERS, "terminate")]
            what = chance.choice(around)
            of_worker = what in ("restart", "cancel", *TWO_WORKERS)
            target = chance.randrange(plan.workers if of_worker else plan.partitions)
            yield Step(what, target, chance.randint(0, len(wave) // 3))


# A memory budget, where a partition that cannot run makes room for others.


def _narrow(plan: Plan, chance: random.Random) -> Plan:
    """The memory budget is small, and many messages wait behind a parked one, or for room in the parking lot."""
    ordering: Literal["key", "partition"] = chance.choice(["key", "partition", "partition"])
    plan = replace(
        plan,
        profile="narrow",
        ordering=ordering,
        partitions=chance.choice([2, 4]),
        lanes=chance.choice([1, 2, 3]),
        batch_size=chance.choice([2, 5, 50]),
        attempts=4,
        wait=chance.choice([0.1, 0.3]),
        pause=chance.choice([0.0, 0.002]),
        hold_key=False,
        resend_runs=False,
        slow_outbox=False,
        memory_budget=chance.choice([3_000, 6_000, 9_000]),
        parking_limit=chance.choice([2, 5]) if ordering == "key" else 10_000,
        message_faults=(DROPPED,),
    )
    sent = [_one(plan, chance, number) for number in range(chance.randint(100, 160))]
    half = len(sent) // 2
    waves = (tuple(sent[:half]), tuple(sent[half:]))
    return replace(plan, waves=waves, steps=tuple(_steps(plan, chance, waves)))


def _one(plan: Plan, chance: random.Random, number: int) -> Given:
    key = chance.randrange(12)
    kind = chance.choices(["ok", "fail", "defer"], [8, 1, 1])[0]
    times = chance.randint(1, 2) if kind != "ok" else 0
    return Given(f"m-{number}", key, key % plan.partitions, kind, times, 0, first=True)
