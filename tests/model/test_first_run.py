"""A first run with `latest`, every state of it within small bounds; and what happens when a rule is taken out."""

from __future__ import annotations

import pytest

from tests.model.first_run import Rules, explore

OLD = "an old message runs"
PASSED_OVER = "a message that came after the first run had begun is passed over"


def test_with_all_rules_nothing_old_runs_and_nothing_is_passed_over() -> None:
    states, problem, way = explore(Rules())

    assert problem is None, way
    # A model in which hardly anything can happen proves nothing.
    assert states > 2_000


@pytest.mark.parametrize("rules", [Rules(once=False), Rules(added_at_start=False), Rules(first_counts=False)])
def test_without_a_rule_messages_are_passed_over(rules: Rules) -> None:
    _, problem, way = explore(rules)

    assert problem == PASSED_OVER, way
