"""Decides by the text of an offset commit whether it is a worker's own.

Two consumers that share a group each get only a part of the messages, without an error. Within a database the
`consumers` table keeps them apart. Each commit also names its handler and its database, which reveals a commit of
another database.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

# Texts of older releases have no end mark and no database.
_NOTE: Final = re.compile(r"consumerkit (?P<handler>\S+) start=(?P<start>\d+)(?: in=(?P<database>[0-9a-f]{16})\b)?")


class CommitNote(NamedTuple):
    """The content of a committed offset's text.

    Attributes:
        handler: The handler that committed it.
        start: Where its first run began.
        database: The database that it works on; empty in a commit of an older release.
    """

    handler: str
    start: int
    database: str = ""

    @classmethod
    def read(cls, text: str) -> CommitNote | None:
        """Return the content of a text; None if another program wrote it.

        Example:
            >>> CommitNote.read("consumerkit credit-account start=17")
            CommitNote(handler='credit-account', start=17, database='')
        """
        found = _NOTE.match(text)
        return cls(found["handler"], int(found["start"]), found["database"] or "") if found else None

    def written(self) -> str:
        """Return the text to commit; older releases can read it, too.

        Example:
            >>> CommitNote("credit-account", 17, "00c0ffee00c0ffee").written()
            'consumerkit credit-account start=17 in=00c0ffee00c0ffee'
        """
        return f"consumerkit {self.handler} start={self.start}" + (f" in={self.database}" if self.database else "")


@dataclass(frozen=True)
class CommitOrigin:
    """Distinguishes a worker's own commits from another database's.

    Args:
        handler: The handler's name.
        group: Its consumer group.
        database: The database's identity; empty if it is unknown.
        adopted: Whether this handler takes the group over from its present user.
    """

    handler: str
    group: str = ""
    database: str = ""
    adopted: bool = False

    def refusal(self, text: str) -> str | None:
        """Return why a group with this last committed text is not read; None if nothing is wrong."""
        note = CommitNote.read(text)
        if note is None or self.adopted or not self._is_strange(note):
            return None
        return (
            f"group {self.group!r} is used by handler {note.handler!r} on another database, too, and each would get a "
            f"part of the messages; give {self.handler!r} a group of its own, or start once with --adopt "
            f"{self.handler} if {note.handler!r} runs there no more or that database is lost"
        )

    def _is_strange(self, note: CommitNote) -> bool:
        # An older release names no database: its handler may have had another name on this database.
        return bool(note.database and self.database) and note.database != self.database
