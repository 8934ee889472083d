"""The worker's own timer, and `consumerkit db prune`."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, insert, select, update
from sqlalchemy.orm import Session

from consumerkit import Retry, fixed, header
from consumerkit.events import ForgettingHeldBack, GroupCommitted, MessageDeadLettered, MessagesForgotten
from consumerkit.maintenance import pruner
from consumerkit.storage import consumers
from consumerkit.storage.tables import DEFAULT_TABLES as TABLES
from tests.integration.command import CommandLine
from tests.integration.fresh_url import fresh_url
from tests.integration.memory_stage import MemoryStage, Write, opened
from tests.services import PostgresServer
from tests.services.tables import make_tables

NOW = datetime.now(UTC).replace(microsecond=0)
OLD = NOW - timedelta(days=30)


@pytest.fixture
async def place(postgres: PostgresServer, database: str) -> AsyncIterator[MemoryStage]:
    async with opened(postgres.url(database)) as made:
        yield made


def age(session: Session, **another: Any) -> None:
    """Make everything that was processed old and settled; and give another partition a position, if asked for."""
    session.execute(update(TABLES.processed_messages).values(processed_at=OLD))
    session.execute(update(TABLES.partition_progress).values(settled_at=NOW))
    if another:
        c = TABLES.partition_progress.c
        # Of the same topic: a partition that a topic made again lacks would hold nothing back.
        topic_id = session.scalars(select(c.topic_id).where(c.topic == "t").limit(1)).one()
        row = {"consumer": 1, "topic": "t", "topic_id": topic_id, "owner": b"o" * 16, "mark": 5}
        session.execute(insert(TABLES.partition_progress).values(row | another))


def ledger(session: Session) -> set[str]:
    return set(session.scalars(select(TABLES.processed_messages.c.message_id)))


async def worked(place: MemoryStage, **changes: Any) -> None:
    """Have three messages processed, long ago."""
    for number in range(3):
        place.append(number)
    async with place.run(Write()) as run:
        await place.until_written(run, 3)
    await place.database.run(lambda s: age(s, **changes))


def count_turns(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows by one with each turn of a worker's timer that ended."""
    ended: list[None] = []
    turn = pruner.Retention.turn

    async def counted(self: pruner.Retention) -> None:
        await turn(self)
        ended.append(None)

    monkeypatch.setattr(pruner.Retention, "turn", counted)
    return ended


async def test_a_worker_forgets_by_itself_and_says_so(place: MemoryStage, monkeypatch: pytest.MonkeyPatch) -> None:
    await worked(place)
    monkeypatch.setattr(pruner, "INTERVAL", 0.1)
    async with place.run(Write(), retention=timedelta(days=7)) as run:
        await run.until(lambda: bool(run.seen(MessagesForgotten)), "something was forgotten")
        await asyncio.sleep(0.5)
    [event] = run.seen(MessagesForgotten)
    assert (event.handler, event.count) == ("write", 3)
    assert abs(datetime.now(UTC) - timedelta(days=7) - event.before) < timedelta(minutes=2)
    assert await place.database.run(ledger) == set()


