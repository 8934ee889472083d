"""How a step of a message is shown in a line."""

from __future__ import annotations

from consumerkit.cli.output import moment
from consumerkit.storage.status import StepStatus


def step_line(step: StepStatus) -> str:
    """Return a step's state and times for people."""
    calls = f"begun {step.calls} {'time' if step.calls == 1 else 'times'}"
    if step.ended_at is not None:
        return f"{step.step}: {step.state} {moment(step.ended_at)}, {calls}"
    return f"{step.step}: {step.state} {moment(step.started_at)}, in doubt from {moment(step.deadline_at)}, {calls}"
