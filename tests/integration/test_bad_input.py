"""Bad input: it never stops its partition, is never lost, and never reaches a log."""

import json
import logging
from collections.abc import Iterator
from typing import get_args

import pytest

from consumerkit import Context, DeadLetter, Handler, Identity, Reject, Retry, event_field, fixed, header
from consumerkit.transports.kafka import Client
from tests.crash.model import Payment
from tests.integration.kafka_stage import Found, Given, KafkaStage, effect, payment
from tests.integration.stage import Run

CANARY = "canary-7f3a-of-the-payload"
GOOD = payment(1, account=CANARY)
FIRST_OFFSET = "0"


class Store(Handler[Payment]):
    name = "store"
    message_id = header("message-id")
    retry = Retry(attempts=2, wait=fixed(0.05))

    def __init__(self, stage: KafkaStage, *, identity: Identity | None = None, size_limit: int | None = None) -> None:
        self.topic = stage.topic
        self.group = stage.topic
        self.dead_letter = DeadLetter(stage.dead_letter_topic)
        self.size_limit = size_limit
        if identity is not None:
            self.message_id = identity

    async def handle(self, event: Payment, context: Context) -> None:
        context.session.add(effect(event, context))
        if event.kind == "reject":
            raise Reject("as asked")
        if event.kind == "fail":
            raise RuntimeError(f"cannot handle {event!r}")


@pytest.fixture(params=get_args(Client))
def transport(request: pytest.FixtureRequest) -> Client:
    found: Client = request.param
    return found


@pytest.fixture
def stage(narrow_stage: KafkaStage) -> KafkaStage:
    return narrow_stage


