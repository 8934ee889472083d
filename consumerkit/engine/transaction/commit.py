"""Keeps a transaction's end in hand, whatever the session, the driver or the user's code raises or leaves open."""

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
    """Close a session at the end; what happened before says more than a session that cannot be closed.

    A connection that could not be closed is given up, so that no later transaction meets what it holds.
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
    """Collect in `held` what is loaded: the session refers to it only weakly, and it is to last until it is handled.

    The recipe is SQLAlchemy's, for strong references.
    """

    def keep(_session: Session, loaded: object) -> None:
        held.append(loaded)

    event.listen(session, "loaded_as_persistent", keep)
    try:
        yield
    finally:
        event.remove(session, "loaded_as_persistent", keep)


def being_cancelled() -> bool:
    """Tell whether the task that asks is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def raise_contained(error: BaseException, *, cancelled: bool) -> NoReturn:
    """Raise an error again; SystemExit and a stray CancelledError, which would end the lane, as the handler's failure.

    A handler that calls `sys.exit`, or lets a cancellation of its own escape, must not take its process along. Nor can
    a StopIteration out of a thread be set on a future: the task that awaits it would wait for ever.
    """
    if (isinstance(error, Exception | KeyboardInterrupt) and not isinstance(error, StopIteration)) or cancelled:
        raise error
    if isinstance(error, BaseExceptionGroup):
        # What each task of a task group has raised still decides.
        raise ExceptionGroup("of the handler", [_contained(leaf) for leaf in leaves(error)]) from error
    raise RuntimeError(f"the handler raised {type(error).__name__}") from error


def _contained(leaf: BaseException) -> Exception:
    if isinstance(leaf, Exception):
        return leaf
    made = RuntimeError(f"the handler raised {type(leaf).__name__}")
    made.__cause__ = leaf
    return made
