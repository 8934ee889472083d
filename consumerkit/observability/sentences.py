"""Events as sentences: the level of each event, and its line in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from consumerkit import events
from consumerkit.events import Event
from consumerkit.message import TopicPartition
from consumerkit.observability.request_sentences import answered as request_answered
from consumerkit.observability.request_sentences import level as request_level
from consumerkit.observability.step_sentences import hook_failed, undo_failed, waited_outside, why_awaited
from consumerkit.observability.words import counted, lasting
from consumerkit.outcome import Reason

Level = int | Callable[[Any], int]
_LONG: Final = 60.0
"""Seconds without partitions that exceed the length of a rebalance."""


def _names(partitions: tuple[TopicPartition, ...]) -> str:
    return ", ".join(map(str, sorted(partitions))) or "no partitions"


def _committed(event: events.GroupCommitted) -> str:
    parts = [f"{event.processed} processed"]
    parts += [counted(event.duplicates, "duplicate")] if event.duplicates else []
    of_dead = counted(event.duplicates_of_dead, "duplicate of a dead letter", "duplicates of dead letters")
    parts += [of_dead] if event.duplicates_of_dead else []
    parts += [f"{event.dead} dead-lettered"] if event.dead else []
    parts += [f"{event.parked} parked"] if event.parked else []
    parts += [f"{event.fallback_ids} identified by a fallback"] if event.fallback_ids else []
    parts += [f"{event.unreadable_times} without a readable time"] if event.unreadable_times else []
    return f"committed in {event.seconds * 1000:.1f} ms (lane {event.lane}): {', '.join(parts)}"


def _revoked(event: events.PartitionsRevoked) -> str:
    dropped = f"; {counted(event.dropped, 'message')} left for the next owner" if event.dropped else ""
    return f"{'lost' if event.lost else 'gave back'} {_names(event.partitions)}{dropped}"


def _parked_there(count: int) -> str:
    return f"; {counted(count, 'message')} {'is' if count == 1 else 'are'} parked there" if count else ""


def _assigned(event: events.PartitionsAssigned) -> str:
    if event.partitions:
        return f"got {_names(event.partitions)}"
    return "got no partitions: other members of its group have them all; this one takes over when one of them ends"


def _awaited(event: events.PartitionsAwaited) -> str:
    missed = "" if event.missed_after is None else f" (up to {event.missed_after:.0f} s)"
    return (
        f"waiting for partitions for {lasting(event.seconds)}: the group assigns them once their former members have "
        f"handed them over, or the broker has missed a dead one{missed}"
    )


def _summary(event: events.HandlerSummary) -> str:
    parts = [f"{event.processed:,} processed"]
    parts += [counted(event.duplicates, "duplicate")] if event.duplicates else []
    skipped = counted(event.skipped, "message of an unknown type skipped", "messages of unknown types skipped")
    parts += [skipped] if event.skipped else []
    parts += [counted(event.retries, "retry", "retries")] if event.retries else []
    parts += [counted(event.dead, "dead letter")] if event.dead else []
    rolled_back = counted(event.rolled_back, "batch rolled back and run again", "batches rolled back and run again")
    parts += [rolled_back] if event.rolled_back else []
    waits = event.oldest_waiting
    oldest = "" if waits is None else f"; the oldest parked message has waited {lasting(waits)}"
    return f"in {lasting(event.seconds)}: {', '.join(parts)}{oldest}"


def _work(event: events.Trouble | events.TroubleOver) -> str:
    return f"{event.work}: " if event.work else ""


def _taken(event: events.PartitionTaken) -> str:
    return f"took {event.partition} over" + _parked_there(event.parked)


def _stands_still(event: events.PartitionStandsStill) -> str:
    end = "" if event.end is None else f", and its log ends at {event.end}"
    return f"{event.partition} has stood at offset {event.offset} for {event.seconds:.0f} s{end}: {event.reason}"


def _failed(event: events.AttemptFailed) -> str:
    at_least = "at least " if event.braking else ""
    what_next = "no further attempt" if event.wait is None else f"next try in {at_least}{event.wait:.1f} s"
    return (
        f"attempt {event.attempt} of {event.message_id} at {event.partition}@{event.offset} failed, {what_next}: "
        f"{event.error}"
    )


def _suspected(event: events.MessageSuspected) -> str:
    return (
        f"{event.message_id} at {event.partition}@{event.offset} failed alone; no attempt is counted until another "
        f"message has run, because others may fail in the same way; next try in {event.wait:.1f} s: {event.error}"
    )


def _brake(event: events.BrakeOn) -> str:
    what = "everything fails" if event.partition is None else f"messages of {event.partition} cannot be read"
    more = "no message" if event.partition is None else "none of them"
    return f"{what}: {more} is dead-lettered; the brake tries one message in {event.wait:.1f} s"


def _offsets(event: events.OffsetsCommitted) -> str:
    return f"offsets committed: {', '.join(f'{partition}@{offset}' for partition, offset in event.positions)}"


def _dead(event: events.MessageDeadLettered) -> str:
    name = event.message_id or "a message without an ID"
    after = f" after {counted(event.attempts, 'attempt')}" if event.reason is Reason.EXHAUSTED else ""
    show = "" if event.letter is None else f"; see `consumerkit dead-letters show {event.letter}`"
    return (
        f"{name} at {event.partition}@{event.offset} is a dead letter ({event.reason.value}{after}): "
        f"{event.summary or event.error}{show}"
    )


def _clash(event: events.OriginClash) -> str:
    name = event.message_id or "a message without an ID"
    return (
        f"{name} at {event.partition}@{event.offset}: row {event.row} of {event.table} has the same place and "
        "another message, so this message gets a row of its own; check that row: an import may have written it"
    )


def _forgotten(event: events.MessagesForgotten) -> str:
    before = event.before.isoformat(" ", "seconds")
    return f"the ledger forgot {counted(event.count, 'message ID')} processed before {before}"


def _held_back(event: events.ForgettingHeldBack) -> str:
    since = "no message of it is finished" if event.since is None else event.since.isoformat(" ", "seconds")
    return (
        f"{event.partition} has not moved, so the ledger keeps every message ID processed since then ({since}); let "
        "the handler catch up, or move its position with consumerkit skip"
    )


def _what_of(event: events.OutboxHeldBack | events.OutboxResumed) -> str:
    return "all that is for" if event.sequence is None else f"message {event.sequence} for"


def _outbox_held_back(event: events.OutboxHeldBack) -> str:
    way_out = f"; {event.way_out}" if event.way_out else ""
    return (
        f"outbox: {_what_of(event)} {event.topic} is held back; next try in {event.wait:.1f} s, then less often: "
        f"{event.error}{way_out}"
    )


LINES: Mapping[type[Event], tuple[Level, Callable[[Any], str]]] = {
    events.WorkerStarted: (logging.INFO, lambda e: f"worker started: {', '.join(e.handlers)}"),
    events.WorkerStopped: (logging.INFO, lambda e: f"worker stopped in {e.seconds:.1f} s"),
    events.PartitionsAssigned: (logging.INFO, _assigned),
    # By default, every group gives up a missing member in less than a minute.
    events.PartitionsAwaited: (lambda e: logging.INFO if e.seconds < _LONG else logging.WARNING, _awaited),
    events.HandlerSummary: (logging.INFO, _summary),
    events.PartitionsRevoked: (lambda e: logging.WARNING if e.lost else logging.INFO, _revoked),
    events.PartitionStopped: (logging.ERROR, lambda e: f"{e.partition} is stopped and not read any further: {e.error}"),
    events.PartitionStandsStill: (logging.WARNING, _stands_still),
    events.PartitionPaused: (logging.WARNING, lambda e: f"{e.partition} is paused: {e.reason}"),
    events.PartitionResumed: (logging.INFO, lambda e: f"{e.partition} is not paused any more"),
    events.PartitionMoves: (logging.INFO, lambda e: f"{e.partition} moves again"),
    events.PartitionTaken: (logging.INFO, _taken),
    events.FenceAwaited: (
        logging.WARNING,
        lambda e: (
            f"{e.partition} cannot be taken over for {e.seconds:.0f} s: a transaction of its former owner is still "
            "open; end the worker that hangs, or wait until the server ends the transaction after transaction_timeout"
        ),
    ),
    events.PartitionInDoubt: (
        logging.WARNING,
        lambda e: (
            f"{e.partition} may belong to another worker; this one starts no transaction for it until that is "
            f"clear: {e.error}"
        ),
    ),
    events.PositionDiffers: (lambda e: logging.ERROR if e.lost else logging.WARNING, lambda e: e.remark),
    events.CommitsLost: (
        logging.ERROR,
        lambda e: f"{e.error}; every partition goes back to its mark, and the messages above it run again",
    ),
    events.GroupCommitted: (logging.DEBUG, _committed),
    events.MessagesSkipped: (logging.DEBUG, lambda e: f"{counted(e.count, 'message')} of unknown types skipped"),
    events.GroupRolledBack: (
        logging.DEBUG,
        lambda e: f"rolled back {counted(e.size, 'message')}, {e.handled} of them handled; they run again: {e.error}",
    ),
    events.OutsideWaitNoticed: (logging.WARNING, waited_outside),
    events.StepsRun: (
        logging.DEBUG,
        lambda e: f"steps: {e.called} called, {e.reused} done before, {e.failed} failed, in {e.seconds:.3f} s",
    ),
    events.StepAwaited: (
        logging.WARNING,
        lambda e: f"{e.message_id} at {e.partition}@{e.offset}: step {e.step} {why_awaited(e)}",
    ),
    events.StepUndone: (
        logging.INFO,
        lambda e: (
            f"{e.message_id}: step {e.step} "
            + ("is undone" if e.called else "is not undone: the other side says it never happened")
            + f"; its message is dead{'' if e.letter is None else f': dead letter {e.letter}'}"
        ),
    ),
    events.StepUndoFailed: (lambda e: logging.ERROR if e.wait is None else logging.WARNING, undo_failed),
    events.StepDoubted: (
        logging.WARNING,
        lambda e: (
            f"{e.message_id} at {e.partition}@{e.offset}: step {e.step} may have happened, and its result was not "
            f"kept; it was begun {e.calls} times, and now it is {e.then}"
        ),
    ),
    # After the last attempt, the line about the dead letter follows with the same content.
    events.AttemptFailed: (lambda e: logging.DEBUG if e.wait is None else logging.WARNING, _failed),
    events.MessageSuspected: (logging.WARNING, _suspected),
    events.MessageDeadLettered: (logging.ERROR, _dead),
    events.OriginClash: (logging.ERROR, _clash),
    events.Trouble: (logging.WARNING, lambda e: f"{_work(e)}{e.where} trouble, next try in {e.wait:.1f} s: {e.error}"),
    events.TroubleOver: (logging.INFO, lambda e: f"{_work(e)}{e.where} works again after {e.seconds:.1f} s"),
    events.BrakeOn: (logging.ERROR, _brake),
    events.BrakeOff: (
        logging.INFO,
        lambda e: f"a message{'' if e.partition is None else f' of {e.partition}'} succeeded: the brake is off",
    ),
    events.HandlerPaused: (
        logging.ERROR,
        lambda e: f"paused, no attempt is counted, next try in {e.wait:.1f} s: {e.error}",
    ),
    events.HandlerResumed: (logging.INFO, lambda e: "works again, not paused any more"),
    events.HandlerStopped: (
        logging.CRITICAL,
        lambda e: f"stopped for good: {e.error}; repair the cause and restart the worker",
    ),
    events.OffsetsCommitted: (logging.DEBUG, _offsets),
    events.OutboxPublished: (logging.DEBUG, lambda e: f"outbox: {counted(e.count, 'message')} published"),
    events.OutboxHeldBack: (logging.WARNING, _outbox_held_back),
    events.OutboxOld: (
        logging.WARNING,
        lambda e: (
            f"outbox: message {e.sequence} for {e.topic} has waited since {e.since.isoformat(' ', 'seconds')}; see "
            "`consumerkit outbox list`"
        ),
    ),
    events.OutboxGivenUp: (
        logging.ERROR,
        lambda e: (
            f"outbox: gave up {counted(e.count, 'message')} for {e.topic}, the oldest written at "
            f"{e.oldest.isoformat(' ', 'seconds')}: payload_retention ended their wait; operator_actions names them, "
            "and a process that died may have sent some"
        ),
    ),
    events.OutboxResumed: (
        logging.INFO,
        lambda e: f"outbox: {_what_of(e)} {e.topic} is no longer held back, after {e.seconds:.1f} s",
    ),
    events.OutboxTurnAwaited: (
        logging.WARNING,
        lambda e: (
            f"outbox: another process has held the relay's turn for {e.seconds:.0f} s without a sign of life: "
            f"{e.holder}; end that process"
        ),
    ),
    events.OutboxTurnCame: (
        logging.INFO,
        lambda e: f"outbox: the silent process no longer holds the relay's turn, after {e.seconds:.0f} s",
    ),
    events.DeadLetterHookFailed: (logging.ERROR, hook_failed),
    events.DeadLetterByReference: (
        logging.WARNING,
        lambda e: (
            f"outbox: dead letter {e.sequence} was too large for {e.topic} and was sent without its value; the table "
            "holds it; raise the topic's `max.message.bytes` to send the next ones whole"
        ),
    ),
    events.RequestAnswered: (request_level, request_answered),
    events.MessagesForgotten: (logging.INFO, _forgotten),
    events.PayloadsErased: (
        logging.INFO,
        lambda e: f"erased the payloads of {counted(e.count, 'dead letter')} decided long ago",
    ),
    events.UndecidedPayloadsErased: (
        logging.WARNING,
        lambda e: (
            f"erased the payloads of {counted(e.count, 'undecided dead letter')}; they can no longer be redriven; "
            "resolve or discard them"
        ),
    ),
    events.ForgettingHeldBack: (logging.WARNING, _held_back),
    events.RowsLeftBehind: (logging.WARNING, lambda e: e.reason),
}
