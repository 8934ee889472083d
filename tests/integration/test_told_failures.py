"""A failure in the log: the innermost line of the user's code, the letter's number, once per message."""

import asyncio
import inspect
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from consumerkit import Context, Handler, Reject, Retry, header
from consumerkit.cli.main import app
from consumerkit.events import MessageDeadLettered
from consumerkit.observability.logs import JsonFormatter, TextFormatter
from consumerkit.observability.shown_errors import show_errors
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.integration.memory_stage import TOPIC, Line, MemoryStage, line, opened

HERE = "tests/integration/test_told_failures.py"
LETTERS = DEFAULT_TABLES.dead_letters.c
SECRET = "ada@example.org"


class Paid(pydantic.BaseModel):
    amount: int
    notes: dict[str, int] = {}


class Unknown:
    pass


async def connect_to_mail_server() -> None:
    """What a helper module of the user's does."""
    await asyncio.open_connection("127.0.0.1", 1)  # HELPER


async def typo(context: Context) -> None:
    Paid(amount=1).amout  # type: ignore[attr-defined] # noqa: B018  # TYPO


async def missing_row(context: Context) -> None:
    await context.session.get_one(Line, 4_711)  # MISSING


async def nested_begin(context: Context) -> None:
    async with context.session.begin():  # BEGIN
        pass


async def connection_refused(context: Context) -> None:
    await connect_to_mail_server()


async def in_a_comprehension(context: Context) -> None:
    [json.loads(text) for text in ["1", SECRET]]  # COMPREHENSION


async def in_a_thread(context: Context) -> None:
    await asyncio.to_thread(in_the_thread)


def in_the_thread() -> None:
    int(SECRET)  # THREAD


async def in_a_task_group(context: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(in_the_thread))


async def unsent_result(context: Context) -> Any:
    return Unknown()


# What the log names of each failure: the line with this mark, the function around it, and the error's class.
FAILURES: dict[str, tuple[Callable[[Context], Awaitable[Any]], str, str, str]] = {
    "a typo on a model": (typo, "TYPO", "typo", "AttributeError"),
    "no such row": (missing_row, "MISSING", "missing_row", "NoResultFound"),
    "a nested begin": (nested_begin, "BEGIN", "nested_begin", "InvalidRequestError"),
    "a helper's connection": (connection_refused, "HELPER", "connect_to_mail_server", "ConnectionRefusedError"),
    "a library, called in a comprehension": (in_a_comprehension, "COMPREHENSION", "in_a_comprehension", "JSONDecode"),
    "a thread": (in_a_thread, "THREAD", "in_the_thread", "ValueError"),
    "a task group": (in_a_task_group, "THREAD", "in_the_thread", "ValueError"),
    "a result that is no JSON": (unsent_result, "HANDLE", "", "ResultNotKept"),
}


class Fail(Handler[Paid]):
    """Fails as the message's ID says."""

    name = "fail"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=1)

    async def handle(self, event: Paid, context: Context) -> Any:  # HANDLE
        context.session.add(line(context))
        return await FAILURES[context.message_id][0](context)


class PlainFail(Handler[bytes]):
    """Fails in a thread of consumerkit's."""

    name = "plain"
    topic = TOPIC
    message_id = header("id")
    retry = Retry(attempts=1)

    def handle(self, event: bytes, context: Context[Session]) -> None:
        in_the_thread()


class Say(Handler[Paid]):
    """Rejects what it has decoded."""

    name = "say"
    topic = TOPIC
    message_id = header("id")

    async def handle(self, event: Paid, context: Context) -> None:
        raise Reject(f"no account for {context.message_id}")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[MemoryStage]:
    async with opened(f"sqlite+aiosqlite:///{tmp_path}/t.db", partitions=1) as made:
        yield made


@pytest.fixture
def shown() -> Iterator[None]:
    show_errors(True)
    yield
    show_errors(False)


def at(mark: str) -> str:
    """Return the line of this file that ends in a mark, as the log names it."""
    lines = Path(inspect.getfile(Fail)).read_text().splitlines()
    return f"{HERE}:{next(number for number, text in enumerate(lines, 1) if text.endswith(f'  # {mark}'))}"


def put(place: MemoryStage, name: str, value: bytes = b'{"amount": 1}') -> None:
    place.broker.append(TOPIC, value, key=name.encode(), headers=(("id", name.encode()),))


async def run_all(place: MemoryStage, handler: Any, caplog: pytest.LogCaptureFixture) -> list[MessageDeadLettered]:
    caplog.set_level(logging.INFO, "consumerkit")
    async with place.run(handler) as run:
        ends = place.ends()
        await run.until(lambda: place.committed(handler.name) == ends, "all is committed")
    return list(run.seen(MessageDeadLettered))


