"""The order of published messages: every state of the outbox within small bounds, and each rule taken out.

`consumerkit.relay` and `consumerkit.storage.outbox_queues` are what is modelled. Who changes them changes `relay.py`
here, and finds out.
"""

from __future__ import annotations

from tests.model.relay import Found, Rules, State, explore


def explored(rules: Rules, start: State = State()) -> Found:  # noqa: B008 - it is frozen
    found = explore(rules, start)
    print(f"{found.states:,} states\n{found.trace}")
    return found


def test_with_all_rules_each_key_stays_in_order_and_everything_is_sent() -> None:
    found = explored(Rules())

    assert found.wrong is None, found.trace
    # A model in which hardly anything can happen proves nothing.
    assert found.states > 5_000


def test_a_page_that_goes_on_after_the_last_sequence_overtakes_what_was_committed_late() -> None:
    found = explored(Rules(from_lowest=False), State(deaths=0, refusals=0))

    assert found.wrong == "m2 has overtaken m1"
    assert found.trace.splitlines()[0].startswith("  1. m1 is inserted with sequence 1")


def test_without_waiting_for_the_answer_a_refused_message_is_overtaken() -> None:
    found = explored(Rules(one_by_one=False))

    assert found.wrong is not None
    assert found.wrong.endswith("overtaken m1") or found.wrong.endswith("overtaken x")


def test_what_stands_behind_a_refused_message_must_stay_there() -> None:
    found = explored(Rules(stays_behind=False, one_by_one=True))

    assert found.wrong is not None


def test_what_was_acknowledged_and_is_still_there_counts_as_sent() -> None:
    found = explored(Rules(counts_as_sent=False), State(deaths=0, refusals=0))

    assert found.wrong == "a message is sent twice, and no relay has died"
