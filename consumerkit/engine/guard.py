"""Watches over a transaction while the user's code holds its session.

Claims and effects are one transaction only as long as nobody else ends it. A session that a handler committed would
make effects durable without the rest of the group, and one it rolled back would go on without claims; so both are
refused where they are tried, and `finalise` looks again at the end.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, SessionTransaction

from consumerkit.errors import TransactionMisused
from consumerkit.storage.dialects.settings import READ_ONLY
from consumerkit.storage.sqlite_engine import BEGIN

_KEY: Final = "consumerkit.guard"
OPTION: Final = "consumerkit_guarded"
_GAP = r"(?:\s|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)"  # white space or a comment
_ENDS = re.compile(
    rf"(?:{_GAP}|;)*"
    rf"(?P<what>commit|end|abort|begin|start{_GAP}+transaction|prepare{_GAP}+transaction"
    rf"|rollback(?!{_GAP}+(?:(?:work|transaction){_GAP}+)?to\b))\b",
    re.IGNORECASE,
)


_SETS = re.compile(
    rf"(?:^|;)(?:{_GAP}|;)*(?:set{_GAP}+(?P<local>local)\b|(?:set{_GAP}+(?!constraints\b|transaction\b)|reset\b))"
    r"|set_config\s*\("
    rf"|(?:^|;)(?:{_GAP}|;)*set{_GAP}+transaction\b[^;]*\b(?P<read>read{_GAP}+only)\b",
    re.IGNORECASE,
)

# What makes a session forget changes that it has not flushed.
_FORGET: Final = ("expire", "expire_all", "expunge", "expunge_all")


class Crowded(Exception):
    """One message's code meets changes of the messages before it that are not flushed: flush after each message."""


class Guard:
    """One transaction's guard.

    It also keeps the messages of a group apart where a session would let one lose the changes of another: what is not
    flushed can be forgotten, and is not seen by what goes past the session's autoflush.

    Attributes:
        open: Whether the user's code may not end the transaction now.
        misused: What it did all the same, or None.
        crowded: Whether the group must be run again, with a flush after each message.
        set_local: Whether SET LOCAL was seen.
        set_session: Whether a SET was seen that outlasts the transaction, or may.
    """

    __slots__ = ("_asked", "_before", "_session", "crowded", "misused", "open", "set_local", "set_session")

    def __init__(self, session: Session | None = None) -> None:
        self.open = True
        self.misused: str | None = None
        self.crowded = False
        self.set_local = False
        self.set_session = False
        self._session = session
        self._before: tuple[int, int] | None = None
        self._asked: float | None = None

    def ask(self) -> None:
        """Take note that a statement is sent."""
        self._asked = time.monotonic()

    def answered(self) -> None:
        """Take note that the statement was answered."""
        self._asked = None

    def note_settings(self, statement: str) -> None:
        """Take note of the settings that a statement makes, as far as its text tells.

        Raises:
            TransactionMisused: It makes the transaction read-only, so that nothing of the group could be written.
        """
        if ";" in statement or "set_config" in statement or statement.lstrip()[:5].lower().startswith(("set", "reset")):
            for found in _SETS.finditer(statement):
                if found["read"]:
                    raise TransactionMisused(READ_ONLY)
                if found["local"]:
                    self.set_local = True
                else:
                    self.set_session = True

    def waited(self) -> float:
        """Return how many seconds a statement has been without an answer; 0 where there is none."""
        return 0.0 if self._asked is None else time.monotonic() - self._asked

    def check(self) -> None:
        """Raise `TransactionMisused` if the transaction was ended, and `Crowded` if the group is to be run apart."""
        if self.misused is not None:
            raise TransactionMisused(self.misused)
        if self.crowded:
            raise Crowded

    def next_message(self) -> None:
        """Take note that the changes so far are of other messages than those to come."""
        self._before = self._changes()

    def keep_apart(self) -> None:
        """Flush what earlier messages have changed, before this one's code could lose or pass it.

        Raises:
            Crowded: This one has changes of its own already, which it may mean to forget.
        """
        if not self.open or self._before is None or self._before == (0, 0):
            return
        session, before = self._session, self._before
        if session is None or session._flushing:  # noqa: SLF001 - there is no other way to ask
            return
        now = self._changes()
        if now == (0, 0):  # flushed meanwhile
            self._before = None
        elif now == before:
            self._before = None
            session.flush()
        else:
            self.crowded = True
            raise Crowded

    def _changes(self) -> tuple[int, int]:
        # Of `Session.new`, `dirty` and `deleted`, without going through them.
        session = self._session
        if session is None:
            return (0, 0)
        modified = len(session.identity_map._modified)  # noqa: SLF001
        return (len(session._new) + len(session._deleted), modified)  # noqa: SLF001


def guard(session: Session) -> Guard:
    """Put a session under guard for the rest of its transaction."""
    made = Guard(session)
    session.info[_KEY] = made
    for name in _FORGET:
        setattr(session, name, _forgetting(made, getattr(session, name)))
    return made


def _forgetting(found: Guard, method: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> None:
        found.keep_apart()
        method(*args, **kwargs)

    return call


def _found(session: Session) -> Guard | None:
    made: Guard | None = session.info.get(_KEY)
    return made if made is not None and made.open else None


@event.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    if session.in_nested_transaction():
        return
    if (found := _found(session)) is not None:
        found.misused = "the handler called commit() on its session; consumerkit commits it with the claims"
        raise TransactionMisused(found.misused)


@event.listens_for(Session, "after_soft_rollback")
def _after_rollback(session: Session, previous: SessionTransaction) -> None:
    if not previous.nested and (found := _found(session)) is not None:
        found.misused = "the handler rolled back or closed its session; raise an error instead, or use begin_nested()"


@event.listens_for(Session, "after_transaction_end")
def _after_end(session: Session, transaction: SessionTransaction) -> None:
    # Told of `close` and `reset` too, which are no rollback in the session's eyes.
    if transaction.parent is None:
        _after_rollback(session, transaction)


@event.listens_for(Engine, "commit")
def _before_connection_commit(connection: Connection) -> None:
    # Of the connection itself, past its session. A handler that fails afterwards would hide it from `finalise`.
    found = connection.get_execution_options().get(OPTION)
    if isinstance(found, Guard) and found.open:
        found.misused = "the handler committed its session's connection; consumerkit commits it with the claims"
        raise TransactionMisused(found.misused)


@event.listens_for(Engine, "before_cursor_execute")
def _before_execute(connection: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool) -> None:
    if context is None or statement == BEGIN or not (made := context.execution_options.get(OPTION)):
        return
    if isinstance(made, Guard):
        made.keep_apart()
        made.ask()
        made.note_settings(statement)
    if (found := _ENDS.match(statement)) is not None:
        what = found["what"].split(None, 1)[0].upper()
        raise TransactionMisused(f"the handler executed {what}; consumerkit ends the transaction")


@event.listens_for(Engine, "after_cursor_execute")
def _after_execute(
    _connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool
) -> None:
    if context is not None and isinstance(made := context.execution_options.get(OPTION), Guard):
        made.answered()
