"""Calls a function that returns a token in a thread of its own, so that a call that hangs delays nothing else."""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final

from consumerkit.errors import ConfigurationError
from consumerkit.transports.access_token import AccessToken, NoToken

AskToken = Callable[[], AccessToken | Awaitable[AccessToken]]

MOST_HANGING: Final = 4
"""How many calls may hang at a time before no new one is begun."""

_AWAKE: Final = 0.5


class TokenCaller:
    """Calls one function, sync or async, again and again; used by one thread.

    Args:
        ask: The function. An async one runs on an event loop that is the same for each call.
        what: The function's name in messages.
        timeout: Seconds after which a call is given up.
    """

    def __init__(self, ask: AskToken, what: str, timeout: float) -> None:
        self._ask = ask
        self._what = what
        self._timeout = timeout
        self._loop: _LoopThread | None = None
        self._hanging: list[_LoopThread] = []

    def call(self) -> AccessToken:
        """Return a token that has not expired.

        Raises:
            NoToken: The function raised, did not return in time, or returned something else.
        """
        self._hanging = [one for one in self._hanging if one.is_alive()]
        if len(self._hanging) >= MOST_HANGING:
            raise NoToken(f"{len(self._hanging)} calls of {self._what} have not returned; give its requests a timeout")
        if self._loop is None:
            self._loop = _LoopThread()
        answer = self._loop.submit(self._answer())
        try:
            token = answer.result(self._timeout)
        except NoToken:
            raise
        except (TimeoutError, asyncio.CancelledError):
            answer.cancel()
            self._leave_hanging()
            raise NoToken(f"{self._what} did not return within {self._timeout:g} s") from None
        if token.seconds_left <= 0:
            raise NoToken(f"{self._what} returned a token that has expired already; check the machine's clock")
        return token

    def stop(self) -> None:
        """End the thread, after a call that is running has returned."""
        if self._loop is not None:
            self._loop.stop()

    def _leave_hanging(self) -> None:
        if self._loop is not None and not self._loop.answers(_AWAKE):
            self._loop.stop()
            self._hanging.append(self._loop)
            self._loop = None

    async def _answer(self) -> AccessToken:
        try:
            found: object = self._ask()
            if inspect.isawaitable(found):
                found = await found
        except (NoToken, asyncio.CancelledError):
            raise
        except ConfigurationError as error:  # from AccessToken, which quotes nothing
            raise NoToken(f"{self._what}: {error}") from None
        except BaseException as error:  # noqa: BLE001 - without its text and cause, which may quote a token
            raise NoToken(f"{self._what} raised {type(error).__name__}{_place(error)}") from None
        if not isinstance(found, AccessToken):
            wrong = type(found).__name__
            raise NoToken(f"{self._what} returned a value of type {wrong}; it must return an AccessToken(...)")
        return found


class _LoopThread:
    """An event loop in a daemon thread, so that a call that hangs does not keep the process alive."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="consumerkit-token-call", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, AccessToken]) -> Future[AccessToken]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def answers(self, within: float) -> bool:
        """Return whether the loop runs and does not hang in a call."""
        turned = threading.Event()
        self._loop.call_soon_threadsafe(turned.set)
        return turned.wait(within)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


def _place(error: BaseException) -> str:
    """Return the place in the function where the error was raised."""
    frames = traceback.extract_tb(error.__traceback__)[1:2]
    return f" at {frames[0].filename}:{frames[0].lineno}" if frames else ""
