"""One call of a step, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from consumerkit.handlers.declared_steps import DeclaredStep
from consumerkit.handlers.steps import IdempotencyKey


class StepCall(NamedTuple):
    """One call of a step.

    Attributes:
        declared: The step.
        key: The key for the other side; the first generation's until the step has begun.
        args, kwargs: The other arguments.
        arguments: Bytes that identify these arguments.
    """

    declared: DeclaredStep
    key: IdempotencyKey
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    arguments: bytes

    @property
    def name(self) -> str:
        """The step's name."""
        return self.declared.name

    @property
    def too_long(self) -> str:
        """The sentence about a call that its deadline ended."""
        return (
            f"step {self.name!r} took longer than its deadline of {self.declared.deadline:g} s and was cancelled: it "
            "may have happened; raise its deadline, or extend it by effects.alive()"
        )
