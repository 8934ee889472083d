"""Draws plans; the same seed always gives the same plan."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal

from tests.stress.message_faults import with_message_faults
from tests.stress.plan import SERVER, TWO_WORKERS, Form, Given, Plan, Step


def plan(seed: int) -> Plan:
    """Return the plan of a seed; always the same one."""
    chance = random.Random(seed)
    profile = chance.choices(list(_PROFILES), [weight for weight, _ in _PROFILES.values()])[0]
    drawn = _PROFILES[profile][1](_drawn(seed, profile, chance), chance)
    # By chances of their own, so that a seed names what it named before there were these. By this number the seeds that
    # are kept have none.
    return with_message_faults(drawn, random.Random(f"messages 85, {seed}"))


def _drawn(seed: int, profile: str, chance: random.Random) -> Plan:
    database: Literal["postgresql", "sqlite"] = "sqlite" if chance.random() < 0.15 else "postgresql"
    form: Form = chance.choice(["coroutine", "plain"])
    return Plan(
        seed=seed,
        profile=profile,
        database=database,
        driver=chance.choice(["psycopg", "asyncpg"]) if form == "coroutine" else "psycopg",
        workers=1 if database == "sqlite" else 2,
        form=form,
        ordering=chance.choice(["key", "key", "key", "partition", "none"]),
        lanes=chance.choice([1, 2, 2, 3, 4]),
        batch_size=chance.choice([1, 2, 5, 50, 500]),
        attempts=chance.choice([2, 3, 4]),
        in_place=chance.choice([1, 1, 2]),
        wait=chance.choice([0.0, 0.05, 0.3]),
        grace=chance.choice([0.01, 0.2, 20.0]),
        pause=chance.choice([0.0, 0.002, 0.01]),
        publishing=chance.random() < 0.7,
        acks=chance.choice(["at once", "late", "late", "lost", "refused"]),
        dead_letter=chance.random() < 0.7,
        hold_key=False,
        resend_runs=False,
        on_duplicate=chance.random() < 0.4,
        partitions=chance.choice([1, 2, 4, 6]),
        slow_outbox=chance.random() < 0.3,
        slow_claims=False,
        waves=(),
        steps=(),
    )


def _general(drawn: Plan, chance: random.Random) -> Plan:
    if drawn.dead_letter and drawn.ordering == "key":
        drawn = replace(drawn, hold_key=chance.random() < 0.35, resend_runs=chance.random() < 0.35)
    pruned = chance.random() < 0.15
    copies = 0.0 if pruned else chance.choice([0.0, 0.1, 0.3])
    kinds = chance.choice([_HEALTHY, _MIXED, _MIXED, _ILL])
    waves = _waves(drawn, chance, count=chance.randint(2, 4), size=(8, 30), kinds=kinds, copies=copies)
    faults = _possible(drawn, pruned=pruned)
    chosen = [chance.choice(faults) for _ in range(chance.randint(1, 5))]
    if chance.random() < 0.2 and drawn.database == "postgresql" and not pruned:
        # What retention deleted, and where a partition was added, a restore would have to undo at the broker.
        chosen = [fault for fault in chosen if fault not in ("retention", "backup", "restore")]
        chosen = ["backup", *chosen, "restore"]
    return replace(drawn, waves=waves, steps=_mixed(chance, waves, chosen, drawn))


def _calm(drawn: Plan, chance: random.Random) -> Plan:
    """Nothing breaks: workers start and stop, no message is handled twice, and each duplicate is announced."""
    drawn = replace(drawn, database="postgresql", workers=2, grace=20.0, on_duplicate=True, pause=0.01)
    drawn = replace(drawn, partitions=chance.choice([4, 6]), batch_size=chance.choice([1, 5, 50]))
    waves = _waves(drawn, chance, count=3, size=(20, 40), kinds={"ok": 1}, copies=0.0)
    chosen = ["rebalance", *(chance.choice(["rebalance", "restart", "add partitions"]) for _ in range(2))]
    return replace(drawn, waves=waves, steps=_mixed(chance, waves, chosen, drawn))


def _crossed(drawn: Plan, chance: random.Random) -> Plan:
    """The same IDs in two partitions, in opposite order, written before the workers start, so that claims meet."""
    drawn = replace(drawn, database="postgresql", workers=2, slow_claims=True, batch_size=500, partitions=2, lanes=1)
    drawn = replace(drawn, pause=0.0, acks="at once", slow_outbox=False, ordering="partition", on_duplicate=False)
    one = [Given(f"m-{n}", n % 7, 0, "ok", 0, 0, first=True) for n in range(chance.randint(80, 120))]
    # Random.shuffle would leave long runs in the same order.
    other = [given._replace(partition=1, first=False) for given in reversed(one)]
    waves = (tuple(one), tuple(other))
    return replace(drawn, waves=waves, steps=(Step("send", 0), Step("send", 1)))


def _relayed(drawn: Plan, chance: random.Random) -> Plan:
    """Publishing in several lanes, with slow transactions and slow answers: numbers do not commit in order."""
    drawn = replace(drawn, database="postgresql", workers=2, publishing=True, acks="late", slow_outbox=True)
    drawn = replace(drawn, ordering="key", lanes=4, batch_size=1, pause=0.0)
    drawn = replace(drawn, partitions=chance.choice([2, 4]))
    waves = _waves(drawn, chance, count=2, size=(60, 90), kinds={"ok": 1}, copies=0.0)
    chosen = [chance.choice(["terminate", "restart", "rebalance", "outage"])] if chance.random() < 0.5 else []
    return replace(drawn, waves=waves, steps=_mixed(chance, waves, chosen, drawn))


_PROFILES = {
    "general": (14, _general),
    "calm": (2, _calm),
    "crossed": (1, _crossed),
    "relayed": (3, _relayed),
}
_HEALTHY = {"ok": 1}
_MIXED = {"ok": 20, "fail": 3, "dead": 1, "reject": 1, "defer": 2, "swallow": 1}
_ILL = {"ok": 5, "fail": 5, "dead": 2, "reject": 1, "defer": 3, "swallow": 1}
_FAULTS = (
    "terminate", "terminate busy", "restart", "cancel", "zombie in its transaction", "zombie between two",
    "zombie between two", "expire", "rebalance", "outage", "leaderless", "add partitions", "control records",
    "retention", "redrive", "rewind",
)  # fmt: skip


def _possible(drawn: Plan, *, pruned: bool) -> list[str]:
    faults = [fault for fault in _FAULTS if drawn.workers == 2 or fault not in TWO_WORKERS]
    if drawn.database == "sqlite":
        faults = [fault for fault in faults if fault not in SERVER]
    if pruned:
        # A resend beyond retention is new to any ledger, and so is what a redrive puts back.
        faults = [fault for fault in faults if fault != "redrive"]
        faults += ["prune"] * 6
    return faults


def _waves(
    drawn: Plan, chance: random.Random, *, count: int, size: tuple[int, int], kinds: dict[str, int], copies: float
) -> tuple[tuple[Given, ...], ...]:
    kinds = {kind: weight for kind, weight in kinds.items() if kind != "swallow" or drawn.database == "postgresql"}
    keys = chance.choice([8, 12]) if drawn.profile == "relayed" else chance.choice([2, 5, 20])
    sent: list[Given] = []
    waves = []
    for _ in range(count):
        wave = []
        for _ in range(chance.randint(*size)):
            one = _copy(drawn, chance, sent) if sent and chance.random() < copies else None
            one = one or _new(drawn, chance, len(sent), keys, kinds)
            sent.append(one)
            wave.append(one)
        waves.append(tuple(wave))
    return tuple(waves)


def _new(drawn: Plan, chance: random.Random, number: int, keys: int, kinds: dict[str, int]) -> Given:
    key = None if chance.random() < 0.1 else chance.randrange(keys)
    partition = chance.randrange(drawn.partitions) if key is None else key % drawn.partitions
    kind = chance.choices(list(kinds), list(kinds.values()))[0]
    times = chance.randint(1, drawn.attempts - 1) if kind in ("fail", "defer") else 0
    return Given(f"m-{number}", key, partition, kind, times, 0, first=True)


def _copy(drawn: Plan, chance: random.Random, sent: list[Given]) -> Given | None:
    """Return a message that was sent before, for the same or another partition, and sometimes with another content."""
    recent = sent[-30:] if chance.random() < 0.7 else sent
    one = chance.choice(recent)
    partition = chance.randrange(drawn.partitions) if chance.random() < 0.3 else one.partition
    variant = one.variant + (chance.random() < 0.1 and not drawn.hold_key)
    return one._replace(partition=partition, variant=variant, first=False)


def _mixed(
    chance: random.Random, waves: tuple[tuple[Given, ...], ...], faults: list[str], drawn: Plan
) -> tuple[Step, ...]:
    """Put the faults between the waves of messages, in order."""
    places = sorted(chance.randrange(len(waves)) for _ in faults)
    steps = []
    for number, wave in enumerate(waves):
        steps.append(Step("send", number))
        for place, fault in zip(places, faults, strict=True):
            if place == number:
                target = (
                    chance.randrange(drawn.workers) if fault in _OF_A_WORKER else chance.randrange(drawn.partitions)
                )
                steps.append(Step(fault, target, chance.randint(0, len(wave) // 2)))
    return tuple(steps)


_OF_A_WORKER = frozenset({"restart", "cancel", *TWO_WORKERS})
