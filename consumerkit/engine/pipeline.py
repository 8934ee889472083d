"""Claim, handle, retry, bury: what becomes of the messages that a lane holds. The order here is correctness.

A group that fails is rolled back whole. Where the failure is one message's, those before it are run again as a group,
then it alone, then the others. Where no message can be blamed, the group is run once more with a flush after each
message; if that does not tell, or if none of the messages ran, the group is halved until one message is alone. Blame
within a group may be wrong (one message's bad row can be flushed by another's query), so only a failure alone counts as
an attempt. Nothing waits inside a transaction.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from consumerkit.engine import letters
from consumerkit.engine.alone import Alone
from consumerkit.engine.blame import LOCKED, OWN, blame
from consumerkit.engine.group import Flush, Group
from consumerkit.engine.item import Item
from consumerkit.engine.partition_brakes import is_unreadable
from consumerkit.engine.patience import Interrupted
from consumerkit.engine.plan import Step, around, halves
from consumerkit.engine.prepare import Preparer
from consumerkit.engine.runner import Runner
from consumerkit.engine.transaction import StaleFound
from consumerkit.error_tree import deciding
from consumerkit.errors import Reject, Unavailable
from consumerkit.failpoints import reach
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message
from consumerkit.storage.faults import Fault
from consumerkit.storage.origins import Origin, origin

_HANDLER = object()


class Pipeline:
    """Decides how the messages of one lane are grouped.

    Args:
        runner: Runs the groups.
        preparer: Decodes messages.
        alone: Runs a message by itself.
    """

    def __init__(self, runner: Runner, preparer: Preparer, alone: Alone) -> None:
        self._runner = runner
        self._preparer = preparer
        self._alone = alone
        # The next groups, where a failure decided them.
        self._plan: deque[Step] = deque()
        # Whether messages of a group were found to get at each other's changes.
        self._apart = False
        # The messages that the ledger was found not to know, and whose events are too old for it.
        self._stale: set[Origin] = set()

    @property
    def runner(self) -> Runner:
        """What runs this lane's transactions."""
        return self._runner

    @property
    def busy_since(self) -> float | None:
        """When the transaction under way began, by the monotonic clock."""
        return self._runner.busy_since

    @property
    def batch_time(self) -> float:
        """Seconds of handling after which a turn is over."""
        return self._runner.declared.batch_time

    def size(self) -> int:
        """Return how many messages the next `run` may take."""
        if self._runner.gate.braking:
            return 1
        # Never 0: a lane that took nothing would not wait, and the event loop would turn no more.
        return max(1, self._plan[0].size) if self._plan else self._runner.pace.size()

    async def run(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Run messages, in order, at most `size()` of them; return those to be given again, before any later ones.

        Raises:
            Interrupted: The lane was told to give up; what was not reported as finished is not finished.
            HandlerHalted: The handler cannot run before a person acts.
        """
        if self._runner.gate.braking:
            self._plan.clear()
        step = self._plan.popleft() if self._plan else Step(len(messages))
        items = await self._prepared(messages)
        if not items:
            return ()
        funded = self._park_behind(items)
        try:
            return await self._run(items, funded, step)
        finally:
            self._runner.refund(items)

    async def _run(self, items: list[Item], funded: int, step: Step) -> Sequence[Message]:
        if len(items) == 1:
            if await self._alone.run(items[0]) and step.after:
                self._runner.pace.crowded(step.after)
            return ()
        group = self._runner.group(items, flush=self._flush(step))
        group.funded = funded
        try:
            return (await self._runner.transact(group)).left
        except Interrupted:
            raise
        except StaleFound as found:
            self._stale.update(found.places)
            return [item.message for item in items]
        except Exception as error:  # noqa: BLE001 - every error becomes a decision
            again = [item.message for item in items if item not in group.convicted]
            if again:
                await self._failed(group, error, step._replace(size=min(len(again), len(group.items))))
            return again

    def _flush(self, step: Step) -> Flush:
        return Flush.PROBE if step.careful else Flush.EACH if self._apart else Flush.AT_END

    async def _prepared(self, messages: Sequence[Message]) -> list[Item]:
        items, skipped = [], []
        for message in messages:
            try:
                item = self._preparer.prepare(message)
            except Unavailable as error:
                await self._runner.patience.wait_out("codec", error)
                item = await self._alone.prepare(message)
            if item is None:
                skipped.append(message)
            else:
                if origin(message) in self._stale:
                    self._stale.discard(origin(message))
                    item.dead = item.dead or letters.stale(item)
                items.append(item)
        if skipped:
            self._runner.skip(skipped)
        reach("after_decode")
        return items

    def _park_behind(self, items: Sequence[Item]) -> int:
        """Have messages parked whose key is blocked, and dead ones for which the brake allows no dead letter.

        Returns:
            How many dead letters are paid by what succeeds beside them.
        """
        gate = self._runner.gate
        dead = [item for item in items if item.dead is not None]
        good = [item for item in items if item.dead is None and not self._blocked(item)] if dead else []
        funded = gate.funded(sum(not is_unreadable(item) for item in dead), len(good))
        paid: dict[object, int] = {_HANDLER: funded}
        paid.update(gate.partitions.funded(dead, good))
        held: set[object] = set()
        for item in items:
            key = self._order(item.message)
            waits = key in held or self._blocked(item)
            if item.dead is None:
                if waits:
                    item.parking = letters.behind(item)
            elif self._affords(item, paid):
                if self._runner.declared.holds_key and item.dead.reason.holds_key and key is not None:
                    held.add(key)
            else:
                # It may be in order yet, once whatever is wrong was repaired: so what follows waits behind it.
                parking = letters.held(item, gate.wait_for(item))
                item.parking, item.dead = replace(parking, wait=None) if waits else parking, None
                if key is not None:
                    held.add(key)
        return funded

    def _affords(self, item: Item, paid: dict[object, int]) -> bool:
        """Tell whether a dead letter may be written: what succeeds beside it pays, or a token."""
        whose = (item.message.topic, item.message.partition) if is_unreadable(item) else _HANDLER
        if paid.get(whose):
            paid[whose] -= 1
            return True
        item.token = self._runner.gate.spend_for(item)
        return item.token

    def _blocked(self, item: Item) -> bool:
        partition = self._runner.partitions.of(item.message)
        return partition is not None and partition.blocked(item.message)

    def _order(self, message: Message) -> object:
        """Return what a message has its order in; None where it has none."""
        ordering = self._runner.declared.ordering
        if ordering is Ordering.PARTITION:
            return message.topic, message.partition
        if ordering is Ordering.NONE or message.key is None:
            return None
        return message.topic, message.partition, message.key

    async def _failed(self, group: Group, error: Exception, step: Step) -> None:
        """Decide how the messages of a group that failed are grouped next; `step` has as many as are to run again."""
        fault, kind = blame(group, error)[:2]
        if kind == LOCKED:
            fault = Fault.CONFLICT  # with whom is not known, so the group is halved
        if group.guard.crowded:
            self._apart = True
            self._plan = deque([step])
        elif fault in OWN or (fault is Fault.UNFIT and group.current is not None):
            # The messages before the one whose code met it are run first; alone, it holds the handler.
            self._runner.tell.rolled_back(group, error)
            self._plan = self._split(group, error, step, crowded=fault is not Fault.HANDLER)
        elif fault is Fault.CONFLICT:
            self._runner.tell.rolled_back(group, error)
            self._plan = halves(step.size)
            await self._runner.patience.pause(random.uniform(0.005, 0.05))
        else:
            await self._runner.infrastructure(fault, error)

    def _split(self, group: Group, error: Exception, step: Step, *, crowded: bool) -> deque[Step]:
        """Return the groups to come, after a failure that is a message's fault."""
        at = self._blamed(group, error)
        if at is not None:
            self._runner.pace.failed()
            return around(at, crowded=crowded)
        if self._runner.declared.is_batch or step.careful or step.halving or not group.handled:
            return halves(step.size, halving=True)
        return deque([step._replace(careful=True)])

    def _blamed(self, group: Group, error: Exception) -> int | None:
        """Return the index of the item at fault, where that is known."""
        decided = deciding(error, Reject)
        if isinstance(decided, Reject) and decided.of is not None:
            message = getattr(decided.of, "message", None)
            # Not the same object, where the error comes out of another process.
            at = None if message is None else (message.topic, message.partition, message.offset)
            places = [(one.message.topic, one.message.partition, one.message.offset) for one in group.items]
            return places.index(at) if at in places else None
        return group.current

    def forget_plan(self) -> None:
        """Drop what was decided about messages that the lane does not hold any more."""
        self._plan.clear()
        self._stale.clear()
