"""What the ledger forgets and what it keeps, on every database; and that pruning delays no other work."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from consumerkit.errors import ConfigurationError
from consumerkit.maintenance import pruner
from consumerkit.maintenance.pruner import Forgotten, forget
from consumerkit.message import TopicPartition
from consumerkit.outcome import Outcome
from consumerkit.policies.duration import seconds_of
from consumerkit.storage import consumers, progress
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import Claim, Limits, dialect_for
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.maintenance.pruning import ForgottenBatch, HoldingPartition, PrunePlan, PruneStatements
from consumerkit.storage.store import Store
from consumerkit.storage.tables import DEFAULT_TABLES as TABLES
from tests.services import PostgresServer
from tests.services.tables import make_tables

DAY = 86400.0
NOW = datetime.now(UTC).replace(microsecond=0)
OLD = NOW - timedelta(days=8)


def digest(number: object) -> bytes:
    return blake2b(str(number).encode(), digest_size=16).digest()


class Books:
    """A database with one handler's ledger."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.pruning = PruneStatements(TABLES, dialect_for(database.dialect_name, TABLES))
        self.consumer = 0

    async def open(self) -> None:
        await self.database.run(make_tables)
        self.consumer = await self.database.run(
            lambda s: consumers.bind(s, TABLES, name="credit", group="credit", topics=["t"])
        )

    async def write(self, table: str, *rows: dict[str, Any]) -> None:
        filled = [{"consumer": self.consumer, **row} for row in rows]
        await self.database.run(lambda s: s.execute(insert(getattr(TABLES, table)), filled))

    async def processed(self, *numbers: object, at: datetime = OLD, outcome: Outcome = Outcome.PROCESSED) -> None:
        rows = [
            {"digest": digest(n), "message_id": str(n), "fingerprint": b"f" * 16, "outcome": int(outcome)}
            for n in numbers
        ]
        await self.write("processed_messages", *({**row, "processed_at": at} for row in rows))

    async def position(
        self, partition: int = 0, *, mark: int | None = 100, settled: datetime | None = NOW, **more: Any
    ) -> None:
        row = {"topic": "t", "partition": partition, "owner": b"o" * 16, "mark": mark, "settled_at": settled}
        await self.write("partition_progress", row | more)

    async def letter(self, number: object, state: str, offset: int = 0) -> None:
        facts = {"reason": "exhausted", "error_type": "E", "error": "", "stack": "", "attempts": 1}
        place = {"topic": "t", "topic_id": "T", "partition": 0, "offset": offset, "timestamp": 0, "size": 0}
        await self.write("dead_letters", {**facts, **place, "headers": "[]", "digest": digest(number), "state": state})

    async def plan(self, days: float = 7, **options: Any) -> PrunePlan:
        plans = await self.database.run(lambda s: self.pruning.plans(s, days * DAY, **options))
        [plan] = [one for one in plans if one.handler == "credit"]
        return plan

    async def forget(self, days: float = 7, **options: Any) -> Forgotten:
        return await forget(self.database.run, self.pruning, await self.plan(days), **options)

    async def promised(self) -> PrunePlan:
        plan = await self.plan()
        assert await self.database.run(partial(self.pruning.promise, plan=plan))
        return plan

    async def left(self) -> set[str]:
        return await self.database.run(lambda s: set(s.scalars(select(TABLES.processed_messages.c.message_id))))

    async def bounds(self) -> dict[int, int]:
        c = TABLES.partition_progress.c
        return await self.database.run(
            lambda s: {row[0]: row[1] for row in s.execute(select(c.partition, c.forgotten_below))}
        )


