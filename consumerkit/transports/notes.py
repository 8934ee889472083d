"""The text that is committed with an offset, with an end mark for its reader.

librdkafka returns a group's committed text without the zero byte that ends a text in C, so
sometimes the bytes behind it in memory follow it.
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

    A text without an end mark, from another program or an older release, is returned unchanged.
    """
    try:
        text = committed.metadata or ""
    except UnicodeDecodeError as error:
        text = error.object.decode("utf-8", "replace")
    return str(text).partition(_END)[0]
