"""A batch: the items of one transaction, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Final
from uuid import uuid4

from pydantic_core import from_json, to_json

from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.guard import Guard
from consumerkit.engine.transaction.item import Disposition, Item
from consumerkit.engine.transaction.new_outcomes import new_outcomes
from consumerkit.engine.transaction.receipt import Receipt, Row
from consumerkit.engine.transaction.sharing import Sharing
from consumerkit.engine.transaction.stages import Stopwatch
from consumerkit.errors import ResultNotKept
from consumerkit.handlers.context import AnyContext, BatchContext, Context, Publisher
from consumerkit.handlers.effects import StepCalls
from consumerkit.handlers.handler import Received
from consumerkit.handlers.no_steps import NO_STEPS
from consumerkit.message import TopicPartition
from consumerkit.observability.spans import NO_SPANS, BatchSpans
from consumerkit.observability.user_code import place_of_function
from consumerkit.steps import LaneSteps
from consumerkit.storage import outbox
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.dialects import Limits, SessionSettings
from consumerkit.storage.fence import Owners
from consumerkit.storage.lane_progress import LaneSequence
from consumerkit.storage.origins import Clash
from consumerkit.storage.parking.lot import ParkedPlace


class Flush(Enum):
    """When the session of a batch is flushed."""

    AT_END = "at the end"
    EACH = "after each message"
    """The handler would otherwise lose or pass on another message's changes."""
    PROBE = "after each message, and the transaction is probed"
    """This finds the message at fault."""


