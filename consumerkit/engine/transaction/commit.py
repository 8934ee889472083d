"""Controls a transaction's end, whatever the session, the driver or the user's code raises or leaves open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, NoReturn

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from consumerkit.engine.transaction import failures
from consumerkit.engine.transaction.guard import give_up
from consumerkit.error_tree import leaves

_log = logging.getLogger(__name__)
_LET_GO: Final = 5.0


@asynccontextmanager
async def closing(session: AsyncSession, handler: str) -> AsyncIterator[AsyncSession]:
    """Close a session at the end; a failure to close it is logged and hides no earlier error.

    A connection that cannot be closed is given up, so that no later transaction meets its open transaction.
    """
    try:
        yield session
    finally:
        try:
            await asyncio.shield(session.close())
        except Exception as error:  # noqa: BLE001 - logged; the transaction's end is known already
            _log.warning("handler %r: its session could not be closed: %s", handler, failures.described(error))
            with suppress(Exception):
                await asyncio.wait_for(AsyncSession.run_sync(session, give_up), _LET_GO)


@contextmanager
def closing_in_thread(session: Session, handler: str) -> Iterator[Session]:
    """Close a session at the end; see `closing`."""
    try:
        yield session
    finally:
        try:
            session.close()
        except Exception as error:  # noqa: BLE001 - logged; the transaction's end is known already
            _log.warning("handler %r: its session could not be closed: %s", handler, failures.described(error))
            give_up(session)


@contextmanager
def keeping(session: Session, held: list[object]) -> Iterator[None]:
    """Keep loaded objects in `held` until the messages are handled; a session refers to them only weakly.

    The recipe for strong references is SQLAlchemy's.
    """

    def keep(_session: Session, loaded: object) -> None:
        held.append(loaded)

    event.listen(session, "loaded_as_persistent", keep)
    try:
        yield
    finally:
        event.remove(session, "loaded_as_persistent", keep)


def being_cancelled() -> bool:
    """Tell whether the current task is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def raise_contained(error: BaseException, *, cancelled: bool) -> NoReturn:
    """Raise an error again; turn errors that would end the lane into failures of the handler.

    These are SystemExit and a stray CancelledError: a handler that calls `sys.exit`, or lets its own cancellation
    escape, must not end the process. A StopIteration from a thread cannot be set on a future: the task that awaits it
    would wait for ever.
    """
    if (isinstance(error, Exception | KeyboardInterrupt) and not isinstance(error, StopIteration)) or cancelled:
        raise error
    if isinstance(error, BaseExceptionGroup):
        # The error of each task in a task group still decides.
        raise ExceptionGroup("of the handler", [_contained(leaf) for leaf in leaves(error)]) from error
    raise RuntimeError(f"the handler raised {type(error).__name__}") from error


def _contained(leaf: BaseException) -> Exception:
    if isinstance(leaf, Exception):
        return leaf
    made = RuntimeError(f"the handler raised {type(leaf).__name__}")
    made.__cause__ = leaf
    return made
