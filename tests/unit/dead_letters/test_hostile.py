"""Whatever a dead-letter topic holds, each record is read, or reported and skipped; nothing raises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from consumerkit import Context, Handler, coordinates, header
from consumerkit.dead_letters.formats import Convention, MalformedRecord, Unrecognised, read
from consumerkit.dead_letters.formats.header_fields import label, moment, timestamp, topic_id
from consumerkit.handlers.declaration import Declaration, declare
from consumerkit.message import Message
from consumerkit.redrive.importing.parse import Screen
from consumerkit.redrive.importing.report import ImportResult
from consumerkit.transports.base import TopicInfo
from tests.unit.dead_letters.hostile import records

TOPICS = {"t": TopicInfo("t", "pRWzGhbSTDGpQ0JcAAAAAA", 4)}
_SETTINGS: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


class Take(Handler[Any]):
    name, topic, message_id = "write", "t", header("id") | coordinates()

    async def handle(self, event: Any, context: Context) -> None:
        raise AssertionError("unreachable")


def declared() -> Declaration:
    return declare(Take())


def screened(record: Message) -> None:
    screen = Screen(declared(), TOPICS, Convention.AUTO, "t", {"t": {0: 9, 1: 9, 2: 9, 3: 9}})
    found = screen.screen(record)
    assert found.line.result is not ImportResult.REFUSED, found.line.why
    assert found.line.record == (record.topic, record.partition, record.offset)
    if found.candidate is None:
        assert found.line.why
        return
    dead = found.candidate.dead
    assert 0 <= dead.message.offset < 2**63
    assert 0 <= dead.message.partition < 4
    assert "\x00" not in dead.message.topic_id
    assert len(dead.message.topic_id) < 600
    assert dead.first_failed_at is None or 1970 <= dead.first_failed_at.year < 9999
    assert 0 <= dead.attempts < 2**31


@settings(max_examples=300, **_SETTINGS)
@given(records())
def test_a_hostile_record_is_read_or_told(record: Message) -> None:
    screened(record)


@pytest.mark.matrix
@settings(max_examples=10_000, **_SETTINGS)
@given(records())
def test_ten_thousand_hostile_records_are_read_or_told(record: Message) -> None:
    screened(record)


@pytest.mark.parametrize("convention", list(Convention))
@settings(max_examples=50, **_SETTINGS)
@given(records())
def test_reading_raises_nothing_but_what_it_says(convention: Convention, record: Message) -> None:
    try:
        read(record, convention)
    except (MalformedRecord, Unrecognised) as error:
        told = str(error)
    else:
        told = ""
    assert len(told) < 300


@pytest.mark.parametrize(
    "reader, value",
    [
        (topic_id, b"\x00" * 22),
        (topic_id, b"A" * 12_000),
        (topic_id, b"t#1234"),
        (topic_id, b"origin:t[99999999999]"),
        (moment, b"0001-01-01T00:00:00+23:59"),
        (moment, b"9999-12-31T23:59:59-23:59"),
        (moment, b"9999-06-01T00:00:00+00:00"),
        (timestamp(int), b"9223372036854775807"),
        (label, b"x" * 2_000),
        (label, "evil\u202e".encode()),
    ],
)
def test_what_is_out_of_its_bounds_is_refused_without_being_quoted(reader: Any, value: bytes) -> None:
    with pytest.raises(ValueError, match="it ") as caught:
        reader(value)
    assert value.decode() not in str(caught.value)


def test_a_moment_is_told_in_utc() -> None:
    assert moment(b"2026-01-01T02:00:00+02:00").isoformat() == "2026-01-01T00:00:00+00:00"
