"""Malicious records of dead-letter topics, in all three conventions."""

from __future__ import annotations

from hypothesis import strategies as st

from consumerkit.message import Headers, Message
from tests.unit.dead_letters.records import connect, spring

OURS: Headers = tuple(
    (f"consumerkit-dlq-{name}", value)
    for name, value in {
        "reason": b"exhausted",
        "error-type": b"ValueError",
        "error-message": b"no such account",
        "stack": b"at x",
        "place": b"shop.py:1 in pay",
        "topic": b"t",
        "topic-id": b"pRWzGhbSTDGpQ0JcAAAAAA",
        "partition": b"1",
        "offset": b"7",
        "timestamp": b"1700000000000",
        "consumer": b"write",
        "message-id": b"7",
        "attempts": b"1",
        "first-failed-at": b"2026-01-01T00:00:00+00:00",
        "last-failed-at": b"2026-01-01T00:00:00+00:00",
        "size": b"9",
    }.items()
)
NASTY: tuple[bytes | None, ...] = (
    None,
    b"",
    b"\x00",
    b"\x00" * 22,
    b"A" * 12_000,
    b"x" * 300_000,
    b"\xff\xfe",
    b"\xed\xa0\x80",
    "\u202e\u200f\u200b\U000e0041".encode(),
    b"\x1b[2J\r\n",
    b"0001-01-01T00:00:00+23:59",
    b"0001-01-01T00:00:00+00:00",
    b"9999-12-31T23:59:59-23:59",
    b"9999-12-31T23:59:59+00:00",
    b"2026-01-01T00:00:00",
    b"-1",
    b"-9223372036854775808",
    b"9223372036854775807",
    b"9223372036854775808",
    b"2147483647",
    b"2147483648",
    b"1000000000",
    b"1e9",
    "٣".encode(),
    b"253402300799999",
    b"(origin:t[0])",
    b"origin:t[0]",
    b"origin:t[99999999999]",
    b"t#1234",
    b"..",
    b"conflict",
    b"oversized",
    b"unidentified",
    b"true",
    (-1).to_bytes(4, "big", signed=True),
    (2**31 - 1).to_bytes(4, "big"),
    (-(2**63)).to_bytes(8, "big", signed=True),
    (2**63 - 1).to_bytes(8, "big"),
)
NAMES = ("", "\x00", "a" * 5_000, "\udc80", "\u202e", "consumerkit-dlq-", "kafka_dlt-", "__connect.errors.", "id")
_BASES = (OURS, spring("t", 1, 7), connect("t", 1, 7), spring(prefix="kafka_"), connect("", -1, -1))
anything = st.sampled_from(NASTY) | st.binary(max_size=24)


@st.composite
def records(draw: st.DrawFn) -> Message:
    """One record; its place in the topic is given when it is appended."""
    base = draw(st.sampled_from(_BASES))
    headers = list(base)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(headers) - 1)))
        what = draw(st.sampled_from(("value", "gone", "twice", "more")))
        name = headers[at][0] if headers else "id"
        if what == "value" and headers:
            headers[at] = (name, draw(anything))
        elif what == "gone" and headers:
            del headers[at]
        elif what == "twice":
            headers.insert(at, (name, draw(anything)))
        else:
            headers.insert(at, (draw(st.sampled_from(NAMES)), draw(anything)))
    own = (("id", draw(anything | st.just(b"7"))),)
    stamp = draw(st.sampled_from((-1, 0, 1_700_000_000_000, 2**63 - 1)))
    return Message("dead", 0, 0, draw(anything), draw(anything), (*own, *headers), stamp)
