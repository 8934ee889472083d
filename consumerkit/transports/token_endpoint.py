"""The source of access tokens: `TokenEndpoint`, a frozen value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from consumerkit.errors import ConfigurationError
from consumerkit.redaction.file_path import check_path
from consumerkit.transports.access_token import AccessToken, NoToken
from consumerkit.transports.loopback import is_loopback
from consumerkit.transports.sasl import check_choice, check_text
from consumerkit.transports.tls import Tls

Authentication = Literal["basic", "post"]

_OWN: Final = ("grant_type", "client_id", "client_secret", "scope")


@dataclass(frozen=True, repr=False)
class TokenEndpoint:
    """An OAuth 2.0 server's endpoint that gives tokens for a client's ID and secret, for `OAuthBearer`.

    Args:
        url: The token endpoint; `http://` is for this machine only, unless `Kafka(allow_insecure=True)`.
        client_id: The client's ID.
        client_secret: Its secret, or a function that returns it, called for each token.
        scope: What the token is for; several are separated by spaces.
        authentication: `"basic"` sends ID and secret as a header, `"post"` among the request's
            parameters.
        parameters: Further parameters to send, such as `audience`.
        ca_file: PEM file with the authorities to trust for the endpoint; None trusts those of the system.

    Raises:
        ConfigurationError: A value is wrong; the message never shows a secret.
    """

    url: str
    client_id: str
    client_secret: str | Callable[[], str]
    scope: str | None = None
    authentication: Authentication = field(default="basic", kw_only=True)
    parameters: Mapping[str, str] = field(default_factory=dict, kw_only=True, hash=False)
    ca_file: str | Path | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_text("TokenEndpoint(url=...)", self.url, "give the token endpoint's URL")
        _check_url(self.url)
        check_text("TokenEndpoint(client_id=...)", self.client_id, "give the client's ID")
        if not callable(self.client_secret):
            check_text("TokenEndpoint(client_secret=...)", self.client_secret, "give text, or a function")
        if self.scope is not None:
            check_text("TokenEndpoint(scope=...)", self.scope, "give the scope, or leave it out")
        check_choice("TokenEndpoint(authentication=...)", self.authentication, get_args(Authentication))
        _check_parameters(self.parameters)
        if self.ca_file is not None:
            check_path("TokenEndpoint(ca_file=...)", self.ca_file)

    def __repr__(self) -> str:
        return f"TokenEndpoint(url={self.place!r}, client_id={self.client_id!r}, scope={self.scope!r})"

    @property
    def place(self) -> str:
        """The endpoint's address as it is shown: the part behind a `?` may be secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}"

    @property
    def is_encrypted(self) -> bool:
        """Whether a secret is encrypted on its way to the endpoint, or stays on this machine."""
        parts = urlsplit(self.url)
        return parts.scheme == "https" or is_loopback(parts.hostname or "")

    def check_files(self) -> None:
        """Read the authorities' file once.

        Raises:
            ConfigurationError: It is missing or invalid.
        """
        if self.ca_file is not None:
            Tls(ca_file=self.ca_file).context()

    def __call__(self) -> AccessToken:
        """Ask for a token; blocks.

        Raises:
            NoToken: The endpoint gave none; the text says why, and what to do.
        """
        # Python's HTTP takes a while to import.
        from consumerkit.transports.token_request import request_token

        return request_token(self, self._secret())

    def _secret(self) -> str:
        if not callable(self.client_secret):
            return self.client_secret
        place = "the function given as TokenEndpoint(client_secret=...)"
        try:
            secret = self.client_secret()
        except Exception as error:  # noqa: BLE001 - without its text and cause, which may quote the secret
            raise NoToken(f"{place} raised {type(error).__name__}") from None
        try:
            check_text(f"what {place} returned", secret, "it must return text, and not empty")
        except ConfigurationError as error:
            raise NoToken(str(error)) from None
        return secret


def _check_url(url: str) -> None:
    place = "TokenEndpoint(url=...)"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationError(f"{place} is not a URL; give https://host/path") from None
    if parts.scheme not in ("http", "https") or not host or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ConfigurationError(f"{place} is not a URL; give https://host/path")
    if "@" in parts.netloc:
        raise ConfigurationError(f"{place} holds credentials; give them as client_id and client_secret")


def _check_parameters(parameters: object) -> None:
    if not isinstance(parameters, Mapping):
        raise ConfigurationError(f"TokenEndpoint(parameters=...) takes a mapping, not {type(parameters).__name__}")
    for name, value in parameters.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigurationError("TokenEndpoint(parameters=...) takes names and values that are text")
        if name in _OWN:
            raise ConfigurationError(
                f"TokenEndpoint(parameters=...) has {name!r}, which is set by itself; leave it out"
            )
