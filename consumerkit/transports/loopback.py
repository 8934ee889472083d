"""What counts as this machine: messages to it need no encryption."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from consumerkit.errors import StartError


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine.

    Example:
        >>> is_loopback("[::1]"), is_loopback("broker.example.org")
        (True, False)
    """
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_advertised(hosts: Iterable[str]) -> None:
    """Refuse brokers on other machines, for a connection that is not encrypted or not verified.

    A broker returns the other brokers' addresses, and clients connect to them.

    Raises:
        StartError: A broker is on another machine.
    """
    for host in hosts:
        if not is_loopback(host):
            raise StartError(
                f"Kafka's bootstrap server is on this machine, but it advertises a broker at {host!r}, which would be "
                "reached without encryption or unverified; give security=Tls(...) or Sasl(..., tls=Tls()), correct "
                "advertised.listeners, or allow it with allow_insecure=True"
            )
