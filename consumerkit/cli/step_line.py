"""Shows a step of a message in one line."""

from __future__ import annotations

from consumerkit.cli.output import moment
from consumerkit.storage.status import StepStatus


def step_line(step: StepStatus) -> str:
    """Return a step's state and times as readable text."""
    if step.undo_at is not None:
        failed = f", undo failed {step.undo_attempts} times" if step.undo_attempts else ""
        return f"{step.step}: {step.state}, from {moment(step.undo_at)}{failed}"
    if step.state == "not undone":
        return f"{step.step}: {step.state}, dead letter {step.undo_letter}"
    calls = f"begun {step.calls} {'time' if step.calls == 1 else 'times'}"
    if step.ended_at is not None:
        return f"{step.step}: {step.state} {moment(step.ended_at)}, {calls}"
    return f"{step.step}: {step.state} {moment(step.started_at)}, in doubt from {moment(step.deadline_at)}, {calls}"
