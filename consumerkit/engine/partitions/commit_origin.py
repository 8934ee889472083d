"""Whose offset commits count as a worker's own, by the text that is committed with them.

Two consumers that use one group each get a part of the messages, in silence. Within a database the `consumers` table
keeps them apart. Each commit also names its handler and its database, so that another database's shows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

# Older releases marked no end, and named no database.
_NOTE: Final = re.compile(r"consumerkit (?P<handler>\S+) start=(?P<start>\d+)(?: in=(?P<database>[0-9a-f]{16})\b)?")


class CommitNote(NamedTuple):
    """What a committed offset's text tells.

    Attributes:
        handler: The handler that committed it.
        start: Where its first run began.
        database: Which database it works on; empty where an older release has committed.
    """

    handler: str
    start: int
    database: str = ""

    @classmethod
    def read(cls, text: str) -> CommitNote | None:
        """Return what a text tells; None where another program wrote it.

        Example:
            >>> CommitNote.read("consumerkit credit-account start=17")
            CommitNote(handler='credit-account', start=17, database='')
        """
        found = _NOTE.match(text)
        return cls(found["handler"], int(found["start"]), found["database"] or "") if found else None

    def written(self) -> str:
        """Return the text to commit; older releases read it, too.

        Example:
            >>> CommitNote("credit-account", 17, "00c0ffee00c0ffee").written()
            'consumerkit credit-account start=17 in=00c0ffee00c0ffee'
        """
        return f"consumerkit {self.handler} start={self.start}" + (f" in={self.database}" if self.database else "")


@dataclass(frozen=True)
class CommitOrigin:
    """What tells a worker's own commits from those of another database's.

    Args:
        handler: The handler's name.
        group: Its consumer group.
        database: What tells the database from others; empty where that is not known.
        adopted: Whether the group is taken over from the one that has it.
    """

    handler: str
    group: str = ""
    database: str = ""
    adopted: bool = False

    def refusal(self, text: str) -> str | None:
        """Return why a group is not read in which this text was committed last; None where nothing is wrong."""
        note = CommitNote.read(text)
        if note is None or self.adopted or not self._is_strange(note):
            return None
        return (
            f"group {self.group!r} is used by handler {note.handler!r} on another database, too, and each would get a "
            f"part of the messages; give {self.handler!r} a group of its own, or start once with --adopt "
            f"{self.handler} if {note.handler!r} runs there no more or that database is lost"
        )

    def _is_strange(self, note: CommitNote) -> bool:
        # An older release names no database, so that its handler may have had another name on this one.
        return bool(note.database and self.database) and note.database != self.database
