"""The text that goes with a committed offset, so written that a reader knows where it ends.

librdkafka returns what a group has committed without the zero byte that ends a text in C, so whatever lies behind it
in memory comes with it, now and then.
"""

from __future__ import annotations

from typing import Any, Final

_END: Final = "\n"


def closed(note: str) -> str:
    r"""Return the text to commit for a note.

    Example:
        >>> closed("kept"), closed("")
        ('kept\n', '')
    """
    return note + _END if note else note


def note_of(committed: Any) -> str:
    """Return the note that was committed with an offset, from librdkafka's `TopicPartition`.

    A text without an end, which another program or an older release has written, comes as it is.
    """
    try:
        text = committed.metadata or ""
    except UnicodeDecodeError as error:
        text = error.object.decode("utf-8", "replace")
    return str(text).partition(_END)[0]
