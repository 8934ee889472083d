"""SASL OAUTHBEARER: `OAuthBearer`, a login by tokens from a token endpoint or a function of the user's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from consumerkit.errors import ConfigurationError
from consumerkit.transports.access_token import AccessToken
from consumerkit.transports.tls import Tls
from consumerkit.transports.token_caller import AskToken
from consumerkit.transports.token_endpoint import TokenEndpoint
from consumerkit.transports.token_keeper import TokenKeeper

__all__ = ["AccessToken", "OAuthBearer", "TokenEndpoint"]

# RFC 7628: `auth` is the token's own name.
_NAME: Final = re.compile(r"(?!auth$)[A-Za-z]{1,200}")
_VALUE: Final = re.compile(r"[\x21-\x7e \t\r\n]{0,4096}")


@dataclass(frozen=True)
class OAuthBearer:
    """A login by access tokens (SASL OAUTHBEARER), over TLS unless told otherwise.

    A token is requested when a worker connects, and again once three quarters of its life are over.
    All connections of a process share it. The token's source runs in a thread of its own, so it may
    block.

    Args:
        token: `TokenEndpoint(...)`, or a function, sync or async, that returns an `AccessToken`.
        extensions: Further values that the broker needs, such as Confluent's `logicalCluster`.
        timeout: Seconds after which a call of the function is given up.
        tls: How the connection is encrypted; None sends the token in the clear, which `Kafka` allows to this machine
            only.

    Raises:
        ConfigurationError: A value is wrong.

    Example:
        >>> OAuthBearer(TokenEndpoint("https://login.example.org/token", "shop", "secret", scope="kafka")).tls
        Tls(ca_file=None, cert_file=None, key_file=None, verify=True)
    """

    token: TokenEndpoint | AskToken
    extensions: Mapping[str, str] = field(default_factory=dict, kw_only=True, repr=False, hash=False)
    timeout: float = field(default=10.0, kw_only=True)
    tls: Tls | None = field(default_factory=Tls, kw_only=True)

    def __post_init__(self) -> None:
        token: object = self.token
        if not callable(token):
            wrong = type(token).__name__
            raise ConfigurationError(
                f"OAuthBearer(token=...) takes TokenEndpoint(...) or a function that returns a token, not {wrong}"
            )
        _check_extensions(self.extensions)
        seconds: object = self.timeout
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 3600:
            raise ConfigurationError("OAuthBearer(timeout=...) takes seconds, more than 0 and at most 3600")
        if self.tls is not None and not isinstance(self.tls, Tls):
            raise ConfigurationError(f"OAuthBearer(tls=...) takes Tls(...) or None, not {type(self.tls).__name__}")

    def check_endpoint(self) -> None:
        """Refuse to send the client's secret without encryption to another machine.

        Raises:
            ConfigurationError: The endpoint uses `http://` and is on another machine.
        """
        if isinstance(self.token, TokenEndpoint) and not self.token.is_encrypted:
            raise ConfigurationError(
                f"TokenEndpoint(url={self.token.place!r}) would be sent the client's secret without encryption; "
                "give an https:// URL, or allow it with Kafka(allow_insecure=True)"
            )

    def keeper(self) -> TokenKeeper:
        """Return the keeper of a token; it requests none before one is needed.

        Raises:
            ConfigurationError: The endpoint's authorities cannot be read.
        """
        if isinstance(self.token, TokenEndpoint):
            self.token.check_files()
            return TokenKeeper(self.token, f"the token endpoint {self.token.place}", self.timeout)
        return TokenKeeper(self.token, "the function given as OAuthBearer(token=...)", self.timeout)


class TokenCallback:
    """librdkafka's `oauth_cb`, called in a thread of the client's; it never waits.

    Args:
        keeper: Keeps the token.
        extensions: The values that the broker gets besides the token.
    """

    def __init__(self, keeper: TokenKeeper, extensions: Mapping[str, str]) -> None:
        self._keeper = keeper
        self._extensions = dict(extensions)

    def __call__(self, _: str) -> tuple[str, float, str, dict[str, str]]:
        token = self._keeper.current()
        if token is None:
            # The client asks again after 10 s, and reports only that this raised; the keeper has
            # logged why.
            raise self._keeper.trouble()
        return token.value, token.expires_at, "", self._extensions

    def wait(self) -> None:
        """Wait for a token; a client that is made without one waits itself, silently.

        Raises:
            StartError: There is none in time.
        """
        self._keeper.wait()


def wait_for_token(config: Mapping[str, object]) -> None:
    """Wait for a token before a client is made, if librdkafka's settings log in with one; blocks.

    Raises:
        StartError: There is none in time.
    """
    if isinstance(callback := config.get("oauth_cb"), TokenCallback):
        callback.wait()


def _check_extensions(extensions: object) -> None:
    place = "OAuthBearer(extensions=...)"
    if not isinstance(extensions, Mapping):
        raise ConfigurationError(f"{place} takes a mapping, not {type(extensions).__name__}")
    for name, value in extensions.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(f"{place}: a name is made of letters, and is not 'auth'")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ConfigurationError(f"{place}: the value of {name!r} is not text of visible ASCII characters")
