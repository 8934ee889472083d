"""Steps and undos that take longer than their deadlines or leases, and outcomes that come late."""

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from consumerkit import AlreadyDone, Effects, IdempotencyKey, PlainEffects, Retry, fixed, step
from consumerkit.engine import undoing
from consumerkit.events import AttemptFailed, GroupCommitted, PartitionTaken, StepDoubted, StepUndone
from consumerkit.storage.undoing import UndoRows
from tests.integration.memory_stage import MemoryStage
from tests.integration.stage import until_seen
from tests.integration.step_stage import (
    LETTERS,
    STEPS,
    Asking,
    Charging,
    PlainCharging,
    PlainRefunding,
    Provider,
    Refunding,
    provider,
    rejects,
    rows,
    stage,
    until,
    until_done,
)

__all__ = ["provider", "stage"]

LEASE = 1.0


class SlowRefunding(Refunding):
    """Its refund takes three leases."""

    @step
    async def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)

    @charge.undo
    async def refund(self, key: IdempotencyKey, done: str, value: bytes) -> None:
        self.provider.charge(key, b"began-refund-" + value)
        await asyncio.sleep(3 * LEASE)
        self.provider.charge(key, b"refunded-" + value)


class PlainSlowRefunding(PlainRefunding):
    """The same in threads."""

    @step
    def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)

    @charge.undo
    def refund(self, key: IdempotencyKey, done: str, value: bytes) -> None:
        self.provider.charge(key, b"began-refund-" + value)
        time.sleep(3 * LEASE)
        self.provider.charge(key, b"refunded-" + value)


