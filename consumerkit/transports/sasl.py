"""A client's identity: `Sasl`, a frozen value for either client library; and the checks of texts in settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final, Literal, get_args

from consumerkit.errors import ConfigurationError
from consumerkit.transports.tls import Tls

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

_ELSEWHERE: Final[dict[str, str]] = {
    "OAUTHBEARER": "a login by tokens is security=OAuthBearer(...); see docs/kafka-security.md",
    "GSSAPI": "a login by a Kerberos ticket is security=Kerberos(...); see docs/kafka-security.md",
}


@dataclass(frozen=True)
class Sasl:
    """A user name and a password, over TLS by default.

    Args:
        mechanism: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`, as the broker is set up.
        username: The user's name.
        password: The password, or a function that returns it, called whenever a worker connects.
        tls: How the connection is encrypted; None sends the exchange in the clear, which `Kafka` allows to this
            machine only.

    Raises:
        ConfigurationError: A value is wrong.
    """

    mechanism: Mechanism
    username: str
    password: str | Callable[[], str] = field(repr=False)
    tls: Tls | None = field(default_factory=Tls)

    def __post_init__(self) -> None:
        if isinstance(self.mechanism, str) and self.mechanism in _ELSEWHERE:
            raise ConfigurationError(f"Sasl(mechanism={self.mechanism!r}): {_ELSEWHERE[self.mechanism]}")
        check_choice("Sasl(mechanism=...)", self.mechanism, get_args(Mechanism))
        check_text("Sasl(username=...)", self.username, "give the user's name")
        if not callable(self.password):
            check_text("Sasl(password=...)", self.password, "give text, or a function that returns it")
        if self.tls is not None and not isinstance(self.tls, Tls):
            raise ConfigurationError(f"Sasl(tls=...) takes Tls(...) or None, not {type(self.tls).__name__}")

    def secret(self) -> str:
        """Return the password; calls the function if it is one.

        Raises:
            ConfigurationError: The function failed or returned no text; the message does not quote
                it.
        """
        if not callable(self.password):
            return self.password
        try:
            password = self.password()
        except Exception as error:  # noqa: BLE001 - without its text and cause, which may quote the secret
            wrong = type(error).__name__
            raise ConfigurationError(f"the function given as Sasl(password=...) raised {wrong}") from None
        place = "what the function given as Sasl(password=...) returned"
        check_text(place, password, "it must return text, and not empty")
        return password


def check_choice(place: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of the choices."""
    if isinstance(value, str) and value in choices:
        return
    # The value is never repeated: arguments in the wrong order put a password here.
    close = get_close_matches(value[:100], choices, n=1, cutoff=0.5) if isinstance(value, str) else []
    known = ", ".join(map(repr, choices))
    hint = f"; did you mean {close[0]!r}?" if close else ""
    what = "unknown value" if isinstance(value, str) else f"a value of type {type(value).__name__}"
    raise ConfigurationError(f"{place}: {what}; it is one of {known}{hint}")


def check_text(place: str, value: object, way_out: str) -> None:
    """Refuse a value that a client cannot send: no text, empty, or with characters that end or break it."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{place} is a value of type {type(value).__name__}; {way_out}")
    if not value:
        raise ConfigurationError(f"{place} is empty; {way_out}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{place} has characters that UTF-8 cannot hold; {way_out}") from None
    if "\x00" in value:
        raise ConfigurationError(f"{place} has a NUL, at which clients end a text; {way_out}")