class Batch:
    """The items of one transaction, and how far it has come.

    Attributes:
        items: In the order of the log; cut short if `batch_time` ran out or if each item runs alone.
        owners: The tokens by which we own the items' partitions.
        reaches: For each partition where owners died: the position that it has once this batch is finished.
        cleared: Partitions in which this owner got further than those that died; known after `Transaction.close`.
        lane: The present count of the lane that runs it.
        knows: Tells whether we know a parked message.
        flush: When the session is flushed.
        current: The index of the item whose code runs, else None.
        handled: Handler calls made.
        handling: Whether the user's code runs, or ran when something failed.
        theirs: Whether the transaction's statements are the user's: the handler's own or its session's flush.
        limits: The server's time limits for its transaction; None until it is opened.
        reused: Whether the connection has served a transaction before.
        item_began: When the last item's code began, by the monotonic clock.
        slowest: Seconds that the slowest item's code took, among those that returned.
        guard: Watches over the session while the user's code holds it.
        stages: How long each stage of its transaction has taken.
        spans: Its own, and those of its messages.
        begun_at: When its transaction began, by the monotonic clock; None while it waits for its turn.
        proof: Proves that a row of the ledger is this transaction's; see `Dialect.proof`.
        dead: The dead letters, known after `Transaction.close`.
        clashes: Messages parked beside another one that names the same place; known after `Transaction.close`.
        preparing: Runs the steps of its messages; None when they are done.
        unprepared: Whether `prepare` failed for the message at `current`, so that no transaction began.
        sound: Whether the transaction was found in order after the user's code failed.
        misused: Items that became dead letters because a handler committed their claims by itself.
        recalled: The handler's results, as JSON, for earlier messages that items of this batch repeat.
        left: Items that were cut off.
        sharing: The handler's declarations, and whether its messages may share a transaction.
        funded: How many dead letters the successes of this transaction pay for, instead of tokens.
    """

    def __init__(
        self,
        items: list[Item],
        sharing: Sharing,
        owners: Owners | None = None,
        *,
        flush: Flush = Flush.AT_END,
        knows: Callable[[ParkedPlace], bool] = lambda _: False,
    ) -> None:
        self.items = items
        self.sharing = sharing
        self.owners: Owners = owners or {}
        self.reaches: dict[TopicPartition, int] = {}
        self.cleared: tuple[TopicPartition, ...] = ()
        self.lane: LaneSequence | None = None
        self.knows = knows
        self.flush = flush
        self.current: int | None = None
        self.handled = 0
        self.handling = False
        self.theirs = False
        self.preparing: LaneSteps | None = None
        self.unprepared = False
        self.limits: Limits | None = None
        self.reused = False
        self.guard = Guard()
        self.token = uuid4().hex
        self.begun: SessionSettings | None = None
        self.stages = Stopwatch()
        self.spans: BatchSpans = NO_SPANS
        self.begun_at: float | None = None
        self.proof = ""
        self.dead: list[DeadMessage] = []
        self.clashes: list[Clash] = []
        self.sound = False
        self.misused: list[Item] = []
        self.funded = 0
        self.left: list[Item] = []
        self.released: list[bytes] = []
        self.relapsed: list[bytes] = []
        self.results: dict[bytes, str] = {}
        self.recalled: dict[bytes, str] = {}
        self.publications: list[outbox.OutboxMessage] = []
        self.seconds = 0.0
        self._declared = declared = sharing.declared
        self._publisher = Publisher(declared.encode, declared.topic_prefix, declared.publishes)
        self._context: AnyContext | None = None
        self.item_began = time.monotonic()
        self.slowest = 0.0

    def running(self) -> list[Item]:
        """Return the items that the handler gets."""
        return [item for item in self.items if item.disposition is Disposition.RUN]

    def each(self) -> Iterator[Item]:
        """Yield at least one item to handle; more while `batch_time` lasts and they may share a transaction."""
        began = time.monotonic()
        limit = began + self._declared.batch_time
        for index, item in enumerate(self.items):
            if item.disposition is not Disposition.RUN and item.disposition is not Disposition.REPEAT:
                continue
            now = time.monotonic()
            if self.handled and (now > limit or self.sharing.alone):
                self._cut(index)
                break
            self.item_began = now
            self.current = index
            if self.handled:
                self.guard.next_message()
            yield item
            self.current = None
            self.slowest = max(self.slowest, time.monotonic() - self.item_began)
        self.seconds = time.monotonic() - began

    def _cut(self, index: int) -> None:
        rest, self.items = self.items[index:], self.items[:index]
        self.left = rest
        claimed = [item for item in rest if item.claimed and item.digest is not None]
        self.released = [item.digest for item in claimed if item.digest and not item.revived]
        self.relapsed = [item.digest for item in claimed if item.digest and item.revived]

    @contextmanager
    def whole(self, running: list[Item]) -> Iterator[None]:
        """Run a batch handler's one call; its failure is a message's own only if that message is alone."""
        began = time.monotonic()
        self.handled = len(running)
        self.current = self.items.index(running[0]) if len(running) == 1 else None
        yield
        self._take_publications(running[0])
        self._close_context()
        self.current = None
        self.seconds = time.monotonic() - began

    def context(self, item: Item, session: Any) -> Context[Any]:
        """Return the context that the handler gets besides the item's event."""
        steps: StepCalls = NO_STEPS
        if item.steps is not None and not item.repeats:
            item.steps.check_prepared()
            steps = item.steps
        self._context = made = Context(session, item.message, item.message_id, item.attempt, self._publisher, steps)
        return made

    def batch_context(self, session: Any) -> BatchContext[Any]:
        """Return the context that a batch handler gets besides the events."""
        self._context = made = BatchContext(session, self._publisher)
        return made

    def received(self, running: list[Item]) -> list[Received[Any]]:
        """Return the items as a batch handler sees them."""
        return [Received(i.event, i.message, i.message_id, i.attempt) for i in running]

    def first_result(self, item: Item) -> Any:
        """Return the result of `handle` for the message that an item repeats, in this batch or before."""
        digest = item.digest or b""
        found = self.results.get(digest) or self.recalled.get(digest)
        return None if found is None else from_json(found)

    def handled_one(self, item: Item, result: object) -> None:
        """Take a handler's result and publications.

        Raises:
            Unsatisfied: The handler's `retry` counts the result as a failure.
        """
        self.handled += 1
        if item.steps is not None:
            item.steps.check()
        if not item.repeats:
            self._declared.retry.check(result)
            if result is not None and item.digest is not None:
                self.results[item.digest] = storable_json(result, self._declared.handler)
        if self._publisher.publications:
            self._take_publications(item)
        self._close_context()

    def _close_context(self) -> None:
        if self._context is not None:
            self._context.close(self._declared.name)
            self._context = None

    def end(self) -> None:
        """Refuse late use of the context and the session, which would change or publish nothing."""
        self._close_context()
        self.guard.end(self._declared.name)

    def _take_publications(self, item: Item) -> None:
        made = self._publisher.publications
        trace = self.spans.headers() if made else ()
        self.publications += [
            failures.published(one, self._declared.name, failures.source_of(item), ordinal, trace)
            for ordinal, one in enumerate(made)
        ]
        made.clear()

    def receipt(self) -> Receipt:
        """Return the receipt of this transaction, once it is durable."""
        return self._receipt(self.items)

    def receipt_of_misused(self) -> Receipt:
        """Return the receipt of the transaction that dead-lettered `misused`."""
        return self._receipt(self.misused)

    def _receipt(self, items: Sequence[Item]) -> Receipt:
        written = set(map(id, self.dead))
        return Receipt(
            finished=tuple(item.message for item in items if item.parked is None),
            new=tuple(new_outcomes(items, self.dead)),
            parked=tuple(Row(item.message, item.number) for item in items if item.parked is None and item.stays_parked),
            unparked=tuple(
                Row(item.message, item.parked.id) for item in items if item.parked is not None and not item.stays_parked
            ),
            processed=tuple(item.message for item in items if item.disposition is Disposition.RUN),
            dead=tuple(self.dead),
            unpaid=tuple(item.dead for item in items if item.dead and id(item.dead) in written and not item.token),
            funded=self.funded,
            clashes=(*self.clashes, *(dead.clash for dead in self.dead if dead.clash is not None)),
            cleared=self.cleared,
            published=bool(self.publications),
            left=tuple(item.message for item in self.left),
            duplicates=_count(items, Disposition.DUPLICATE, Disposition.REPEAT),
            duplicates_of_dead=_count(items, Disposition.DUPLICATE_OF_DEAD),
            redelivered=sum(item.is_redelivered for item in items if item.disposition in _REPEATED),
            ages=tuple(item.age for item in items if item.disposition in _REPEATED and item.parked is None),
            postponed=_count(items, Disposition.PARK),
            fallback_ids=sum(item.fallback for item in items),
            unreadable_times=sum(item.untimed for item in items),
            handled=self.handled,
            seconds=self.seconds,
            stages=self.stages.stages(),
        )


_REPEATED: Final = (Disposition.DUPLICATE, Disposition.REPEAT, Disposition.DUPLICATE_OF_DEAD)


def _count(items: Sequence[Item], *verdicts: Disposition) -> int:
    return sum(item.disposition in verdicts and not item.gone for item in items)


def storable_json(value: object, handler: object = None) -> str:
    """Return a handler's result as JSON.

    Raises:
        ResultNotKept: The handler returned a value that JSON cannot hold.
    """
    try:
        return to_json(value).decode()
    except ValueError as error:
        at = place_of_function(getattr(handler, "handle", None))
        raise ResultNotKept(
            f"handle{f' at {at}' if at else ''} returned {type(value).__qualname__}, which cannot be kept as JSON; "
            "return None, plain data, a dataclass or a pydantic model"
        ) from error
