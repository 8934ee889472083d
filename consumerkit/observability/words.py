"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, many: str = "") -> str:
    """Return a number with its noun, in the singular or the plural.

    Example:
        >>> counted(1, "message"), counted(2, "message"), counted(0, "try", "tries")
        ('1 message', '2 messages', '0 tries')
    """
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"
