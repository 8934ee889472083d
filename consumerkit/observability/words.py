"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, many: str = "") -> str:
    """Return a number with its noun, in the singular or the plural.

    Example:
        >>> counted(1, "message"), counted(2, "message"), counted(0, "try", "tries")
        ('1 message', '2 messages', '0 tries')
    """
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def lasting(seconds: float) -> str:
    """Return a duration for people: in seconds, minutes, hours or days, whichever is short.

    Example:
        >>> lasting(0.24), lasting(59.6), lasting(240.0), lasting(5400.0), lasting(200_000.0)
        ('0.2 s', '60 s', '4 min', '1.5 h', '2.3 days')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
