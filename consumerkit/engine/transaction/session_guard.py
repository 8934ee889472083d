"""Watches one transaction while the user's code holds its session."""

from __future__ import annotations

import re

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from consumerkit.engine.transaction.commit_evidence import CommitEvidence
from consumerkit.engine.transaction.statement_clock import StatementClock
from consumerkit.errors import SessionOver, SessionUnfit, TransactionMisused
from consumerkit.storage.dialects.settings import READ_ONLY

_GAP = r"(?:\s|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)"  # white space or a comment
_SETS = re.compile(
    rf"(?:^|;)(?:{_GAP}|;)*(?:set{_GAP}+(?P<local>local)\b|(?:set{_GAP}+(?!constraints\b|transaction\b)|reset\b))"
    r"|set_config\s*\("
    rf"|(?:^|;)(?:{_GAP}|;)*set{_GAP}+transaction\b[^;]*\b(?P<read>read{_GAP}+only)\b",
    re.IGNORECASE,
)


class Crowded(Exception):
    """One message's code meets unflushed changes of earlier messages: flush after each message."""


class Guard:
    """One transaction's guard.

    It also separates the messages of a batch. A message could make the session forget another one's unflushed changes,
    and statements past the session's autoflush do not see these changes.

    Args:
        session: The session to watch.
        engine: The engine that the session was made for; None skips that check.

    Attributes:
        open: Whether the user's code may not end the transaction now.
        misused: How it did so all the same, or None.
        engine: The engine that the session was made for, or None.
        unfit: Why the session cannot hold one transaction, or None.
        crowded: Whether the batch must be run again, with a flush after each message.
        set_local: Whether SET LOCAL was seen.
        set_session: Whether a SET was seen that may outlast the transaction.
        connection: The session's connection, once it has begun.
        statements: Times the statements.
        commit: The evidence of the transaction's COMMIT.
    """

    __slots__ = (
        "_before",
        "_over",
        "_session",
        "commit",
        "connection",
        "crowded",
        "engine",
        "misused",
        "open",
        "set_local",
        "set_session",
        "statements",
        "unfit",
    )

    def __init__(self, session: Session | None = None, engine: Engine | None = None) -> None:
        self.open = True
        self.misused: str | None = None
        self.unfit: str | None = None
        self.crowded = False
        self.set_local = False
        self.set_session = False
        self.connection: Connection | None = None
        self.statements = StatementClock()
        self.commit = CommitEvidence()
        self._session = session
        self.engine = engine
        self._over: str | None = None
        self._before: tuple[int, int] | None = None

    def check(self) -> None:
        """Raise the errors that must stop the user's code, even if it caught them.

        Raises:
            SessionUnfit: The session cannot hold one transaction.
            TransactionMisused: The transaction was ended.
            Crowded: The batch must run again with a flush after each message.
        """
        if self.unfit is not None:
            raise SessionUnfit(self.unfit)
        if self.misused is not None:
            raise TransactionMisused(self.misused)
        if self.crowded:
            raise Crowded

    @property
    def ended(self) -> bool:
        """Whether the transaction can no longer be asked about itself."""
        return self.misused is not None or self.unfit is not None

    @property
    def broken(self) -> bool:
        """Whether the connection may still be in a transaction that SQLAlchemy no longer knows.

        SQLAlchemy considers a transaction ended when a listener fails before COMMIT is sent.
        """
        return self.misused is not None or self.commit.in_hook

    def seal(self) -> None:
        """Allow the commit: all checks are done."""
        self.open = False
        self.commit.sealed = True

    def begun(self, connection: Connection) -> None:
        """Accept the session's first connection, and refuse a second one.

        Raises:
            SessionUnfit: It is the second one, or the first one belongs to another engine.
            SessionOver: The handler has returned.
        """
        self.check_time()
        if not self.open or self.misused is not None or connection is self.connection:
            return
        if self.connection is None:
            self.connection = connection
            if self.engine is None or connection.engine is self.engine:
                return
            self.unfit = (
                f"the session's get_bind() chose {_named(connection.engine)}, while database= is "
                f"{_named(self.engine)}: let get_bind() without arguments return the engine given as database="
            )
        else:
            self.unfit = (
                f"the session began a second transaction, on {_named(connection.engine)}: changes and claims must "
                "share one transaction; use a session of the handler's own for another engine"
            )
        raise SessionUnfit(self.unfit)

    def end(self, handler: str) -> None:
        """Refuse any further use of the session."""
        self.open = False
        self._over = handler

    def check_time(self) -> None:
        """Raise `SessionOver` if the transaction is over."""
        if self._over is not None:
            raise SessionOver(
                f"handler {self._over!r}: its session was used after the transaction was over, so the change would "
                "be lost; await what handle started before it returns, or give it a session of its own"
            )

    def note_settings(self, statement: str) -> None:
        """Record the settings that a statement makes, as far as its text shows.

        Raises:
            TransactionMisused: It makes the transaction read-only, so the batch could write nothing.
        """
        if ";" in statement or "set_config" in statement or statement.lstrip()[:5].lower().startswith(("set", "reset")):
            for found in _SETS.finditer(statement):
                if found["read"]:
                    raise TransactionMisused(READ_ONLY)
                if found["local"]:
                    self.set_local = True
                else:
                    self.set_session = True

    def next_message(self) -> None:
        """Record that the changes so far belong to earlier messages."""
        self._before = self._changes()

    def keep_apart(self) -> None:
        """Flush earlier messages' changes before this one's code could lose or miss them.

        Raises:
            Crowded: This message already has changes of its own, which it may want the session to forget.
        """
        if not self.open or self._before is None or self._before == (0, 0):
            return
        session, before = self._session, self._before
        if session is None or session._flushing:  # noqa: SLF001 - there is no other way to ask
            return
        now = self._changes()
        if now == (0, 0):  # flushed in between
            self._before = None
        elif now == before:
            self._before = None
            session.flush()
        else:
            self.crowded = True
            raise Crowded

    def _changes(self) -> tuple[int, int]:
        # Counts `Session.new`, `dirty` and `deleted` without iterating over them.
        session = self._session
        if session is None:
            return (0, 0)
        modified = len(session.identity_map._modified)  # noqa: SLF001
        return (len(session._new) + len(session._deleted), modified)  # noqa: SLF001


def _named(engine: Engine) -> str:
    # Leaves out the query, which may also hold a password.
    return engine.url.set(query={}).render_as_string(hide_password=True)
