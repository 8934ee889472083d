"""`Kafka`, `Sasl` and `Tls`: misconfigurations are named, secrets never."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumerkit.errors import ConfigurationError, StartError
from consumerkit.transports import kafka_options
from consumerkit.transports.kafka import Kafka, Sasl
from consumerkit.transports.tls import Tls

T = TypeVar("T")
LOCAL = "127.0.0.1:9092"
FAR = "broker.example.org:9092"
SECRET = "hunter2-correct-horse"


def refusal(error: pytest.ExceptionInfo[Any]) -> str:
    """The error's one line; nothing in its whole traceback has the secret."""
    text = str(error.value)
    assert "\n" not in text
    assert SECRET not in "".join(traceback.format_exception(error.value))
    return text


def sasl(**changes: Any) -> Sasl:
    return Sasl(**{"mechanism": "PLAIN", "username": "shop", "password": SECRET, **changes})


@pytest.mark.parametrize(
    "bootstrap, words",
    [
        ("", "host:port"),
        ([], "empty"),
        (["broker:9092", ""], "host:port"),
        ("broker", "has no port"),
        ("::1", "has no port"),
        ("broker:", "not a port"),
        ("broker:http", "not a port"),
        ("broker:0", "not a port"),
        ("broker:65536", "not a port"),
        ("kafka://broker:9092", "not a URL"),
        ([9092], "host:port"),
    ],
)
def test_bad_bootstrap_servers_are_refused(bootstrap: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as error:
        Kafka(bootstrap, allow_insecure=True)
    assert "bootstrap" in refusal(error)


@pytest.mark.parametrize(
    "bootstrap",
    [
        f"h:{SECRET}",
        f"{SECRET} x:9092",
        f"app:{SECRET}:9092",
        f"broker:9092/{SECRET}",
        f"u/x:{SECRET}@h:9092",
        f"broker:9092,{SECRET}",
        [SECRET],
        [SECRET.encode()],
        f"[{SECRET}]:9092",
    ],
)
def test_no_part_of_an_address_is_told_before_it_was_read(bootstrap: Any) -> None:
    with pytest.raises(ConfigurationError, match="host:port") as error:
        Kafka(bootstrap, allow_insecure=True)
    refusal(error)


def test_a_password_where_another_value_belongs_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="mechanism") as error:
        Sasl(SECRET, "shop", "PLAIN")  # type: ignore[arg-type]
    refusal(error)


def test_a_url_with_a_password_is_refused_without_quoting_it() -> None:
    with pytest.raises(ConfigurationError) as error:
        Kafka(f"kafka://shop:{SECRET}@broker:9092", allow_insecure=True)
    refusal(error)


@pytest.mark.parametrize(
    "bootstrap, servers",
    [
        (LOCAL, (LOCAL,)),
        ("a:1, b:2", ("a:1", "b:2")),
        (["a:1", "b:2"], ("a:1", "b:2")),
        (("[::1]:9092",), ("[::1]:9092",)),
    ],
)
def test_servers_are_given_as_text_or_sequence(bootstrap: Any, servers: tuple[str, ...]) -> None:
    assert Kafka(bootstrap, allow_insecure=True).servers == servers


@pytest.mark.parametrize("server", [LOCAL, "127.9.9.9:1", "localhost:1", "LOCALHOST.:1", "[::1]:1", "x.localhost:1"])
def test_this_machine_may_be_reached_in_the_clear(server: str) -> None:
    Kafka(server)
    Kafka(server, security=sasl(tls=None))


@pytest.mark.parametrize("server", [FAR, "10.0.0.1:1", "[2001:db8::1]:1", "localhost.example.org:1", "0.0.0.0:1"])
@pytest.mark.parametrize("security", [None, sasl(tls=None), sasl(tls=Tls(verify=False)), Tls(verify=False)])
def test_another_machine_may_not(server: str, security: Sasl | Tls | None) -> None:
    with pytest.raises(ConfigurationError, match="allow_insecure=True") as error:
        Kafka([LOCAL, server], security=security)
    assert server in refusal(error)
    Kafka([LOCAL, server], security=security, allow_insecure=True)


@pytest.mark.parametrize("security", [sasl(), Tls()])
def test_another_machine_is_reached_over_tls(security: Sasl | Tls) -> None:
    Kafka(FAR, security=security)


def new_protocol(options: Mapping[str, Any]) -> Kafka:
    return Kafka(LOCAL, options={"group.protocol": "consumer", **options})


