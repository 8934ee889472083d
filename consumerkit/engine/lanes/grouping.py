"""Decides which of a lane's messages run, park or become dead letters, and which share a batch.

The order of these decisions is part of correctness.

A failed batch is rolled back whole. If one message is at fault, those before it run again as a batch, then it
runs alone, then the others run. If no message can be blamed, the batch runs once more with a flush after each
message. If that finds no message, or if none of the messages ran, the batch is halved until one message is
alone. Blame within a batch may be wrong: one message's query can flush another's bad row. So only a failure
alone counts as an attempt. Nothing waits inside a transaction.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from consumerkit.engine.lanes.attempts import Attempts
from consumerkit.engine.lanes.backoff import Interrupted
from consumerkit.engine.lanes.blame import LOCKED, OWN, blame
from consumerkit.engine.lanes.executor import Executor
from consumerkit.engine.lanes.partition_brakes import is_unreadable
from consumerkit.engine.lanes.plan import PlannedBatch, around, halves
from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.batch import Batch, Flush
from consumerkit.engine.transaction.claiming import StaleFound
from consumerkit.engine.transaction.delivery import Decided, GiveUp, Park
from consumerkit.engine.transaction.prepare import Preparer
from consumerkit.error_tree import deciding
from consumerkit.errors import Reject, Unavailable
from consumerkit.failpoints import reach
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.faults import Fault
from consumerkit.storage.origins import Origin, origin

_HANDLER = object()


class Grouping:
    """Decides how the messages of one lane are grouped.

    Args:
        executor: Runs the batches.
        preparer: Decodes messages.
        attempts: Runs a message by itself.
    """

    def __init__(self, executor: Executor, preparer: Preparer, attempts: Attempts) -> None:
        self._executor = executor
        self._preparer = preparer
        self._attempts = attempts
        # The next batches that a failure decided.
        self._plan: deque[PlannedBatch] = deque()
        # Whether messages of one batch were found to touch each other's changes.
        self._apart = False
        # The messages that the ledger does not know and whose events are too old for it.
        self._stale: set[Origin] = set()

    @property
    def executor(self) -> Executor:
        """What runs this lane's transactions."""
        return self._executor

    @property
    def busy_since(self) -> float | None:
        """When the transaction under way began, by the monotonic clock."""
        return self._executor.busy_since

    @property
    def batch_time(self) -> float:
        """Seconds of handling after which a turn is over."""
        return self._executor.declared.batch_time

    def size(self) -> int:
        """Return how many messages the next `run` may take."""
        if self._one_by_one:
            return 1
        # Never 0: a lane that takes nothing never waits, and would block the event loop.
        return max(1, self._plan[0].size) if self._plan else self._executor.batch_sizes.size()

    @property
    def _one_by_one(self) -> bool:
        return self._executor.gate.braking or self._executor.sharing.alone

    async def run(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Run at most `size()` messages in order; return those to run again before any later ones.

        Raises:
            Interrupted: The lane must give up. Messages that were not reported as finished are unfinished.
            HandlerHalted: The handler cannot run until a person acts.
        """
        if self._one_by_one:
            self._plan.clear()
        step = self._plan.popleft() if self._plan else PlannedBatch(len(messages))
        prepared = await self._prepared(messages)
        if not prepared:
            return ()
        decided, funded = self._park_behind(prepared)
        try:
            return await self._run(decided, funded, step)
        finally:
            self._executor.refund(one.message for one in decided)

    async def _run(self, decided: list[Decided], funded: int, step: PlannedBatch) -> Sequence[Message]:
        if len(decided) == 1:
            if await self._attempts.run(decided[0]) and step.after:
                self._executor.batch_sizes.crowded(step.after)
            return ()
        batch = self._executor.batch(decided, flush=self._flush(step))
        batch.funded = funded
        try:
            return (await self._executor.transact(batch)).left
        except Interrupted:
            raise
        except StaleFound as found:
            self._stale.update(found.places)
            return [one.message for one in decided]
        except Exception as error:  # noqa: BLE001 - every error becomes a decision
            misused = {id(item.message) for item in batch.misused}
            again = [one.message for one in decided if id(one.message) not in misused]
            if again:
                await self._failed(batch, error, step._replace(size=min(len(again), len(batch.items))))
            return again

    def _flush(self, step: PlannedBatch) -> Flush:
        return Flush.PROBE if step.careful else Flush.EACH if self._apart else Flush.AT_END

    async def _prepared(self, messages: Sequence[Message]) -> list[Decided]:
        made, skipped = [], []
        for message in messages:
            try:
                decided = self._preparer.prepare(message)
            except Unavailable as error:
                await self._executor.backoff.wait("codec", error)
                decided = await self._attempts.prepare(message)
            if decided is None:
                skipped.append(message)
            else:
                made.append(self._stale_or_not(decided))
        if skipped:
            self._executor.skip(skipped)
        reach("after_decode")
        return made

    def _stale_or_not(self, decided: Decided) -> Decided:
        """Give up a message that the ledger does not know and whose event is too old for it."""
        if not self._stale or (at := origin(decided.message)) not in self._stale:
            return decided
        self._stale.discard(at)
        if decided.letter is not None:
            return decided
        return Decided(decided.delivery, GiveUp(failures.stale(decided.delivery)))

    def _park_behind(self, prepared: Sequence[Decided]) -> tuple[list[Decided], int]:
        """Park messages whose key is blocked, and dead ones for which the brake allows no dead letter.

        Returns:
            The decisions, and how many dead letters are paid by messages that succeed beside them.
        """
        gate = self._executor.gate
        dead = [one.letter for one in prepared if one.letter is not None]
        good = (
            [one.message for one in prepared if one.letter is None and not self._blocked(one.message)] if dead else []
        )
        funded = gate.funded(sum(not is_unreadable(letter) for letter in dead), len(good))
        paid: dict[object, int] = {_HANDLER: funded}
        paid.update(gate.partitions.funded(dead, good))
        held: set[object] = set()
        decided = []
        for one in prepared:
            made = self._behind(one, held, paid)
            key = self._order(one.message)
            if key is not None and one.letter is not None and self._holds(made):
                held.add(key)
            decided.append(made)
        return decided, funded

    def _behind(self, one: Decided, held: set[object], paid: dict[object, int]) -> Decided:
        """Return the decision on a message, given the held messages of its order."""
        delivery, letter = one.delivery, one.letter
        waits = self._order(one.message) in held or self._blocked(one.message)
        if letter is None:
            return Decided(delivery, Park(failures.behind(delivery))) if waits else one
        if self._is_paid(letter, paid):
            return one
        if self._executor.reserve(one.message, letter):
            return Decided(delivery, GiveUp(letter, token=True))
        # A repair may still make it valid, so later messages wait behind it.
        row = failures.held(delivery, letter, self._executor.gate.wait_for(letter))
        return Decided(delivery, Park(replace(row, wait=None) if waits else row))

    def _holds(self, dead: Decided) -> bool:
        """Tell whether later messages wait behind a dead one: it is parked, or its letter holds its key."""
        return dead.letter is None or (self._executor.declared.holds_key and dead.letter.reason.holds_key)

    def _is_paid(self, letter: DeadMessage, paid: dict[object, int]) -> bool:
        """Tell whether messages that succeed beside it pay for a message's dead letter."""
        message = letter.message
        whose = (message.topic, message.partition) if is_unreadable(letter) else _HANDLER
        if paid.get(whose):
            paid[whose] -= 1
            return True
        return False

    def _blocked(self, message: Message) -> bool:
        partition = self._executor.partitions.of(message)
        return partition is not None and partition.blocked(message)

    def _order(self, message: Message) -> object:
        """Return the scope in which a message keeps its order; None if it has no order."""
        ordering = self._executor.declared.ordering
        if ordering is Ordering.PARTITION:
            return message.topic, message.partition
        if ordering is Ordering.NONE or message.key is None:
            return None
        return message.topic, message.partition, message.key

    async def _failed(self, batch: Batch, error: Exception, step: PlannedBatch) -> None:
        """Decide the next batches after a failure; `step` has as many messages as run again."""
        fault, kind = blame(batch, error)[:2]
        if kind == LOCKED:
            fault = Fault.CONFLICT  # the other side is unknown, so the batch is halved
        if batch.guard.crowded:
            self._apart = True
            self._plan = deque([step])
        elif fault in OWN or (fault is Fault.UNFIT and batch.current is not None):
            # The messages before the one whose code met the error run first; once alone, it holds the handler.
            self._executor.tell.rolled_back(batch, error)
            self._plan = self._split(batch, error, step, crowded=fault is not Fault.HANDLER)
        elif fault is Fault.CONFLICT:
            self._executor.tell.rolled_back(batch, error)
            self._plan = halves(step.size)
            await self._executor.backoff.pause(random.uniform(0.005, 0.05))
        else:
            await self._executor.infrastructure(fault, error)

    def _split(self, batch: Batch, error: Exception, step: PlannedBatch, *, crowded: bool) -> deque[PlannedBatch]:
        """Return the next batches after a failure that a message caused."""
        at = self._blamed(batch, error)
        if at is not None:
            self._executor.batch_sizes.failed()
            return around(at, crowded=crowded)
        if self._executor.declared.is_batch or step.careful or step.halving or not batch.handled:
            return halves(step.size, halving=True)
        return deque([step._replace(careful=True)])

    def _blamed(self, batch: Batch, error: Exception) -> int | None:
        """Return the index of the item at fault, if it is known."""
        decided = deciding(error, Reject)
        if isinstance(decided, Reject) and decided.of is not None:
            message = getattr(decided.of, "message", None)
            # Compared by place: an error from another process has a copy of the message.
            at = None if message is None else (message.topic, message.partition, message.offset)
            places = [(one.message.topic, one.message.partition, one.message.offset) for one in batch.items]
            return places.index(at) if at in places else None
        return batch.current

    def forget_plan(self) -> None:
        """Drop the decisions about messages that the lane no longer holds."""
        self._plan.clear()
        self._stale.clear()
