"""Watches over a transaction while the user's code holds its session.

Claims and effects are one transaction only as long as no other code ends it. A handler's commit would make effects
durable without the rest of the batch, and its rollback would let it go on without claims. Both are refused when they
are tried, and `finalise` checks again at the end. A session with a second connection would commit twice, one after the
other, so the second connection is refused as it begins.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.orm import Session, SessionTransaction

from consumerkit.engine.transaction.session_guard import Crowded, Guard
from consumerkit.engine.transaction.statements import ending
from consumerkit.errors import SessionOver, TransactionMisused
from consumerkit.storage.faults import note_engine
from consumerkit.storage.sqlite_engine import BEGIN

__all__ = ["OPTION", "Crowded", "Guard", "give_up", "guard"]

_KEY: Final = "consumerkit.guard"
OPTION: Final = "consumerkit_guarded"

# Methods that make a session forget unflushed changes.
_FORGET: Final = ("expire", "expire_all", "expunge", "expunge_all")


def guard(session: Session, engine: Engine | None = None) -> Guard:
    """Put a session under guard for the rest of its transaction."""
    made = Guard(session, engine)
    session.info[_KEY] = made
    for name in _FORGET:
        setattr(session, name, _forgetting(made, getattr(session, name)))
    return made


def give_up(session: Session) -> None:
    """Close the connection of a session that cannot be closed; its transaction may still be open."""
    with suppress(Exception):
        Session.invalidate(session)
    made: Guard | None = session.info.get(_KEY)
    if made is not None and made.connection is not None and not made.connection.closed:
        with suppress(Exception):
            made.connection.invalidate()
        with suppress(Exception):
            made.connection.close()


def _forgetting(found: Guard, method: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> None:
        found.keep_apart()
        method(*args, **kwargs)

    return call


def _found(session: Session) -> Guard | None:
    made: Guard | None = session.info.get(_KEY)
    return made if made is not None and made.open else None


def _of(connection: Connection) -> Guard | None:
    made = connection.get_execution_options().get(OPTION)
    return made if isinstance(made, Guard) else None


# Session listeners. The user's own listeners may raise, so ours come first.


@event.listens_for(Session, "after_transaction_create", insert=True)
def _after_create(session: Session, transaction: SessionTransaction) -> None:
    made: Guard | None = session.info.get(_KEY)
    if made is not None:
        try:
            made.check_time()
        except SessionOver:
            # Otherwise the session would go on as if it had begun.
            transaction.close()
            raise


@event.listens_for(Session, "after_begin", insert=True)
def _after_begin(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    made: Guard | None = session.info.get(_KEY)
    if made is not None:
        made.begun(connection)


@event.listens_for(Session, "before_commit", insert=True)
def _before_commit(session: Session) -> None:
    if session.in_nested_transaction():
        return
    if (found := _found(session)) is not None:
        found.misused = "the handler called commit() on its session; consumerkit commits it with the claims"
        raise TransactionMisused(found.misused)


@event.listens_for(Session, "after_commit", insert=True)
def _after_commit(session: Session) -> None:
    made: Guard | None = session.info.get(_KEY)
    if made is not None and not session.in_nested_transaction():
        made.commit.answered()


@event.listens_for(Session, "after_soft_rollback", insert=True)
def _after_rollback(session: Session, previous: SessionTransaction) -> None:
    if not previous.nested and (found := _found(session)) is not None:
        found.misused = "the handler rolled back or closed its session; raise an error instead, or use begin_nested()"


@event.listens_for(Session, "after_transaction_end", insert=True)
def _after_end(session: Session, transaction: SessionTransaction) -> None:
    # Also runs on `close` and `reset`, which the session does not count as a rollback.
    if transaction.parent is None:
        _after_rollback(session, transaction)


# Connection listeners.


@event.listens_for(Engine, "commit", insert=True)
def _before_connection_commit(connection: Connection) -> None:
    if (found := _of(connection)) is None:
        return
    # The connection commits, past its session. A later failure of the handler would hide that from `finalise`.
    if found.open:
        found.misused = "the handler committed its session's connection; consumerkit commits it with the claims"
        raise TransactionMisused(found.misused)
    found.commit.begin(connection)


@event.listens_for(Engine, "rollback", insert=True)
def _before_connection_rollback(connection: Connection) -> None:
    if (found := _of(connection)) is not None:
        found.commit.rolled_back = True


@event.listens_for(Engine, "before_cursor_execute", insert=True)
def _before_execute(connection: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool) -> None:
    if context is None or statement == BEGIN or not (made := context.execution_options.get(OPTION)):
        return
    if (what := ending(statement, nested=connection.dialect.name != "sqlite")) is not None:
        raise TransactionMisused(f"the handler executed {what}; consumerkit ends the transaction")
    if isinstance(made, Guard):
        made.keep_apart()
        made.commit.executed()
        made.note_settings(statement)
        made.statements.ask()


@event.listens_for(Engine, "after_cursor_execute", insert=True)
def _after_execute(
    _connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool
) -> None:
    if context is not None and isinstance(made := context.execution_options.get(OPTION), Guard):
        made.statements.answered()


@event.listens_for(Engine, "handle_error", insert=True)
def _on_error(context: ExceptionContext) -> None:
    if context.sqlalchemy_exception is not None and context.engine is not None:
        note_engine(context.sqlalchemy_exception, context.engine)
    if context.connection is None or (made := _of(context.connection)) is None:
        return
    if context.statement is None:
        made.commit.failed(context.sqlalchemy_exception or context.original_exception)
    made.statements.failed(context.original_exception, lost=context.is_disconnect)
