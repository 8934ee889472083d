"""A partition is read from the database's mark, whatever Kafka says and whatever was lost."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, get_args

import psycopg
import pytest
from confluent_kafka.admin import AdminClient
from sqlalchemy import text

from consumerkit import Context, DeadLetter, Handler, Json, header
from consumerkit.engine import topic_watch
from consumerkit.errors import ConfigurationError, StartError
from consumerkit.events import CommitsLost, GroupCommitted, PartitionStopped, PartitionTaken, PositionDiffers
from consumerkit.message import TopicPartition
from consumerkit.operations import positions
from consumerkit.storage import lane_progress
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.maintenance.pruning import PruneStatements
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.kafka import Client
from consumerkit.transports.memory.group import MemoryConsumer
from tests.crash.model import Payment
from tests.integration.backup import Backup
from tests.integration.kafka_stage import KafkaStage, effect, payment
from tests.integration.memory_stage import TOPIC, MemoryStage, Write, opened
from tests.integration.stage import Run
from tests.services import PostgresServer

AT = TopicPartition(TOPIC, 0)


class Apply(Handler[Payment]):
    """Adds an effect for each payment."""

    codec = Json()
    message_id = header("message-id")

    def __init__(self, stage: KafkaStage) -> None:
        self.name = stage.topic
        self.topic = stage.topic
        self.dead_letter = DeadLetter(stage.dead_letter_topic)

    async def handle(self, event: Payment, context: Context) -> None:
        context.session.add(effect(event, context))


def _send(stage: KafkaStage, first: int, count: int) -> None:
    stage.send([payment(n, account=f"a-{n % 7}", partition=n % 2) for n in range(first, first + count)])


def _ids(stage: KafkaStage) -> Counter[str]:
    return Counter(row["message_id"] for row in stage.effects())


def _once(count: int) -> Counter[str]:
    return Counter({f"p-{n}": 1 for n in range(count)})


async def _applied(run: Run, stage: KafkaStage, count: int, within: float = 60.0) -> None:
    """Wait until so many effects are there and Kafka has all offsets."""
    ends = {0: (count + 1) // 2, 1: count // 2}

    def settled() -> bool:
        try:
            return stage.count_effects() >= count and stage.committed(stage.topic) == ends
        except Exception:
            return False

    await run.until(settled, f"{count} effects", within=within)


@pytest.fixture
def backup_of(postgres: PostgresServer) -> Iterator[Any]:
    made: list[Backup] = []

    def take(stage: KafkaStage) -> Backup:
        made.append(Backup(postgres, stage.database))
        return made[-1]

    yield take
    for one in made:
        one.drop()


@pytest.mark.parametrize("transport", get_args(Client))
async def test_a_database_restored_from_a_backup_gets_everything_again(
    stage: KafkaStage, transport: Client, backup_of: Any
) -> None:
    async with stage.run(Apply(stage), transport=transport) as run:
        _send(stage, 0, 200)
        await _applied(run, stage, 200)
    backup = await asyncio.to_thread(backup_of, stage)
    async with stage.run(Apply(stage), transport=transport) as run:
        _send(stage, 200, 300)
        await _applied(run, stage, 500)
    await asyncio.to_thread(backup.restore)
    assert stage.count_effects() == 200, "the backup was not restored"
    async with stage.run(Apply(stage), transport=transport) as run:
        await _applied(run, stage, 500)
        told = run.seen(PositionDiffers)
        assert {(one.offset, one.lost) for one in told} == {(100, True)}
        assert all("the database has lost commits: Kafka has offset 250" in one.remark for one in told)
    assert _ids(stage) == _once(500)
    stage.check_ledger()


@pytest.mark.parametrize("transport", get_args(Client))
async def test_a_database_restored_under_an_idle_worker_gets_everything_again(
    stage: KafkaStage, transport: Client, backup_of: Any
) -> None:
    async with stage.run(Apply(stage), transport=transport) as run:
        _send(stage, 0, 200)
        await _applied(run, stage, 200)
        backup = await asyncio.to_thread(backup_of, stage)
        _send(stage, 200, 300)
        await _applied(run, stage, 500)
        await asyncio.to_thread(backup.restore)
        # Nothing more is sent: the worker itself must notice.
        await _applied(run, stage, 500)
    assert _ids(stage) == _once(500)
    stage.check_ledger()


@pytest.mark.parametrize("transport", get_args(Client))
async def test_a_database_restored_under_a_busy_worker_gets_everything_again(
    stage: KafkaStage, transport: Client, backup_of: Any
) -> None:
    total = 3000
    async with stage.run(Apply(stage), transport=transport) as run:
        _send(stage, 0, 200)
        await _applied(run, stage, 200)
        backup = await asyncio.to_thread(backup_of, stage)
        sending = asyncio.create_task(asyncio.to_thread(_trickle, stage, 200, total))
        await run.until(lambda: stage.count_effects() > 1000, "the middle")
        await asyncio.to_thread(backup.restore)
        await sending
        await _applied(run, stage, total)
    assert _ids(stage) == _once(total)
    stage.check_ledger()


def _trickle(stage: KafkaStage, first: int, end: int) -> None:
    for start in range(first, end, 100):
        _send(stage, start, 100)


@pytest.mark.parametrize("transport", get_args(Client))
async def test_commits_that_are_lost_behind_a_pooler_are_noticed_by_the_lane(
    stage: KafkaStage, transport: Client
) -> None:
    """The connections stay, as a pooler would have it, and the last transactions are gone."""
    async with stage.run(Apply(stage), transport=transport) as run:
        _send(stage, 0, 200)
        await _applied(run, stage, 200)
        before = stage.rows("SELECT partition, mark FROM consumerkit_partition_progress")
        lanes = stage.rows("SELECT encode(lane, 'hex') AS lane, sequence FROM consumerkit_lane_progress")
        _send(stage, 200, 100)
        await _applied(run, stage, 300)
        undo = [
            "DELETE FROM effects WHERE sequence > 200",
            "DELETE FROM consumerkit_processed_messages WHERE message_id NOT IN (SELECT message_id FROM effects)",
            "DELETE FROM consumerkit_lane_progress",
            *(
                f"INSERT INTO consumerkit_lane_progress (consumer, lane, sequence) "
                f"VALUES (1, decode('{one['lane']}', 'hex'), {one['sequence']})"
                for one in lanes
            ),
            *(
                f"UPDATE consumerkit_partition_progress SET mark = {one['mark']} WHERE partition = {one['partition']}"
                for one in before
            ),
        ]
        stage.execute("; ".join(undo))
        assert stage.count_effects() == 200, "nothing was lost"
        _send(stage, 300, 100)
        await _applied(run, stage, 400)
        assert run.seen(CommitsLost)
    assert _ids(stage) == _once(400)


async def test_what_had_no_mark_yet_is_run_again_when_its_commits_are_lost(stage: KafkaStage) -> None:
    async with stage.run(Apply(stage)) as run:
        _send(stage, 0, 200)
        await _applied(run, stage, 200)
        lanes = stage.rows("SELECT encode(lane, 'hex') AS lane, sequence FROM consumerkit_lane_progress")
        with psycopg.connect(stage.postgres.dsn(stage.database)) as connection:
            # Marks wait for this, while the lanes go on.
            connection.execute("SELECT FROM consumerkit_partition_progress FOR UPDATE")
            _send(stage, 200, 100)
            await run.until(lambda: stage.count_effects() == 300, "effects without a mark")
            connection.execute("DELETE FROM effects WHERE sequence > 200")
            connection.execute(
                "DELETE FROM consumerkit_processed_messages WHERE message_id NOT IN (SELECT message_id FROM effects)"
            )
            connection.execute("DELETE FROM consumerkit_lane_progress")
            for one in lanes:
                connection.execute(
                    "INSERT INTO consumerkit_lane_progress (consumer, lane, sequence) "
                    "VALUES (1, decode(%s, 'hex'), %s)",
                    [one["lane"], one["sequence"]],
                )
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert stage.count_effects() == 200, "nothing was lost"
        _send(stage, 300, 100)
        await _applied(run, stage, 400)
        assert run.seen(CommitsLost)
    assert _ids(stage) == _once(400)


@pytest.mark.parametrize("transport", get_args(Client))
async def test_a_mark_that_is_lost_is_found_by_what_kafka_keeps(stage: KafkaStage, transport: Client) -> None:
    _send(stage, 0, 100)
    async with stage.run(Apply(stage), transport=transport) as run:
        await _applied(run, stage, 100)
    stage.execute(
        "DELETE FROM consumerkit_partition_progress",
        "DELETE FROM consumerkit_processed_messages",
        "TRUNCATE effects",
    )
    async with stage.run(Apply(stage), transport=transport) as run:
        await run.until(lambda: stage.count_effects() >= 100, "all again")
        assert {one.lost for one in run.seen(PositionDiffers)} == {True}
    assert _ids(stage) == _once(100)


@pytest.mark.parametrize("transport", get_args(Client))
async def test_messages_deleted_below_the_mark_stop_their_partition_until_a_person_skips(
    stage: KafkaStage, transport: Client
) -> None:
    _send(stage, 0, 20)
    async with stage.run(Apply(stage), transport=transport) as run:
        await _applied(run, stage, 20)
    _send(stage, 20, 40)
    stage.kafka.delete_records(stage.topic, 0, 15)
    async with stage.run(Apply(stage), transport=transport) as run:
        await run.until(lambda: stage.count_effects() >= 40, "the other partition")
        await run.until(lambda: any("its mark" in one.error for one in run.seen(PartitionStopped)), "the stop")
        [stopped] = {one.error for one in run.seen(PartitionStopped) if "its mark" in one.error}
        assert "deleted unread" in stopped
        skip = f"consumerkit skip {stage.topic} --topic {stage.topic} --partition 0 --to start"
        assert stopped.endswith(skip)
        await asyncio.sleep(1)
        assert stage.count_effects() == 40
        place = _place(run)
        [moved] = await positions.skip(place, stage.topic, stage.topic, "start", partitions=[0], actor="ann")
        assert (moved.before, moved.after) == (10, 15)
        await run.until(lambda: stage.count_effects() >= 55, "the rest")
    expected = _once(60) - Counter({f"p-{n}": 1 for n in range(20, 30, 2)})
    assert _ids(stage) == expected
    [action] = stage.rows("SELECT actor, action, details FROM consumerkit_operator_actions")
    assert (action["actor"], action["action"]) == ("ann", "skip")


async def test_a_topic_made_anew_under_a_worker_stops_until_a_person_says_so(
    stage: KafkaStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka goes on in the new log, where the old one ended: what lies before would be lost without a word.

    aiokafka has the partitions assigned again as soon as it finds the topic missing, which the other tests cover.
    """
    monkeypatch.setattr(topic_watch, "ASKED_EVERY", 1.0)

    def made_anew() -> None:
        admin = AdminClient({"bootstrap.servers": stage.kafka.bootstrap, "log_level": 0})
        for deleted in admin.delete_topics([stage.topic]).values():
            deleted.result(timeout=120)
        stage.kafka.create_topic(stage.topic, stage.partitions)
        _send(stage, 20, 40)

    _send(stage, 0, 20)
    async with stage.run(Apply(stage)) as run:
        await _applied(run, stage, 20)
        await asyncio.to_thread(made_anew)
        await run.until(lambda: len({one.partition for one in run.seen(PartitionStopped)}) == 2, "the stops")
        assert all("recreated" in one.error for one in run.seen(PartitionStopped))
        await positions.skip(_place(run), stage.topic, stage.topic, "start")
        await run.until(lambda: stage.count_effects() >= 60, "all of the new topic")
    assert _ids(stage) == _once(60)


