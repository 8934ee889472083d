"""Files that a setting names: the value may be a secret given in place of a path, and is then never shown."""

from __future__ import annotations

import os
import re
from typing import Final

from consumerkit.errors import ConfigurationError

_LONGEST: Final = 4096
"""Bytes of a path that an operating system accepts."""
_SUFFIX: Final = re.compile(r"[^\x00-\x1f\x7f]{0,4000}\.(?:pem|crt|cer|cert|der|key|crl|p12|pfx|jks)", re.IGNORECASE)


def check_path(place: str, value: object) -> None:
    """Refuse a value that cannot be a file's path.

    Args:
        place: The setting, as the message names it.
        value: The setting's value; never part of the message.

    Raises:
        ConfigurationError: It is no path: its type is wrong, it is empty or too long, or it has
            invalid characters.

    Example:
        >>> check_path("Tls(ca_file=...)", "ca.pem")
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(text := os.fspath(value), str) or not text:
        raise ConfigurationError(f"{place} is not a path but a value of type {type(value).__name__}; give a PEM file")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        length = _LONGEST + 1
    if length > _LONGEST or "-----BEGIN" in text or not text.isprintable():
        raise ConfigurationError(f"{place} is not a path; write the PEM text to a file, and give the file's path")


def shown_path(value: object) -> str:
    """Return a path as it may be shown: quoted if such a file exists or is named like a PEM file, else `***`.

    Example:
        >>> shown_path("certificates/ca.pem"), shown_path("correct horse battery staple"), shown_path(None)
        ("'certificates/ca.pem'", '***', 'None')
    """
    if value is None:
        return "None"
    text = str(value)
    try:
        known = bool(_SUFFIX.fullmatch(text)) or os.path.lexists(text)
    except (OSError, ValueError):
        known = False
    return repr(text) if known else "***"
