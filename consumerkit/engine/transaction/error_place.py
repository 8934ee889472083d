"""Finds where an error was raised; the place groups errors of one kind."""

from __future__ import annotations

from consumerkit.observability.user_code import frames_of


def place_of(error: BaseException) -> str | None:
    """Return where an error was raised: `file:line in function`, the innermost frame of the user's own code.

    Returns the innermost frame of all if none is the user's, and None if there is no frame. The file is relative to
    its import path, so it reads the same wherever the program is installed.
    """
    frames = frames_of(error)
    if not frames:
        return None
    frame = next((frame for frame in reversed(frames) if frame.is_theirs), frames[-1])
    return f"{frame.file}:{frame.line} in {frame.function}"