def _place(run: Run) -> positions.PositionStore:
    worker = run.worker
    return positions.PositionStore(
        database=worker.database, dialect=worker.dialect, tables=worker.tables, transport=worker.transport
    )


# On the broker in memory, with each database.


@pytest.fixture
async def place(each_url: str) -> AsyncIterator[MemoryStage]:
    async with opened(each_url, partitions=1) as made:
        yield made


async def _execute(place: MemoryStage, statement: str) -> Any:
    def work(session: Any) -> Any:
        result = session.execute(text(statement))
        return result.all() if result.returns_rows else None

    return await place.database.run(work)


async def _mark(place: MemoryStage) -> int:
    [row] = await _execute(place, "SELECT mark FROM consumerkit_partition_progress")
    return int(row.mark)


def _place_of(place: MemoryStage) -> positions.PositionStore:
    worker = place.make(Write())
    return positions.PositionStore(
        database=place.database, dialect=worker.dialect, tables=worker.tables, transport=worker.transport
    )


@asynccontextmanager
async def _ran(place: MemoryStage, count: int, handler: Write | None = None) -> AsyncIterator[Run]:
    """A worker that has written so many lines, with all its offsets committed."""
    async with place.run(handler or Write()) as run:
        await place.until_written(run, count)
        await run.until(lambda: place.committed() == place.ends(), "all offsets")
        yield run


