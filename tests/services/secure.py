"""A private Kafka with listeners that ask for TLS, passwords and client certificates; certificates made by openssl."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from tests.services import kafka
from tests.services.process import ServerProcess, ServiceError, free_port, new_directory

USER = "shop"
PASSWORD = "correct-horse-battery"

_LISTENERS = {"SECURE": "SASL_SSL", "CLEAR": "SASL_PLAINTEXT", "MUTUAL": "SSL", "INSIDE": "PLAINTEXT"}
INSIDE_NAME = "kafka.invalid"
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
_AUTHORIZER = """
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
_OAUTH = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"


class SecureKafka:
    """A running broker with four more listeners, each at 127.0.0.1; a context manager.

    Args:
        authorizer: Whether `USER` may do nothing but what access rules allow; the plain listener may do everything.

    Attributes:
        server: The broker behind its plain listener, for setting things up.
        sasl_ssl: Password over TLS.
        sasl_plaintext: Password in the clear.
        mutual: TLS with a client's certificate.
        inside: In the clear, and it advertises a name that this machine does not know.
        certificates: Where `ca.pem`, `other-ca.pem`, `client.pem`, `client.key` (its password is `PASSWORD`) are.
    """

    def __init__(self, *, authorizer: bool = False) -> None:
        ports = {name: free_port() for name in _LISTENERS}
        at = (f"127.0.0.1:{port}" for port in ports.values())
        self.sasl_ssl, self.sasl_plaintext, self.mutual, self.inside = at
        directory = new_directory("kafka")
        self.certificates = directory / "certificates"
        version, port = os.environ.get(kafka.VERSION_VARIABLE, kafka.DEFAULT_VERSION), free_port()
        command = kafka._format(kafka._machine(kafka._distribution(version)), directory, port)
        self.server = kafka.KafkaServer(f"127.0.0.1:{port}", version, ServerProcess(command, directory))
        try:
            _make_certificates(self.certificates)
            properties = directory / "server.properties"
            text = _with_listeners(properties.read_text(), ports, self.certificates)
            properties.write_text(text + (_AUTHORIZER if authorizer else ""))
            self.server._start()
            asyncio.run(self._create_user())
        except BaseException:
            self.server.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.close()

    async def _create_user(self) -> None:
        admin = AdminClient({"bootstrap.servers": self.server.bootstrap, "log_level": 0})
        wanted = [
            UserScramCredentialUpsertion(USER, ScramCredentialInfo(mechanism, 4096), PASSWORD.encode())
            for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512)
        ]
        for one in wanted:
            await asyncio.wrap_future(admin.alter_user_scram_credentials([one])[USER])


def _with_listeners(text: str, ports: dict[str, int], certificates: Path) -> str:
    lines = []
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name in {"listeners", "advertised.listeners"}:
            there = INSIDE_NAME if name == "advertised.listeners" else "127.0.0.1"
            hosts = {listener: there if listener == "INSIDE" else "127.0.0.1" for listener in ports}
            value = ",".join([value, *(f"{listener}://{hosts[listener]}:{port}" for listener, port in ports.items())])
        if name == "listener.security.protocol.map":
            value = ",".join([value, *(f"{listener}:{protocol}" for listener, protocol in _LISTENERS.items())])
        lines.append(f"{name}={value}" if value else line)
    lines += [
        "ssl.keystore.type=PEM",
        f"ssl.keystore.location={certificates / 'broker-chain.pem'}",
        "ssl.truststore.type=PEM",
        f"ssl.truststore.location={certificates / 'ca.pem'}",
        "listener.name.mutual.ssl.client.auth=required",
        "connection.failed.authentication.delay.ms=50",
    ]
    for listener in ("secure", "clear"):
        lines += [
            f"listener.name.{listener}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            f'listener.name.{listener}.plain.sasl.jaas.config={_PLAIN} user_{USER}="{PASSWORD}";',
            f"listener.name.{listener}.scram-sha-256.sasl.jaas.config={_SCRAM}",
            f"listener.name.{listener}.scram-sha-512.sasl.jaas.config={_SCRAM}",
            # Kafka's own validator for tests: tokens bear no signature, name a user, and expire.
            f'listener.name.{listener}.oauthbearer.sasl.jaas.config={_OAUTH} unsecuredLoginStringClaim_sub="broker";',
            # A connection lives as long as its token.
            f"listener.name.{listener}.oauthbearer.connections.max.reauth.ms=3600000",
        ]
    return "\n".join(lines) + "\n"


def _make_certificates(directory: Path) -> None:
    directory.mkdir()
    for authority in ("ca", "other-ca"):
        _openssl(directory, ["req", "-x509", *_new_key(f"{authority}.key"), "-out", f"{authority}.pem"], authority)
    for name in ("broker", "client"):
        request = ["req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", *_new_key(f"{name}.key"), "-out", f"{name}.pem"]
        _openssl(directory, [*request, "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"], name)
    parts = [(directory / part).read_text() for part in ("broker.key", "broker.pem")]
    (directory / "broker-chain.pem").write_text("".join(parts))
    encrypted = ["pkcs8", "-topk8", "-in", "client.key", "-out", "locked.key", "-passout", f"pass:{PASSWORD}"]
    _openssl(directory, encrypted)
    (directory / "locked.key").replace(directory / "client.key")


def _new_key(file: str) -> list[str]:
    return ["-newkey", "rsa:2048", "-nodes", "-keyout", file, "-days", "2"]


def _openssl(directory: Path, arguments: Sequence[str], name: str | None = None) -> None:
    program = shutil.which("openssl")
    if program is None:
        raise ServiceError("openssl is missing; install it (Debian: apt-get install openssl)")
    subject = ["-subj", f"/CN={name}"] if name else []
    done = subprocess.run([program, *arguments, *subject], cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServiceError(f"openssl {arguments[0]}: {done.stderr.strip()[-300:]}")
