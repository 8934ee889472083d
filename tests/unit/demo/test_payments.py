"""What the demo plans to send."""

from collections import Counter

import pytest

from consumerkit.demo.payments import FEWEST, plan
from consumerkit.transports.base import Record


def test_the_same_seed_makes_the_same_payments() -> None:
    assert plan(400, seed=1) == plan(400, seed=1)
    assert plan(400, seed=1) != plan(400, seed=2)


def test_a_third_is_sent_again_and_one_in_a_hundred_is_poison_of_every_kind() -> None:
    planned = plan(4_000, seed=1)
    assert planned.resent == pytest.approx(4_000 / 3, rel=0.1)
    assert planned.dead.total() == 40
    reasons = {reason for reason, _ in planned.dead}
    assert reasons == {"undecodable", "unidentified", "rejected", "exhausted", "conflict"}


def test_even_the_smallest_demo_has_poison() -> None:
    assert plan(FEWEST, seed=1).dead.total() == 1


def test_what_is_sent_is_what_must_come_to_something_and_its_copies() -> None:
    planned = plan(1_000, seed=3)
    copies = sum(count - 1 for count in Counter(planned.records).values())
    assert copies == planned.resent
    assert len(planned.records) == planned.distinct + planned.resent
    assert planned.balances.total() == sum(cents for _, _, cents in planned.journal.elements())


def test_a_conflicting_amount_comes_after_the_payment_it_conflicts_with() -> None:
    planned = plan(1_000, seed=3)
    conflicting = {value for reason, value in planned.dead if reason == "conflict"}
    assert conflicting
    for value in conflicting:
        at = next(at for at, record in enumerate(planned.records) if record.value == value)
        assert any(_same_payment(record, planned.records[at]) for record in planned.records[:at])


def _same_payment(one: Record, other: Record) -> bool:
    return (one.key, one.headers) == (other.key, other.headers) and one.value != other.value
