"""Checks whether this machine can reach the addresses that a cluster advertises.

A broker answers the first connection with the addresses of its listeners, and clients connect to
those. The most frequent mistake is a name that only other containers know; the client itself
reports only that nothing answers.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

TIMEOUT: Final = 3.0
"""Seconds after which an address that does not answer counts as unreachable."""

_AT_ONCE: Final = 16


class Address(NamedTuple):
    """The address that a broker advertises."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Unreachable(NamedTuple):
    """An address, and why it cannot be used; the reason continues a sentence after "which this machine"."""

    address: Address
    why: str


def unreachable(addresses: Collection[Address]) -> list[Unreachable]:
    """Connect to each address, and return those where that fails; blocks."""
    if not addresses:
        return []
    threads = ThreadPoolExecutor(min(len(addresses), _AT_ONCE), thread_name_prefix="consumerkit-reach")
    try:
        tried = zip(addresses, threads.map(_failure, addresses), strict=True)
        return [Unreachable(address, why) for address, why in tried if why]
    finally:
        threads.shutdown(wait=False)


def unresolvable(addresses: Iterable[Address]) -> list[Unreachable]:
    """Return the addresses whose names are unknown on this machine; blocks."""
    return [Unreachable(address, why) for address in addresses if (why := _name_failure(address))]


def in_words(found: Collection[Unreachable]) -> str:
    """Return a text about the unusable addresses that a cluster advertises, with the way out."""
    address, why = next(iter(found))
    others = f", nor {len(found) - 1} others" if len(found) > 1 else ""
    return (
        f"it answers and advertises {address}, which this machine {why}{others}; connect to a listener whose "
        "advertised.listeners can be reached from here: a name of Compose or Kubernetes is known inside only "
        "(docs/kafka-security.md, Addresses)"
    )


def _name_failure(address: Address) -> str:
    try:
        socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        return f"cannot resolve ({_reason(error)})"
    return ""


def _failure(address: Address) -> str:
    if why := _name_failure(address):
        return why
    try:
        socket.create_connection(address, TIMEOUT).close()
    except TimeoutError:
        return f"cannot reach (no answer within {TIMEOUT:g} s)"
    except OSError as error:
        return f"cannot reach ({_reason(error)})"
    return ""


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or type(error).__name__
