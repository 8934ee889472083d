"""The rule by which Kafka's own producers choose the partition of a key."""

from __future__ import annotations

from typing import Final

_MASK: Final = 0xFFFFFFFF
_M: Final = 0x5BD1E995


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key in a topic with this many partitions.

    Example:
        >>> partition_of(b"21", 7)
        3
    """
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """Return the hash of a key, as a 32-bit number.

    Example:
        >>> murmur2(b"21") & 0x7FFFFFFF
        1173551340
    """
    h = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if whole < len(data):
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)
