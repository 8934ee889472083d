"""Header names that are not UTF-8, read from batches as they are on the wire."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from consumerkit.transports.aiokafka.records import ForgivingRecords

STAND_IN = "stand-in"
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


def batch(base_offset: int, names: list[str], codec: str = "none") -> bytes:
    """A batch of one record per header name; `base_offset` is the first one's."""
    builder = DefaultRecordBatchBuilder(2, CODECS[codec], 0, -1, -1, -1, 1_000_000)
    for offset, name in enumerate(names):
        builder.append(offset, 1, b"key-%d" % offset, b"value", [(name, b"v"), ("null", None)])
    return base_offset.to_bytes(8, "big") + bytes(builder.build())[8:]


def read(data: bytes) -> list[Any]:
    records = ForgivingRecords(data)
    assert records.size_in_bytes() == len(data)
    found = []
    while records.has_next():
        found += list(records.next_batch())
    return found


def test_a_name_that_is_not_utf8_is_escaped_and_its_neighbours_are_untouched() -> None:
    odd = batch(7, ["a", STAND_IN, "ü"]).replace(STAND_IN.encode(), b"\xff\xfename!!")
    found = read(batch(0, ["x"] * 7) + odd + batch(10, ["z"]))
    assert [record.offset for record in found] == list(range(11))
    assert [record.headers[0][0] for record in found] == [*["x"] * 7, "a", "\\xff\\xfename!!", "ü", "z"]
    assert all(record.headers[1] == ("null", None) for record in found)
    assert found[8].key == b"key-1"


@pytest.mark.parametrize("codec", CODECS)
def test_every_compression_is_read(codec: str) -> None:
    assert [record.headers[0][0] for record in read(batch(5, ["a", "b"], codec))] == ["a", "b"]


@given(st.binary(min_size=len(STAND_IN), max_size=len(STAND_IN)), st.integers(0, 2**40))
def test_any_name_can_be_read(name: bytes, base_offset: int) -> None:
    data = batch(base_offset, ["before", STAND_IN, "after"]).replace(STAND_IN.encode(), name)
    found = read(data)
    assert [record.offset - base_offset for record in found] == [0, 1, 2]
    assert found[1].headers[0] == (name.decode("utf-8", "backslashreplace"), b"v")
    assert [found[0].headers[0][0], found[2].headers[0][0]] == ["before", "after"]


def test_a_cut_last_batch_is_left_out() -> None:
    whole = batch(0, ["a"])
    assert len(read(whole + batch(1, ["b"])[:-3])) == 1
