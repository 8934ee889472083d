"""`assert_idempotent` passes handlers that take effect once, and says of the others what they do, and in which run."""

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import create_engine, func, select, update
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from consumerkit import (
    BatchContext,
    BatchHandler,
    ConfigurationError,
    Context,
    Effects,
    Handler,
    IdempotencyKey,
    Ordering,
    Received,
    Reject,
    Retry,
    header,
    step,
)
from consumerkit.handlers.handler import AnyHandler
from consumerkit.testing import IdempotenceReport, assert_idempotent, assert_idempotent_async, message
from consumerkit.testing.boundaries import IN_ORDER
from consumerkit.transports.base import Record
from tests.variants import further_cases


class Base(DeclarativeBase): ...


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


class Line(Base):
    """An effect that only adds a row, without a key of its own."""

    __tablename__ = "lines"
    number: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Paid(BaseModel):
    account: str
    amount: int


PAID = [("alice", 1), ("bob", 2), ("alice", 4), ("carol", 8)]
MESSAGES = [
    message({"account": account, "amount": amount}, id=f"p-{n}", key=account)
    for n, (account, amount) in enumerate(PAID)
]


def accounts(session: Session) -> None:
    session.add_all([Account(id=name, balance=0) for name in ("alice", "bob", "carol")])


def checked(handler: AnyHandler | Callable[[str], AnyHandler], **given: Any) -> IdempotenceReport:
    messages = given.pop("messages", MESSAGES)
    given = {"metadata": Base.metadata, "setup": accounts, "ignore": ("lines.number",), **given}
    return assert_idempotent(handler, messages, **given)


def caught(handler: AnyHandler | Callable[[str], AnyHandler], **given: Any) -> str:
    with pytest.raises(AssertionError) as raised:
        checked(handler, **given)
    return str(raised.value)


def runs_of(text: str) -> list[str]:
    """The runs that a text names."""
    named = re.findall(r"^(\S.*):$", text, flags=re.MULTILINE)
    return named + [one for line in re.findall(r"^Also: (.*)$", text, flags=re.MULTILINE) for one in line.split("; ")]


class Credit(Handler[Paid]):
    """Adds to an account, and a line."""

    name = "credit"
    topic = "paid"
    message_id = header("message-id")

    async def handle(self, event: Paid, context: Context) -> None:
        more = update(Account).where(Account.id == event.account).values(balance=Account.balance + event.amount)
        await context.session.execute(more)
        context.session.add(Line(text=f"{event.account} {event.amount}"))


class PlainCredit(Handler[Paid]):
    name = "plain-credit"
    topic = "paid"
    message_id = header("message-id")

    def handle(self, event: Paid, context: Context[Session]) -> None:
        account = context.session.get_one(Account, event.account)
        account.balance += event.amount
        context.session.add(Line(text=f"{event.account} {event.amount}"))


class BulkCredit(BatchHandler[Paid]):
    name = "bulk-credit"
    topic = "paid"
    message_id = header("message-id")

    async def handle_batch(self, events: Sequence[Received[Paid]], context: BatchContext) -> None:
        context.session.add_all([Line(text=f"{one.event.account} {one.event.amount}") for one in events])


@pytest.mark.parametrize("handler", [Credit(), *further_cases(PlainCredit(), BulkCredit())], ids=lambda one: one.name)
def test_what_changes_its_tables_through_the_session_passes(handler: AnyHandler) -> None:
    report = checked(handler)
    assert report.not_reached == ()
    assert {"before_claim", "before_commit", "after_commit", "after_mark", "after_offset_commit"} <= set(report.killed)
    assert len(report.runs) == len(set(report.runs)) > 20


class Everything(Handler[Paid]):
    """Has a step with an undo, publishes, and rejects a message: it passes every place of a kill."""

    name = "everything"
    topic = "paid"
    message_id = header("message-id")
    done: list[str]

    def __init__(self) -> None:
        self.done = []
        self.known: set[str] = set()

    @step
    async def charge(self, key: IdempotencyKey, event: Paid) -> str:
        if key not in self.known:  # as a provider does that recognises the key
            self.known.add(key)
            self.done.append(f"charge {event.account} {event.amount}")
        return key

    @charge.undo
    async def refund(self, key: IdempotencyKey, done: str, event: Paid) -> None:
        if f"refund {key}" not in self.known:
            self.known.add(f"refund {key}")
            self.done.append(f"refund {event.account} {event.amount}")

    async def prepare(self, event: Paid, effects: Effects) -> None:
        await effects.run(self.charge, event)

    async def handle(self, event: Paid, context: Context) -> None:
        if event.account == "carol":
            raise Reject("carol is not welcome")
        context.session.add(Line(text=f"{event.account} {event.amount}"))
        context.publish("receipts", key=event.account, value=event.model_dump())


