"""Gives aiokafka its access token, and makes it notice a broker's refusal.

A broker refuses a token by an answer that says why (RFC 7628, section 3.2.3), and then waits for a
last message from the client. aiokafka reads the answer as a success, and each request on the
connection then fails without a reason. aiokafka has no hook for this, so `install` replaces a name
in its module.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from aiokafka import conn  # type: ignore[import-untyped]
from aiokafka.abc import AbstractTokenProvider  # type: ignore[import-untyped]
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed  # type: ignore[import-untyped]

from consumerkit.transports.token_keeper import TokenKeeper

_LONGEST: Final = 5.0
_PAUSE: Final = 0.05
_STATUS: Final = re.compile(r"[a-z_]{1,60}")


def install() -> None:
    """Make aiokafka's clients notice a refused token; may be called again."""
    conn.OAuthAuthenticator = CheckingAuthenticator


class CheckingAuthenticator(conn.OAuthAuthenticator):  # type: ignore[misc]
    """One login by token."""

    async def step(self, payload: bytes | None) -> Any:
        """Return what to send next, None once the broker has accepted the login.

        Raises:
            SaslAuthenticationFailed: It has refused the token.
        """
        if payload:
            raise SaslAuthenticationFailed(f"the broker refused the access token{_status(payload)}")
        return await super().step(payload)


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """The token source that aiokafka calls whenever it connects.

    Args:
        keeper: Keeps the token.
        extensions: The values that the broker gets besides the token.
    """

    def __init__(self, keeper: TokenKeeper, extensions: Mapping[str, str]) -> None:
        install()
        self._keeper = keeper
        self._extensions = dict(extensions)

    async def token(self) -> str:
        """Return the token; wait briefly if there is none yet.

        Raises:
            KafkaConnectionError: There is none. It counts as a failed connection: aiokafka tries
                again.
        """
        end = asyncio.get_running_loop().time() + _LONGEST
        while (token := self._keeper.current()) is None:
            if asyncio.get_running_loop().time() > end:
                raise KafkaConnectionError(f"no token to log in to Kafka: {self._keeper.trouble()}")
            await asyncio.sleep(_PAUSE)
        return token.value

    def extensions(self) -> dict[str, str]:
        """Return the values that the broker gets besides the token."""
        return self._extensions

    async def wait(self) -> None:
        """Wait for the first token.

        Raises:
            StartError: There is none in time.
        """
        await asyncio.to_thread(self._keeper.wait)


def _status(answer: bytes) -> str:
    try:
        status = json.loads(answer)["status"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f" ({status})" if isinstance(status, str) and _STATUS.fullmatch(status) else ""