@pytest.fixture(autouse=True)
def no_payload_in_any_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every logger logs at DEBUG, and no line has the payload."""
    caplog.set_level(logging.DEBUG)
    yield
    records = caplog.get_records("call")
    assert records
    told = [line for line in map(logging.Formatter("%(name)s %(message)s").format, records) if CANARY in line]
    assert not told, told[0][:500]


def value(kind: str = "ok", **more: object) -> bytes:
    return json.dumps({"account": CANARY, "amount": 1, "kind": kind, **more}).encode()


async def passes(
    stage: KafkaStage, transport: Client, *bad: Given, handler: Store | None = None, effects: int = 0
) -> Run:
    """Have the bad records, and a good one after them in the same partition, go through a worker.

    The good one takes effect, the bad ones leave `effects` effects and otherwise dead letters, and the partition's
    offset passes all of them.
    """
    stage.send([*bad, GOOD])
    handler = handler or Store(stage)
    dead = len(bad) - effects
    async with stage.run(handler, transport=transport) as run:
        await run.until(stage.finished(effects + 1, dead), "the good message's effect and the bad ones' dead letters")
        await run.until(lambda: stage.committed(handler.group) == {0: len(bad) + 1}, "the offset past all of them")
    ids = [row["message_id"] for row in stage.effects()]
    assert len(ids) == effects + 1
    stage.check_ledger()
    return run


def dead_letter(stage: KafkaStage, given: Given, reason: str, *, offset: int = 0) -> Found:
    """Check the one dead letter, row and record, against what was sent; return the record."""
    (row,) = stage.dead()
    assert (row["reason"], row["partition"], row["offset"]) == (reason, 0, offset)
    assert (row["key"], row["value"]) == (given.key, given.value)
    (found,) = stage.read(stage.dead_letter_topic)
    assert (found.key, found.value) == (given.key, given.value)
    assert found.headers[: len(given.all_headers)] == given.all_headers
    ours = found.headers[len(given.all_headers) :]
    assert all(name.startswith("consumerkit-dlq-") for name, _ in ours)
    expected = {"reason": reason, "topic": stage.topic, "partition": "0", "offset": str(offset), "consumer": "store"}
    assert {name: found.header(f"consumerkit-dlq-{name}") for name in expected} == expected
    for name in ("error-type", "error-message", "stack", "attempts", "timestamp", "first-failed-at", "last-failed-at"):
        assert found.header(f"consumerkit-dlq-{name}") is not None, name
    return found


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b'{"account": "' + CANARY.encode(), id="broken-json"),
        pytest.param(CANARY.encode() + b"\xff\xfe\x00", id="not-utf-8"),
        pytest.param(json.dumps({"account": [CANARY], "amount": CANARY}).encode(), id="wrong-schema"),
        pytest.param(json.dumps([{"account": CANARY}]).encode(), id="another-shape"),
        pytest.param(value().replace(b": 1,", b": " + b"9" * 5000 + b","), id="integer-of-5000-digits"),
        pytest.param(b"[" * 100_000 + CANARY.encode(), id="nested-100000-deep"),
        pytest.param(
            b'{"account":' * 100_000 + b'"' + CANARY.encode() + b'"' + b"}" * 100_000, id="objects-100000-deep"
        ),
        pytest.param(b"", id="empty"),
        pytest.param(None, id="no-value"),
    ],
)
async def test_what_cannot_be_decoded_is_a_dead_letter(
    stage: KafkaStage, transport: Client, broken: bytes | None
) -> None:
    given = Given(broken, b"bad", CANARY.encode(), (("note", CANARY.encode()),))
    await passes(stage, transport, given)
    found = dead_letter(stage, given, "undecodable")
    assert CANARY not in (found.header("consumerkit-dlq-error-message") or "")


@pytest.mark.parametrize("missing", [pytest.param(None, id="no-header"), pytest.param(b"", id="empty-header")])
async def test_a_message_without_an_id_is_a_dead_letter(
    stage: KafkaStage, transport: Client, missing: bytes | None
) -> None:
    given = Given(value(), missing, b"k")
    await passes(stage, transport, given)
    dead_letter(stage, given, "unidentified")


@pytest.mark.parametrize(
    "one, other",
    [
        pytest.param(b"a\x00b", b"a", id="NUL"),
        pytest.param(b"\x00", b"\x00\x00", id="only-NULs"),
        pytest.param(b"\xed\xa0\x80", b"\xed\xa0\x81", id="lone-surrogates"),
        pytest.param(b"\xff\xfe", b"\xff\xff", id="not-utf-8"),
        pytest.param(b"x" * 10_000_000, b"x" * 9_999_999, id="10-MB"),
        pytest.param(b"pay-1 ", b"pay-1", id="trailing-space"),
        pytest.param(b"PAY-1", b"pay-1", id="case"),
        pytest.param("\u00e9".encode(), "e\u0301".encode(), id="normal-forms"),
        pytest.param(b"'; DROP TABLE effects; --", b"%s", id="sql"),
        pytest.param(b"a\n\x1b[2Jb", b"a\r\nb", id="control-characters"),
    ],
)
async def test_odd_ids_are_ids_and_stay_apart(stage: KafkaStage, transport: Client, one: bytes, other: bytes) -> None:
    records = [Given(value(), name, b"k") for name in (one, other, one, other)]
    stage.send([*records, GOOD])
    async with stage.run(Store(stage), transport=transport) as run:
        await run.until(lambda: stage.committed(stage.topic) == {0: 5}, "the offset past all of them")
    assert sorted(row["offset"] for row in stage.effects()) == [0, 1, 4]
    assert not stage.dead()
    assert len(stage.ledger()) == 3


@pytest.mark.parametrize("name", [pytest.param("a\x00b", id="NUL"), pytest.param("x" * 10_000_000, id="10-MB")])
async def test_odd_ids_in_a_field_are_ids(stage: KafkaStage, transport: Client, name: str) -> None:
    given = Given(value(kind=name), None, b"k")
    await passes(
        stage, transport, given, handler=Store(stage, identity=event_field("kind") | header("message-id")), effects=1
    )


async def test_a_lone_surrogate_in_a_field_is_a_dead_letter(stage: KafkaStage, transport: Client) -> None:
    given = Given(b'{"account": "\\ud800' + CANARY.encode() + b'", "amount": 1}', None, b"k")
    await passes(stage, transport, given, handler=Store(stage, identity=event_field("account", "kind")))
    dead_letter(stage, given, "undecodable")


@pytest.mark.parametrize("name", [b"a\x00b", b"\xed\xa0\x80", b"x" * 10_000_000], ids=["NUL", "surrogate", "10-MB"])
async def test_a_failing_message_with_an_odd_id_is_a_dead_letter_with_it(
    stage: KafkaStage, transport: Client, name: bytes
) -> None:
    given = Given(value("reject"), name, b"k")
    await passes(stage, transport, given)
    dead_letter(stage, given, "rejected")


async def test_a_failing_handler_tells_no_log_what_it_failed_on(stage: KafkaStage, transport: Client) -> None:
    given = Given(value("fail"), b"bad", CANARY.encode(), (("note", CANARY.encode()),))
    await passes(stage, transport, given)
    found = dead_letter(stage, given, "exhausted")
    assert found.header("consumerkit-dlq-attempts") == "2"
    assert CANARY in (found.header("consumerkit-dlq-error-message") or "")


@pytest.mark.parametrize("kind", ["ok", "reject"])
async def test_odd_headers_are_kept_and_the_last_of_a_name_counts(
    stage: KafkaStage, transport: Client, kind: str
) -> None:
    headers = (
        ("message-id", b"not this"),
        ("twice", b"1"),
        ("twice", b"2"),
        ("none", None),
        ("bytes", b"\xff\xfe\x00" + CANARY.encode()),
        ("", b"no name"),
        ("message-id", b"this"),
        ("consumerkit-dlq-attempts", b"1000000000"),
    )
    given = Given(value(kind), None, b"\xff\x00", headers)
    await passes(stage, transport, given, effects=int(kind == "ok"))
    if kind == "ok":
        assert {row["message_id"] for row in stage.effects()} == {"this", "p-1"}
    else:
        assert dead_letter(stage, given, "rejected").header("consumerkit-dlq-attempts") == "1"


async def test_ten_thousand_headers_are_read(stage: KafkaStage, transport: Client) -> None:
    given = Given(value("reject"), b"bad", b"k", tuple((f"h{n}", b"v") for n in range(10_000)))
    await passes(stage, transport, given)
    dead_letter(stage, given, "rejected")


async def test_an_oversized_record_is_a_dead_letter_by_reference(stage: KafkaStage, transport: Client) -> None:
    given = Given(value(kind=CANARY * 1_000_000), b"bad", b"k", (("note", CANARY.encode()),))
    await passes(stage, transport, given, handler=Store(stage, size_limit=1_000_000))
    (row,) = stage.dead()
    assert (row["reason"], row["value"], row["offset"]) == ("oversized", None, 0)
    assert row["size"] > 20_000_000
    (found,) = stage.read(stage.dead_letter_topic)
    assert found.value is None
    facts = {
        name: found.header(f"consumerkit-dlq-{name}") for name in ("reason", "topic", "partition", "offset", "size")
    }
    assert facts == {
        "reason": "oversized",
        "topic": stage.topic,
        "partition": "0",
        "offset": "0",
        "size": str(row["size"]),
    }


async def test_the_same_id_with_another_payload_is_a_conflict(stage: KafkaStage, transport: Client) -> None:
    first, other = Given(value(), b"same", b"k"), Given(value(amount=2), b"same", b"k")
    await passes(stage, transport, first, other, effects=1)
    dead_letter(stage, other, "conflict", offset=1)
    assert [row["amount"] for row in stage.effects() if row["message_id"] == "same"] == [1]


async def test_a_conflict_found_in_a_later_transaction_is_one_too(stage: KafkaStage, transport: Client) -> None:
    first, other = Given(value(), b"same", b"k"), Given(value(amount=2), b"same", b"k")
    stage.send([first])
    async with stage.run(Store(stage), transport=transport) as run:
        await run.until(stage.finished(1), "the first one's effect")
        stage.send([other, first, GOOD])
        await run.until(stage.finished(2, 1), "the good one's effect and the conflict")
        await run.until(lambda: stage.committed(stage.topic) == {0: 4}, "the offset past all of them")
    dead_letter(stage, other, "conflict", offset=1)
    assert [row["offset"] for row in stage.effects()] == [0, 3]
