"""A row's fingerprint is compared with one made in the row's version, so that an upgrade makes no conflict."""

import json
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, Field, SecretStr
from sqlalchemy import select, update

from consumerkit import Context, Handler, Message, Reject, event_fields, header
from consumerkit.events import GroupCommitted, MessageDeadLettered
from consumerkit.handlers.declaration import declare
from consumerkit.outcome import Reason
from consumerkit.redrive import Selection, redrive
from consumerkit.storage.tables import DEFAULT_TABLES as TABLES
from tests.integration.memory_stage import MemoryStage, line, opened

FIELDS = event_fields("amount", "card", "tags", "kept")


class Paid(BaseModel):
    amount: float
    card: SecretStr = SecretStr("")
    tags: dict[str, int] = {}
    kept: "Kept | None" = None
    note: str = ""


class Kept(BaseModel):
    a: int = Field(default=0, exclude=True)


class Pay(Handler[Paid]):
    name = "write"
    topic = "t"
    message_id = header("id")
    fingerprint = FIELDS
    rejects: ClassVar = True

    async def handle(self, event: Paid, context: Context) -> None:
        if event.note == "reject" and self.rejects:
            raise Reject("told to")
        context.session.add(line(context))


@pytest.fixture
async def place(each_url: str) -> AsyncIterator[MemoryStage]:
    async with opened(each_url, partitions=1) as made:
        yield made


def send(place: MemoryStage, number: int, **event: Any) -> Message:
    value = json.dumps({"amount": 1.0, **event}).encode()
    return place.broker.append("t", value, key=b"k", headers=(("id", b"%d" % number),))


async def versions(place: MemoryStage, table: str) -> list[int | None]:
    c = getattr(TABLES, table).c
    query = select(c.fingerprint_version).order_by(c.message_id)
    return await place.database.run(lambda session: list(session.scalars(query)))


async def as_the_first_release_wrote_it(place: MemoryStage, table: str, of: Message) -> None:
    """Give the rows the fingerprint that the release before had made."""
    first = FIELDS.of(of, declare(Pay()).decode(of))
    values = {"fingerprint": first, "fingerprint_version": None}
    await place.database.run(lambda session: session.execute(update(getattr(TABLES, table)).values(values)))


async def test_a_resend_is_a_duplicate_and_another_payload_a_conflict_whatever_the_rows_version(
    place: MemoryStage,
) -> None:
    sent = {"card": "4111", "tags": {"b": 1, "a": 2}, "kept": {"a": 7}}
    first = send(place, 1, **sent)
    async with place.run(Pay()) as run:
        await place.until_written(run, 1)
    assert await versions(place, "processed_messages") == [2]
    for old in (False, True):
        if old:
            await as_the_first_release_wrote_it(place, "processed_messages", first)
        send(place, 1, **sent, note="sent again")
        send(place, 1, **{**sent, "amount": 2.0})
        async with place.run(Pay()) as run:
            await run.until(lambda: place.committed() == place.ends(), "all is finished")
        assert sum(event.duplicates for event in run.seen(GroupCommitted)) == 1
        assert [event.reason for event in run.seen(MessageDeadLettered)] == [Reason.CONFLICT]
    assert len(await place.lines()) == 1
    assert await versions(place, "dead_letters") == [2, 2]


async def test_secrets_and_excluded_fields_are_told_apart(place: MemoryStage) -> None:
    send(place, 1, card="4111", kept={"a": 1})
    send(place, 1, card="4112", kept={"a": 1})
    send(place, 1, card="4111", kept={"a": 2})
    send(place, 1, card="4111", kept={"a": 1})
    async with place.run(Pay()) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is finished")
    assert [event.reason for event in run.seen(MessageDeadLettered)] == [Reason.CONFLICT] * 2
    assert sum(event.duplicates for event in run.seen(GroupCommitted)) == 1


async def test_a_letter_of_the_first_release_is_redriven_and_then_its_resend_is_told_from_a_conflict(
    place: MemoryStage,
) -> None:
    first = send(place, 1, note="reject")
    async with place.run(Pay()) as run:
        await run.until(lambda: place.committed() == place.ends(), "all is finished")
        for table in ("processed_messages", "dead_letters"):
            await as_the_first_release_wrote_it(place, table, first)
        Pay.rejects = False
        await redrive(place.database, Selection(), by="ann")
        await place.until_written(run, 1)
        send(place, 1, note="again")
        send(place, 1, amount=2.0)
        await run.until(lambda: place.committed() == place.ends(), "all is finished")
    Pay.rejects = True
    assert sum(event.duplicates for event in run.seen(GroupCommitted)) == 1
    assert [event.reason for event in run.seen(MessageDeadLettered)] == [Reason.REJECTED, Reason.CONFLICT]
    assert await versions(place, "processed_messages") == [None]
