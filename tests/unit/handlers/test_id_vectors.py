"""An ID's bytes are the ledger's key: they stay as the first release made them."""

import json
from pathlib import Path

import pytest

from consumerkit import Message, event_field, event_fields
from consumerkit.handlers.message_id import encode_field
from tests.unit.handlers.id_values import VALUES

VECTORS = json.loads((Path(__file__).parent / "id_vectors.json").read_text())
HERE = Message("t", 0, 0)


def test_each_value_has_its_vector() -> None:
    assert VECTORS.keys() == VALUES.keys()


@pytest.mark.parametrize("name", VALUES)
def test_the_bytes_of_an_id_are_those_of_the_first_release(name: str) -> None:
    value, vector = VALUES[name], VECTORS[name]
    found = event_field("x").find(HERE, {"x": value})
    encoded = encode_field(value)
    assert encoded is not None
    assert encoded.hex() == vector["bytes"]
    assert (found and found.digest.hex()) == vector["digest"]


@pytest.mark.parametrize("name", VALUES)
def test_a_fingerprint_in_its_first_version_is_that_of_the_first_release(name: str) -> None:
    made = event_fields("x").of(HERE, {"x": VALUES[name]})
    assert made.hex() == VECTORS[name]["fingerprint"]