async def test_each_failure_names_the_innermost_line_of_the_users_code_and_its_letter(
    place: MemoryStage, caplog: pytest.LogCaptureFixture
) -> None:
    for name in FAILURES:
        put(place, name)
    await run_all(place, Fail(), caplog)
    rows = await place.database.run(lambda session: session.execute(select(LETTERS.message_id, LETTERS.id)).all())
    numbers = {row.message_id: row.id for row in rows}
    assert set(numbers) == set(FAILURES)
    for name, (_, mark, function, error) in FAILURES.items():
        told = [one.getMessage() for one in caplog.records if f" {name} at t[0]@" in one.getMessage()]
        assert len(told) == 1, told
        assert at(mark) in told[0], told
        assert f" in {function}" in told[0] or not function, told
        assert error in told[0], told
        assert "(exhausted after 1 attempt)" in told[0]
        assert told[0].endswith(f"; see `consumerkit dead-letters show {numbers[name]}`")
    assert SECRET not in caplog.text
    assert all(one.stack_info is None for one in caplog.records)


async def test_a_thread_handlers_failure_is_told_likewise(place: MemoryStage, caplog: pytest.LogCaptureFixture) -> None:
    put(place, "1")
    [event] = await run_all(place, PlainFail(), caplog)
    assert event.summary == f"ValueError at {at('THREAD')} in in_the_thread"
    assert event.error == "ValueError"
    assert SECRET not in caplog.text + repr(event)


async def test_what_cannot_be_read_and_a_conflict_say_what_and_where(
    place: MemoryStage, caplog: pytest.LogCaptureFixture
) -> None:
    put(place, "1", b'{"amount": "%s", "notes": {"%s": "x"}}' % (SECRET.encode(), SECRET.encode()))
    put(place, "2")
    put(place, "2", b'{"amount": 2}')
    await run_all(place, Accept(), caplog)
    told = "\n".join(one.getMessage() for one in caplog.records)
    assert "1 at t[0]@0 is a dead letter (undecodable): amount: int_parsing; notes.*: int_parsing; see" in told
    assert "2 at t[0]@2 is a dead letter (conflict): another payload was processed under this message ID" in told
    assert SECRET not in caplog.text


class Accept(Handler[Paid]):
    name = "accept"
    topic = TOPIC
    message_id = header("id")

    async def handle(self, event: Paid, context: Context) -> None:
        context.session.add(line(context))


async def test_a_rejected_message_is_told_once(place: MemoryStage, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("1", "2", "3"):
        put(place, name)
    await run_all(place, Say(), caplog)
    told = [one.getMessage() for one in caplog.records if "no account for" in one.getMessage()]
    assert [text.partition(";")[0] for text in told] == [
        f"say: {n} at t[0]@{n - 1} is a dead letter (rejected): Reject: no account for {n}" for n in (1, 2, 3)
    ]


@pytest.mark.usefixtures("shown")
async def test_where_it_is_wanted_text_and_traceback_follow_with_the_libraries_folded(
    place: MemoryStage, caplog: pytest.LogCaptureFixture
) -> None:
    put(place, "a library, called in a comprehension")
    [event] = await run_all(place, Fail(), caplog)
    [record] = [one for one in caplog.records if one.stack_info]
    told = record.stack_info or ""
    first, *frames = told.splitlines()
    assert first.startswith("json.decoder.JSONDecodeError: Expecting value")
    assert [text for text in frames if text.startswith("  …")][-1].startswith(
        "  … 3 frames, the last is json/decoder.py:"
    )
    assert f'  File "{__file__}", line {at("COMPREHENSION").rpartition(":")[2]}, in' in told
    assert "    [json.loads(text) for text in" in told
    assert "consumerkit/engine" not in told or frames[0].startswith("  …")
    assert event.in_full not in repr(event)
    text = TextFormatter().format(record).splitlines()
    assert text[1] == f"    {first}"
    assert json.loads(JsonFormatter().format(record))["consumerkit.error_in_full"] == record.stack_info
    assert "consumerkit.in_full" not in json.loads(JsonFormatter().format(record))


async def test_show_prints_the_users_frames_first(place: MemoryStage, caplog: pytest.LogCaptureFixture) -> None:
    put(place, "a library, called in a comprehension")
    [event] = await run_all(place, Fail(), caplog)
    found = await asyncio.to_thread(
        CliRunner().invoke, app, ["dead-letters", "show", str(event.letter), "--database", place.url]
    )
    lines = found.output.splitlines()
    start = lines.index("in your code, the innermost first:")
    number = at("COMPREHENSION").rpartition(":")[2]
    assert lines[start + 1].startswith(f'  File "{__file__}", line {number}, in ')
    assert re.search(r"json/decoder\.py", "\n".join(lines[start:]))
    assert lines[[text.partition(" ")[0] for text in lines].index("error") + 1].startswith("raised at")
