"""A token with which a client logs in, and how long it is valid."""

from __future__ import annotations

import re
import time
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Final

from consumerkit.errors import ConfigurationError

_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,65536}")
# Beyond the year 5138 in seconds: a larger number is in milliseconds.
_MILLISECONDS: Final = 1e11


@dataclass(frozen=True)
class AccessToken:
    """A token for `OAuthBearer`, as the user's function returns it.

    Args:
        value: The token itself.
        expires_in: Seconds from now after which it expires.
        expires_at: When it expires, in seconds since 1970; give this or `expires_in`.

    Raises:
        ConfigurationError: The value is no token, or has no time of expiry; the value is not shown.

    Example:
        >>> AccessToken("eyJhbGciOi...", expires_at=4102444800.0)
        AccessToken(expires_at=4102444800.0)
    """

    value: str = field(repr=False)
    _: KW_ONLY
    expires_in: InitVar[float | None] = None
    expires_at: float = -1.0

    def __post_init__(self, expires_in: float | None) -> None:
        if not isinstance(self.value, str) or not _TOKEN.fullmatch(self.value):
            raise ConfigurationError("AccessToken(value): it takes the token: text of visible ASCII characters")
        given: object = self.expires_at if expires_in is None else expires_in
        if isinstance(given, bool) or not isinstance(given, int | float) or given != given:
            raise ConfigurationError("AccessToken(expires_in=..., expires_at=...) take numbers of seconds")
        if (expires_in is None) == (self.expires_at == -1.0):
            raise ConfigurationError("AccessToken(...) takes expires_in=... or expires_at=..., one of them")
        if given > _MILLISECONDS:
            raise ConfigurationError("AccessToken(...): this is a time in milliseconds; give seconds")
        object.__setattr__(self, "expires_at", given if expires_in is None else time.time() + given)

    @property
    def seconds_left(self) -> float:
        """Seconds until it expires; negative after that."""
        return self.expires_at - time.time()


class NoToken(Exception):
    """No token was obtained; the text is one line, and shows neither a token nor a secret.

    Attributes:
        permanent: Whether the same request gets the same answer until a person changes something.
    """

    def __init__(self, why: str, *, permanent: bool = False) -> None:
        super().__init__(why)
        self.permanent = permanent
