"""Typed text is not echoed unless it looks like a name: each place in turn gets a URL with a password."""

import asyncio
import io
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from consumerkit.cli import run as run_module
from consumerkit.cli.main import app
from consumerkit.storage import schema
from consumerkit.storage.database import Database
from tests.integration.command import CommandLine

SECRET = "hunter2canary"
CANARY = f"postgresql+psycopg://app:{SECRET}@db/shop?sslpassword={SECRET}"
ODD = f"app: {SECRET}\u200b/it's="
APP = """
from consumerkit import Context, Handler, header
from consumerkit.transports.memory import Memory, MemoryBroker
from consumerkit.worker import Worker

class Greet(Handler[bytes]):
    name = "greet"
    topic = "greetings"
    message_id = header("message-id")
    async def handle(self, event: bytes, context: Context) -> None: ...

broker = MemoryBroker()
broker.create_topic("greetings", partitions=1)
broker.create_topic("letters", partitions=1)

def build():
    return Worker(database="sqlite:///typed.sqlite", kafka=Memory(broker), handlers=[Greet()])
"""
TARGET = "typed_app:build"
URL = "sqlite:///typed.sqlite"
# Values that are fit, by parameter; others are numbers.
FIT = {
    "handler": "greet",
    "consumer": "greet",
    "topic": "greetings",
    "to": "start",
    "key": "k",
    "note": "n",
    "target": TARGET,
    "what": TARGET,
}


def _leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    commands = getattr(command, "commands", None)
    if commands is None:
        yield path, command
    for name, inner in (commands or {}).items():
        yield from _leaves(inner, (*path, name))


LEAVES = dict(_leaves(typer.main.get_command(app)))


def _is_option(param: Any) -> bool:
    return bool(param.param_type_name == "option")


def _places(params: list[Any]) -> list[Any]:
    """Return what takes text, which each command reads for itself, and the first number, which the parser reads."""
    takes_value = [param for param in params if not getattr(param, "is_flag", False)]
    texts = [param for param in takes_value if param.metavar not in ("N", "ID")]
    return texts + [param for param in takes_value if param not in texts][:1]


def _calls(path: tuple[str, ...], command: Any, canary: str, base: list[str]) -> Iterator[list[str]]:
    """Yield a call for each place of a command, with the canary there and what is fit in the others."""
    params = [param for param in command.params if param.name != "help"]
    for wrong in _places(params):
        words = [*path]
        for param in params:
            value = canary if param is wrong else FIT.get(param.name, "1")
            if not _is_option(param) and (param.required or param is wrong):
                words.append(value)
            elif _is_option(param) and (param.required or param is wrong):
                words.append(f"{max(param.opts, key=len)}={value}")
        takes_base = [one for one in base if not any(one.startswith(f"{option}=") for option in wrong.opts)]
        yield words + takes_base
    yield [*path, "1", "1", canary, *base, "greet", ODD]
    yield [*path, f"--{canary}"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with our tables, to copy."""
    path = tmp_path_factory.mktemp("typed") / "typed.sqlite"
    database = Database(f"sqlite:///{path}")
    schema.upgrade(database)
    asyncio.run(database.dispose())  # writes its log into the file, which is copied alone
    return path


@pytest.fixture
def command(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typed_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("CONSUMERKIT_APP", "CONSUMERKIT_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    # Neither the logging of the tests nor their process is the command's to end.
    monkeypatch.setattr(run_module, "configure", lambda *_: None)
    monkeypatch.setattr(run_module, "exit_within", lambda *_: None)
    shutil.copy(made, tmp_path / "typed.sqlite")
    return CommandLine(monkeypatch, capsys)


@pytest.mark.parametrize("path", [path for path in LEAVES if path != ("demo",)], ids=" ".join)
def test_no_place_of_a_command_echoes_a_url(
    path: tuple[str, ...], command: CommandLine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    takes_url = any("--database" in param.opts for param in LEAVES[path].params)
    if not takes_url:
        monkeypatch.setenv("CONSUMERKIT_APP", TARGET)
    base = [f"--database={URL}"] if takes_url else []
    said = [(words, "".join(map(str, command(*words)))) for words in _calls(path, LEAVES[path], CANARY, base)]
    for name in ("CONSUMERKIT_APP", "CONSUMERKIT_DATABASE"):
        monkeypatch.delenv("CONSUMERKIT_APP", raising=False)
        monkeypatch.setenv(name, CANARY)
        words = next(_calls(path, LEAVES[path], "1", []))
        said.append(([name, *words], "".join(map(str, command(*words)))))
        monkeypatch.delenv(name)

    assert [(words, told) for words, told in said if SECRET in told] == []
    assert [(words, told) for words, told in said if "Traceback" in told] == []
    assert SECRET not in caplog.text
    assert any("not shown" in told or "***" in told for _, told in said)


def test_no_group_and_no_number_of_the_demo_echoes_a_url(command: CommandLine) -> None:
    groups = {path[:-1] for path in LEAVES}
    calls = [[*group, canary] for group in groups for canary in (CANARY, ODD)]
    calls += [
        ["demo", f"{option}={canary}"] for option in ("--payments", "--kills", "--seed") for canary in (CANARY, ODD)
    ]
    calls += [["demo", canary] for canary in (CANARY, ODD)]

    for words in calls:
        answer = command(*words)
        assert answer.code == 2
        assert SECRET not in answer.out + answer.err


def test_a_name_that_is_mistyped_is_shown(command: CommandLine) -> None:
    assert "No such command 'dead-leters'" in command("dead-leters").err
    assert "unexpected extra argument" in command("db", "check", TARGET, "twice").err
    long_ago = command("dead-letters", "list", TARGET, "--since", f"{'9' * 20}d").err
    assert "write 2026-11-25T10:00" in long_ago
    assert "Traceback" not in long_ago
    assert "--state 'daed': use one of" in command("dead-letters", "list", TARGET, "--state", "daed").err


def test_what_is_not_shown_is_told_by_its_place(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is argument 3" in command("db", "check", f"--{CANARY}").err
    monkeypatch.setenv("CONSUMERKIT_APP", CANARY)
    assert "target ***: write module:attribute, such as shop.worker:worker" in command("db", "check").err
