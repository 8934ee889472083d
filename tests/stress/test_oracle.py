"""The oracle itself: a right history passes, and one that is doubled, lost, reordered or unfinished does not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.stress.draw import plan
from tests.stress.oracle import (
    HELD,
    Dead,
    Done,
    History,
    Logged,
    Parked,
    Published,
    Snapshot,
    judge,
    unfinished_below,
)
from tests.stress.plan import Given, Plan, Step


def planned(**options: Any) -> Plan:
    base = replace(plan(1), profile="general", ordering="key", hold_key=False, resend_runs=False, on_duplicate=True)
    base = replace(base, publishing=True, attempts=3, waves=(), steps=())
    return replace(base, **options)


def logged(offset: int, name: str, key: int | None = 0, *, partition: int = 0, **given: Any) -> Logged:
    made = Given(name, key, partition, "ok", 0, 0, first=True)
    return Logged(partition, offset, made._replace(**given))


LOG = [logged(0, "a"), logged(1, "b", 1), logged(2, "c"), logged(3, "d", 1), logged(4, "a", first=False)]
EFFECTS = [Done(1, "a", 0, 0, 1), Done(2, "b", 0, 1, 1), Done(3, "c", 0, 2, 1), Done(4, "d", 0, 3, 1)]
PUBLISHED = [Published("effect", one.id, 0, one.offset, f"of {one.id}") for one in EFFECTS]
AGAIN = Published("again", "a", 0, 4, "again a")
END = Snapshot(effects=EFFECTS, ledger=dict.fromkeys("abcd", 1), marks={0: 5})
RIGHT = History(
    plan=planned(),
    log=LOG,
    end=END,
    published=[*PUBLISHED, AGAIN],
    committed={0: 5},
    ends={0: 5},
    announced_from=frozenset({(0, 4)}),
    calls=Counter("abcd"),
)


def judged(history: History = RIGHT, end: dict[str, Any] | None = None, **changes: Any) -> str:
    return "\n".join(judge(replace(history, end=replace(history.end, **(end or {})), **changes)))


def test_a_right_history_passes() -> None:
    assert judged() == ""


def test_a_doubled_effect_is_found() -> None:
    assert "a has 2 effects" in judged(end={"effects": [*EFFECTS, Done(5, "a", 0, 4, 1)]})


def test_a_lost_message_is_found() -> None:
    found = judged(end={"effects": EFFECTS[:2] + EFFECTS[3:], "ledger": dict.fromkeys("abd", 1)})
    assert "c is lost" in found


def test_an_effect_without_its_claim_and_a_claim_without_its_effect_are_found() -> None:
    assert "does not know of c" in judged(end={"ledger": dict.fromkeys("abd", 1)})
    assert "e is 1 in the ledger, and has no effect" in judged(end={"ledger": dict.fromkeys("abcde", 1)})


def test_reordered_effects_of_a_key_are_found_and_those_of_two_keys_are_none() -> None:
    swapped = [EFFECTS[2]._replace(sequence=1), EFFECTS[1], EFFECTS[0]._replace(sequence=3), EFFECTS[3]]
    assert "a at 0@0 comes after c at @2" in judged(end={"effects": swapped})
    others = [EFFECTS[1]._replace(sequence=1), EFFECTS[0]._replace(sequence=2), *EFFECTS[2:]]
    assert judged(end={"effects": others}) == ""
    assert "comes after" in judged(end={"effects": others}, plan=planned(ordering="partition"))
    assert judged(end={"effects": swapped}, plan=planned(ordering="none")) == ""


def test_what_died_in_between_has_lost_its_place() -> None:
    swapped = [EFFECTS[2]._replace(sequence=1), EFFECTS[1], EFFECTS[0]._replace(sequence=3), EFFECTS[3]]
    assert judged(end={"effects": swapped}, ever_dead=frozenset("a")) == ""


def test_a_copy_in_another_partition_orders_nothing() -> None:
    log = [*LOG, logged(0, "c", partition=1, first=False), logged(1, "x", partition=1)]
    effects = [
        Done(1, "c", 1, 0, 1),
        Done(2, "x", 1, 1, 1),
        *(one._replace(sequence=9) for one in EFFECTS if one.id != "c"),
    ]
    found = judged(
        log=log, end={"effects": effects, "ledger": dict.fromkeys("abcdx", 1)}, plan=planned(publishing=False)
    )
    assert found == ""


def test_reordered_publications_of_a_key_are_found_and_a_relays_second_sending_is_none() -> None:
    first, b, c, d = PUBLISHED
    assert "a was published after c" in judged(published=[c, b, first, d, AGAIN])
    assert judged(published=[first, b, c, first, d, AGAIN]) == ""


def test_a_publication_that_is_missing_doubled_or_idle_is_found() -> None:
    assert "b took effect, and nothing of them was published" in judged(
        published=[*PUBLISHED[:1], *PUBLISHED[2:], AGAIN]
    )
    other = PUBLISHED[0]._replace(message_id="another")
    assert "several message IDs" in judged(published=[*PUBLISHED, other, AGAIN])
    idle = Published("effect", "e", 0, 0, "of e")
    assert "e were published, and have no effect" in judged(published=[*PUBLISHED, idle, AGAIN])


def test_a_copy_that_was_not_announced_is_found() -> None:
    assert "the copy of a at 0@4 was not announced" in judged(published=PUBLISHED)


def test_an_effect_and_an_open_dead_letter_are_one_outcome_too_many() -> None:
    letter = Dead("a", 0, 0, "exhausted", "dead", 3)
    assert "a has 1 effects, 1 open dead letters" in judged(end={"dead": [letter]})
    assert judged(end={"dead": [letter._replace(state="resolved")]}) == ""
    assert judged(end={"dead": [letter._replace(reason="failed_duplicate")]}) == ""


def test_attempts_that_were_forgotten_are_found() -> None:
    end = {"effects": EFFECTS[:3], "ledger": dict.fromkeys("abc", 1) | {"d": 3}}
    changes: dict[str, Any] = {"published": [*PUBLISHED[:3], AGAIN], "ever_dead": frozenset("d")}
    assert judged(end=end | {"dead": [Dead("d", 0, 3, "exhausted", "dead", 3)]}, **changes) == ""
    assert "exhausted after 2 attempts" in judged(
        end=end | {"dead": [Dead("d", 0, 3, "exhausted", "dead", 2)]}, **changes
    )


def test_more_conflicts_than_copies_are_found() -> None:
    log = [*LOG[:4], logged(4, "a", first=False, variant=1)]
    letter = Dead("a", 0, 4, "conflict", "dead", 0)
    assert judged(log=log, end={"dead": [letter]}) == ""
    assert "a has 2 conflicts" in judged(log=log, end={"dead": [letter, letter._replace(offset=9)]})


def test_what_waits_waits_behind_what_holds_its_key() -> None:
    end: dict[str, Any] = {"effects": EFFECTS[:3], "ledger": dict.fromkeys("abc", 1) | {"d": 2}}
    waiting = Parked("d", 0, 3, b"k1", "message", 0, due=False)
    held = Parked("z", 0, 1, b"k1", HELD, 0, due=False)
    published = [*PUBLISHED[:3], AGAIN]
    assert judged(end=end | {"parked": [held, waiting]}, published=published) == ""
    assert "behind nothing that holds" in judged(end=end | {"parked": [waiting]}, published=published)
    assert "is parked at the end" in judged(
        end=end | {"parked": [held, waiting._replace(due=True)]}, published=published
    )


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"committed": {0: 4}}, "ends with a lag: 4 of 5"),
        ({"end": {"marks": {0: 4}}}, "has the mark 4"),
        ({"end": {"outbox": 2}}, "2 messages are left in the outbox"),
        ({"deadlocks": 1}, "1 deadlocks"),
        ({"zombies": 1}, "1 transactions were committed by a worker after"),
    ],
)
def test_what_is_left_or_broken_at_the_end_is_found(changes: dict[str, Any], word: str) -> None:
    assert word in judged(**changes)


def test_a_run_in_which_nothing_breaks_handles_nothing_twice() -> None:
    calm: dict[str, Any] = {"plan": planned(profile="calm"), "published": PUBLISHED, "announced_from": frozenset()}
    assert judged(**calm) == ""
    assert "b were handled twice" in judged(**calm, calls=Counter("abbcd"))
    assert "3 messages were delivered twice, and the handler saw none" in judged(**calm, duplicates=3)
    calm["published"] = [*PUBLISHED, Published("again", "b", 0, 1, "again b")]
    assert "0@1 was delivered twice, though nothing broke" in judged(**calm, duplicates=1)


def test_what_was_finished_above_an_unfinished_message_may_be_delivered_twice() -> None:
    """It stands above the mark at which its partition is handed over; with one lane, or in order, nothing does."""
    a, b, c, d = EFFECTS
    calm: dict[str, Any] = {
        "plan": planned(profile="calm"),
        "published": [*PUBLISHED, Published("again", "b", 0, 1, "again b")],
        "announced_from": frozenset(),
        "duplicates": 1,
    }
    overtook = [b._replace(sequence=1), a._replace(sequence=2), c, d]
    assert judged(end={"effects": overtook}, **calm) == ""
    above = [a, c._replace(sequence=2), b._replace(sequence=3), d]
    assert "0@1 was delivered twice" in judged(end={"effects": above}, **calm)


def test_resends_that_run_may_die_more_than_once_and_take_effect_once() -> None:
    runs = planned(resend_runs=True)
    letters = [Dead("a", 0, 0, "rejected", "dead", 1), Dead("a", 0, 4, "rejected", "dead", 1)]
    end: dict[str, Any] = {"effects": EFFECTS[1:], "dead": letters, "ledger": dict.fromkeys("bcd", 1) | {"a": 3}}
    changes: dict[str, Any] = {"published": PUBLISHED[1:], "announced_from": frozenset()}
    assert judged(end=end, plan=runs, **changes) == ""
    assert "a has 0 effects, 2 open dead letters" in judged(end=end, **changes)
    assert "a has 1 effects, 1 open dead letters" in judged(end={"dead": letters[:1]}, plan=runs)


def test_a_rewind_beyond_what_was_pruned_leaves_stale_letters() -> None:
    steps = (Step("prune"), Step("rewind"))
    stale = Dead("a", 0, 0, "stale", "dead", 0)
    end: dict[str, Any] = {"dead": [stale], "ledger": {"a": 3}}
    assert "a has 1 effects" in judged(end=end)
    assert "lost" not in judged(end=end, plan=planned(steps=steps))


def test_offsets_beyond_what_is_finished_are_found() -> None:
    some = Snapshot(effects=EFFECTS[:2])
    assert unfinished_below({0: 2}, LOG, some) == []
    assert unfinished_below({0: 3}, LOG, some) == [LOG[2]]
    assert END.finished() == set("abcd")