async def test_a_long_standstill_after_a_kill_before_the_mark_runs_nothing_twice(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worked(place)

    def stand_still(session: Session) -> None:
        # As a kill between COMMIT and the mark leaves it, eight days ago.
        then = NOW - timedelta(days=8)
        session.execute(update(TABLES.processed_messages).values(processed_at=then))
        progress = {"mark": 0, "marked_at": then, "settled_at": None, "window_at": then, "given_back": False}
        session.execute(update(TABLES.partition_progress).values(progress))

    await place.database.run(stand_still)
    monkeypatch.setattr(pruner, "INTERVAL", 0.05)
    handler = Write()
    async with place.run(handler, retention=timedelta(days=7)) as run:
        await run.until(lambda: sum(one.duplicates for one in run.seen(GroupCommitted)) >= 3, "all of them again")
        # The mark has passed them now, so they may go at last.
        await run.until(lambda: bool(run.seen(MessagesForgotten)), "they were forgotten")
    assert handler.seen == []
    assert len(await place.lines()) == 3


async def test_a_worker_that_keeps_for_ever(place: MemoryStage, monkeypatch: pytest.MonkeyPatch) -> None:
    await worked(place)
    monkeypatch.setattr(pruner, "INTERVAL", 0.1)
    async with place.run(Write(), retention=None):
        await asyncio.sleep(0.6)
    assert await place.database.run(ledger) == {"0", "1", "2"}


async def test_a_partition_that_holds_back_is_told_of_once(place: MemoryStage, monkeypatch: pytest.MonkeyPatch) -> None:
    await worked(place, partition=99, settled_at=OLD - timedelta(days=1))
    monkeypatch.setattr(pruner, "INTERVAL", 0.1)
    turns = count_turns(monkeypatch)
    async with place.run(Write()) as run:
        # The partition that this worker has just taken over may be announced, too, before its first mark.
        def held() -> list[ForgettingHeldBack]:
            return [event for event in run.seen(ForgettingHeldBack) if event.partition.partition == 99]

        await run.until(lambda: bool(held()), "it was announced")
        enough = len(turns) + 3
        await run.until(lambda: len(turns) >= enough, "three more turns")
        told = held()
    assert [event.since for event in told] == [OLD - timedelta(days=1)]
    assert await place.database.run(ledger) == {"0", "1", "2"}


async def test_other_handlers_are_left_to_their_own_workers(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worked(place)
    monkeypatch.setattr(pruner, "INTERVAL", 0.1)
    async with place.run(Write(name="another")):
        await asyncio.sleep(0.6)
    assert {"0", "1", "2"} <= await place.database.run(ledger)


# At the start.


async def test_a_memory_that_is_too_short_is_told_in_numbers(
    place: MemoryStage, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.run(Write(message_id=header("nothing"))) as run:
        place.append(1)
        await run.until(lambda: bool(run.seen(MessageDeadLettered)), "a dead letter")
    await place.database.run(lambda s: s.execute(update(TABLES.dead_letters).values(dead_at=OLD)))
    place.broker.logs.topics["t"].keeps = 14 * 86_400.0
    patient = Write(retry=Retry(attempts=11, wait=fixed(86_400)))
    with caplog.at_level(logging.WARNING, "consumerkit"):
        async with place.run(patient, retention=timedelta(days=8)) as run:
            await run.until(lambda: sum("remembers for 8 d" in one for one in caplog.messages) >= 3, "three warnings")
        told = [message for message in caplog.messages if "remembers for 8 d" in message]
        assert len(told) == 3
        assert "topic 't' keeps its messages for 14 d" in told[0]
        assert "its retries may take 10 d" in told[1]
        assert "its oldest dead letter has waited for 30 d" in told[2]
        caplog.clear()
        for enough in (None, timedelta(days=31)):
            async with place.run(patient, retention=enough):
                await asyncio.sleep(0.2)
        assert not [message for message in caplog.messages if "remembers" in message]


# The command.


@pytest.fixture(params=["psycopg", "asyncpg", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return fresh_url(request, tmp_path)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = create_engine(url.replace("+asyncpg", "+psycopg"))
    yield made
    made.dispose()


@pytest.fixture
def filled(engine: Engine, url: str) -> str:
    """Two handlers with old IDs, and a third that was never started since positions are kept."""
    with Session(engine) as session, session.begin():
        make_tables(session)
        for name in ("credit", "mail", "old"):
            number = consumers.bind(session, TABLES, name=name, group=name, topics=["t"])
            for at in (OLD, NOW):
                row = {"consumer": number, "digest": f"{at}".encode()[-16:], "message_id": name, "fingerprint": b"f"}
                row["digest"] = (b"old" if at == OLD else b"new").ljust(16)
                session.execute(insert(TABLES.processed_messages).values({**row, "outcome": 1, "processed_at": at}))
            if name == "old":
                continue
            settled = NOW if name == "credit" else OLD
            place = {"consumer": number, "topic": "t", "partition": 1, "owner": b"o" * 16}
            session.execute(insert(TABLES.partition_progress).values({**place, "mark": 9, "settled_at": settled}))
    return url


def left(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return sorted(session.scalars(select(TABLES.processed_messages.c.message_id)))


def test_prune_counts_forgets_and_tells_what_holds_it_back(filled: str, engine: Engine, command: CommandLine) -> None:
    tried = command("db", "prune", "--database", filled, "--dry-run")
    assert (tried.code, tried.err) == (0, "")
    assert tried.out.splitlines()[0].split("  ")[0] == "handler"
    assert "would be forgotten" in tried.out
    assert len(left(engine)) == 6

    done = command("db", "prune", "--database", filled, "--older-than", "7d")
    assert done.code == 0
    rows = {line.split()[0]: line.split()[1] for line in done.out.splitlines()[1:4]}
    assert rows == {"credit": "1", "mail": "0", "old": "0"}
    since = OLD.isoformat(sep=" ").replace("+00:00", "Z")
    held = (
        f"mail: t[1] has not moved (since {since}), and a restart delivers again what was processed since; "
        "run the handler until it catches up, or use consumerkit skip"
    )
    assert done.out.splitlines()[4:] == [
        held,
        "old: its position is not known; start it once, or give --unpositioned if it never runs again",
    ]
    assert left(engine) == ["credit", "mail", "mail", "old", "old"]

    gone = command("db", "prune", "--database", filled, "--handler", "old", "--unpositioned", "--json")
    told = json.loads(gone.out)
    assert (told["handler"], told["forgotten"], told["complete"], told["held_back_by"]) == ("old", 1, True, [])
    assert left(engine) == ["credit", "mail", "mail", "old"]


@pytest.mark.parametrize("span", ["7", "d", "0d", "-1d", "7w", ""])
def test_a_span_that_is_none(span: str, command: CommandLine, tmp_path: Path) -> None:
    answer = command("db", "prune", "--database", f"sqlite:///{tmp_path}/x", "--older-than", span)
    assert answer.code == 2
    words = "is no span up to a hundred years; write a number above 0 and s, m, h or d, such as 7d"
    assert answer.err == f"error: {span!r} {words}\n"


def test_a_handler_that_is_not_there(filled: str, command: CommandLine) -> None:
    answer = command("db", "prune", "--database", filled, "--handler", "credits")
    assert (answer.code, answer.out) == (2, "")
    assert (
        answer.err == "error: no handler 'credits' has started on this database; these have: 'credit', 'mail', 'old'\n"
    )
