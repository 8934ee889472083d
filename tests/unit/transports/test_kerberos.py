"""A login by Kerberos: its settings reach both clients, and clients without it are refused. No ticket is used here."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]
from confluent_kafka import KafkaException, Producer

from consumerkit import Kafka, Kerberos
from consumerkit.errors import ConfigurationError
from consumerkit.transports import kerberos
from consumerkit.transports.aiokafka.client import suited

LOCAL = "localhost:9092"


@pytest.fixture
def keytab(tmp_path: Path) -> Path:
    file = tmp_path / "shop.keytab"
    file.write_bytes(b"")
    return file


def test_its_settings_reach_both_clients(keytab: Path) -> None:
    login = Kerberos("broker", principal="shop@EXAMPLE.ORG", keytab=keytab, kinit_command="kinit shop")
    kafka = Kafka("broker-1:9093", security=login)
    config = kafka._librdkafka()
    assert {name: value for name, value in config.items() if name.startswith(("sasl", "security"))} == {
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "GSSAPI",
        "sasl.kerberos.service.name": "broker",
        "sasl.kerberos.principal": "shop@EXAMPLE.ORG",
        "sasl.kerberos.keytab": str(keytab),
        "sasl.kerberos.kinit.cmd": "kinit shop",
    }
    other = kafka._aiokafka(None)
    assert (other["security_protocol"], other["sasl_mechanism"]) == ("SASL_SSL", "GSSAPI")
    assert other["sasl_kerberos_service_name"] == "broker"
    assert suited(AIOKafkaClient, other)["sasl_kerberos_service_name"] == "broker"


def test_without_a_keytab_or_a_command_no_command_is_run() -> None:
    config = Kerberos().librdkafka()
    assert config["sasl.kerberos.min.time.before.relogin"] == 0
    assert "sasl.kerberos.min.time.before.relogin" not in Kerberos(kinit_command="kinit -R").librdkafka()


def test_librdkafka_knows_each_setting_and_refuses_the_mechanism_alone(keytab: Path) -> None:
    """The wheels know the settings; where librdkafka has Kerberos, nothing is refused."""
    login = Kerberos("broker", principal="shop@EXAMPLE.ORG", keytab=keytab, kinit_command="true", tls=None)
    config: dict[str, Any] = Kafka(LOCAL, security=login)._librdkafka()
    if kerberos._librdkafka_has_it():
        Producer(config)
        return
    with pytest.raises(KafkaException, match="No provider for SASL mechanism GSSAPI"):
        Producer(config)


def test_the_loaded_library_is_asked_for_its_features() -> None:
    """It is built with what the wheels have: the same question about that is answered with yes."""
    with pytest.raises(KafkaException) as error:
        Producer({"builtin.features": "sasl_scram", "no.such.setting": ""})
    assert "builtin.features" not in str(error.value)


@pytest.mark.parametrize("transport", ["confluent", "aiokafka"])
@pytest.mark.parametrize(
    "has, package, words",
    [
        (False, False, ["built with libsasl2", "--no-binary confluent-kafka", "package gssapi: install it"]),
        (True, False, ["aiokafka needs the package gssapi: install it"]),
        (False, True, ["built with libsasl2"]),
    ],
)
def test_clients_without_it_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, transport: Any, has: bool, package: bool, words: list[str]
) -> None:
    given(monkeypatch, has=has, package=package)
    with pytest.raises(ConfigurationError) as error:
        Kafka(LOCAL, security=Kerberos(tls=None), transport=transport).connect()
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words)
    assert ("gssapi" in text) is not package


@pytest.mark.parametrize("transport", ["confluent", "aiokafka"])
def test_clients_that_have_it_are_taken(monkeypatch: pytest.MonkeyPatch, transport: Any) -> None:
    given(monkeypatch, has=True, package=True)
    Kafka(LOCAL, security=Kerberos(tls=None), transport=transport).connect()


def given(monkeypatch: pytest.MonkeyPatch, *, has: bool, package: bool) -> None:
    """Stand in for what is installed: neither a librdkafka with Kerberos nor gssapi is in the test environment."""
    monkeypatch.setattr(kerberos, "_librdkafka_has_it", lambda: has)
    real = importlib.util.find_spec

    def find_spec(name: str) -> ModuleSpec | None:
        if name == "gssapi":
            return ModuleSpec("gssapi", None) if package else None
        return real(name)

    monkeypatch.setattr(kerberos, "find_spec", find_spec)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"service_name": ""}, "service_name"),
        ({"principal": ""}, "principal"),
        ({"kinit_command": 5}, "kinit_command"),
        ({"keytab": "/nope", "principal": "a"}, "there is no such file"),
        ({"keytab": "/nope"}, "give principal="),
        ({"tls": True}, "Tls"),
    ],
)
def test_wrong_values_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Kerberos(**arguments)


def test_it_is_encrypted_or_on_this_machine() -> None:
    with pytest.raises(ConfigurationError, match="without encryption"):
        Kafka("broker:9092", security=Kerberos(tls=None))
