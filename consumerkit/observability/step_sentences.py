"""The longer sentences about steps, about calls that should be steps, and about `on_dead_letter`."""

from __future__ import annotations

from consumerkit import events


def why_awaited(event: events.StepAwaited) -> str:
    """Return why a message is parked without an attempt."""
    if event.undoing:
        return "must be undone before it is called again; the message is parked until then"
    return (
        "has begun in another worker or before a crash; the message is parked until the step's deadline, "
        f"in {event.wait:.1f} s"
    )


def undo_failed(event: events.StepUndoFailed) -> str:
    """Return what happens to an undo that has failed."""
    what = f"{event.message_id}: the undo of step {event.step} failed, attempt {event.attempt}"
    if event.wait is not None:
        return f"{what}, next try in {event.wait:.1f} s: {event.error}"
    letter = "" if event.letter is None else f"; dead letter {event.letter}"
    return f"{what}, the last one: the step's effect stands{letter}: {event.error}"


def waited_outside(event: events.OutsideWaitNoticed) -> str:
    """Return the consequence of a handler's wait for something outside its session."""
    return (
        f"the handler waited {event.seconds:.3f} s for something other than its session at {event.place}; from now on "
        "each message has a transaction of its own, since a failure of another message in the same one would repeat "
        "what was done outside the database; do that in a step, or set shares_transaction = True where it is harmless"
    )


def hook_failed(event: events.DeadLetterHookFailed) -> str:
    """Return what happens to a call of `on_dead_letter` that has failed; its dead letter is unchanged."""
    what = f"{event.message_id}: on_dead_letter failed for dead letter {event.letter}, attempt {event.attempt}"
    if event.wait is not None:
        return f"{what}, next try in {event.wait:.1f} s: {event.error}"
    return f"{what}, the last one; the dead letter's history has it: {event.error}"
