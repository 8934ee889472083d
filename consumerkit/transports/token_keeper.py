"""Keeps a valid access token for all clients of one transport: renewed before it expires, requested once."""

from __future__ import annotations

import logging
import random
import threading
import time
import weakref
from typing import Final

from consumerkit.errors import StartError
from consumerkit.transports.access_token import AccessToken, NoToken
from consumerkit.transports.token_caller import AskToken, TokenCaller

log = logging.getLogger(__name__)

RENEWED_AFTER: Final = 0.75
"""The part of its life after which a token is renewed; librdkafka asks for the next one at 0.8 of it."""

LONGEST_WAIT: Final = 30.0
"""Maximal seconds between two tries while no token is given."""

START_TIMEOUT: Final = 15.0
"""Seconds that a client waits for a first token."""

_FIRST_WAIT: Final = 0.5
_SHORTEST_LIFE: Final = 1.0
_LONGEST_LIFE: Final = 86_400.0


class TokenKeeper:
    """Requests tokens in a thread, from the first need of one until the keeper is no longer used.

    Args:
        ask: Returns a token; sync or async.
        what: The name of that function in messages.
        timeout: Seconds after which a call of it is given up.
    """

    def __init__(self, ask: AskToken, what: str, timeout: float) -> None:
        # The thread refers to this and not to the keeper, or no keeper would ever be collected.
        self._renewal = _Renewal(TokenCaller(ask, what, timeout), what)
        self._begun = threading.Lock()
        self._thread: threading.Thread | None = None

    def current(self) -> AccessToken | None:
        """Return the token, None if there is no valid one; never waits."""
        self._begin()
        return self._renewal.current()

    def trouble(self) -> NoToken:
        """Return why there is no token."""
        return self._renewal.trouble or NoToken(f"{self._renewal.what} has not returned yet")

    def wait(self, within: float = START_TIMEOUT) -> AccessToken:
        """Return the token, and wait for it if there is none; blocks.

        Raises:
            StartError: There is none in time, or the token's source refuses.
        """
        self._begin()
        return self._renewal.wait(within)

    def _begin(self) -> None:
        with self._begun:
            if self._thread is None:
                self._thread = threading.Thread(target=self._renewal.run, name="consumerkit-token", daemon=True)
                weakref.finalize(self, self._renewal.stop)
                self._thread.start()


class _Renewal:
    """The work of the thread."""

    def __init__(self, caller: TokenCaller, what: str) -> None:
        self.what = what
        self.trouble: NoToken | None = None
        self._caller = caller
        self._token: AccessToken | None = None
        self._changed = threading.Condition()
        self._over = False

    def current(self) -> AccessToken | None:
        token = self._token
        return token if token is not None and token.seconds_left > 0 else None

    def wait(self, within: float) -> AccessToken:
        end = time.monotonic() + within
        with self._changed:
            while (token := self.current()) is None:
                left = end - time.monotonic()
                if self.trouble is not None and (self.trouble.permanent or left <= 0):
                    raise StartError(f"no token to log in to Kafka: {self.trouble}") from None
                if left <= 0:
                    raise StartError(f"no token to log in to Kafka: {self.what} has not returned in {within:g} s")
                self._changed.wait(left)
        return token

    def stop(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def run(self) -> None:
        failures = 0
        try:
            while not self._over:
                try:
                    token = self._caller.call()
                except NoToken as error:
                    failures += 1
                    wait = min(LONGEST_WAIT, _FIRST_WAIT * 2 ** min(failures, 10)) * random.uniform(0.75, 1.0)
                    self._fail(error, wait)
                else:
                    wait = min(max(_SHORTEST_LIFE, token.seconds_left * RENEWED_AFTER), _LONGEST_LIFE)
                    self._put(token, failures)
                    failures = 0
                self._sleep(wait)
        finally:
            self._caller.stop()

    def _fail(self, error: NoToken, wait: float) -> None:
        token = self.current()
        left = f"the token there is holds for {token.seconds_left:.0f} s more" if token else "there is no token"
        with self._changed:
            self.trouble = error
            self._changed.notify_all()
        log.warning("cannot log in to Kafka with a new token: %s; %s, asked again in %.1f s", error, left, wait)

    def _put(self, token: AccessToken, failures: int) -> None:
        if failures:
            log.info("%s gives tokens again", self.what)
        with self._changed:
            self._token, self.trouble = token, None
            self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._over, seconds)
