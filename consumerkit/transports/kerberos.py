"""SASL GSSAPI: `Kerberos`, a login by a Kerberos ticket, where both client libraries are built with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from consumerkit.errors import ConfigurationError
from consumerkit.transports.sasl import check_text
from consumerkit.transports.tls import Tls


@dataclass(frozen=True)
class Kerberos:
    """A login by a Kerberos ticket (SASL GSSAPI).

    Without `keytab` and `kinit_command` the ticket is taken from the process's ticket cache, and something else must
    renew it.

    Args:
        service_name: The first part of the brokers' principal.
        principal: The client's principal, for `keytab` and `kinit_command`.
        keytab: A file with the principal's key; librdkafka gets and renews the ticket by `kinit`.
        kinit_command: The shell command that gets and renews the ticket, instead of librdkafka's own.
        tls: How the connection is encrypted; None sends messages in the clear, which `Kafka` allows to this machine
            only.

    Raises:
        ConfigurationError: A value is wrong.

    Example:
        >>> Kerberos(principal="shop@EXAMPLE.ORG").librdkafka()["sasl.mechanism"]
        'GSSAPI'
    """

    service_name: str = "kafka"
    principal: str | None = None
    keytab: str | Path | None = None
    kinit_command: str | None = None
    tls: Tls | None = field(default_factory=Tls)

    def __post_init__(self) -> None:
        check_text("Kerberos(service_name=...)", self.service_name, "give the first part of the brokers' principal")
        for name in ("principal", "kinit_command"):
            if (value := getattr(self, name)) is not None:
                check_text(f"Kerberos({name}=...)", value, "give text, or leave it out")
        if self.keytab is not None:
            check_text("Kerberos(keytab=...)", str(self.keytab), "give a file, or leave it out")
            if self.principal is None:
                raise ConfigurationError("Kerberos(keytab=...) needs the principal whose key it holds; give principal=")
            if not Path(self.keytab).is_file():
                raise ConfigurationError(f"Kerberos(keytab={str(self.keytab)!r}): there is no such file; correct it")
        if self.tls is not None and not isinstance(self.tls, Tls):
            raise ConfigurationError(f"Kerberos(tls=...) takes Tls(...) or None, not {type(self.tls).__name__}")

    def check_clients(self) -> None:
        """Refuse client libraries without Kerberos; both are used, whichever of them is the transport.

        Raises:
            ConfigurationError: The message names what to install.
        """
        missing = []
        if not _librdkafka_has_it():
            missing.append(
                "the loaded librdkafka is built without it, as in confluent-kafka's wheels: install a librdkafka built "
                "with libsasl2, and confluent-kafka from its sources (`pip install --no-binary confluent-kafka`)"
            )
        if find_spec("gssapi") is None:
            missing.append("aiokafka needs the package gssapi: install it")
        if missing:
            raise ConfigurationError(
                f"Kafka(security=Kerberos(...)): {'; '.join(missing)}; or take Sasl(...), OAuthBearer(...) or mTLS"
            )

    def librdkafka(self) -> dict[str, object]:
        """Return librdkafka's settings."""
        config: dict[str, object] = {"sasl.mechanism": "GSSAPI", "sasl.kerberos.service.name": self.service_name}
        if self.principal is not None:
            config["sasl.kerberos.principal"] = self.principal
        if self.keytab is not None:
            config["sasl.kerberos.keytab"] = str(self.keytab)
        if self.kinit_command is not None:
            config["sasl.kerberos.kinit.cmd"] = self.kinit_command
        if self.keytab is None and self.kinit_command is None:
            # Zero: no `kinit` is run.
            config["sasl.kerberos.min.time.before.relogin"] = 0
        return config

    def aiokafka(self) -> dict[str, object]:
        """Return aiokafka's arguments; it takes the ticket from the cache, which librdkafka's `kinit` fills."""
        return {"sasl_mechanism": "GSSAPI", "sasl_kerberos_service_name": self.service_name}


def _librdkafka_has_it() -> bool:
    """Ask the loaded library; the second setting is unknown to it, so that no client is made."""
    from confluent_kafka import KafkaException, Producer

    try:
        Producer({"builtin.features": "sasl_gssapi", "no.such.setting": ""})
    except KafkaException as error:
        return "builtin.features" not in str(error)
    return True
