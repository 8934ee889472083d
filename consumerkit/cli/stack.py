"""Prints a stored stack: the user's own frames first, then the whole stack."""

from __future__ import annotations

import re
from typing import Final

from consumerkit.cli.output import say
from consumerkit.observability.user_code import looks_like_theirs

_FRAME: Final = re.compile(r'\s*File "(.*)", line \d+, in ')


def print_stack(stack: str) -> None:
    """Print a stack, with the frames of the user's code above it, innermost first."""
    lines = stack.rstrip().splitlines()
    theirs = users_lines(lines)
    # If all frames are the user's, the stack alone shows the same.
    if theirs and len(theirs) < sum(map(bool, map(_FRAME.match, lines))):
        say("\nin your code, the innermost first:")
        for line in theirs:
            say(line)
        say("\nthe whole stack, the innermost last:")
    else:
        say("")
    for line in lines:
        say(line)


def users_lines(lines: list[str]) -> list[str]:
    """Return the lines of a stack that are frames of the user's code, innermost first, each once.

    Example:
        >>> users_lines(['ValueError', '  File "/app/shop.py", line 3, in handle', '  File "<string>", line 1, in f'])
        ['  File "/app/shop.py", line 3, in handle']
    """
    found = [line for line in lines if (frame := _FRAME.match(line)) and looks_like_theirs(frame[1])]
    return list(dict.fromkeys(reversed(found)))
