"""Examples at the end of a command's help."""

from __future__ import annotations

from typing import Final

LETTER_ACTIONS: Final = {
    "redrive": (
        "dead-letters redrive --all --dry-run",
        "dead-letters redrive --reason exhausted --since 6h --rate 50",
        "dead-letters redrive 118 120-125 shop.worker:worker",
    ),
    "resolve": ('dead-letters resolve 118 --note "paid by hand"',),
    "discard": ('dead-letters discard --like 118 --note "sent by mistake"',),
    "export": ("dead-letters export --reason undecodable > letters.jsonl",),
}
"""The examples of the actions on dead letters."""


def examples(*lines: str) -> str:
    """Return the end of a command's help, whose lines are not refilled.

    Example:
        >>> print(examples("run shop.worker:worker")[2:])
        For example:
          consumerkit run shop.worker:worker
    """
    # The backspace keeps the lines from becoming one paragraph.
    return "\n".join(["\b", "For example:", *(f"  consumerkit {line}" for line in lines)])
