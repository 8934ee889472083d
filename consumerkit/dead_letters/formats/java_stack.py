"""What the formats of Java programs share: exception classes and stacks."""

from __future__ import annotations

import re
from typing import Final

# Raised if bytes cannot become an object: the message's fault for every reader with the same code.
_UNREADABLE: Final = frozenset(
    {
        "DeserializationException",
        "SerializationException",
        "RecordDeserializationException",
        "MessageConversionException",
        "ConversionException",
        "DataException",
    }
)
# `at module/package.Class.method(File.java:12)`; only some have the module.
_FRAME: Final = re.compile(r"^\s+at (?:[\w.@$-]{1,200}/{1,2}){0,2}([\w.$<>]{1,400})\(([^()\n]{1,200})\)", re.MULTILINE)
_LIBRARIES: Final = ("java.", "javax.", "jdk.", "sun.", "kotlin.", "org.springframework.", "org.apache.kafka.")
_LOOKED_AT: Final = 64 * 1024


def place_in(stack: str) -> str | None:
    r"""Return where the innermost cause of a printed stack was raised: its first frame outside Java's libraries.

    Example:
        >>> place_in("Boom: no\n\tat java.util.Map.of(Map.java:7)\n\tat com.shop.Payments.on(Payments.java:12)\n")
        'Payments.java:12 in com.shop.Payments.on'
    """
    innermost = stack[:_LOOKED_AT].rpartition("\nCaused by: ")[2]
    frames = _FRAME.findall(innermost)
    theirs = [frame for frame in frames if not frame[0].startswith(_LIBRARIES)]
    return next((f"{file} in {method}" for method, file in (*theirs, *frames)), None)


def says_undecodable(*classes: str) -> bool:
    """Return whether one of these exception classes means that a record could not be read.

    Example:
        >>> says_undecodable("org.apache.kafka.common.errors.SerializationException")
        True
    """
    return any(name.rpartition(".")[2].rpartition("$")[2] in _UNREADABLE for name in classes)
