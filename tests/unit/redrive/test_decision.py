"""The decision about a dead letter that is to be redriven."""

from types import SimpleNamespace
from typing import Any

import pytest

from consumerkit.outcome import Outcome, Reason
from consumerkit.redrive.decision import Fate, fate, identified
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
) -> Fate:
    identity = identified(one, new_id=new_id)
    digests = {identity.digest} if taken and identity.digest is not None else set()
    return fate(one, identity, kept, standing, digests, new_id=new_id, max_redrives=3)


@pytest.mark.parametrize(
    "parts, kept, expected",
    [
        ({}, Kept(OWN, Outcome.DEAD), Fate.REDRIVEN),
        ({}, None, Fate.REDRIVEN),
        ({}, Kept(OWN, Outcome.PROCESSED), Fate.SUCCEEDED),
        ({}, Kept(OWN, Outcome.PARKED), Fate.UNDER_WAY),
        ({"reason": Reason.FAILED_DUPLICATE}, None, Fate.SUCCEEDED),
        ({}, Kept(OTHER, Outcome.PROCESSED), Fate.CONFLICT),
        ({"fingerprint": None}, Kept(OTHER, Outcome.DEAD), Fate.REDRIVEN),
        ({"redrives": 3}, Kept(OWN, Outcome.DEAD), Fate.TOO_OFTEN),
        ({"redrives": 3}, Kept(OWN, Outcome.PROCESSED), Fate.SUCCEEDED),
        ({"erased_at": "then"}, Kept(OWN, Outcome.DEAD), Fate.ERASED),
        ({"reason": Reason.OVERSIZED, "digest": None}, None, Fate.OVERSIZED),
        ({"reason": Reason.UNDECODABLE, "digest": None}, None, Fate.REDRIVEN),
        ({"reason": Reason.CONFLICT, "fingerprint": OTHER}, Kept(OWN, Outcome.PROCESSED), Fate.CONFLICT),
    ],
)
def test_a_letter_meets_its_fate(parts: dict[str, Any], kept: Kept | None, expected: Fate) -> None:
    assert decided(letter(**parts), kept) is expected


@pytest.mark.parametrize(
    "standing, expected",
    [
        (None, Fate.REDRIVEN),
        (Kind.HELD, Fate.REDRIVEN),
        (Kind.MESSAGE, Fate.UNDER_WAY),
        (Kind.RELEASED, Fate.UNDER_WAY),
    ],
)
def test_what_is_in_the_lot_of_it_counts(standing: Kind | None, expected: Fate) -> None:
    assert decided(letter(), Kept(OWN, Outcome.DEAD), standing) is expected


def test_the_second_of_an_id_waits_for_the_first() -> None:
    assert decided(letter(), Kept(OWN, Outcome.DEAD), taken=True) is Fate.UNDER_WAY


def test_a_conflict_has_an_id_of_its_own_and_the_same_each_time() -> None:
    conflict = letter(reason=Reason.CONFLICT)
    first, second = identified(conflict, new_id=True), identified(conflict, new_id=True)
    assert first == second
    assert first.message_id == "pay-1#redrive-7"
    assert first.digest not in (None, conflict.digest)
    assert identified(letter(reason=Reason.CONFLICT, id=8), new_id=True).digest != first.digest
    assert decided(conflict, None, new_id=True) is Fate.REDRIVEN
    assert identified(letter(), new_id=True).digest == letter().digest


def test_every_fate_that_leaves_a_letter_names_the_way_out() -> None:
    assert [one for one in Fate if bool(one.way_out) is one.is_done] == []