@pytest.fixture(params=["psycopg", "asyncpg", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url(request.getfixturevalue("database"), request.param)


@pytest.fixture
async def books(url: str) -> AsyncIterator[Books]:
    async for made in _opened(url):
        yield made


@pytest.fixture
async def server_books(postgres: PostgresServer, database: str) -> AsyncIterator[Books]:
    """On PostgreSQL alone: for what needs several writers at once."""
    async for made in _opened(postgres.url(database)):
        yield made


async def _opened(url: str) -> AsyncIterator[Books]:
    made = Books(Database(url))
    await made.open()
    yield made
    await made.database.dispose()


# What goes.


async def test_what_is_old_goes_with_its_result_and_what_is_young_stays(books: Books) -> None:
    await books.position()
    await books.processed("old", "older")
    await books.processed("young", at=NOW - timedelta(days=6))
    await books.write("message_results", *({"digest": digest(n), "result": "1"} for n in ("old", "young")))
    assert await books.forget() == Forgotten(2, complete=True)
    assert await books.left() == {"young"}
    results = await books.database.run(lambda s: set(s.scalars(select(TABLES.message_results.c.digest))))
    assert {bytes(one) for one in results} == {digest("young")}


async def test_another_handlers_ids_stay(books: Books) -> None:
    await books.position()
    await books.processed("ours")
    theirs = books.consumer + 1
    await books.write(
        "processed_messages",
        {
            "consumer": theirs,
            "digest": digest("ours"),
            "message_id": "theirs",
            "fingerprint": b"f" * 16,
            "outcome": 1,
            "processed_at": OLD,
        },
    )
    await books.forget()
    assert await books.left() == {"theirs"}


async def test_what_is_parked_or_dead_stays_and_what_was_decided_goes(books: Books) -> None:
    await books.position()
    await books.processed("parked", outcome=Outcome.PARKED)
    states = ["dead", "redriven", "resolved", "discarded"]
    await books.processed(*states, "without a letter", outcome=Outcome.DEAD)
    for offset, state in enumerate(states):
        await books.letter(state, state, offset)
    await books.letter("discarded", "dead", 10)  # a second letter of the same ID
    assert (await books.forget()).count == 2
    assert await books.left() == {"parked", "dead", "redriven", "discarded"}


async def test_it_goes_in_bounded_batches(books: Books) -> None:
    await books.position()
    await books.processed(*range(2_050))
    sizes: list[int] = []
    assert await books.forget(batch=1_000, tell=sizes.append) == Forgotten(2_050, complete=True)
    assert sizes == [1_000, 1_000, 50]
    assert await books.left() == set()


# What holds it back.


async def test_a_partition_that_stands_still_holds_back_what_was_processed_since(books: Books) -> None:
    stopped = NOW - timedelta(days=20)
    await books.position(0)
    await books.position(1, settled=stopped)
    await books.processed("before", at=stopped - timedelta(hours=1))
    await books.processed("since", at=stopped + timedelta(hours=1))
    plan = await books.plan()
    assert [holder.partition for holder in plan.holders] == [TopicPartition("t", 1)]
    assert plan.holders[0].since is not None
    assert plan.holders[0].since.replace(tzinfo=UTC) == stopped
    assert await books.forget() == Forgotten(1, complete=True)
    assert await books.left() == {"since"}


async def test_a_partition_of_which_nothing_is_settled_holds_back_everything(books: Books) -> None:
    await books.position(0)
    await books.position(1, settled=None)
    await books.processed("old")
    plan = await books.plan()
    assert (plan.before, plan.holders) == (None, (HoldingPartition(TopicPartition("t", 1), None),))
    assert await books.forget() == Forgotten(0, complete=True)
    assert await books.left() == {"old"}
    assert await books.bounds() == {0: 0, 1: 0}


async def test_a_partition_without_a_mark_does_not_count(books: Books) -> None:
    await books.position(0)
    await books.position(1, mark=None, settled=None)
    await books.processed("old")
    assert (await books.forget()).count == 1


async def test_without_any_position_nothing_goes_unless_a_person_says_so(books: Books) -> None:
    await books.processed("old")
    plan = await books.plan()
    assert (plan.positioned, plan.before) == (False, None)
    assert (await books.forget()).count == 0
    told = await books.plan(unpositioned=True)
    assert (await forget(books.database.run, books.pruning, told)).count == 1


async def test_a_topic_that_is_not_consumed_any_more_holds_nothing_back(books: Books) -> None:
    """What its last owner may have processed beyond the mark is then unprovable, and never run twice."""
    died: dict[str, Any] = {"topic": "gone", "settled": None, "window_end": 900}
    await books.position(0)
    await books.position(1, **died)
    await books.position(2, **died, given_back=True)
    await books.processed("old")
    assert (await books.forget()).count == 1
    assert await books.bounds() == {0: 100, 1: 900, 2: 100}


async def test_bounds_are_raised_before_anything_goes_and_never_lowered(books: Books) -> None:
    await books.position(0, mark=70, forgotten_below=30)
    await books.position(1, mark=70, forgotten_below=80)
    await books.forget()
    assert await books.bounds() == {0: 30, 1: 80}  # there was nothing to forget
    await books.processed("old")
    await books.promised()
    assert await books.bounds() == {0: 70, 1: 80}
    assert await books.left() == {"old"}


async def test_nothing_goes_while_a_bound_cannot_be_raised(
    server_books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruner, "_TRIES", 2)
    books = server_books
    await books.position()
    await books.processed("old")
    table = TABLES.partition_progress
    async with books.database.transaction() as run:
        await run(lambda s: s.execute(update(table).values(taken_at=func.now())))
        assert await books.forget() == Forgotten(0, complete=False)
    assert await books.left() == {"old"}
    assert await books.forget() == Forgotten(1, complete=True)


# Beside others.


def move(session: Session, books: Books, *, run_forgotten: bool) -> None:
    at = TopicPartition("t", 0)
    options: dict[str, Any] = {"topic_id": "T", "mark": 10, "end": 100, "ago": 0, "run_forgotten": run_forgotten}
    store = Store(TABLES, books.pruning.dialect, books.consumer)
    progress.move(session.connection(), store, at, **options)


@pytest.mark.parametrize("run_forgotten", [True, False])
async def test_a_rewind_between_two_batches_ends_the_forgetting(server_books: Books, run_forgotten: bool) -> None:
    books = server_books
    await books.position()
    await books.processed(*range(10))

    async def run(work: Any) -> Any:
        found = await books.database.run(work)
        if isinstance(found, ForgottenBatch):  # the first one; another session moves the position before the second
            await books.database.run(lambda s: move(s, books, run_forgotten=run_forgotten))
        return found

    assert await forget(run, books.pruning, await books.plan(), batch=5) == Forgotten(5, complete=False)
    assert len(await books.left()) == 5
    assert await books.bounds() == {0: 10 if run_forgotten else 100}
    # Planned again: nothing is forgotten before the mark has passed the log's end again.
    assert (await books.forget()).count == 0


async def test_a_rewind_before_the_promise_is_not_undone_by_it(books: Books) -> None:
    await books.position()
    await books.processed("old")
    plan = await books.plan()
    await books.database.run(lambda s: move(s, books, run_forgotten=True))
    assert await forget(books.database.run, books.pruning, plan) == Forgotten(0, complete=False)
    assert await books.bounds() == {0: 0}
    assert await books.left() == {"old"}


async def test_a_rewind_waits_for_the_batch_under_way_and_a_mark_does_not(server_books: Books) -> None:
    books = server_books
    await books.position()
    await books.processed(*range(10))
    plan = await books.promised()
    async with books.database.transaction() as run:
        assert await run(partial(books.pruning.forget, plan=plan, after=None, limit=5)) is not None
        mark = {TopicPartition("t", 0): progress.Mark(b"o" * 16, 101, 100, 102)}
        store = Store(TABLES, books.pruning.dialect, books.consumer)
        advance = partial(progress.advance, store=store, marks=mark)
        assert await asyncio.wait_for(books.database.run(lambda s: advance(s.connection())), 120) == set()
        rewind = asyncio.create_task(books.database.run(lambda s: move(s, books, run_forgotten=True)))
        await asyncio.sleep(0.5)
        assert not rewind.done()
    await rewind


async def test_a_batch_leaves_a_row_that_is_in_use_for_later(server_books: Books) -> None:
    books = server_books
    await books.position()
    await books.processed("old")
    plan = await books.promised()
    async with books.database.transaction() as run:
        await run(lambda s: move(s, books, run_forgotten=True))
        assert await books.database.run(partial(books.pruning.forget, plan=plan, after=None)) is None
    assert await books.left() == {"old"}


async def test_a_row_that_somebody_has_locked_is_left_for_later(server_books: Books) -> None:
    books = server_books
    await books.position()
    await books.processed("one", "two")
    c = TABLES.processed_messages.c
    async with books.database.transaction() as run:
        await run(lambda s: s.execute(select(c.digest).where(c.message_id == "one").with_for_update()).all())
        assert (await asyncio.wait_for(books.forget(), 120)).count == 1
    assert await books.left() == {"one"}


async def test_only_one_prunes_at_a_time(server_books: Books) -> None:
    books = server_books
    await books.position()
    await books.processed(*range(10))
    plan = await books.promised()
    async with books.database.transaction() as run:
        first = await run(partial(books.pruning.forget, plan=plan, after=None, limit=5))
        assert first is not None
        assert first.rows == 5
        assert await books.forget(batch=5) == Forgotten(0, complete=False)
        waiting = asyncio.create_task(books.forget(batch=5, waits=True))
        await asyncio.sleep(0.5)
        assert not waiting.done()
    assert (await waiting).count == 5
    assert await books.left() == set()


async def test_two_pruners_at_once_forget_everything_once(server_books: Books) -> None:
    books = server_books
    await books.position()
    await books.processed(*range(3_000))
    done = await asyncio.gather(*(books.forget(batch=200, waits=True) for _ in range(3)))
    assert sum(one.count for one in done) == 3_000
    assert await books.left() == set()


async def test_pruning_beside_running_claims_deadlocks_never(server_books: Books) -> None:
    """Claims of old and new IDs, sorted as the engine sorts them, while everything old is being forgotten."""
    books = server_books
    await books.position()
    numbers = range(6_000)
    await books.processed(*numbers)
    ledger = Ledger(TABLES, books.pruning.dialect, books.consumer)
    ended = asyncio.Event()
    rows = 0

    def claiming(session: Session, seed: int) -> int:
        chosen = random.Random(seed).sample(numbers, 300)
        connection = session.connection()
        ledger.dialect.begin(connection, Limits(), f"{seed:032x}")
        claims = [Claim(digest(n), str(n), b"f" * 16, Outcome.PROCESSED) for n in chosen]
        return len(ledger.claim(connection, claims).won)

    async def claims(lane: int) -> int:
        won, turn = 0, 0
        while not ended.is_set():
            turn += 1
            won += await books.database.run(partial(claiming, seed=lane * 100_000 + turn))
        return won

    lanes = [asyncio.create_task(claims(lane)) for lane in range(3)]
    for _ in range(12):
        rows += (await books.forget(batch=500)).count
        await books.database.run(lambda s: s.execute(update(TABLES.processed_messages).values(processed_at=OLD)))
    ended.set()
    won = sum(await asyncio.gather(*lanes))
    assert rows + len(await books.left()) == len(numbers) + won
    assert won > 1_000


def test_a_span_is_refused_in_one_line() -> None:
    assert seconds_of("retention", timedelta(days=1)) == DAY
    assert seconds_of("retention", None) is None
    for value in (0, -1, True, float("inf"), timedelta(0), "7d"):
        with pytest.raises(ConfigurationError) as caught:
            seconds_of("retention", value)  # type: ignore[arg-type]
        assert str(caught.value).startswith(f"Worker(retention={value!r}): give a timedelta")
