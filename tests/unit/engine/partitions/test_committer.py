"""The broker's position: corrected after a late answer of an earlier assignment has moved it back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from consumerkit import Context, Handler, Worker, header
from consumerkit.engine.partitions import committer, rebalances
from consumerkit.errors import Rebalancing, Unavailable
from consumerkit.events import Announcer, Event, Trouble, TroubleOver
from consumerkit.message import TopicPartition
from consumerkit.storage import schema
from consumerkit.transports.base import Position
from consumerkit.transports.memory import Memory, MemoryBroker

PLACE = TopicPartition("payments", 0)


class Take(Handler[bytes]):
    name = "take"
    topic = "payments"
    message_id = header("message-id")

    async def handle(self, event: bytes, context: Context) -> None:
        pass


async def until_committed(broker: MemoryBroker, offset: int) -> None:
    for _ in range(6000):
        if broker.committed("take").get(PLACE) == offset:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not {offset} but {broker.committed('take')}")


async def test_an_offset_that_went_back_behind_an_idle_worker_comes_right_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "REPEATED_EVERY", 0.5)
    monkeypatch.setattr(committer, "CHECKED_EVERY", 0.1)
    broker = MemoryBroker(topics={"payments": 1})
    for number in range(3):
        broker.append("payments", b"", headers=(("message-id", str(number).encode()),))
    worker = Worker(database=f"sqlite:///{tmp_path}/shop.db", kafka=Memory(broker), handlers=[Take()])
    await worker.database.run(schema.apply)
    async with worker:
        await until_committed(broker, 3)
        broker.group("take").offsets[PLACE] = 1
        await until_committed(broker, 3)


async def test_a_cancellation_that_comes_with_a_wake_ends_it() -> None:
    class Nothing:
        def __init__(self) -> None:
            self.commit_due = asyncio.Event()

        def __iter__(self) -> Any:
            return iter(())

        def owned(self) -> list[Any]:
            return []

    nothing: Any = Nothing()
    keeper = committer.Committer(nothing, nothing, nothing, nothing)
    task = asyncio.create_task(keeper.run())
    await asyncio.sleep(0.05)
    nothing.commit_due.set()
    await asyncio.sleep(0)  # its wait is over, but it has not run yet
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=60)
    assert done


class Refusing:
    """A consumer whose group takes no commit while `error` is set."""

    def __init__(self) -> None:
        self.refusals = 0
        self.error: Exception | None = Rebalancing("as asked")

    async def commit(self, positions: Any) -> None:
        if self.error is not None:
            self.refusals += 1
            raise self.error


async def committed_after(error: Exception, monkeypatch: pytest.MonkeyPatch, limit: float) -> list[Event]:
    """What is announced until a commit has succeeded that was refused three times."""
    monkeypatch.setattr(committer, "INTERVAL", 0.001)
    monkeypatch.setattr(rebalances, "TROUBLE_AFTER", limit)
    consumer, told = Refusing(), list[Event]()
    consumer.error = error
    over = asyncio.Event()

    class One(committer.Committer):
        async def _mark(self) -> None:
            pass

        def _due(self) -> Any:
            return {PLACE: Position(1, 1)}

        async def _commit(self, positions: Any) -> None:
            if consumer.refusals == 3:
                consumer.error = None
            await consumer.commit(positions)
            over.set()

    due: Any = type("Due", (), {"commit_due": asyncio.Event()})()
    due.commit_due.set()
    anything: Any = consumer
    task = asyncio.create_task(One(anything, due, anything, Announcer([told.append])).run())
    await asyncio.wait_for(over.wait(), 60)
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return told


async def test_a_commit_that_a_rebalance_refuses_is_made_again_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await committed_after(Rebalancing("as asked"), monkeypatch, 60.0) == []


async def test_a_rebalance_that_does_not_end_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    told = await committed_after(Rebalancing("as asked"), monkeypatch, 0.0)
    assert [type(event) for event in told] == [Trouble] * 3 + [TroubleOver]


async def test_a_broker_that_does_not_answer_is_trouble_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = await committed_after(Unavailable("as asked"), monkeypatch, 60.0)
    assert [type(event) for event in told] == [Trouble] * 3 + [TroubleOver]


def test_the_time_allowed_for_a_rebalance_begins_again_after_it() -> None:
    now = [0.0]
    found = rebalances.Rebalances(lambda: now[0])
    assert found.explains(Rebalancing("1"))
    now[0] = rebalances.TROUBLE_AFTER - 1
    assert found.explains(Rebalancing("2"))
    now[0] += 1
    assert not found.explains(Rebalancing("3"))
    found.over()
    assert found.explains(Rebalancing("4"))
    assert not found.explains(Unavailable("5"))


async def test_the_broker_works_again_only_when_it_answers_even_if_the_partitions_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client gives its partitions up by itself when the broker is away for long: then nothing is to be committed."""
    monkeypatch.setattr(committer, "INTERVAL", 0.001)
    told, asked = list[Event](), list[str]()

    class Away:
        async def commit(self, positions: Any) -> None:
            raise Unavailable("the broker is away")

        async def survey(self, topic: str) -> None:
            assert not [one for one in told if isinstance(one, TroubleOver)]
            asked.append(topic)
            if len(asked) < 3:
                raise Unavailable("the broker is away")

    class Lost(committer.Committer):
        async def _mark(self) -> None:
            pass

        def _due(self) -> Any:
            return {} if told else {PLACE: Position(1, 1)}

    due: Any = type("Due", (), {"commit_due": asyncio.Event()})()
    due.commit_due.set()
    over = asyncio.Event()
    nothing: Any = None

    def announce(event: Event) -> None:
        told.append(event)
        if isinstance(event, TroubleOver):
            over.set()

    away: Any = Away()
    task = asyncio.create_task(Lost(away, due, nothing, Announcer((announce,))).run())
    async with asyncio.timeout(60):
        await over.wait()
    task.cancel()
    assert asked == [PLACE.topic] * 3
    assert [type(one) for one in told] == [Trouble] * 3 + [TroubleOver]