async def _ids_of(place: MemoryStage) -> list[int]:
    return [int(one.message_id) for one in await place.lines()]


@pytest.mark.parametrize("offset", [3, 8])
@pytest.mark.parametrize("note", ["", "consumerkit write start=0"])
async def test_kafkas_offset_is_only_the_marks_shadow(place: MemoryStage, offset: int, note: str) -> None:
    for number in range(10):
        place.append(number)
    async with _ran(place, 10):
        pass
    group = place.broker.group("write")
    group.offsets[AT], group.notes[AT] = offset, note
    handler = Write()
    place.append(10)
    async with _ran(place, 11, handler) as run:
        told = [(one.lost, one.remark) for one in run.seen(PositionDiffers)]
        duplicates = sum(group.duplicates for group in run.seen(GroupCommitted))
    assert handler.seen == ["10"]
    assert duplicates == 0
    # Our own offset below the mark is what a death between the two leaves; another's was moved by a person.
    assert [lost for lost, _ in told] == ([] if note else [False])
    assert await _ids_of(place) == list(range(11))


async def test_a_new_handler_begins_where_its_group_stands(place: MemoryStage) -> None:
    for number in range(10):
        place.append(number)
    group = place.broker.group("taken-over")
    group.offsets[AT], group.notes[AT] = 6, "consumerkit another start=0"
    async with place.run(Write(group="taken-over")) as run:
        await place.until_written(run, 4)
        assert not run.seen(PositionDiffers)
    assert await _ids_of(place) == [6, 7, 8, 9]