def test_a_worker_is_killed_at_every_place() -> None:
    handler = Everything()
    report = checked(handler, effects=lambda: handler.done, dead=("p-3",))
    places = {one.partition(" ")[0] for one in report.killed}
    assert sorted(set(IN_ORDER) - places) == []
    assert report.not_reached == report.left_out == ()
    again = {one.partition(" ")[0] for one in report.killed if one.endswith("(visit 2)")}
    assert {"step_started", "step_called", "step_done", "in_handler", "before_commit", "after_commit"} <= again


def test_a_dead_letter_that_is_not_expected_is_told_with_its_reason() -> None:
    handler = Everything()
    assert caught(handler, effects=lambda: handler.done).splitlines() == [
        "handler 'everything': the clean run (each message once, one at a time) did not end as expected:",
        "  message 'p-3' became a dead letter: rejected; Reject: carol is not welcome",
        "Messages that are meant to become dead letters are named by dead=(...).",
    ]
    assert "message 'p-0' was to become a dead letter, and did not" in caught(Credit(), dead=("p-0",))


class Sends(Handler[Paid]):
    """Has an effect in `handle` that no transaction rolls back."""

    name = "sends"
    topic = "paid"
    message_id = header("message-id")

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def handle(self, event: Paid, context: Context) -> None:
        self.sent.append(f"mail to {event.account} about {event.amount}")


def test_an_effect_in_handle_is_caught_and_the_way_out_named() -> None:
    handler = Sends()
    text = caught(handler, effects=lambda: handler.sent)
    assert text.startswith("handler 'sends' is not idempotent: 6 of 27 runs ended otherwise than the clean run.\n")
    assert "  effect 'mail to alice about 1': expected 1, found 2\n" in text
    assert "move the call from handle into a step" in text
    assert runs_of(text) == [
        f"killed at {place}, then started again"
        for place in ("in_handler (visit 2)", "after_handler", "before_finalise", "after_finalise", "before_commit")
    ] + ["each message by itself, killed at before_commit (visit 2), then started again"]


class AsksNot(Everything):
    """Its other side does not recognise the key, and the step has no `confirm`."""

    name = "asks-not"
    handle = Credit.handle

    @step
    async def charge(self, key: IdempotencyKey, event: Paid) -> str:
        self.done.append(f"mail {event.account} {event.amount}")
        return key


@pytest.mark.variant
def test_a_step_that_the_other_side_does_not_recognise_is_caught_where_its_result_is_lost() -> None:
    handler = AsksNot()
    text = caught(handler, effects=lambda: handler.done)
    found = [one for one in runs_of(text) if not one.startswith("two workers")]
    assert found == [f"killed at step_called{visit}, then started again" for visit in ("", " (visit 2)")]
    assert "needs confirm" in text


class InMemory(Credit):
    """Keeps the balance in the process."""

    name = "in-memory"

    def __init__(self) -> None:
        self.balances = {"alice": 0, "bob": 0, "carol": 0}

    async def handle(self, event: Paid, context: Context) -> None:
        self.balances[event.account] += event.amount
        await context.session.merge(Account(id=event.account, balance=self.balances[event.account]))


@pytest.mark.variant
def test_a_value_that_the_handler_keeps_is_caught() -> None:
    text = caught(lambda _: InMemory())
    assert "table accounts: row (id='alice', balance=5): expected 1, found 0" in text
    assert "not from a value that the handler kept" in text
    assert "each message by itself, killed at after_commit, then started again" in runs_of(text)
    assert "killed at before_commit, then started again" not in runs_of(text), "a new worker has a new handler"


class ReadsElsewhere(Credit):
    """Reads the balance over another connection: not what this transaction has changed."""

    name = "reads-elsewhere"

    def __init__(self, url: str) -> None:
        self.engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"))

    async def handle(self, event: Paid, context: Context) -> None:
        async with self.engine.connect() as connection:
            balance = await connection.scalar(select(Account.balance).where(Account.id == event.account))
        await self.engine.dispose()
        await context.session.merge(Account(id=event.account, balance=(balance or 0) + event.amount))


def test_a_read_outside_the_session_is_caught_where_messages_share_a_transaction() -> None:
    text = caught(ReadsElsewhere)
    assert runs_of(text)[0] == "each message once, several in one transaction"
    assert "table accounts: row (id='alice', balance=4): expected 0, found 1" in text


class Commits(Sends):
    """Commits by a second engine."""

    name = "commits"

    def __init__(self, url: str, timeout: float = 30) -> None:
        super().__init__()
        self.engine = create_engine(url, connect_args={"timeout": timeout})

    async def handle(self, event: Paid, context: Context) -> None:
        with Session(self.engine) as own, own.begin():
            own.add(Line(text=f"{event.account} {event.amount}"))
        self.engine.dispose()


