"""How to reach a Kafka cluster: `Kafka`, `Sasl` and `Tls`, frozen values for either client library.

Example:
    >>> shop = Kafka("broker:9093", security=Sasl("SCRAM-SHA-512", "shop", "secret"))
    >>> shop.security  # the password is in no repr
    Sasl(mechanism='SCRAM-SHA-512', username='shop', tls=Tls(ca_file=None, cert_file=None, key_file=None, verify=True))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, get_args

from consumerkit.errors import ConfigurationError
from consumerkit.transports.kafka_options import check_options
from consumerkit.transports.loopback import is_loopback
from consumerkit.transports.tls import Tls

if TYPE_CHECKING:
    import ssl

    from consumerkit.transports.base import Transport

__all__ = ["Kafka", "Sasl", "Tls"]

Client = Literal["confluent", "aiokafka"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
Option = str | int | float | bool


@dataclass(frozen=True)
class Sasl:
    """A user name and a password, over TLS unless told otherwise.

    Args:
        mechanism: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`, as the broker is set up.
        username: The user's name.
        password: The password, or a function that returns it, asked whenever a worker connects.
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
        _choice("Sasl(mechanism=...)", self.mechanism, get_args(Mechanism))
        if not isinstance(self.username, str) or not self.username:
            raise ConfigurationError("Sasl(username=...) is empty; give the user's name")
        if not callable(self.password) and (not isinstance(self.password, str) or not self.password):
            raise ConfigurationError("Sasl(password=...) must be text or a function that returns it, and not empty")
        if self.tls is not None and not isinstance(self.tls, Tls):
            raise ConfigurationError(f"Sasl(tls=...) takes Tls(...) or None, not {type(self.tls).__name__}")

    def secret(self) -> str:
        """Return the password, asking the function if it is one.

        Raises:
            ConfigurationError: The function failed or returned something else than text; the message does not quote it.
        """
        if isinstance(self.password, str):
            return self.password
        try:
            password = self.password()
        except Exception as error:  # noqa: BLE001 - without its text and cause, which may quote the secret
            wrong = type(error).__name__
            raise ConfigurationError(f"the function given as Sasl(password=...) raised {wrong}") from None
        if not isinstance(password, str) or not password:
            raise ConfigurationError("the function given as Sasl(password=...) must return text, and not empty")
        return password


@dataclass(frozen=True)
class Kafka:
    """A Kafka cluster, and the client library to reach it with.

    Args:
        bootstrap: One `host:port`, several separated by commas, or a sequence of them.
        security: `Sasl(...)` or `Tls(...)`; None is a plain connection.
        transport: The client library, `"confluent"` or `"aiokafka"`.
        allow_insecure: Allow a connection that is not encrypted, or does not verify the broker, to another machine.
        client_id: Shown in the broker's logs and quotas.
        options: Settings of the client library under its own names (`fetch.wait.max.ms` for confluent,
            `fetch_max_wait_ms` for aiokafka). Those on which consumerkit's promise rests are refused, and so are
            credentials, which belong in `security`.

    Raises:
        ConfigurationError: A value is wrong; the message names it and the way out, and never a secret.
    """

    bootstrap: str | Sequence[str]
    security: Sasl | Tls | None = field(default=None, kw_only=True)
    transport: Client = field(default="confluent", kw_only=True)
    allow_insecure: bool = field(default=False, kw_only=True)
    client_id: str = field(default="consumerkit", kw_only=True)
    options: Mapping[str, Option] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        security: object = self.security
        if security is not None and not isinstance(security, Sasl | Tls):
            wrong = type(security).__name__
            raise ConfigurationError(f"Kafka(security=...) takes Sasl(...), Tls(...) or None, not {wrong}")
        _choice("Kafka(transport=...)", self.transport, get_args(Client))
        if not isinstance(self.client_id, str) or not self.client_id:
            raise ConfigurationError("Kafka(client_id=...) is empty; leave it out, or give a name")
        check_options(self.transport, self.options)
        for server in self.servers:
            self._check_encryption(server)

    @property
    def servers(self) -> tuple[str, ...]:
        """The `host:port` of each bootstrap server."""
        given = self.bootstrap.split(",") if isinstance(self.bootstrap, str) else list(self.bootstrap)
        servers = tuple(_server(server, number) for number, server in enumerate(given, 1))
        if not servers:
            raise ConfigurationError("Kafka(bootstrap=...) is empty; give at least one host:port")
        return servers

    @property
    def principal(self) -> str | None:
        """The name that the broker's access rules know this client by; None where a certificate decides it."""
        return f"User:{self.security.username}" if isinstance(self.security, Sasl) else None

    def connect(self) -> Transport:
        """Make the transport; nothing is sent yet.

        Raises:
            ConfigurationError: A certificate cannot be read, the password's function failed, an option is unknown, or
                the client library is not installed.
        """
        context = self._tls.context() if self._tls is not None else None
        try:
            if self.transport == "aiokafka":
                from consumerkit.transports.aiokafka import AiokafkaTransport

                return AiokafkaTransport(
                    self._aiokafka(context), options=self.options, admin=self._librdkafka(), local_only=self._local_only
                )
            from consumerkit.transports.confluent import ConfluentTransport

            return ConfluentTransport({**self._librdkafka(), **self.options}, local_only=self._local_only)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"Kafka(transport={self.transport!r}) needs the package {error.name}, which is not installed"
            ) from error

    @property
    def _tls(self) -> Tls | None:
        return self.security.tls if isinstance(self.security, Sasl) else self.security

    @property
    def _local_only(self) -> bool:
        """Whether every broker must be on this machine, as every bootstrap server is."""
        return not self.allow_insecure and (self._tls is None or not self._tls.verify)

    @property
    def _protocol(self) -> str:
        wire = "PLAINTEXT" if self._tls is None else "SSL"
        return f"SASL_{wire}" if isinstance(self.security, Sasl) else wire

    def _librdkafka(self) -> dict[str, object]:
        config: dict[str, object] = {
            "bootstrap.servers": ",".join(self.servers),
            "client.id": self.client_id,
            "security.protocol": self._protocol.lower(),
        }
        if self._tls is not None:
            config |= self._tls.librdkafka()
        if isinstance(self.security, Sasl):
            config["sasl.mechanism"] = self.security.mechanism
            config["sasl.username"] = self.security.username
            config["sasl.password"] = self.security.secret()
        return config

    def _aiokafka(self, context: ssl.SSLContext | None) -> dict[str, object]:
        config: dict[str, object] = {
            "bootstrap_servers": list(self.servers),
            "client_id": self.client_id,
            "security_protocol": self._protocol,
            "ssl_context": context,
        }
        if isinstance(self.security, Sasl):
            config["sasl_mechanism"] = self.security.mechanism
            config["sasl_plain_username"] = self.security.username
            config["sasl_plain_password"] = self.security.secret()
        return config

    def _check_encryption(self, server: str) -> None:
        if self.allow_insecure or is_loopback(server.rpartition(":")[0]):
            return
        if self._tls is None:
            raise ConfigurationError(
                f"Kafka(bootstrap={server!r}) would be reached without encryption; "
                "give security=Tls(...) or Sasl(..., tls=Tls()), or allow it with allow_insecure=True"
            )
        if not self._tls.verify:
            raise ConfigurationError(
                f"Kafka(bootstrap={server!r}) would be trusted unverified, since Tls(verify=False); "
                "give Tls(ca_file=...), or allow it with allow_insecure=True"
            )


def _choice(place: str, value: object, choices: Sequence[str]) -> None:
    if value in choices:
        return
    close = get_close_matches(str(value), choices, n=1, cutoff=0.5)
    # Text that is like none of them is not repeated: arguments in the wrong order put a password here.
    told = f" {value!r}" if close or value is None else ""
    hint = f"did you mean {close[0]!r}?" if close else f"it is one of {', '.join(map(repr, choices))}"
    raise ConfigurationError(f"{place}: unknown value{told}; {hint}")


# What stands before a port; of anything else a password may be part, so it is not repeated.
_HOST = re.compile(r"[\w.-]+|\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]")


def _server(given: object, number: int) -> str:
    place = f"Kafka(bootstrap=...), server {number}"
    if not isinstance(given, str):
        raise ConfigurationError(f"{place} is a value of type {type(given).__name__}; each server is a host:port")
    server = given.strip()
    if not server:
        raise ConfigurationError(f"{place} is empty; each server is a host:port")
    if "://" in server or "@" in server:
        raise ConfigurationError(f"{place} takes host:port, not a URL; credentials go to security=Sasl(...)")
    host, _, port = server.rpartition(":")
    if not host or (":" in host and not host.startswith("[")):
        raise ConfigurationError(f"{place} has no port; write host:port, such as broker:9092")
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise ConfigurationError(f"{place}: what stands behind the colon is not a port; write host:port")
    if not _HOST.fullmatch(host):
        raise ConfigurationError(f"{place}: what stands before the port is not a host; write host:port")
    return server
