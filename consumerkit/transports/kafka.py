"""How to reach a Kafka cluster: `Kafka`, its logins and `Tls`, frozen values for either client library.

Example:
    >>> shop = Kafka("broker:9093", security=Sasl("SCRAM-SHA-512", "shop", "secret"))
    >>> shop.security  # the password is in no repr
    Sasl(mechanism='SCRAM-SHA-512', username='shop', tls=Tls(ca_file=None, cert_file=None, key_file=None, verify=True))
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from consumerkit.errors import ConfigurationError
from consumerkit.transports.kafka_options import (
    AIOKAFKA_SESSION_MS,
    BROKERS_SESSION_MS,
    SESSION_MS,
    check_options,
    has_broker_assignment,
    milliseconds,
)
from consumerkit.transports.kerberos import Kerberos
from consumerkit.transports.loopback import is_loopback
from consumerkit.transports.oauth import AccessToken, OAuthBearer, TokenCallback, TokenEndpoint
from consumerkit.transports.sasl import Sasl, check_choice, check_text
from consumerkit.transports.tls import Tls

if TYPE_CHECKING:
    import ssl

    from consumerkit.transports.base import Transport
    from consumerkit.transports.token_keeper import TokenKeeper

__all__ = ["AccessToken", "Kafka", "Kerberos", "OAuthBearer", "Sasl", "Tls", "TokenEndpoint"]

Client = Literal["confluent", "aiokafka"]
Option = str | int | float | bool
_LOGINS = (Sasl, OAuthBearer, Kerberos)


@dataclass(frozen=True, repr=False)
class Kafka:
    """A Kafka cluster, and the client library that reaches it.

    Args:
        bootstrap: One `host:port`, several separated by commas, or a sequence of them.
        security: `Sasl(...)`, `OAuthBearer(...)`, `Kerberos(...)` or `Tls(...)`; None means a plain connection.
        transport: The client library, `"confluent"` or `"aiokafka"`.
        allow_insecure: Allow a connection that is not encrypted, or does not verify the broker, to another machine.
        client_id: Shown in the broker's logs and quotas.
        options: Settings of the client library under its own names (`fetch.wait.max.ms` for
            confluent, `fetch_max_wait_ms` for aiokafka). Settings that consumerkit's promise
            depends on are refused, and so are credentials, which belong in `security`.

    Raises:
        ConfigurationError: A value is wrong; the message names it and the way out, and never a secret.

    Messages and the representation show host names and ports once they were read as such; they do
    not show the texts of options.
    """

    bootstrap: str | Sequence[str]
    security: Sasl | OAuthBearer | Kerberos | Tls | None = field(default=None, kw_only=True)
    transport: Client = field(default="confluent", kw_only=True)
    allow_insecure: bool = field(default=False, kw_only=True)
    client_id: str = field(default="consumerkit", kw_only=True)
    options: Mapping[str, Option] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        security: object = self.security
        if security is not None and not isinstance(security, (*_LOGINS, Tls)):
            wrong = type(security).__name__
            raise ConfigurationError(
                f"Kafka(security=...) takes Sasl(...), OAuthBearer(...), Kerberos(...), Tls(...) or None, not {wrong}"
            )
        check_choice("Kafka(transport=...)", self.transport, get_args(Client))
        check_text("Kafka(client_id=...)", self.client_id, "leave it out, or give a name")
        insecure: object = self.allow_insecure
        if not isinstance(insecure, bool):
            wrong = type(insecure).__name__
            raise ConfigurationError(f"Kafka(allow_insecure=...) takes True or False, not {wrong}")
        check_options(self.transport, self.options)
        for server in self.servers:
            self._check_encryption(server)
        if isinstance(self.security, OAuthBearer) and not self.allow_insecure:
            self.security.check_endpoint()

    @property
    def servers(self) -> tuple[str, ...]:
        """The `host:port` of each bootstrap server."""
        given = _listed(self.bootstrap)
        servers = tuple(_server(server, number) for number, server in enumerate(given, 1))
        if not servers:
            raise ConfigurationError("Kafka(bootstrap=...) is empty; give at least one host:port")
        return servers

    @property
    def session_timeout(self) -> float:
        """Seconds after which the group notices that a member has died; its partitions stand still until then."""
        if self.transport == "aiokafka":
            return milliseconds(self.options, "session_timeout_ms", AIOKAFKA_SESSION_MS) / 1000
        if has_broker_assignment(self.options):
            return BROKERS_SESSION_MS / 1000
        return milliseconds(self.options, "session.timeout.ms", SESSION_MS) / 1000

    @property
    def instance_id(self) -> str | None:
        """The name of a static member, which one process at a time may have in a group; None if there is none."""
        found = self.options.get("group_instance_id" if self.transport == "aiokafka" else "group.instance.id")
        return None if found is None else str(found)

    def __repr__(self) -> str:
        options = {name: "***" if isinstance(value, str) else value for name, value in self.options.items()}
        told = {
            "security": self.security,
            "transport": self.transport,
            "allow_insecure": self.allow_insecure,
            "client_id": self.client_id,
            "options": options,
        }
        rest = "".join(f", {name}={value!r}" for name, value in told.items())
        return f"Kafka({','.join(self.servers)!r}{rest})"

    @property
    def principal(self) -> str | None:
        """The name by which the broker's access rules know this client; None if a token or a certificate decides it."""
        return f"User:{self.security.username}" if isinstance(self.security, Sasl) else None

    def connect(self) -> Transport:
        """Make the transport; nothing is sent yet.

        Raises:
            ConfigurationError: A certificate cannot be read, the password's function failed, an option is unknown, or
                the client library is not installed or lacks Kerberos.
        """
        context = self._tls.context() if self._tls is not None else None
        keeper = self.security.keeper() if isinstance(self.security, OAuthBearer) else None
        try:
            if isinstance(self.security, Kerberos):
                self.security.check_clients()
            if self.transport == "aiokafka":
                from consumerkit.transports.aiokafka.transport import AiokafkaTransport

                return AiokafkaTransport(
                    self._aiokafka(context, keeper),
                    options=self.options,
                    admin=self._librdkafka(keeper),
                    local_only=self._local_only,
                )
            from consumerkit.transports.confluent.transport import ConfluentTransport

            return ConfluentTransport(
                {**self._librdkafka(keeper), **self.options},
                local_only=self._local_only,
                aside=partial(self._aiokafka, context, keeper),
            )
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"Kafka(transport={self.transport!r}) needs the package {error.name}, which is not installed"
            ) from error

    @property
    def _tls(self) -> Tls | None:
        return self.security.tls if isinstance(self.security, _LOGINS) else self.security

    @property
    def _local_only(self) -> bool:
        """Whether every broker must be on this machine, as every bootstrap server is."""
        return not self.allow_insecure and (self._tls is None or not self._tls.verify)

    @property
    def _protocol(self) -> str:
        wire = "PLAINTEXT" if self._tls is None else "SSL"
        return f"SASL_{wire}" if isinstance(self.security, _LOGINS) else wire

    def _librdkafka(self, keeper: TokenKeeper | None = None) -> dict[str, object]:
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
        if isinstance(self.security, Kerberos):
            config |= self.security.librdkafka()
        if isinstance(self.security, OAuthBearer) and keeper is not None:
            config["sasl.mechanism"] = "OAUTHBEARER"
            config["oauth_cb"] = TokenCallback(keeper, self.security.extensions)
        return config

    def _aiokafka(self, context: ssl.SSLContext | None, keeper: TokenKeeper | None = None) -> dict[str, object]:
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
        if isinstance(self.security, Kerberos):
            config |= self.security.aiokafka()
        if isinstance(self.security, OAuthBearer) and keeper is not None:
            # Its import takes a while, and the other transport seldom needs it.
            from consumerkit.transports.aiokafka.tokens import TokenProvider

            config["sasl_mechanism"] = "OAUTHBEARER"
            config["sasl_oauth_token_provider"] = TokenProvider(keeper, self.security.extensions)
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


# The text before a port; any other text may be part of a password, so it is not repeated.
_HOST = re.compile(r"(?=.{1,253}$)(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?")


def _listed(bootstrap: object) -> list[object]:
    if isinstance(bootstrap, str):
        return list(bootstrap.split(","))
    if isinstance(bootstrap, Sequence | Set) and not isinstance(bootstrap, bytes | bytearray | memoryview):
        return list(bootstrap)
    wrong = type(bootstrap).__name__
    raise ConfigurationError(f"Kafka(bootstrap=...) takes host:port, or several, not a value of type {wrong}")


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        return bool(_HOST.fullmatch(text))
    try:
        return text.endswith("]") and bool(ipaddress.IPv6Address(text[1:-1]))
    except ValueError:
        return False


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
        raise ConfigurationError(f"{place}: the part behind the colon is not a port; write host:port")
    if not _is_host(host):
        raise ConfigurationError(f"{place}: the part before the port is not a host; write host:port")
    return server