async def test_a_topic_made_anew_stops_until_a_person_says_so(place: MemoryStage) -> None:
    for number in range(10):
        place.append(number)
    async with _ran(place, 10):
        pass
    del place.broker.logs.topics[TOPIC]
    place.broker.create_topic(TOPIC, 1)
    for number in range(100, 103):
        place.append(number)
    place.broker.group("write").offsets[AT] = 0
    handler = Write()
    async with place.run(handler) as run:
        await run.until(lambda: bool(run.seen(PartitionStopped)), "the stop")
        assert "recreated" in run.seen(PartitionStopped)[0].error
        await asyncio.sleep(0.3)
        assert handler.seen == []
        await positions.skip(_place(run), "write", TOPIC, "start")
        await place.until_written(run, 13)
        assert len(run.seen(PartitionStopped)) == 1
    assert await _ids_of(place) == [*range(10), 100, 101, 102]


async def test_partitions_that_a_topic_lacks_hold_nothing_and_can_be_dropped(place: MemoryStage) -> None:
    place.broker.add_partitions(TOPIC, 3)
    for number in range(6):
        place.append(number, partition=number % 3)
    async with _ran(place, 6):
        pass
    del place.broker.logs.topics[TOPIC]
    place.broker.create_topic(TOPIC, 1)
    place.broker.group("write").offsets.clear()
    place.broker.group("write").notes.clear()
    pruning = PruneStatements(DEFAULT_TABLES, dialect_for(place.database.dialect_name, DEFAULT_TABLES))
    async with place.run(Write()) as run:
        await run.until(lambda: bool(run.seen(PartitionStopped)), "the stop")
        # A dry run prints what would be done.
        for dry_run in (True, False):
            moved = await positions.skip(_place(run), "write", TOPIC, "start", dry_run=dry_run)
            assert [(one.partition.partition, one.gone) for one in moved] == [(0, False), (1, True), (2, True)]
            [plan] = await place.database.run(lambda session: pruning.plans(session, 0.0))
            # Only the one that the topic still has, and that stands.
            assert {holder.partition for holder in plan.holders} <= {AT}
        place.append(100)
        await place.until_written(run, 7)
        rows = await _execute(place, "SELECT partition FROM consumerkit_partition_progress")
        assert [row.partition for row in rows] == [0]
        with pytest.raises(ConfigurationError, match="no partition 2"):
            await positions.skip(_place(run), "write", TOPIC, "start", partitions=[2])


