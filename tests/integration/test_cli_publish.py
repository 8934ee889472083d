"""`consumerkit publish` as a person types it, on a broker in memory; the transports' contract has where records go."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from consumerkit.message import Message
from consumerkit.transports.base import Record, SendFailure
from consumerkit.transports.memory import Acknowledgement, MemoryBroker
from tests.integration.command import CommandLine

APP = """
from consumerkit import Context, Handler, header
from consumerkit.transports.memory import Memory, MemoryBroker
from consumerkit.worker import Worker

class Greet(Handler[bytes]):
    name = "greet"
    topics = ["payments", "receipts"]
    message_id = header("message-id")
    async def handle(self, event: bytes, context: Context) -> None: ...

broker = MemoryBroker({"payments": 3})

def build():
    return Worker(database="sqlite:///unused.sqlite", kafka=Memory(broker), handlers=[Greet()])
"""


class Shop:
    """A user's module, and what its broker has."""

    def __init__(self, name: str, command: CommandLine) -> None:
        self.name = name
        self.command = command

    @property
    def broker(self) -> MemoryBroker:
        found = sys.modules[self.name].broker
        assert isinstance(found, MemoryBroker)
        return found

    def records(self) -> list[Message]:
        return self.broker.records("payments")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    name = f"shop_{uuid4().hex[:8]}"
    (tmp_path / f"{name}.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setenv("CONSUMERKIT_APP", f"{name}:build")
    yield Shop(name, CommandLine(monkeypatch, capsys))
    sys.modules.pop(name, None)


def typed_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_message_is_sent_whole_and_its_place_is_told(shop: Shop) -> None:
    options = ("--key", "älice", "--header", "type=a=b", "--header", "empty=", "--id", "pay-1", "--partition", "2")
    answer = shop.command("publish", "payments", '{"amount": 5}', *options)

    assert answer == (0, "payments[2]@0  message-id pay-1\n", "")
    (sent,) = shop.records()
    assert (sent.partition, sent.key, sent.value) == (2, "älice".encode(), b'{"amount": 5}')
    assert sent.headers == (("type", b"a=b"), ("empty", b""), ("message-id", b"pay-1"))


def test_without_an_id_a_random_one_is_sent_and_told(shop: Shop) -> None:
    told = [json.loads(shop.command("publish", "payments", "x", "--key", "k", "--json").out) for _ in range(2)]

    sent = shop.records()
    assert [one["message_id"].encode() for one in told] == [dict(record.headers)["message-id"] for record in sent]
    assert told[0]["message_id"] != told[1]["message_id"]
    assert [one["offset"] for one in told] == [0, 1]
    assert {(one["topic"], one["partition"]) for one in told} == {("payments", sent[0].partition)}


@pytest.mark.parametrize(
    "data, options, values",
    [
        (b'{"amount": 5}\n', (), [b'{"amount": 5}']),
        (b"a\n\nb\r\nc", ("--lines",), [b"a", b"b", b"c"]),
        (b"\xff\x00\n", ("--file", "value"), [b"\xff\x00\n"]),
        (b"\xff\nb\n", ("--file", "value", "--lines"), [b"\xff", b"b"]),
        (b"\n", (), [b""]),
        (b"", ("",), [b""]),
    ],
)
def test_the_value_comes_from_standard_input_or_a_file(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, data: bytes, options: tuple[str, ...], values: list[bytes]
) -> None:
    Path("value").write_bytes(data)
    typed_in(monkeypatch, data)

    answer = shop.command("publish", "payments", "--partition", "0", *options)

    assert (answer.code, answer.err) == (0, "")
    assert [record.value for record in shop.records()] == values
    assert [line.split()[0] for line in answer.out.splitlines()] == [f"payments[0]@{n}" for n in range(len(values))]
    assert len({record.headers for record in shop.records()}) == len(values)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("paymets", "x"), "topic 'paymets' does not exist: correct its name, or create it, as `consumerkit topics"),
        (("paymets", "x"), "did you mean 'payments'?"),
        (("receipts", "x"), "topic 'receipts' does not exist"),
        (("payments", "x", "--partition", "3"), "has no partition 3; give one from 0 to 2"),
        (("pay ments", "x"), "TOPIC: the value is not the name of a topic"),
        (("payments", "x", "--file", "f"), "VALUE and --file are both given"),
        (("payments", "--file", "missing"), "--file: No such file or directory; give a file that can be read"),
        (("payments", "x", "--header", "ok=1", "--header", "hunter2"), "--header: number 2 is not NAME=VALUE"),
        (("payments", "x", "--header", "=1"), "--header: number 1 is not NAME=VALUE"),
        (("payments", "x", "--header", "message-id=1"), "write --id VALUE"),
        (("payments", "x", "--id", ""), "--id: it is empty; leave it out"),
        (("payments", "x", "--lines", "--id", "1"), "--id: each line needs an ID of its own"),
        (("payments", "", "--lines"), "--lines: there is no line to send"),
    ],
)
def test_what_cannot_be_sent_is_told_in_one_line_with_the_way_out(
    shop: Shop, arguments: tuple[str, ...], said: str
) -> None:
    answer = shop.command("publish", *arguments)

    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert answer.err.startswith("error: ")
    assert said in answer.err
    assert "hunter2" not in answer.err
    if shop.name in sys.modules:
        assert shop.records() == []
        assert "receipts" not in shop.broker.logs.topics


@pytest.mark.parametrize(
    "stdin, said",
    [
        ("a terminal", "nothing to send; give VALUE, --file PATH, or standard input"),
        ("closed", "nothing to send; give VALUE, --file PATH, or standard input"),
        ("empty", "standard input is empty; give VALUE or --file PATH, and '' for an empty value"),
    ],
)
def test_without_a_value_it_is_asked_for_one(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, stdin: str, said: str
) -> None:
    typed_in(monkeypatch, b"")
    if stdin == "a terminal":
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    elif stdin == "closed":
        monkeypatch.setattr(sys, "stdin", None)

    answer = shop.command("publish", "payments")

    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"error: {said}")


def test_after_a_failure_no_further_portion_is_sent(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    typed_in(monkeypatch, b"\n".join(b"%d" % number for number in range(1001)))
    assert shop.command("topics", "check").code == 1  # imports the module

    def answers(record: Record) -> Acknowledgement:
        failure = SendFailure("NOT_ENOUGH_REPLICAS", "too few", permanent=False) if record.value == b"3" else None
        return Acknowledgement(failure=failure, written=failure is None)

    with shop.broker.acknowledging(answers):
        answer = shop.command("publish", "payments", "--lines", "--json")

    assert answer.code == 1
    assert len(answer.out.splitlines()) == len(shop.records()) == 499
    failed, left = answer.err.splitlines()
    assert failed.startswith("error: message 4, ID '")
    assert failed.endswith("not acknowledged: NOT_ENOUGH_REPLICAS: too few")
    assert left == "error: message 501 and all after it, 501 in all, were not sent"