@pytest.mark.calm
@pytest.mark.parametrize("kind", [SlowRefunding, PlainSlowRefunding])
async def test_an_undo_that_takes_longer_than_its_lease_is_called_once(
    stage: MemoryStage, provider: Provider, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker extends its lease during the call; another worker looks for undos all the time."""
    monkeypatch.setattr(undoing, "HELD", LEASE)
    monkeypatch.setattr(undoing, "LONGEST_SLEEP", 0.1)
    stage.append(0, value=b"v0", partition=0)
    handlers = [kind(provider, in_handle=rejects) for _ in range(2)]
    async with stage.run(handlers[0]) as one, stage.run(handlers[1]) as other:
        await until(stage, one, STEPS, lambda found: {row.state for row in found} == {"undone"})
        told = await until_seen(StepUndone, 2, one, other)
    assert [event.step for event in told] == ["charge", "reserve"]
    assert provider.charges() == ["reserved-v0", "v0", "began-refund-v0", "refunded-v0", "released-v0"]


@pytest.mark.calm
async def test_a_worker_that_lost_its_lease_does_not_settle_an_undo(
    stage: MemoryStage, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot reach the database while its undo runs. Another one calls again with the same key."""
    monkeypatch.setattr(undoing, "HELD", LEASE)
    monkeypatch.setattr(undoing, "LONGEST_SLEEP", 0.1)
    real, first, calls = UndoRows.hold, list[bytes](), list[str]()
    may_end = asyncio.Event()

    def hold(self: UndoRows, connection: Any, digest: bytes, owner: bytes, seconds: float, **given: Any) -> bool:
        if calls and owner == first[0]:
            raise OperationalError("extending", {}, OSError("gone"))
        first.append(owner)
        return real(self, connection, digest, owner, seconds, **given)

    monkeypatch.setattr(UndoRows, "hold", hold)

    class Late(Refunding):
        @step
        async def charge(self, key: IdempotencyKey, value: bytes) -> str:
            return self.provider.charge(key, value)

        @charge.undo(retry=Retry(attempts=1))
        async def refund(self, key: IdempotencyKey, done: str, value: bytes) -> None:
            calls.append(key)
            if len(calls) == 1:
                await may_end.wait()
                raise RuntimeError("the late outcome, which would be a dead letter")
            may_end.set()
            await asyncio.sleep(1)
            self.provider.charge(key, b"refunded-" + value)

    stage.append(0, value=b"v0", partition=0)
    handlers = [Late(provider, in_handle=rejects) for _ in range(2)]
    async with stage.run(handlers[0]) as one, stage.run(handlers[1]) as other:
        await until(stage, one, STEPS, lambda found: {row.state for row in found} == {"undone"})
        told = await until_seen(StepUndone, 2, one, other)
    assert len(await rows(stage, LETTERS)) == 1
    assert len(calls) == 2
    assert len(set(calls)) == 1
    assert [event.step for event in told] == ["charge", "reserve"]
    assert provider.charges() == ["reserved-v0", "v0", "refunded-v0", "released-v0"]


class Alive(Charging):
    """Takes two deadlines, and says that it is alive."""

    @step(deadline=2)
    async def charge(self, key: IdempotencyKey, value: bytes, effects: Effects) -> str:  # type: ignore[override]
        for _ in range(20):
            await asyncio.sleep(0.2)
            await effects.alive()
        return self.provider.charge(key, value)

    async def prepare(self, event: bytes, effects: Effects) -> None:
        await effects.run(self.charge, event, effects)


class PlainAlive(PlainCharging):
    """The same in threads."""

    @step(deadline=2)
    def charge(self, key: IdempotencyKey, value: bytes, effects: PlainEffects) -> str:  # type: ignore[override]
        for _ in range(20):
            time.sleep(0.2)
            effects.alive()
        return self.provider.charge(key, value)

    def prepare(self, event: bytes, effects: PlainEffects) -> None:
        effects.run(self.charge, event, effects)


@pytest.mark.calm
@pytest.mark.parametrize("kind", [Alive, PlainAlive])
async def test_a_step_that_says_it_is_alive_may_take_longer_than_its_deadline(
    stage: MemoryStage, provider: Provider, kind: Any
) -> None:
    """A copy of the message, which another worker has, waits for it and never calls."""
    for partition in range(2):
        stage.append(0, key=None, value=b"v0", partition=partition)
    async with stage.run(kind(provider)) as one, stage.run(kind(provider)) as other:
        await stage.until_written(one, 1)
        runs = (one, other)
        assert not [event for run in runs for event in (*run.seen(StepDoubted), *run.seen(AttemptFailed))]
    assert provider.count("v0") == 1
    assert [(row.state, row.calls) for row in await rows(stage)] == [("done", 1)]


@pytest.mark.calm
async def test_a_zombies_result_is_not_written_over_the_newer_owners(stage: MemoryStage, provider: Provider) -> None:
    """Two workers have a copy each. The first one's call outlasts its deadline, and answers after the second one's."""
    may_end, keys = threading.Event(), list[str]()

    class Zombie(PlainCharging):
        @step(deadline=0.5)
        def charge(self, key: IdempotencyKey, value: bytes) -> str:
            keys.append(key)
            number = len(keys)
            if number == 1:
                may_end.wait(60)
            return f"answer {number}"

    for partition in range(2):
        stage.append(0, key=None, value=b"v0", partition=partition)
    try:
        async with stage.run(Zombie(provider)) as one, stage.run(Zombie(provider)) as other:
            [line] = await stage.until_written(one, 1)
            assert line.message_id == "answer 2"
            may_end.set()
            runs = (one, other)
            await one.until(
                lambda: sum(event.duplicates for run in runs for event in run.seen(GroupCommitted)) == 1,
                "the first worker's copy is skipped",
            )
            assert [event.then for run in runs for event in run.seen(StepDoubted)] == ["called again"]
            assert not [event for run in runs for event in run.seen(AttemptFailed)]
    finally:
        may_end.set()
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert [(row.state, row.result, row.calls) for row in await rows(stage)] == [("done", '"answer 2"', 2)]
    assert len(await stage.lines()) == 1


async def test_a_plain_step_that_outlasts_its_deadline_keeps_its_result(stage: MemoryStage, provider: Provider) -> None:
    """A thread cannot be cancelled. If no other worker has taken the step over, its result counts."""

    class Slow(PlainCharging):
        @step(deadline=0.05)
        def charge(self, key: IdempotencyKey, value: bytes) -> str:
            time.sleep(0.5)
            return self.provider.charge(key, value)

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(Slow(provider)) as run:
        await until_done(stage, run, 1)
        assert not run.seen(AttemptFailed)
    assert provider.count("v0") == 1
    assert [(row.state, row.calls) for row in await rows(stage)] == [("done", 1)]


class KeyedProvider:
    """Does the work once for each key, and answers a repetition with the first answer."""

    def __init__(self) -> None:
        self.arrived: list[str] = []
        self.charged: list[str] = []

    def charge(self, key: str) -> str:
        self.arrived.append(key)
        if key not in self.charged:
            self.charged.append(key)
        return f"charge {self.charged.index(key) + 1}"


async def test_a_charge_that_arrives_after_confirm_said_no_has_the_same_key(
    stage: MemoryStage, provider: Provider
) -> None:
    """consumerkit cannot see the late charge: it calls again, and the key lets the provider do the work once."""
    keyed, late = KeyedProvider(), asyncio.Event()
    on_its_way: list[asyncio.Task[None]] = []

    async def arrives_late(key: str) -> None:
        await late.wait()
        keyed.charge(key)

    class Confirming(Asking):
        retry = Retry(attempts=3, wait=fixed(0.05))

        @step(deadline=0.2)
        async def charge(self, key: IdempotencyKey, value: bytes) -> str:
            if not on_its_way:
                on_its_way.append(asyncio.create_task(arrives_late(key)))
                await asyncio.Event().wait()  # the request is sent, and its answer never comes
            return keyed.charge(key)

        @charge.confirm
        async def find_charge(self, key: IdempotencyKey, value: bytes) -> AlreadyDone | None:
            self.provider.asked.append(key)
            return AlreadyDone("found") if key in keyed.charged else None

    stage.append(0, value=b"v0", partition=0)
    async with stage.run(Confirming(provider)) as run:
        [line] = await stage.until_written(run, 1)
        late.set()
        with suppress(asyncio.CancelledError):
            await on_its_way[0]
    assert len(provider.asked) == 1
    assert len(keyed.arrived) == 2
    assert len(keyed.charged) == 1
    assert line.message_id == "charge 1"


class Long(Charging):
    """A redelivered message waits for its deadline at most."""

    @step(deadline=6)
    async def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return await asyncio.to_thread(self.provider.charge, key, value)


class PlainLong(PlainCharging):
    """The same in threads."""

    @step(deadline=6)
    def charge(self, key: IdempotencyKey, value: bytes) -> str:
        return self.provider.charge(key, value)


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("kind", [Long, PlainLong])
async def test_a_step_whose_partition_is_lost_during_the_call_and_comes_back_is_called_once(
    stage: MemoryStage, provider: Provider, kind: Any, concurrency: int
) -> None:
    """Its outcome cannot be written at first. Whichever lane gets the message then writes it."""
    called, back = threading.Event(), threading.Event()

    def waits(_value: str) -> None:
        called.set()
        assert back.wait(60)

    provider.after = waits
    stage.append(0, value=b"v0", partition=0)
    async with stage.run(kind(provider, concurrency=concurrency), drain_timeout=0.1) as run:
        assert await asyncio.to_thread(called.wait, 60)
        taken = len(run.seen(PartitionTaken))
        async with stage.broker.cut_off("charge"):
            pass
        await run.until(lambda: len(run.seen(PartitionTaken)) >= 2 * taken, "the partitions are back")
        back.set()
        await until_done(stage, run, 1)
        assert not run.seen(StepDoubted)
    assert provider.charges() == ["v0"]
