"""The decision about a dead letter that is to be redriven."""

from types import SimpleNamespace
from typing import Any

import pytest

from consumerkit.outcome import Outcome, Reason
from consumerkit.redrive.decision import RedriveResult, decide, identified
from consumerkit.storage.dialects import Kept
from consumerkit.storage.parking.parked import Kind

OWN, OTHER = b"f" * 16, b"o" * 16


def letter(**parts: Any) -> Any:
    given = {
        "id": 7,
        "digest": b"d" * 16,
        "message_id": "pay-1",
        "fingerprint": OWN,
        "fingerprint_version": None,
        "reason": Reason.EXHAUSTED,
        "erased_at": None,
        "redrives": 0,
    }
    return SimpleNamespace(**(given | parts))


def decided(
    one: Any, kept: Kept | None, standing: Kind | None = None, *, taken: bool = False, new_id: bool = False
) -> RedriveResult:
    identity = identified(one, new_id=new_id)
    digests = {identity.digest} if taken and identity.digest is not None else set()
    return decide(one, identity, kept, standing, digests, new_id=new_id, max_redrives=3)


@pytest.mark.parametrize(
    "parts, kept, expected",
    [
        ({}, Kept(OWN, Outcome.DEAD), RedriveResult.REDRIVEN),
        ({}, None, RedriveResult.REDRIVEN),
        ({}, Kept(OWN, Outcome.PROCESSED), RedriveResult.SUCCEEDED),
        ({}, Kept(OWN, Outcome.PARKED), RedriveResult.UNDER_WAY),
        ({"reason": Reason.FAILED_DUPLICATE}, None, RedriveResult.SUCCEEDED),
        ({}, Kept(OTHER, Outcome.PROCESSED), RedriveResult.CONFLICT),
        ({"fingerprint": None}, Kept(OTHER, Outcome.DEAD), RedriveResult.REDRIVEN),
        ({"redrives": 3}, Kept(OWN, Outcome.DEAD), RedriveResult.TOO_OFTEN),
        ({"redrives": 3}, Kept(OWN, Outcome.PROCESSED), RedriveResult.SUCCEEDED),
        ({"erased_at": "then"}, Kept(OWN, Outcome.DEAD), RedriveResult.ERASED),
        ({"reason": Reason.OVERSIZED, "digest": None}, None, RedriveResult.OVERSIZED),
        ({"reason": Reason.UNDECODABLE, "digest": None}, None, RedriveResult.REDRIVEN),
        ({"reason": Reason.CONFLICT, "fingerprint": OTHER}, Kept(OWN, Outcome.PROCESSED), RedriveResult.CONFLICT),
    ],
)
def test_each_letter_gets_the_result_that_its_rows_ask_for(
    parts: dict[str, Any], kept: Kept | None, expected: RedriveResult
) -> None:
    assert decided(letter(**parts), kept) is expected


@pytest.mark.parametrize(
    "standing, expected",
    [
        (None, RedriveResult.REDRIVEN),
        (Kind.HELD, RedriveResult.REDRIVEN),
        (Kind.MESSAGE, RedriveResult.UNDER_WAY),
        (Kind.RELEASED, RedriveResult.UNDER_WAY),
    ],
)
def test_what_is_in_the_lot_of_it_counts(standing: Kind | None, expected: RedriveResult) -> None:
    assert decided(letter(), Kept(OWN, Outcome.DEAD), standing) is expected


def test_the_second_of_an_id_waits_for_the_first() -> None:
    assert decided(letter(), Kept(OWN, Outcome.DEAD), taken=True) is RedriveResult.UNDER_WAY


def test_a_conflict_has_an_id_of_its_own_and_the_same_each_time() -> None:
    conflict = letter(reason=Reason.CONFLICT)
    first, second = identified(conflict, new_id=True), identified(conflict, new_id=True)
    assert first == second
    assert first.message_id == "pay-1#redrive-7"
    assert first.digest not in (None, conflict.digest)
    assert identified(letter(reason=Reason.CONFLICT, id=8), new_id=True).digest != first.digest
    assert decided(conflict, None, new_id=True) is RedriveResult.REDRIVEN
    assert identified(letter(), new_id=True).digest == letter().digest


def test_every_result_that_leaves_a_letter_names_the_way_out() -> None:
    assert [one for one in RedriveResult if bool(one.way_out) is one.is_done] == []
