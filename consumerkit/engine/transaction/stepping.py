"""Runs the steps of a batch's messages before its transaction; see `consumerkit.steps`."""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import Context

from consumerkit.engine.transaction.batch import Batch
from consumerkit.engine.transaction.fresh_context import FreshContexts
from consumerkit.engine.transaction.item import Disposition, Item
from consumerkit.engine.transaction.receipt import Receipt
from consumerkit.engine.transaction.transaction import TransactionEnded
from consumerkit.engine.transaction.unit_of_work import UnitOfWork
from consumerkit.handlers.handler import Ordering
from consumerkit.message import Message
from consumerkit.observability import current_message
from consumerkit.steps import LaneSteps, Subject


class WithSteps:
    """A unit of work that first runs the steps of a batch's messages, outside any transaction."""

    def __init__(self, work: UnitOfWork, steps: LaneSteps) -> None:
        self._work = work
        self._steps = steps
        self._contexts = FreshContexts()

    async def run(self, batch: Batch) -> Receipt:
        """See `UnitOfWork.run`.

        Raises:
            Fenced: A partition is no longer ours.
            Unavailable: The database is in trouble.
            BaseException: The error of `prepare` for the first message that failed; `batch.current` is its index.
        """
        batch.preparing = self._steps
        try:
            await self._prepare(batch)
        finally:
            batch.preparing = None
        self._steps.journal.fenced = True
        receipt = await self._work.run(batch)
        self._steps.tell(0.0)
        if receipt.dead:
            self._steps.shared.undo_due.set()
        return receipt

    async def _prepare(self, batch: Batch) -> None:
        chosen: dict[bytes, int] = {}
        for index, item in enumerate(batch.items):
            if item.digest is not None and _may_run(item):
                chosen.setdefault(item.digest, index)
        if not chosen:
            return
        indexes = list(chosen.values())
        declared = self._steps.shared.declared
        subjects = [_subject(batch.items[index], declared.ordering) for index in indexes]
        if declared.prepare is None:
            prepared = self._steps.unprepared(subjects, batch.owners)
        else:

            def surroundings(digest: bytes) -> Context:
                own = self._contexts.new()
                item = batch.items[chosen[digest]]
                batch.spans.follow(item.message, own)
                current_message.enter(own, declared.name, item.message, item.message_id, item.attempt)
                return own

            prepared = await self._steps.prepare(subjects, batch.owners, surroundings)
        for index, one in zip(indexes, prepared, strict=True):
            batch.items[index].steps = one.calls
            if one.error is not None:
                batch.current, batch.handling, batch.unprepared = index, True, True
                raise one.error

    async def dead_letter_misuse(self, batch: Batch, error: TransactionEnded) -> Receipt:
        """See `UnitOfWork.dead_letter_misuse`."""
        return await self._work.dead_letter_misuse(batch, error)

    def close(self) -> None:
        """See `UnitOfWork.close`."""
        self._steps.close()
        self._work.close()


def _may_run(item: Item) -> bool:
    if item.wanted is not Disposition.RUN or item.repeats:
        return False
    # The transaction decides on a message that may be too old for the ledger; a parked one was claimed before.
    return item.parked is not None or not item.outdated


def _subject(item: Item, ordering: Ordering) -> Subject:
    message, parked = item.message, item.parked
    assert item.digest is not None
    return Subject(
        item.event,
        item.digest,
        item.message_id,
        (message.topic, message.topic_id, message.partition, message.offset),
        _order(message, ordering),
        waits=parked if parked is not None and parked.digest is not None else None,
        redriven=parked is not None and parked.dead_letter is not None,
        message=message,
    )


def _order(message: Message, ordering: Ordering) -> Hashable:
    """Return the scope in which a message keeps its order; None if it has no order."""
    if ordering is Ordering.PARTITION:
        return message.topic, message.partition
    if ordering is Ordering.NONE or message.key is None:
        return None
    return message.topic, message.partition, message.key
