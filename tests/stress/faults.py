"""The faults: each waits until it can take effect, counts that it did, and has ended when it returns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError

from consumerkit.errors import ConsumerkitError
from consumerkit.message import TopicPartition
from consumerkit.operations import positions
from consumerkit.storage.database import Database
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.tables import DEFAULT_TABLES
from consumerkit.transports.memory import Memory
from tests.stress.handlers import NAME, TOPIC
from tests.stress.plan import Step

if TYPE_CHECKING:
    from tests.stress.crew import Mate
    from tests.stress.run import Run


async def terminate(run: Run, step: Step) -> None:
    """End every connection."""
    run.journal.fired[step.what] += await asyncio.to_thread(run.store.terminate, busy=False)
    run.sampler.stir()


async def terminate_busy(run: Run, step: Step) -> None:
    """End the connections with changes that are not committed."""
    while not (ended := await asyncio.to_thread(run.store.terminate, busy=True)):
        run.watch("an open transaction")
        if run.sampler.quiet:
            run.feed(run.partitions)
        await asyncio.sleep(0.01)
    run.journal.fired[step.what] += ended
    run.sampler.stir()


async def restart(run: Run, step: Step) -> None:
    """Stop a worker in an orderly way, and start another."""
    await run.crew.stop(step.number)
    run.crew.start(step.number)
    run.journal.fired[step.what] += 1


async def cancel(run: Run, step: Step) -> None:
    """Cancel a worker, and start another."""
    await run.crew.cancel(step.number)
    run.crew.start(step.number)
    run.journal.fired[step.what] += 1


async def zombie_in_its_transaction(run: Run, step: Step) -> None:
    """Pause a worker within a transaction until others have its partitions; then it goes on."""
    mate = await _owner(run, step)
    run.journal.still.add(mate.name)
    before = run.journal.standing[mate.name]
    run.feed(run.partitions)
    stands = await run.until(lambda: run.journal.standing[mate.name] > before, "a transaction", or_quiet=True)
    if not stands:  # it has no partition
        run.journal.still.discard(mate.name)
        return
    had = mate.partitions()
    async with run.crew.cut_off(mate):
        others = [one for one in run.crew.mates if one is not mate]
        await run.until(lambda: all(had <= one.partitions() for one in others), "the others' assignment")
        run.journal.fired[step.what] += 1
        run.journal.still.discard(mate.name)
        gate = run.crew.gates[mate.name]
        await run.until(lambda: not gate.inside, "the end of its transaction")


async def zombie_between_two(run: Run, step: Step) -> None:
    """Pause a worker before a transaction until others have taken its partitions over; then it goes on."""
    mate = await _owner(run, step)
    gate = run.crew.gates[mate.name]
    gate.closed = True
    run.feed(run.partitions)
    stands = await run.until(lambda: gate.waiting > 0 and not gate.inside, "a transaction to begin", or_quiet=True)
    if not stands:  # it has no partition
        gate.closed = False
        return
    had, now = mate.partitions(), run.journal.moment()
    async with run.crew.cut_off(mate):
        others = [one.name for one in run.crew.mates if one is not mate]

        def taken() -> bool:
            found = {at for name in others for moment, at in run.journal.taken[name] if moment > now}
            return had <= found

        await run.until(taken, "the others' taking over")
        # The others reach the messages that the paused worker has fetched.
        await run.called_more(10)
        gate.late = True
        run.journal.fired[step.what] += gate.waiting > 0
        gate.closed = False
        await run.until(lambda: not gate.inside and not gate.waiting, "the end of its transactions", or_quiet=True)
        gate.late = False


async def expire(run: Run, step: Step) -> None:
    """End all sessions with the group."""
    await run.broker.expire(NAME)
    run.journal.fired[step.what] += 1


async def rebalance(run: Run, step: Step) -> None:
    """Assign all partitions again."""
    await run.broker.rebalance(NAME)
    run.journal.fired[step.what] += 1


async def outage(run: Run, step: Step) -> None:
    """Let the broker answer nothing for some samples."""
    with run.broker.outage():
        await _some_samples(run)
    run.journal.fired[step.what] += 1
    run.sampler.stir()


async def leaderless(run: Run, step: Step) -> None:
    """Let a partition have no leader for some samples."""
    with run.broker.leaderless(TOPIC, step.number):
        await _some_samples(run)
    run.journal.fired[step.what] += 1
    run.sampler.stir()


async def add_partitions(run: Run, step: Step) -> None:
    """Add a partition, send messages to it at once, and let the group notice later."""
    number = len(run.broker.logs.topics[TOPIC].partitions)
    run.broker.add_partitions(TOPIC, number + 1)
    run.feed([number], count=8)
    await run.broker.rebalance(NAME)
    run.journal.fired[step.what] += 1


async def control_records(run: Run, step: Step) -> None:
    """Write a transaction marker, which takes an offset."""
    run.broker.append_control_records(TOPIC, step.number, 1 + step.after % 3)
    run.journal.fired[step.what] += 1
    run.sampler.stir()


async def retention(run: Run, step: Step) -> None:
    """Delete the log below a partition's committed offset, as soon as a partition has one."""
    await run.until(lambda: bool(_committed(run)), "an offset that is committed", or_quiet=True)
    if found := _committed(run):
        number, below = found[step.number % len(found)]
        run.broker.delete_before(TOPIC, number, below)
        run.journal.fired[step.what] += 1