@pytest.mark.variant
def test_commits_of_a_second_engine_are_caught(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/audit.db"
    engine = create_engine(url)
    Base.metadata.create_all(engine)

    def written() -> list[str]:
        with Session(engine) as session:
            return list(session.scalars(select(Line.text)))

    text = caught(lambda _: Commits(url), effects=written)
    engine.dispose()
    assert "effect 'alice 1': expected 1, found 2" in text


def test_commits_to_the_same_file_cannot_even_run_cleanly() -> None:
    text = caught(lambda url: Commits(url, timeout=0.01), within=5)
    assert text.startswith("handler 'commits': the clean run (each message once, one at a time)")
    assert "database is locked" in text
    assert text.endswith(
        "SQLite has one writer, and while handle runs that is the transaction of context.session: write through it."
    )


class Numbers(Credit):
    """Depends on the order of messages with different keys."""

    name = "numbers"

    async def handle(self, event: Paid, context: Context) -> None:
        lines = await context.session.scalar(select(func.count()).select_from(Line))
        context.session.add(Line(text=f"{event.account} {event.amount} is number {lines}"))


def test_an_order_across_keys_is_caught_unless_it_is_declared() -> None:
    text = caught(Numbers())
    assert {"keys in the reverse order", "keys in a mixed order"} <= set(runs_of(text))

    class InOrder(Numbers):
        name = "in-order"
        ordering = Ordering.PARTITION

    report = checked(InOrder(), messages=[one._replace(key=b"k") for one in MESSAGES])
    assert not any("order" in one for one in report.runs)


class Lottery(Credit):
    """Publishes another value each time."""

    name = "lottery"

    async def handle(self, event: Paid, context: Context) -> None:
        context.publish("tickets", key=event.account, value={"ticket": uuid4().hex})


@pytest.mark.variant
def test_a_message_that_is_published_with_another_value_is_caught() -> None:
    text = caught(Lottery())
    assert "message to tickets with the key b'alice' and the value b'{\"ticket\":" in text
    assert "with the same value and id each time" in text


class Once(Credit):
    """Fails when it runs again."""

    name = "once"
    retry = Retry(attempts=2)

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def handle(self, event: Paid, context: Context) -> None:
        (self.directory / f"{context.message_id}").mkdir()


@pytest.mark.variant
def test_a_handler_that_fails_when_it_runs_again_is_caught(tmp_path: Path) -> None:
    def emptied(_: Session) -> None:
        for one in tmp_path.iterdir():
            one.rmdir()

    text = caught(Once(tmp_path), setup=emptied)
    assert "message 'p-0' became a dead letter: exhausted; FileExistsError" in text
    assert "A message that runs again must not fail." in text


def test_generated_numbers_are_named_with_the_argument_that_ignores_them() -> None:
    text = caught(Credit(), ignore=())
    assert "table lines: the rows differ only in lines.number; if each run generates these values" in text
    assert "give ignore=('lines.number',)" in text


async def test_a_coroutine_is_told_to_await() -> None:
    with pytest.raises(RuntimeError, match=re.escape("await assert_idempotent_async(...) there")):
        checked(Credit())
    report = await assert_idempotent_async(Credit(), MESSAGES, metadata=Base.metadata, ignore=["lines.number"])
    assert report.killed


@pytest.mark.parametrize(
    "given, words",
    [
        ({"handler": Credit}, "assert_idempotent(handler=Credit): give a handler, such as Credit()"),
        ({"messages": []}, "assert_idempotent(messages=[]): give at least one message"),
        ({"messages": [message(b"", topic="t")]}, "handler 'credit' does not read topic 't'; it reads paid"),
        ({"ignore": ["lines.nummer"]}, "there is no table or column 'lines.nummer'"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_a_wrong_argument_is_refused_in_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        checked(given.pop("handler", Credit()), **given)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.variant
def test_a_handler_of_two_topics_asks_for_each_messages_topic() -> None:
    class Two(Handler[Paid]):
        name = "two"
        topics = ("paid", "repaid")
        message_id = header("message-id")
        handle = Credit.handle

    with pytest.raises(ConfigurationError, match="give each message its topic, as in message"):
        checked(Two())
    sent: list[Record] = [
        one._replace(topic=topic) for one, topic in zip(MESSAGES, ["paid", "repaid"] * 2, strict=True)
    ]
    checked(Two(), messages=sent)


def test_nothing_may_end_the_process_of_the_tests() -> None:
    """A worker that is killed in its listener has a consumer that failed: for that the watchdog ends a process."""
    threads: set[str] = set()

    class Looking(Credit):
        async def handle(self, event: Paid, context: Context) -> None:
            threads.update(one.name for one in threading.enumerate())
            await super().handle(event, context)

    report = checked(Looking())
    assert "after_mark" in report.killed  # the listener passes it, too, when partitions are revoked
    assert threads
    assert "consumerkit-watchdog" not in threads


def test_one_such_test_leaves_no_watcher_and_no_log_level_behind() -> None:
    import logging

    from consumerkit import failpoints

    caught(Sends(), within=5, dead=("p-0",))
    assert logging.getLogger("consumerkit").level == logging.NOTSET
    with failpoints.watched(print), pytest.raises(RuntimeError, match="watched already"):
        asyncio.run(assert_idempotent_async(Credit(), MESSAGES, metadata=Base.metadata))