async def test_a_topic_made_anew_stops_its_partition_under_traffic(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        place.append(number)
    async with place.run(Write()) as run:
        await place.until_written(run, 10)
    del place.broker.logs.topics[TOPIC]
    place.broker.create_topic(TOPIC, 1)
    place.append(100)
    place.broker.group("write").offsets.clear()
    describe = MemoryConsumer.describe

    async def busy(self: MemoryConsumer, partitions: Any) -> Any:
        found = await describe(self, partitions)
        place.append(101)
        return found

    monkeypatch.setattr(MemoryConsumer, "describe", busy)
    async with place.run(Write()) as run:
        await run.until(lambda: bool(run.seen(PartitionStopped)), "the stop")
        await asyncio.sleep(6)
        assert len(run.seen(PartitionStopped)) == 1


async def test_a_truncated_log_stops_its_partition(place: MemoryStage) -> None:
    for number in range(10):
        place.append(number)
    async with _ran(place, 10):
        pass
    await _execute(place, "UPDATE consumerkit_partition_progress SET mark = 50")
    async with place.run(Write()) as run:
        await run.until(lambda: bool(run.seen(PartitionStopped)), "the stop")
        assert "truncated" in run.seen(PartitionStopped)[0].error


async def test_a_partition_that_could_not_be_read_goes_on_where_it_stood_when_a_person_says_so(
    place: MemoryStage,
) -> None:
    for number in range(10):
        place.append(number, partition=0)
    async with _ran(place, 10) as run:
        # A leader that lacks the last records, as in an unclean election; the one that has them comes back.
        place.broker.truncate(TOPIC, AT.partition, 5)
        await run.until(lambda: bool(run.seen(PartitionStopped)), "the stop")
        for number in range(5, 13):
            place.append(number, partition=0)
        [moved] = await positions.skip(_place(run), "write", TOPIC, 10, partitions=[0])
        assert (moved.before, moved.after) == (10, 10)
        await place.until_written(run, 13)
    assert await _ids_of(place) == list(range(13))


async def test_a_rewind_runs_nothing_again(place: MemoryStage) -> None:
    for number in range(10):
        place.append(number)
    handler = Write()
    async with _ran(place, 10, handler) as run:
        [moved] = await positions.rewind(_place(run), "write", TOPIC, 2, partitions=[0])
        assert (moved.before, moved.after) == (10, 2)
        seen = sum(group.duplicates for group in run.seen(GroupCommitted))
        await run.until(
            lambda: sum(group.duplicates for group in run.seen(GroupCommitted)) >= seen + 8, "all of them again"
        )
    assert len(handler.seen) == 10
    assert await _ids_of(place) == list(range(10))
    assert await _mark(place) == 10


@pytest.mark.parametrize("run_forgotten", [False, True])
async def test_what_the_ledger_has_forgotten_is_quarantined_unless_told_to_run(
    place: MemoryStage, run_forgotten: bool
) -> None:
    for number in range(10):
        place.append(number)
    async with _ran(place, 10):
        pass
    await _execute(place, "DELETE FROM consumerkit_processed_messages WHERE message_id IN ('0', '1', '2', '3', '4')")
    await _execute(place, "UPDATE consumerkit_partition_progress SET forgotten_below = 10")
    await positions.rewind(_place_of(place), "write", TOPIC, "start", run_forgotten=run_forgotten)
    place.append(10)
    async with _ran(place, 16 if run_forgotten else 11):
        pass
    dead = await _execute(place, "SELECT message_id, reason FROM consumerkit_dead_letters ORDER BY id")
    if run_forgotten:
        assert dead == []
        assert Counter(await _ids_of(place)) == Counter([*range(11), *range(5)])
    else:
        assert [tuple(one) for one in dead] == [(str(n), "stale") for n in range(5)]
        assert await _ids_of(place) == list(range(11))
        # Without a claim: a stale letter must not keep its ID from anything.
        [row] = await _execute(place, "SELECT count(*) AS n FROM consumerkit_processed_messages")
        assert row.n == 6


@pytest.mark.parametrize(
    "way, to, moved_to, ends_at",
    [
        # The worker went on: a skip must not go back over what it processed.
        ("skip", 12, 15, 15),
        ("skip", 18, 15, 18),
        # Another person went back further: a rewind must not pass over what that one is to bring back.
        ("rewind", 5, 2, 2),
        ("rewind", 5, 8, 5),
    ],
)
async def test_a_mark_that_moves_while_a_command_waits_for_the_fence_is_looked_at_again(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch, way: str, to: int, moved_to: int, ends_at: int
) -> None:
    for number in range(10):
        place.append(number)
    async with _ran(place, 10):
        pass
    for number in range(10, 20):
        place.append(number)
    moving, take_over = _place_of(place), type(_place_of(place).dialect).take_over
    waited: list[int] = []

    def moved_before(dialect: Any, connection: Any, number: int, *, wait: float) -> bool:
        held = take_over(dialect, connection, number, wait=wait)
        connection.execute(text("UPDATE consumerkit_partition_progress SET mark = :mark"), {"mark": moved_to})
        waited.append(number)
        return held

    monkeypatch.setattr(type(moving.dialect), "take_over", moved_before)
    move = positions.rewind if way == "rewind" else positions.skip
    [done] = await move(moving, "write", TOPIC, to, partitions=[0])
    assert len(waited) == 1
    assert (done.before, done.after, await _mark(place)) == (moved_to, ends_at, ends_at)
    [told] = await _execute(place, "SELECT details FROM consumerkit_operator_actions ORDER BY id DESC LIMIT 1")
    assert f'"to": {ends_at}' in json.dumps(
        told.details if isinstance(told.details, dict) else json.loads(told.details)
    )


async def test_an_empty_list_of_partitions_moves_none(place: MemoryStage) -> None:
    place.append(0)
    async with _ran(place, 1):
        pass
    for move in (positions.rewind, positions.skip):
        assert await move(_place_of(place), "write", TOPIC, "start", partitions=[]) == []
    assert await _mark(place) == 1


@pytest.mark.parametrize(
    "to, partitions, way, words",
    [
        (12, [0], "rewind", "the log has 0 to 10"),
        (3, [0], "skip", "to go back to 3, use rewind"),
        (3, [4], "rewind", "has no partition 4"),
    ],
)
async def test_an_impossible_move_is_refused_in_one_line(
    place: MemoryStage, to: positions.To, partitions: list[int], way: str, words: str
) -> None:
    for number in range(10):
        place.append(number)
    async with _ran(place, 10) as run:
        move = positions.rewind if way == "rewind" else positions.skip
        with pytest.raises(ConfigurationError, match=words):
            await move(_place(run), "write", TOPIC, to, partitions=partitions)
        with pytest.raises(StartError, match="no handler 'unknown'"):
            await move(_place(run), "unknown", TOPIC, "start")
        with pytest.raises(ConfigurationError, match="does not consume topic 'other'"):
            await move(_place(run), "write", "other", "start")
        assert await _mark(place) == 10


async def test_what_was_processed_long_ago_is_settled_once_the_mark_has_passed_it(place: MemoryStage) -> None:
    """Only then may it be forgotten; an idle owner goes on settling."""
    for number in range(10):
        place.append(number)
    async with _ran(place, 10) as run:

        async def settled() -> Any:
            [row] = await _execute(place, "SELECT settled_at, window_at FROM consumerkit_partition_progress")
            return row.settled_at

        loop = asyncio.get_running_loop()
        end = loop.time() + 20
        while (first := await settled()) is None:
            assert loop.time() < end
            await asyncio.sleep(0.2)
        while await settled() == first:
            assert loop.time() < end, "an idle owner settles nothing more"
            await asyncio.sleep(0.2)
        assert run.seen(PartitionTaken)


async def test_a_message_that_is_stuck_keeps_what_came_after_it_from_being_settled(
    postgres: PostgresServer, database: str
) -> None:
    place = MemoryStage(postgres.url(database), partitions=1)
    await place.create_tables()
    gate = asyncio.Event()

    async def wait(context: Context) -> None:
        if context.message_id == "0":
            await gate.wait()

    for number in range(40):
        place.append(number, key=b"key-%d" % number)
    async with place.run(Write(wait, concurrency=4, batch_size=1)) as run:
        await place.until_written(run, 10)
        await asyncio.sleep(6)  # longer than an idle owner waits for its check
        [row] = await _execute(place, "SELECT mark, settled_at FROM consumerkit_partition_progress")
        assert (row.mark, row.settled_at) == (0, None)
        gate.set()
        await place.until_written(run, 40)
    await place.close()


async def test_a_lane_takes_a_new_row_after_some_hundred_transactions(
    place: MemoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_progress, "LANE_LENGTH", 4)
    for number in range(30):
        place.append(number, partition=0)
    async with _ran(place, 30, Write(batch_size=1, concurrency=1)) as run:
        for number in range(30, 34):
            place.append(number, partition=0)
            await place.until_written(run, number + 1)
            await run.until(lambda: place.committed() == place.ends(), "its offset")
        lanes = [row.sequence for row in await _execute(place, "SELECT sequence FROM consumerkit_lane_progress")]
        # The rows of those that are full are taken out, once their successors' are known to be there.
        assert len(lanes) <= 3
        assert max(lanes) <= 4
        # What the database has lost is noticed all the same.
        await _execute(place, "DELETE FROM consumerkit_lane_progress")
        place.append(34, partition=0)
        place.append(35, partition=0)
        await run.until(lambda: bool(run.seen(CommitsLost)), "that commits were lost")
        await place.until_written(run, 36)
    assert await _ids_of(place) == list(range(36))