def _committed(run: Run) -> list[tuple[int, int]]:
    """Return the partitions whose log may be deleted at the start, and up to which offset."""
    found = []
    for number in run.partitions:
        at = TopicPartition(TOPIC, number)
        below = min(run.last.marks.get(number, 0), run.broker.committed(NAME).get(at, 0))
        if below > run.broker.logs.partition(at).start:
            found.append((number, below))
    return found


async def redrive(run: Run, step: Step) -> None:
    """Redrive every dead letter, also those that will die again."""
    if not any(one.state == "dead" for one in run.last.dead):
        run.feed(run.partitions, count=1, kind="reject")
    await run.until(lambda: any(one.state == "dead" for one in run.last.dead), "a dead letter")
    await run.redrive()


async def rewind(run: Run, step: Step) -> None:
    """Rewind a partition to some offset in its log."""
    await run.until(lambda: bool(_behind(run)), "a mark", or_quiet=True)
    found = _behind(run)
    if not found:
        return
    at = TopicPartition(TOPIC, found[step.number % len(found)])
    mark, start = run.last.marks[at.partition], run.broker.logs.partition(at).start
    database = Database(run.store.url, connections=1)
    place = positions.PositionStore(
        database=database,
        dialect=dialect_for(database.dialect_name, DEFAULT_TABLES),
        tables=DEFAULT_TABLES,
        transport=Memory(run.broker),
    )
    try:
        await positions.rewind(place, NAME, TOPIC, start + step.after % (mark - start), partitions=[at.partition])
        run.journal.fired[step.what] += 1
    except ConsumerkitError:
        pass  # the mark has moved, or its worker held on: then nothing was moved
    finally:
        await database.dispose()
        run.sampler.stir()


def _behind(run: Run) -> list[int]:
    """Return the partitions with messages that were read and are still in the log."""
    logs = run.broker.logs.topics[TOPIC].partitions
    return [number for number in run.partitions if run.last.marks.get(number, 0) > logs[number].start]


async def prune(run: Run, step: Step) -> None:
    """Let the ledger forget what was processed; its event shows that it did."""

    async def turned() -> None:
        for mate in run.crew.mates:
            if mate.worker._parts.retention is not None:
                with suppress(DBAPIError):  # a connection that was ended before; the worker's own turn meets the same
                    await mate.worker._parts.retention.turn()

    before = run.journal.fired[step.what]
    while run.journal.fired[step.what] == before and not run.sampler.quiet:
        run.watch("something to forget")
        await turned()
        await asyncio.sleep(0.05)
    await turned()


async def backup(run: Run, step: Step) -> None:
    """Back the database up, once a worker has begun: an older backup would have no handler."""
    await run.until(lambda: bool(run.journal.taken), "a worker that has taken a partition")
    with run.sampler.upheaval():
        await asyncio.to_thread(run.store.backup)
    run.journal.fired[step.what] += 1


async def restore(run: Run, step: Step) -> None:
    """Restore the backup: commits are lost."""
    before = len(run.last.effects)
    with run.sampler.upheaval():
        await asyncio.to_thread(run.store.restore)
        after = await asyncio.to_thread(run.store.snapshot)
    run.journal.fired[step.what] += before > len(after.effects)


async def _owner(run: Run, step: Step) -> Mate:
    """Return a worker that has partitions: the one that the step names, if it has some."""
    await run.until(lambda: any(mate.partitions() for mate in run.crew.mates), "an owner")
    owners = [mate for mate in run.crew.mates if mate.partitions()]
    meant = run.crew.mates[step.number]
    return meant if meant in owners else owners[0]


async def _some_samples(run: Run) -> None:
    goal = run.sampler.samples + 4
    await run.until(lambda: run.sampler.samples >= goal, "some samples")


FAULTS: Final[dict[str, Callable[[Run, Step], Awaitable[None]]]] = {
    "terminate": terminate,
    "terminate busy": terminate_busy,
    "restart": restart,
    "cancel": cancel,
    "zombie in its transaction": zombie_in_its_transaction,
    "zombie between two": zombie_between_two,
    "expire": expire,
    "rebalance": rebalance,
    "outage": outage,
    "leaderless": leaderless,
    "add partitions": add_partitions,
    "control records": control_records,
    "retention": retention,
    "redrive": redrive,
    "rewind": rewind,
    "prune": prune,
    "backup": backup,
    "restore": restore,
}
