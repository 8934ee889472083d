"""TLS for a connection to a broker, in the form of either client library."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consumerkit.errors import ConfigurationError
from consumerkit.redaction.file_path import check_path, shown_path

_LONGEST_PASSWORD: Final = 1023
"""Bytes of a key's password that OpenSSL accepts."""


@dataclass(frozen=True, repr=False)
class Tls:
    """How a connection is encrypted and the broker verified.

    Args:
        ca_file: PEM file with the authorities to trust; None trusts those of the system.
        cert_file: PEM file with this client's certificate, if the broker asks for one.
        key_file: PEM file with the certificate's private key.
        key_password: The private key's password, or a function that returns it; at most 1,023 bytes of UTF-8.
        verify: Verify the broker's certificate and host name. Without that, others on the network
            may read along.

    Raises:
        ConfigurationError: A value is wrong. A worker checks whether the files can be read when it
            connects.

    The representation shows a path only if such a file exists or its name ends like a PEM file's. A
    key given in place of its file's path is never shown.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None
    key_password: str | Callable[[], str] | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        for name in ("ca_file", "cert_file", "key_file"):
            if (value := getattr(self, name)) is not None:
                check_path(f"Tls({name}=...)", value)
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigurationError("Tls(cert_file=..., key_file=...) belong together; give both or neither")
        if self.key_password is not None and self.key_file is None:
            raise ConfigurationError("Tls(key_password=...) without key_file; give the key, or leave the password out")
        if self.key_password is not None and not callable(self.key_password):
            _check_password("Tls(key_password=...)", self.key_password)
        if not isinstance(self.verify, bool):
            raise ConfigurationError(f"Tls(verify=...) takes True or False, not {type(self.verify).__name__}")

    def __repr__(self) -> str:
        files = ", ".join(f"{name}={shown_path(getattr(self, name))}" for name in ("ca_file", "cert_file", "key_file"))
        return f"Tls({files}, verify={self.verify!r})"

    def context(self) -> ssl.SSLContext:
        """Return the context for Python's own TLS.

        Raises:
            ConfigurationError: A file is missing, unreadable or invalid.
        """
        context = _trusting(self.ca_file)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file is not None and self.key_file is not None:
            self._load_certificate(context, self.cert_file, self.key_file)
        return context

    def librdkafka(self) -> dict[str, object]:
        """Return librdkafka's settings for the same."""
        config: dict[str, object] = {}
        files = {"ca": self.ca_file, "certificate": self.cert_file, "key": self.key_file}
        config |= {f"ssl.{what}.location": str(path) for what, path in files.items() if path is not None}
        if (password := self._secret()) is not None:
            config["ssl.key.password"] = password
        if not self.verify:
            config["enable.ssl.certificate.verification"] = False
            config["ssl.endpoint.identification.algorithm"] = "none"
        return config

    def _load_certificate(self, context: ssl.SSLContext, cert_file: str | Path, key_file: str | Path) -> None:
        # An empty password instead of None, for which OpenSSL would ask at the terminal.
        password = self._secret() or ""
        place = f"Tls(cert_file={shown_path(cert_file)}, key_file={shown_path(key_file)})"
        try:
            context.load_cert_chain(cert_file, key_file, password)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(f"{place}: {_why(error)}, or key_password is wrong") from None

    def _secret(self) -> str | None:
        if not callable(self.key_password):
            return self.key_password
        try:
            password = self.key_password()
        except Exception as error:  # noqa: BLE001 - without its text and cause, which may quote the secret
            wrong = type(error).__name__
            raise ConfigurationError(f"the function given as Tls(key_password=...) raised {wrong}") from None
        _check_password("the function given as Tls(key_password=...) must return it: what it returned", password)
        return password


def _check_password(place: str, password: object) -> None:
    """Refuse a value that cannot be a key's password: OpenSSL accepts a limited number of bytes."""
    if not isinstance(password, str):
        wrong = type(password).__name__
        raise ConfigurationError(f"{place} is a value of type {wrong}; a password is text")
    try:
        length = len(password.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(f"{place} has characters that UTF-8 cannot hold; correct it") from None
    if length > _LONGEST_PASSWORD or "\x00" in password:
        raise ConfigurationError(
            f"{place} is longer than {_LONGEST_PASSWORD} bytes or has a NUL, which OpenSSL does not take; correct it"
        )


def _trusting(ca_file: str | Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigurationError(f"Tls(ca_file={shown_path(ca_file)}): {_why(error)}; give a PEM file") from None


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"holds no usable PEM ({error.reason or 'not PEM'})"
    return error.strerror or type(error).__name__
