"""Where an error was raised, so that errors of one kind can be told from others."""

from __future__ import annotations

from consumerkit.observability.user_code import frames_of


def place_of(error: BaseException) -> str | None:
    """Return where an error was raised: `file:line in function`, the innermost frame of the user's own code.

    Where there is none, the innermost of all; None without any. The file is told from where it would be imported, so
    that it reads the same wherever the program is installed.
    """
    frames = frames_of(error)
    if not frames:
        return None
    frame = next((frame for frame in reversed(frames) if frame.is_theirs), frames[-1])
    return f"{frame.file}:{frame.line} in {frame.function}"
