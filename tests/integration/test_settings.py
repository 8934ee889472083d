"""Settings from outside the code: their order, refusals, effects on a worker, and display."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consumerkit import (
    BatchContext,
    BatchHandler,
    Context,
    DeadLetter,
    Handler,
    Kafka,
    OAuthBearer,
    Received,
    Sasl,
    Tls,
    TokenEndpoint,
    Worker,
    header,
)
from consumerkit.cli.main import app
from consumerkit.errors import ConfigurationError
from consumerkit.events import Event, GroupCommitted
from consumerkit.settings import HandlerSettings, KafkaSettings, Settings
from consumerkit.settings.shown import shown
from consumerkit.storage.tables import Tables
from consumerkit.transports.memory import Memory, MemoryBroker
from tests.integration.memory_stage import MemoryStage

SECRET = "hunter2-and-more"
TOKEN = {"token_endpoint": "https://l/t", "token_client_id": "i", "token_client_secret": SECRET}
URL = f"postgresql+psycopg://shop:{SECRET}@db/shop"


class Credit(Handler[bytes]):
    name = "credit-account"
    topic = "payments"
    message_id = header("id")
    dead_letter = DeadLetter("payments.dlq")
    concurrency = 3

    async def handle(self, event: bytes, context: Context) -> None:
        context.publish("receipts", value=event)


class Answering(Credit):
    publishes = ("receipts",)


class Mail(Handler[bytes]):
    name = "mail"
    topic = "mails"
    message_id = header("id")

    async def handle(self, event: bytes, context: Context) -> None: ...


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("CONSUMERKIT_") and not name.startswith("CONSUMERKIT_TEST_"):
            monkeypatch.delenv(name)
    return tmp_path


def put(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"CONSUMERKIT_{name}", value)


def worker(settings: Settings | None = None, **given: Any) -> Worker:
    given = {"database": "sqlite:///t.db", "kafka": Memory(MemoryBroker(topics={})), **given}
    return Worker(settings=settings, handlers=[Credit(), Mail()], **given)


# Where a value comes from.


def test_code_wins_over_the_environment_and_that_over_the_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "pyproject.toml").write_text(
        "[tool.consumerkit]\ngrace = 1\ndrain_timeout = 2\nstall_timeout = 3\n"
        "[tool.consumerkit.handlers.credit-account]\nconcurrency = 4\nbatch_size = 5\nbatch_time = 6\n"
    )
    put(
        monkeypatch,
        {"GRACE": "10", "DRAIN_TIMEOUT": "20", "HANDLERS__CREDIT_ACCOUNT__CONCURRENCY": "40", "RETENTION": "none"},
    )
    settings = Settings(grace=100, handlers={"credit-account": HandlerSettings(batch_time=60)})
    assert (settings.grace, settings.drain_timeout, settings.stall_timeout) == (100, 20, 3)
    handler = settings.handlers["credit_account"]
    assert (handler.concurrency, handler.batch_size, handler.batch_time) == (40, 5, 60)
    assert (settings.origin("grace"), settings.origin("drain_timeout")) == ("code", "CONSUMERKIT_DRAIN_TIMEOUT")
    assert settings.origin("stall_timeout") == "pyproject.toml: stall_timeout"
    batch_size = settings.origin("handlers", "credit_account", "batch_size")
    assert batch_size == "pyproject.toml: handlers.credit_account.batch_size"
    # None is a value, too, and not the same as nothing.
    assert (settings.retention, settings.is_set("retention")) == (None, True)
    assert (settings.payload_retention, settings.is_set("payload_retention")) == (None, False)


@pytest.mark.parametrize("how", ["argument", "variable", "found"])
def test_a_file_of_its_own_is_read(place: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    file = place / ("consumerkit.toml" if how == "found" else "mine.toml")
    file.write_text("grace = 7\n")
    if how == "variable":
        put(monkeypatch, {"CONFIG": str(file)})
    settings = Settings(file=file if how == "argument" else None)
    assert (settings.grace, settings.origin("grace")) == (7, f"{file.name}: grace")


@pytest.mark.parametrize("name", ["DATABASE", "KAFKA__PASSWORD", "KAFKA__KEY_PASSWORD", "KAFKA__TOKEN_CLIENT_SECRET"])
def test_each_secret_may_stand_in_a_file_that_a_variable_names(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (place / "secret").write_text(f"{SECRET}\n")
    put(monkeypatch, {f"{name}_FILE": str(place / "secret")})
    path = name.lower().split("__")
    found: Any = Settings()
    assert found.origin(*path) == f"CONSUMERKIT_{name}_FILE"
    for part in path:
        found = getattr(found, part)
    assert found.get_secret_value() == SECRET


def test_a_secret_may_stand_in_a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "url").write_text(f"{URL}\n")
    (place / "password").write_text(SECRET)
    (place / "consumerkit.toml").write_text('[kafka]\npassword_file = "password"\n')
    put(monkeypatch, {"DATABASE_FILE": str(place / "url")})
    settings = Settings()
    assert settings.database is not None
    assert settings.kafka.password is not None
    assert (settings.database.get_secret_value(), settings.kafka.password.get_secret_value()) == (URL, SECRET)
    assert settings.origin("database") == "CONSUMERKIT_DATABASE_FILE"
    assert SECRET not in repr(settings)


# What is refused: in one line that names the place, and no value.


@pytest.mark.parametrize(
    "variables, file, told",
    [
        ({"GRCE": "5"}, "", "CONSUMERKIT_GRCE is no setting; did you mean CONSUMERKIT_GRACE?"),
        (
            {"KAFAK__BOOTSTRAP": "b:1"},
            "",
            "CONSUMERKIT_KAFAK__BOOTSTRAP is no setting; did you mean CONSUMERKIT_KAFKA__BOOTSTRAP?",
        ),
        (
            {"HANDLERS__MAIL__CONCURENCY": "1"},
            "",
            (
                "CONSUMERKIT_HANDLERS__MAIL__CONCURENCY is no setting; "
                "did you mean CONSUMERKIT_HANDLERS__MAIL__CONCURRENCY?"
            ),
        ),
        ({"ELSE": "5"}, "", "CONSUMERKIT_ELSE is no setting; see docs/settings.md, or `consumerkit config show`"),
        ({"GRACE": SECRET}, "", "CONSUMERKIT_GRACE: it should be a valid number, unable to parse string as a number"),
        ({"GRACE": "-1"}, "", "CONSUMERKIT_GRACE: it should be greater than 0"),
        ({"KAFKA__TRANSPORT": SECRET}, "", "CONSUMERKIT_KAFKA__TRANSPORT: it should be 'confluent' or 'aiokafka'"),
        ({"KAFKA": SECRET}, "", "CONSUMERKIT_KAFKA is not JSON; set its parts"),
        (
            {"DATABASE": URL, "DATABASE_FILE": "f"},
            "",
            "CONSUMERKIT_DATABASE and CONSUMERKIT_DATABASE_FILE are both set; keep one",
        ),
        (
            {"DATABASE_FILE": SECRET},
            "",
            "CONSUMERKIT_DATABASE_FILE: the named file cannot be read: No such file or directory",
        ),
        ({"CONFIG": "gone.toml"}, "", "settings: there is no file 'gone.toml'; see CONSUMERKIT_CONFIG"),
        ({}, "[kafka]\nbootstap = 'b:1'", "consumerkit.toml: kafka.bootstap is no setting; did you mean 'bootstrap'?"),
        (
            {},
            f"retention = '{SECRET}'",
            "consumerkit.toml: retention: it should be a valid number, unable to parse string as a number",
        ),
        ({}, "grace == 1", "consumerkit.toml is not valid TOML: see line 1, column 8"),
        (
            {},
            "[handlers.a-b]\ngrace = 1\n[handlers.a_b]\ngrace = 1",
            "settings: handlers has 'a_b' twice, as 'a_b' too; keep one",
        ),
        (
            {},
            "[kafka]\npassword = 'p'\npassword_file = 'f'",
            "consumerkit.toml: kafka.password and kafka.password_file are both set; keep one",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], file: str, told: str
) -> None:
    put(monkeypatch, variables)
    if file:
        (place / "consumerkit.toml").write_text(file)
    with pytest.raises(ConfigurationError) as refused:
        Settings()
    assert str(refused.value) == told
    assert SECRET not in str(refused.value)


def test_two_files_are_refused(place: Path) -> None:
    (place / "consumerkit.toml").write_text("")
    (place / "pyproject.toml").write_text("[tool.consumerkit]\ngrace = 1\n")
    with pytest.raises(ConfigurationError, match=r"both there; keep one$"):
        Settings()


def test_other_variables_of_the_name_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, {"APP": "shop:worker", "FAILPOINT": "x", "SERVICE_HOST": "10.0.0.1", "PORT_80_TCP": "tcp://x"})
    assert not Settings().all_origins()


# What a worker makes of them.


def test_a_worker_takes_what_is_set_and_keeps_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    put(
        monkeypatch,
        {
            "GRACE": "5",
            "DRAIN_TIMEOUT": "6",
            "TOPIC_PREFIX": "dev.",
            "HANDLERS__CREDIT_ACCOUNT__BATCH_SIZE": "7",
            "HANDLERS__MAIL__TOPICS": '["a", "b"]',
            "HANDLERS__MAIL__SIZE_LIMIT": "none",
            "HANDLERS__CREDIT_ACCOUNT__DEAD_LETTER": "dead",
        },
    )
    made = worker(Settings(), grace=30.0)  # its default, and yet given
    credit, mail = made.declarations
    assert (made.grace, made._drain_timeout) == (30.0, 6.0)
    assert (credit.topics, credit.batch_size, credit.concurrency) == (("dev.payments",), 7, 3)
    assert credit.dead_letter == DeadLetter("dev.dead")
    assert (mail.topics, mail.size_limit, mail.batch_size) == (("dev.a", "dev.b"), None, 500)


@pytest.mark.parametrize(
    "variables, told",
    [
        ({"HANDLERS__MAI__BATCH_SIZE": "1"}, "MAI__BATCH_SIZE: there is no handler 'mai'; did you mean 'mail'?"),
        ({"HANDLERS__MAIL__TOPIC": "no topic"}, "'no topic' is not the name of a topic"),
        ({"HANDLERS__MAIL__DEAD_LETTER": "d"}, "MAIL__DEAD_LETTER: handler 'mail' declares no dead_letter"),
        ({"HANDLERS__MAIL__TOPIC": "a", "HANDLERS__MAIL__TOPICS": '["b"]'}, "handler 'mail' has topic and topics set"),
        ({"HANDLERS__MAIL__GROUP": "credit-account"}, "share the consumer group 'credit-account'"),
        ({"HANDLERS__MAIL__TOPIC": "payments.dlq"}, "is among the topics of"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_handlers_is_refused_when_the_worker_is_built(
    monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], told: str
) -> None:
    put(monkeypatch, variables)
    with pytest.raises(ConfigurationError) as refused:
        worker(Settings())
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


class Together(BatchHandler[bytes]):
    name = "together"
    topic = "t"
    message_id = header("id")

    async def handle_batch(self, events: Sequence[Received[bytes]], context: BatchContext) -> None:
        raise AssertionError("not run")


def test_that_a_batch_handler_shares_its_transaction_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, {"HANDLERS__TOGETHER__SHARES_TRANSACTION": "true"})
    words = r"TOGETHER__SHARES_TRANSACTION: handler 'together' is a batch handler; set its batch_size to 1$"
    with pytest.raises(ConfigurationError, match=words):
        Worker(
            database="sqlite:///t.db", kafka=Memory(MemoryBroker(topics={})), handlers=[Together()], settings=Settings()
        )


def test_a_worker_is_built_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"^Worker has no database: give database=..., or set CONSUMERKIT_D"):
        Worker(handlers=[Mail()])
    put(monkeypatch, {"DATABASE": "sqlite:///t.db"})
    with pytest.raises(ConfigurationError, match=r"^Worker has no kafka: .* CONSUMERKIT_KAFKA__BOOTSTRAP$"):
        Worker(handlers=[Mail()])
    put(monkeypatch, {"KAFKA__BOOTSTRAP": "localhost:9092", "TABLES__PREFIX": "ck_", "GRACE": "5"})
    made = Worker(handlers=[Mail()])
    assert (made.grace, made.tables.prefix, made.database.dialect_name) == (5.0, "ck_", "sqlite")
    # Who gives all in code asks the environment nothing.
    put(monkeypatch, {"NONSENSE": "1"})
    assert worker().settings is None


@pytest.mark.parametrize(
    "given, security",
    [
        ({}, None),
        ({"tls": True}, Tls()),
        ({"ca_file": "ca.pem"}, Tls(ca_file="ca.pem")),
        ({"username": "u", "password": SECRET, "mechanism": "PLAIN"}, Sasl("PLAIN", "u", SECRET)),
        (
            {"username": "u", "password": SECRET, "mechanism": "PLAIN", "tls": False},
            Sasl("PLAIN", "u", SECRET, tls=None),
        ),
        (
            {
                **TOKEN,
                "mechanism": "OAUTHBEARER",
                "token_scope": "s",
                "token_authentication": "post",
                "token_parameters": {"audience": "a"},
                "token_extensions": {"pool": "p"},
                "ca_file": "ca.pem",
            },
            OAuthBearer(
                TokenEndpoint("https://l/t", "i", SECRET, "s", authentication="post", parameters={"audience": "a"}),
                extensions={"pool": "p"},
                tls=Tls(ca_file="ca.pem"),
            ),
        ),
        ({**TOKEN, "tls": False}, OAuthBearer(TokenEndpoint("https://l/t", "i", SECRET), tls=None)),
    ],
)  # fmt: skip
def test_how_the_broker_is_reached(given: Mapping[str, Any], security: object) -> None:
    from consumerkit.settings.applied import kafka_of

    settings = Settings(kafka=KafkaSettings(bootstrap="localhost:9092", **given))
    assert kafka_of(settings) == Kafka("localhost:9092", security=security)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        {"password": SECRET},
        {"username": "u"},
        {"ca_file": "ca.pem", "tls": False},
        {"token_endpoint": "https://l/t", "token_client_secret": SECRET},
        {"mechanism": "OAUTHBEARER"},
        {**TOKEN, "username": "u"},
        {**TOKEN, "mechanism": "PLAIN"},
    ],
    ids=lambda given: "+".join(given),
)
def test_half_a_login_is_refused(given: Mapping[str, Any]) -> None:
    from consumerkit.settings.applied import kafka_of

    with pytest.raises(
        ConfigurationError, match=r"^settings: (kafka has |a login to kafka by token needs )"
    ) as refused:
        kafka_of(Settings(kafka={"bootstrap": "localhost:9092", **given}))
    assert SECRET not in str(refused.value)


async def test_the_prefix_is_before_all_topics_also_those_that_are_published_to(place: Path) -> None:
    stage = MemoryStage(f"sqlite+aiosqlite:///{place}/t.db")
    await stage.create_tables()
    stage.broker = MemoryBroker(topics=dict.fromkeys(("dev.payments", "dev.payments.dlq", "dev.receipts"), 1))
    stage.broker.append("dev.payments", b"v", headers=(("id", b"1"),))
    seen: list[Event] = []
    async with stage.run(Answering(), settings=Settings(topic_prefix="dev.")) as run:
        seen = run.events
        await run.until(lambda: stage.broker.logs.topics["dev.receipts"].partitions[0].end == 1, "the receipt")
    assert sum(event.processed for event in seen if isinstance(event, GroupCommitted)) == 1
    await stage.close()


# What is shown.


def test_what_a_token_is_asked_for_with_is_shown_without_secrets(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "secret").write_text(SECRET)
    variables = {
        "TOKEN_ENDPOINT": f"https://l/t?key={SECRET}",
        "TOKEN_CLIENT_SECRET_FILE": str(place / "secret"),
        "TOKEN_PARAMETERS": f'{{"audience": "{SECRET}"}}',
    }
    put(monkeypatch, {f"KAFKA__{name}": value for name, value in variables.items()})
    rows = {row.setting: row[1:] for row in shown(Settings()) if row.setting.startswith("kafka.token_")}
    assert rows["kafka.token_endpoint"] == ("https://l/t", "CONSUMERKIT_KAFKA__TOKEN_ENDPOINT")
    assert rows["kafka.token_client_secret"] == ("***", "CONSUMERKIT_KAFKA__TOKEN_CLIENT_SECRET_FILE")
    assert rows["kafka.token_parameters"] == ("audience=***", "CONSUMERKIT_KAFKA__TOKEN_PARAMETERS")


def test_config_show_tells_what_is_in_force_and_whence_without_secrets(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "shop_settings.py").write_text(
        "from consumerkit.settings import Settings\nfrom tests.integration.test_settings import Mail, Worker\n"
        "worker = Worker(settings=Settings(), handlers=[Mail()])\n"
    )
    (place / "consumerkit.toml").write_text("[handlers.mail]\nbatch_size = 9\n")
    put(
        monkeypatch,
        {
            "DATABASE": f"{URL}?sslpassword={SECRET}",
            "KAFKA__BOOTSTRAP": "localhost:9092",
            "KAFKA__USERNAME": "u",
            "KAFKA__MECHANISM": "PLAIN",
            "KAFKA__PASSWORD": SECRET,
        },
    )
    told = CliRunner().invoke(app, ["config", "show"]).output
    assert SECRET not in told
    lines = [line.split() for line in told.splitlines()]
    assert ["database", "postgresql+psycopg://shop:***@db/shop", "CONSUMERKIT_DATABASE"] in lines
    assert ["kafka.password", "***", "CONSUMERKIT_KAFKA__PASSWORD"] in lines
    as_json = CliRunner().invoke(app, ["config", "show", "shop_settings:worker", "--json"]).output
    assert SECRET not in as_json
    rows = {row["setting"]: (row["value"], row["origin"]) for row in map(json.loads, as_json.splitlines())}
    assert rows["handlers.mail.batch_size"] == ("9", "consumerkit.toml: handlers.mail.batch_size")
    assert rows["handlers.mail.concurrency"] == ("2", "as the code says")


def test_config_show_tells_what_the_code_overrides(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"postgresql+psycopg://code:{SECRET}@db/shop"
    (place / "shop_overriding.py").write_text(
        "from tests.integration.test_settings import Mail, Worker\n"
        f"worker = Worker(handlers=[Mail()], database={address!r}, grace=7, retention=None)\n"
    )
    put(monkeypatch, {"DATABASE": URL, "GRACE": "20", "STALL_TIMEOUT": "9", "KAFKA__BOOTSTRAP": "localhost:9092"})
    told = CliRunner().invoke(app, ["config", "show", "shop_overriding:worker", "--json"]).output
    assert SECRET not in told
    rows = {row["setting"]: (row["value"], row["origin"]) for row in map(json.loads, told.splitlines())}
    assert rows["database"] == ("postgresql+psycopg://code:***@db/shop", "code: Worker(...)")
    assert rows["grace"] == ("7", "code: Worker(...)")
    assert rows["retention"] == ("none", "code: Worker(...)")
    assert rows["stall_timeout"] == ("9.0", "CONSUMERKIT_STALL_TIMEOUT")
    assert rows["kafka.bootstrap"] == ("localhost:9092", "CONSUMERKIT_KAFKA__BOOTSTRAP")
    overriding = Worker(
        handlers=[Mail()], kafka=Kafka("b-1:1,b-2:2", allow_insecure=True), tables=Tables(prefix="own_")
    )
    rows = {row.setting: row[1:] for row in shown(Settings(), overriding.declarations, overriding.given)}
    assert rows["kafka"] == ("b-1:1,b-2:2", "code: Worker(...)")
    assert rows["tables"] == ("own_*", "code: Worker(...)")
    assert "kafka.bootstrap" not in rows


def test_settings_are_imported_only_where_they_are_used() -> None:
    program = (
        "import sys, consumerkit; from consumerkit import Worker\n"
        "assert not {'pydantic_settings', 'consumerkit.settings'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
