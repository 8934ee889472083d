"""The protocol of DESIGN §3, every state of it within small bounds; and what happens when a rule is taken out.

`consumerkit.storage.fence`, `engine.ownership` and `engine.transaction` are what is modelled. Who changes them changes
`protocol.py` here, and finds out.
"""

from __future__ import annotations

import pytest

from tests.model.explore import LOG, M1_PARKED, NOTHING, Exploration, Found
from tests.model.state import M1, M2, Left, Outcome, Rules, State

DOUBLED = "m1 has 2 effects"
OVERTAKEN = "m2 has overtaken m1"
LOST = "a message is lost: nothing leads to its outcome"
ALTERNATING = "two owners alternate for ever"


def explored(
    rules: Rules, left: Left, *, log: tuple[int, ...] = LOG, start: State = NOTHING, live: bool = True
) -> Found:
    found = Exploration(rules, left, log, start).run(live=live)
    print(f"{found.states:,} states\n{found.trace}")
    return found


@pytest.mark.parametrize(
    "left, log, start, states",
    [
        pytest.param(Left(moves=1, unknown=1), LOG, NOTHING, 20_000, id="a-move-and-an-ambiguous-commit"),
        pytest.param(Left(moves=1, crashes=1), LOG, NOTHING, 10_000, id="a-move-and-a-crash"),
        pytest.param(Left(copies=1, deaths=1, moves=1), LOG, NOTHING, 10_000, id="a-copy-in-another-partition"),
        pytest.param(Left(moves=1), (M1, M2, M1), NOTHING, 10_000, id="a-resend-in-the-same-partition"),
        pytest.param(Left(faults=1, doubts=1), LOG, M1_PARKED, 10_000, id="a-lost-transaction-and-a-doubt"),
    ],
)
def test_with_all_rules_nothing_is_doubled_overtaken_or_lost(
    left: Left, log: tuple[int, ...], start: State, states: int
) -> None:
    found = explored(Rules(), left, log=log, start=start)

    assert found.wrong is None, found.trace
    # A model in which hardly anything can happen proves nothing.
    assert found.states > states


def test_without_claiming_first_parking_contradicts_what_a_copy_has_done() -> None:
    found = explored(Rules(claim=False), Left(moves=1, copies=1))

    assert found.wrong == "m1 has 1 effects, and is PARKED in the ledger"


def test_without_the_second_read_a_copy_is_handled_twice() -> None:
    assert explored(Rules(reread=False), Left(moves=1, copies=1)).wrong == DOUBLED


def test_without_the_token_check_a_zombie_strands_messages_behind_one_that_is_gone() -> None:
    assert explored(Rules(token=False), Left(moves=1)).wrong == LOST


def test_without_the_wait_for_open_transactions_a_message_is_stranded_too() -> None:
    assert explored(Rules(lock=False), Left(moves=1)).wrong == LOST


def test_without_loading_under_the_fence_a_message_is_overtaken() -> None:
    found = explored(Rules(load=False), Left(moves=1, unknown=1, doubts=1))

    assert found.wrong == OVERTAKEN


@pytest.mark.parametrize("rules", [Rules(net=False), Rules(token=False), Rules(lock=False)])
def test_the_fence_and_the_rule_on_parked_rows_each_keep_the_order_alone(rules: Rules) -> None:
    found = explored(rules, Left(moves=1), live=False)

    assert found.wrong is None, found.trace


@pytest.mark.parametrize("rules", [Rules(net=False, token=False), Rules(net=False, lock=False)])
def test_without_both_a_message_is_overtaken(rules: Rules) -> None:
    assert explored(rules, Left(moves=1)).wrong == OVERTAKEN


def test_without_the_net_the_fence_is_enough() -> None:
    assert explored(Rules(net=False), Left(moves=1)).wrong is None


def test_without_asking_kafka_two_owners_alternate() -> None:
    assert explored(Rules(confirm=False), Left(moves=1)).wrong == ALTERNATING


def test_they_alternate_too_if_an_owner_to_whom_nothing_was_delivered_need_not_ask() -> None:
    # m1 and m2 are parked, and nothing more is in the log; B has lost the partition without knowing.
    first, second = (worker._replace(idle=True, next=2) for worker in M1_PARKED.workers)
    start = M1_PARKED._replace(
        workers=(first, second), ledger=(Outcome.PARKED, Outcome.PARKED), lot=((M1, True), (M2, False)), committed=2
    )

    assert explored(Rules(), Left(), start=start).wrong is None
    assert explored(Rules(confirm_idle=False), Left(), start=start).wrong == ALTERNATING


def test_a_take_over_that_ends_late_must_not_count_for_the_next_assignment() -> None:
    assert explored(Rules(want=False), Left(moves=1)).wrong == LOST


def test_what_waits_behind_another_is_decided_anew_with_every_transaction() -> None:
    found = explored(Rules(decide=False), Left(faults=1, doubts=1), start=M1_PARKED)

    assert found.wrong == LOST


def test_a_violation_is_told_step_by_step() -> None:
    found = explored(Rules(reread=False), Left(moves=1, copies=1))

    assert found.trace.splitlines()[0].startswith("  1. ")
    assert found.trace.splitlines()[-1] == f"=> {DOUBLED}"
