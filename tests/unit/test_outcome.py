"""Outcomes are stored as numbers, reasons as words: neither may ever change."""

import pytest

from consumerkit import Outcome, Reason


def test_the_stored_numbers_and_words_stay() -> None:
    assert {each.name: each.value for each in Outcome} == {"PROCESSED": 1, "PARKED": 2, "DEAD": 3}
    assert [each.value for each in Reason] == [
        "undecodable",
        "unidentified",
        "rejected",
        "exhausted",
        "conflict",
        "stale",
        "oversized",
        "killed_process",
        "failed_duplicate",
        "expired",
        "undo_failed",
    ]


@pytest.mark.parametrize("reason", Reason)
def test_only_a_message_that_was_tried_holds_a_claim_on_its_id(reason: Reason) -> None:
    assert reason.has_ledger_row == (
        reason in {Reason.REJECTED, Reason.EXHAUSTED, Reason.KILLED_PROCESS, Reason.EXPIRED}
    )
