"""The oracle of faults that one message brings along: a right history passes, and each wrong one is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.stress.message_faults import SLOWED
from tests.stress.message_oracle import judge_messages
from tests.stress.oracle import Dead, Done, History, Logged, Snapshot, Told
from tests.stress.plan import Step
from tests.stress.test_oracle import logged, planned

LOG = [
    logged(0, "a"),
    logged(1, "table", kind="unknown table"),
    logged(2, "late", kind="unknown table", times=3),
    logged(3, "", kind="oversized"),
    logged(4, "own", kind="policy", times=1),
    logged(5, "temp", kind="temporary table"),
    logged(6, "defer", kind="group with a Defer", times=2),
    logged(7, "no", kind="burst of Rejects"),
]
EFFECTS = [
    Done(1, "a", 0, 0, 1),
    Done(2, "late", 0, 2, 3),
    Done(3, "own", 0, 4, 2),
    Done(4, "temp", 0, 5, 1),
    Done(5, "defer", 0, 6, 1),
]
DEAD = [
    Dead("table", 0, 1, "exhausted", "dead", 3),
    Dead(None, 0, 3, "oversized", "dead", 0),
    Dead("no", 0, 7, "rejected", "dead", 1),
]
TOLD = [
    Told("w1", "suspected", "table", 0, 1),
    Told("w1", "committed"),
    *[Told("w1", "attempt", "table", 0, 1)] * 3,
    Told("w1", "exhausted", "table", 0, 1),
    Told("w1", "oversized", "", 0, 3),
    Told("w1", "rejected", "no", 0, 7),
]
NONE = planned(ordering="none", message_faults=())
RIGHT = History(plan=NONE, log=LOG, end=Snapshot(effects=EFFECTS, dead=DEAD), told=TOLD)


def judged(history: History = RIGHT, **changes: Any) -> str:
    return "\n".join(judge_messages(replace(history, **changes)))


def with_log(*added: Logged, **changes: Any) -> str:
    return judged(log=[*LOG, *added], **changes)


def with_effects(effects: list[Done]) -> str:
    return judged(end=Snapshot(effects=effects, dead=DEAD))


def test_a_right_history_passes() -> None:
    assert judged() == ""


def test_an_unreadable_record_has_one_letter_with_its_reason() -> None:
    assert "oversized at 0@3 has 0 open" in judged(end=Snapshot(effects=EFFECTS, dead=[DEAD[0], DEAD[2]]))
    assert "oversized at 0@3 has 2 open" in judged(end=Snapshot(effects=EFFECTS, dead=[*DEAD, DEAD[1]]))
    other = Dead("a", 0, 0, "undecodable", "dead", 0)
    assert "0@0 is dead as undecodable, and can be read" in judged(end=Snapshot(effects=EFFECTS, dead=[*DEAD, other]))


@pytest.mark.parametrize("name", ["a", "late", "own", "temp", "defer"])
def test_who_need_not_die_does_not(name: str) -> None:
    assert f"{name} (" in judged(told=[*TOLD, Told("w1", "exhausted", name)])


def test_a_verdict_has_its_reason() -> None:
    for name, reason in (("table", "rejected"), ("no", "exhausted")):
        letters = [one._replace(reason=reason) if one.id == name else one for one in DEAD]
        assert f"is dead as {reason}" in judged(end=Snapshot(effects=EFFECTS, dead=letters))


@pytest.mark.parametrize("at, attempt", [(0, 2), (1, 4), (2, 3), (3, 2), (4, 2)])
def test_an_attempt_that_was_none_is_found(at: int, attempt: int) -> None:
    effects = [one._replace(attempt=attempt) if number == at else one for number, one in enumerate(EFFECTS)]
    assert f"succeeded at attempt {attempt}" in with_effects(effects)


def test_the_first_failure_alone_of_a_suspect_is_no_attempt_in_any_process() -> None:
    assert "w1 counted the first failure of table alone" in judged(told=TOLD[1:])
    assert "w2 counted the first failure of table alone" in judged(told=[*TOLD, TOLD[2]._replace(worker="w2")])


def test_a_suspect_is_not_counted_before_another_has_succeeded() -> None:
    alone = [TOLD[0], *TOLD[2:]]
    assert "no other message had succeeded" in judged(told=alone)
    assert judged(told=alone, plan=planned(ordering="key")) == ""  # others of its key wait behind it
    assert "no other message had succeeded" in judged(told=[Told("w2", "committed"), *alone])


def test_what_is_the_messages_from_the_first_is_not_suspected() -> None:
    told = [*TOLD, Told("w1", "suspected", "own")]
    assert "own (policy) was suspected" in judged(told=told)
    assert judged(told=told, plan=planned(ordering="none", steps=(Step("terminate"),))) == ""


def test_one_message_pauses_no_handler() -> None:
    paused = [*TOLD, Told("w1", "paused")]
    assert judged(told=paused) == ""  # two lack a table
    one = [logged.given._replace(kind="ok") if logged.given.id == "late" else logged.given for logged in LOG]
    log = [before._replace(given=given) for before, given in zip(LOG, one, strict=True)]
    end = Snapshot(effects=[done._replace(attempt=1) if done.id == "late" else done for done in EFFECTS], dead=DEAD)
    assert "no two messages failed alike" in judged(told=paused, log=log, end=end)


def test_no_brake_goes_on_for_a_verdict() -> None:
    assert "brake went on" in judged(told=[*TOLD, Told("w1", "braked")])
    slowed = [*TOLD, Told("w1", SLOWED)]
    assert "slowed down 1 times" in judged(told=slowed)
    assert judged(told=slowed, plan=replace(NONE, message_faults=(SLOWED,))) == ""