def test_the_new_group_protocol_may_be_chosen() -> None:
    chosen = new_protocol({"group.remote.assignor": "range", "group.instance.id": "one"})
    assert (chosen.session_timeout, chosen.instance_id) == (45.0, "one")
    assert Kafka(LOCAL, options={"group.protocol": "classic"}).session_timeout == 8.0
    chosen.connect()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Kafka(LOCAL, transport="aiokafak"), "did you mean 'aiokafka'"),  # type: ignore[arg-type]
        (lambda: Kafka(LOCAL, transport="kafka-python"), "aiokafka"),  # type: ignore[arg-type]
        (lambda: Kafka(LOCAL, transport=None), "a value of type NoneType"),  # type: ignore[arg-type]
        (lambda: Kafka(LOCAL, security="SASL_SSL"), "not str"),  # type: ignore[arg-type]
        (lambda: Kafka(LOCAL, client_id=""), "client_id"),
        (lambda: Kafka(LOCAL, client_id=b"me"), "type bytes"),  # type: ignore[arg-type]
        (lambda: Kafka(LOCAL, client_id="a\x00b"), "NUL"),
        (lambda: Kafka(LOCAL, allow_insecure="no"), "allow_insecure"),  # type: ignore[arg-type]
        (lambda: Kafka(5), "not a value of type int"),  # type: ignore[arg-type]
        (lambda: Kafka(None), "not a value of type NoneType"),  # type: ignore[arg-type]
        (lambda: Kafka(SECRET.encode()), "not a value of type bytes"),  # type: ignore[arg-type]
        (lambda: Kafka(bytearray(b"a:1")), "not a value of type bytearray"),  # type: ignore[arg-type]
        (lambda: Kafka({SECRET: 1}), "not a value of type dict"),  # type: ignore[arg-type]
        (lambda: Kafka(iter(["a:1"])), "not a value of type list_iterator"),  # type: ignore[arg-type]
        (lambda: Kafka("[deadbeef]:1"), "not a host"),
        (lambda: Kafka(f"{'a' * 64}:1"), "not a host"),
        (lambda: sasl(mechanism=None), "type NoneType"),
        (lambda: sasl(mechanism=["PLAIN"]), "type list"),
        (lambda: sasl(mechanism=SECRET.encode()), "type bytes"),
        (lambda: sasl(mechanism="PLAINN"), "did you mean 'PLAIN'"),
        (lambda: sasl(username=None), "type NoneType"),
        (lambda: sasl(username="a\ud800"), "UTF-8"),
        (lambda: sasl(password=SECRET.encode()), "type bytes"),
        (lambda: sasl(password=f"{SECRET}\ud800"), "UTF-8"),
        (lambda: sasl(password=f"{SECRET}\x00"), "NUL"),
        (lambda: Tls(cert_file="c.pem", key_file="k.pem", key_password=SECRET.encode()), "type bytes"),  # type: ignore[arg-type]
        (lambda: Tls(cert_file="c.pem", key_file="k.pem", key_password=5), "type int"),  # type: ignore[arg-type]
        (lambda: Tls(cert_file="c.pem", key_file="k.pem", key_password=f"{SECRET}\udc80"), "UTF-8"),
        (lambda: Tls(cert_file="c.pem", key_file="k.pem", key_password=SECRET * 60), "1023 bytes"),
        (lambda: Tls(cert_file="c.pem", key_file="k.pem", key_password=f"{SECRET}\x00"), "NUL"),
        (lambda: Kafka(LOCAL, options={SECRET: "linger.ms"}), "name 1 is not"),
        (lambda: Kafka(LOCAL, options=["acks"]), "mapping"),  # type: ignore[arg-type]
        (lambda: Kafka(LOCAL, options={"": 1}), "name"),
        (lambda: Kafka(LOCAL, options={"linger.ms": None}), "NoneType"),  # type: ignore[dict-item]
        (lambda: Kafka(LOCAL, options={"stats_cb": print}), "refused"),  # type: ignore[dict-item]
        (lambda: Kafka(LOCAL, options={"group.protocol": SECRET}), "one of 'classic', 'consumer'"),
        (lambda: Kafka(LOCAL, transport="aiokafka", options={"group_protocol": "consumer"}), "classic protocol only"),
        (lambda: new_protocol({"session.timeout.ms": 9000}), r"group.consumer.session.timeout.ms\); leave it out"),
        (lambda: new_protocol({"heartbeat.interval.ms": 900}), r"group.consumer.heartbeat.interval.ms\)"),
        (lambda: new_protocol({"partition.assignment.strategy": "range"}), r"group.consumer.assignors\)"),
        (lambda: new_protocol({"group.protocol.type": "consumer"}), "the broker decides it"),
        (lambda: Kafka(LOCAL, options={"group.remote.assignor": "range"}), "goes with group.protocol=consumer only"),
        (lambda: sasl(mechanism="SCRAM-SHA-255"), "did you mean 'SCRAM-SHA-25"),
        (lambda: sasl(mechanism="plain"), "PLAIN"),
        (lambda: sasl(mechanism="GSSAPI"), r"security=Kerberos\(...\)"),
        (lambda: sasl(mechanism="OAUTHBEARER"), r"security=OAuthBearer\(...\)"),
        (lambda: sasl(username=""), "username"),
        (lambda: sasl(password=""), "password"),
        (lambda: sasl(password=None), "password"),
        (lambda: sasl(tls=True), "Tls"),
        (lambda: Tls(cert_file="a.pem"), "key_file"),
        (lambda: Tls(key_file="a.pem"), "cert_file"),
        (lambda: Tls(key_password=SECRET), "without key_file"),
        (lambda: Tls(ca_file=""), "ca_file"),
        (lambda: Tls(ca_file=7), "ca_file"),  # type: ignore[arg-type]
        (lambda: Tls(verify="no"), "verify"),  # type: ignore[arg-type]
    ],
)
def test_misconfigurations_are_named(make: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as error:
        make()
    refusal(error)


@pytest.mark.parametrize("name", sorted(kafka_options._RESERVED))
@pytest.mark.parametrize("transport", ["confluent", "aiokafka"])
def test_what_the_promise_rests_on_cannot_be_set(transport: Any, name: str) -> None:
    option = name if transport == "confluent" else name.replace(".", "_")
    with pytest.raises(ConfigurationError) as error:
        Kafka(LOCAL, transport=transport, options={option: SECRET})
    assert option in refusal(error)


@pytest.mark.parametrize(
    "name",
    [
        *("enable.auto.commit", "auto.offset.reset", "isolation.level", "enable.auto.offset.store", "group.id", "acks"),
        *("default.topic.config.acks", "topic.auto.offset.reset", "Enable.Auto.Commit", "plugin.library.paths"),
        *("sasl.kerberos.kinit.cmd", "sasl.oauthbearer.token.endpoint.url", "ssl.key.location"),
    ],
)
def test_these_in_particular_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Kafka(LOCAL, options={name: SECRET})
    assert name in refusal(error)


@pytest.mark.parametrize("name", ["sasl.password", "sasl.username", "ssl.key.password", "security.protocol"])
def test_credentials_are_not_options(name: str) -> None:
    for transport, option in (("confluent", name), ("aiokafka", name.replace(".", "_"))):
        with pytest.raises(ConfigurationError, match="security=") as error:
            Kafka(LOCAL, transport=transport, options={option: SECRET})  # type: ignore[arg-type]
        refusal(error)


@pytest.mark.parametrize(
    "transport, name, hint", [("confluent", "linger_ms", "linger.ms"), ("aiokafka", "linger.ms", "linger_ms")]
)
def test_the_other_librarys_spelling_is_noticed(transport: Any, name: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=hint):
        Kafka(LOCAL, transport=transport, options={name: 5})


def test_an_option_that_aiokafka_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'linger_ms'"):
        Kafka(LOCAL, transport="aiokafka", options={"linger_m": 5}).connect()


@pytest.mark.parametrize("transport", ["confluent", "aiokafka"])
def test_connecting_sends_nothing(transport: Any) -> None:
    Kafka(LOCAL, transport=transport, security=sasl()).connect()


# -- secrets


def everything(value: object) -> str:
    return " ".join([repr(value), str(value), f"{value}", format(value), repr([value]), repr({"k": value})])


def test_no_representation_shows_a_secret() -> None:
    tls = Tls(cert_file="c.pem", key_file="k.pem", key_password=SECRET)
    kafka = Kafka(FAR, security=sasl(tls=tls))
    for value in (tls, sasl(), sasl(tls=tls), kafka, Kafka(FAR, security=tls)):
        assert SECRET not in everything(value)
    assert "shop" in repr(kafka)
    assert "broker.example.org" in repr(kafka)


def test_neither_does_the_transport() -> None:
    for transport in ("confluent", "aiokafka"):
        kafka = Kafka(FAR, transport=transport, security=sasl())
        connected = kafka.connect()
        assert SECRET not in everything(connected)
        assert SECRET not in everything(connected.producer())


def test_values_can_be_sent_to_another_process() -> None:
    kafka = Kafka(FAR, security=sasl(), options={"linger.ms": 5})
    assert pickle.loads(pickle.dumps(kafka)) == kafka == copy.deepcopy(kafka)
    assert SECRET not in repr(pickle.loads(pickle.dumps(kafka)))


def attempt(make: Callable[[], T]) -> tuple[T | None, str]:
    """What was made, or the refusal's words."""
    try:
        return make(), ""
    except ConfigurationError as error:
        return None, str(error)


@given(secret=st.text(min_size=12), mechanism=st.text() | st.just("PLAIN"), username=st.text())
def test_no_error_of_sasl_shows_a_password(secret: str, mechanism: Any, username: str) -> None:
    made, words = attempt(lambda: Sasl(mechanism, username, f"<{SECRET}{secret}>"))
    assert SECRET not in everything(made)
    assert SECRET not in words


@given(st.dictionaries(st.text(), st.none() | st.binary() | st.lists(st.integers()) | st.just(SECRET), min_size=1))
def test_no_error_of_options_shows_a_value(options: Mapping[str, Any]) -> None:
    _, words = attempt(lambda: Kafka(LOCAL, options=options))
    assert SECRET not in words


@given(st.text() | st.lists(st.text() | st.builds("{}:{}".format, st.text(), st.integers())))
def test_any_bootstrap_is_taken_or_refused(bootstrap: Any) -> None:
    made, words = attempt(lambda: Kafka(bootstrap, allow_insecure=True))
    if made is None:
        assert "bootstrap" in words
    else:
        assert all(0 < int(server.rpartition(":")[2]) < 65536 for server in made.servers)


def test_the_password_is_asked_for_whenever_a_worker_connects() -> None:
    asked: list[int] = []

    def password() -> str:
        asked.append(1)
        return SECRET

    kafka = Kafka(FAR, security=sasl(password=password))
    assert asked == []
    kafka.connect()
    kafka.connect()
    assert len(asked) == 2
    assert SECRET not in everything(kafka)


@pytest.mark.parametrize("transport", ["confluent", "aiokafka"])
def test_a_password_function_that_fails_is_an_error_without_its_words(transport: Any) -> None:
    def password() -> str:
        raise LookupError(f"no entry for {SECRET}")

    tls = Tls(cert_file=__file__, key_file=__file__, key_password=password)
    for security in (sasl(password=password), tls):
        with pytest.raises(ConfigurationError, match="raised LookupError") as error:
            Kafka(FAR, transport=transport, security=security).connect()
        refusal(error)
    with pytest.raises(ConfigurationError, match="must return text") as wrong:
        Kafka(FAR, transport=transport, security=sasl(password=lambda: None)).connect()
    refusal(wrong)


def test_aiokafkas_debugging_tells_no_requests(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    Kafka(FAR, transport="aiokafka", security=sasl()).connect()
    for name in ("aiokafka.conn", "aiokafka.producer.producer"):
        logging.getLogger(name).debug("Request: %s", SECRET)
        logging.getLogger(name).warning("still heard")
    assert SECRET not in caplog.text
    assert caplog.text.count("still heard") == 2


PEM = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"
FILES = ("ca_file", "cert_file", "key_file")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "value",
    [
        *(PEM, PEM.encode(), Path(PEM), SECRET, Path(SECRET), f"/{SECRET}", f"{SECRET}\r", SECRET * 300),
        *(f"a\x00{SECRET}", bytearray(SECRET.encode()), [SECRET], f"{SECRET}\ud800", f"\u200b{SECRET}"),
    ],
    ids=range(13),
)
def test_a_secret_in_place_of_a_files_path_is_shown_nowhere(name: str, value: Any) -> None:
    others = {"cert_file": "c.pem", "key_file": "k.pem"} if name != "ca_file" else {}
    made: list[object] = []

    def connect() -> None:
        tls = Tls(**{**others, name: value})
        kafka = Kafka(FAR, security=Sasl("PLAIN", "shop", "x", tls))
        made.extend([tls, kafka, kafka.security])
        kafka.connect()

    with pytest.raises(ConfigurationError, match=f"Tls.*{name}=") as error:
        connect()
    refusal(error)
    assert SECRET not in everything(made)


def test_paths_are_shown_where_they_are_paths(tmp_path: Path) -> None:
    there = tmp_path / "authorities"
    there.touch()
    shown = repr(Tls(ca_file=there, cert_file="client.pem", key_file=Path("client.key")))
    assert shown == f"Tls(ca_file={str(there)!r}, cert_file='client.pem', key_file='client.key', verify=True)"


@pytest.mark.parametrize("returned", [None, b"x", 5, f"{SECRET}\ud800", SECRET * 60])
def test_what_a_keys_password_function_returns_is_checked(returned: Any, tmp_path: Path) -> None:
    tls = Tls(cert_file=tmp_path, key_file=tmp_path, key_password=lambda: returned)
    with pytest.raises(ConfigurationError, match="key_password") as error:
        Kafka(FAR, security=tls).connect()
    refusal(error)


def test_a_password_may_be_of_any_language(tmp_path: Path) -> None:
    tls = Tls(cert_file=tmp_path, key_file=tmp_path, key_password="пароль-\U0001f511")
    with pytest.raises(ConfigurationError, match="or key_password is wrong"):
        Kafka(FAR, security=tls).connect()
    Kafka(FAR, security=sasl(username="schlüssel", password="пароль")).connect()


@pytest.mark.parametrize(
    "transport, options",
    [
        ("confluent", {"compression.type": SECRET}),
        ("confluent", {"linger.ms": SECRET}),
        ("aiokafka", {"compression_type": SECRET}),
        ("aiokafka", {"request_timeout_ms": SECRET}),
    ],
)
async def test_an_options_value_is_shown_nowhere(transport: Any, options: dict[str, str]) -> None:
    kafka = Kafka(LOCAL, transport=transport, options=options)
    assert SECRET not in everything(kafka)
    producer = kafka.connect().producer()
    with pytest.raises((ConfigurationError, StartError), match=r"Kafka\(options=") as error:
        await producer.start()
    refusal(error)


# -- what the libraries are told


@pytest.mark.parametrize(
    "security, protocol",
    [(None, "PLAINTEXT"), (Tls(), "SSL"), (sasl(), "SASL_SSL"), (sasl(tls=None), "SASL_PLAINTEXT")],
)
def test_both_libraries_get_the_same(security: Sasl | Tls | None, protocol: str) -> None:
    kafka = Kafka([LOCAL, "localhost:9093"], security=security, client_id="me")
    librdkafka, aiokafka = kafka._librdkafka(), kafka._aiokafka(None)
    assert librdkafka["bootstrap.servers"] == f"{LOCAL},localhost:9093"
    assert aiokafka["bootstrap_servers"] == [LOCAL, "localhost:9093"]
    assert (librdkafka["security.protocol"], aiokafka["security_protocol"]) == (protocol.lower(), protocol)
    assert librdkafka["client.id"] == aiokafka["client_id"] == "me"
    if isinstance(security, Sasl):
        assert librdkafka["sasl.password"] == aiokafka["sasl_plain_password"] == SECRET
        assert librdkafka["sasl.mechanism"] == aiokafka["sasl_mechanism"] == "PLAIN"


def test_librdkafka_gets_the_files_of_tls() -> None:
    tls = Tls("ca.pem", Path("c.pem"), Path("k.pem"), key_password=lambda: SECRET, verify=False)
    assert tls.librdkafka() == {
        "ssl.ca.location": "ca.pem",
        "ssl.certificate.location": "c.pem",
        "ssl.key.location": "k.pem",
        "ssl.key.password": SECRET,
        "enable.ssl.certificate.verification": False,
        "ssl.endpoint.identification.algorithm": "none",
    }
    assert Tls().librdkafka() == {}


@pytest.mark.parametrize("transport", ["confluent", "aiokafka"])
def test_a_bad_certificate_file_is_named_before_anything_is_sent(transport: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    words = tmp_path / "words.pem"
    words.write_text(SECRET)
    for path in (tmp_path / "missing.pem", empty, words, tmp_path):
        for tls in (Tls(ca_file=path), Tls(cert_file=path, key_file=path, key_password=SECRET)):
            with pytest.raises(ConfigurationError, match=path.name) as error:
                Kafka(FAR, transport=transport, security=tls).connect()
            refusal(error)


@pytest.mark.parametrize("client", ["confluent", "aiokafka"])
@pytest.mark.parametrize("name", ["hunter2", "correct", "a.b2.c", "x" * 50, "linger.ms!"])
def test_a_name_that_may_be_a_password_is_not_shown(client: Any, name: str) -> None:
    with pytest.raises(ConfigurationError, match="name 1 is not the name of a setting") as caught:
        Kafka("localhost:9092", transport=client, options={name: "linger.ms"})
    assert name not in str(caught.value)
