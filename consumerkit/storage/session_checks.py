"""Whether a sessionmaker's sessions can hold claims and changes in one transaction, as far as that can be checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from consumerkit.errors import ConfigurationError

Sessions = sessionmaker[Session] | async_sessionmaker[AsyncSession]

# Arguments of a sessionmaker that split claims and effects into several transactions, or that begin
# none.
_UNFIT: dict[str, tuple[Any, str]] = {
    "binds": ((None, {}), "one message's changes would be committed to several databases, one after another"),
    "twophase": ((False,), "an interrupted commit would stay prepared and never take effect"),
    "autobegin": ((True,), "the session must begin its transaction itself"),
}


def check(sessions: Sessions, engine: Callable[[], Engine]) -> None:
    """Refuse a sessionmaker whose sessions visibly do not hold claims and changes in one transaction.

    Args:
        sessions: The user's sessionmaker.
        engine: Returns its engine.

    Raises:
        ConfigurationError: They do not; the line names what was found and the way out.
    """
    _arguments(sessions.kw)
    _routing(sessions, engine())


def _arguments(arguments: Mapping[str, Any]) -> None:
    for name, (allowed, why) in _UNFIT.items():
        if name in arguments and arguments[name] not in allowed:
            raise ConfigurationError(f"database: give a sessionmaker without {name}=; {why}")


def _routing(sessions: Sessions, engine: Engine) -> None:
    """Refuse a sessionmaker whose sessions visibly commit more than one transaction, or another engine's."""
    made: Any = sessions()
    session: Session = made.sync_session if isinstance(made, AsyncSession) else made
    name = type(session).__name__
    if session.twophase:
        raise ConfigurationError(f"database: {name} has twophase=True; {_UNFIT['twophase'][1]}")
    if any(bind is not engine for bind in session.binds.values()):
        raise ConfigurationError(f"database: {name} binds mappers or tables to other engines; {_UNFIT['binds'][1]}")
    try:
        chosen = session.get_bind()
    except Exception as error:
        raise ConfigurationError(
            f"database: get_bind() of {name} without arguments raised {type(error).__name__}; let it return the engine "
            "given as database="
        ) from error
    if chosen is not engine:
        raise ConfigurationError(
            f"database: get_bind() of {name} without arguments returns {_shown(chosen)} and not {_shown(engine)}, the "
            "engine given as database=; claims and changes would not be one transaction"
        )


def _shown(bind: Any) -> str:
    url = getattr(bind, "url", None)
    return repr(type(bind).__name__) if url is None else url.set(query={}).render_as_string(hide_password=True)
