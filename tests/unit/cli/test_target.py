"""Targets: what `module:attribute` may lead to, and the error where it leads nowhere."""

import asyncio
import itertools
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumerkit.cli import target as targets
from consumerkit.cli import typed
from consumerkit.cli.output import complain
from consumerkit.errors import ConfigurationError
from consumerkit.worker import Worker

SHOP = """
import contextlib
from consumerkit import Context, Handler, header
from consumerkit.transports.memory import Memory, MemoryBroker
from consumerkit.worker import Worker

closed = []

class Greet(Handler[bytes]):
    name = "greet"
    topic = "greetings"
    message_id = header("message-id")
    async def handle(self, event: bytes, context: Context) -> None: ...

def build():
    return Worker(database="sqlite:///unused.sqlite", kafka=Memory(MemoryBroker()), handlers=[Greet()])

async def build_async():
    return build()

@contextlib.asynccontextmanager
async def resources():
    try:
        yield build()
    finally:
        closed.append("resources")

async def resources_async():
    return resources()

class Resources:
    async def __aenter__(self):
        return build()
    async def __aexit__(self, *error):
        closed.append("Resources")

async def bare():
    yield build()

@contextlib.contextmanager
def plain_manager():
    yield build()

@contextlib.asynccontextmanager
async def fails_to_open():
    from sqlalchemy import create_engine
    create_engine("postgresql+psycopg://app:hunter2SECRET:5432/db")
    yield build()

def needs(argument): ...
def in_another_library():
    import json
    return json.loads("{")

def has_lines():
    from pydantic import BaseModel
    class Settings(BaseModel):
        port: int
        host: str
    return Settings.model_validate({"port": "x"})

def fails(): raise ValueError("no settings file")
def misdeclared(): return Worker(database="oracle://x", kafka=Memory(MemoryBroker()), handlers=[Greet()])

worker = build()
opened_already = resources()
number = 5

class app:
    worker = worker
"""
_numbers = itertools.count()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's module in the working directory, with a new name in each test."""
    name = f"shop{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield name
    sys.modules.pop(name, None)


async def _open(target: str) -> Worker:
    async with targets.opened(target) as worker:
        assert not getattr(sys.modules[target.partition(":")[0]], "closed", None)
        await worker.database.dispose()
        return worker


@pytest.mark.parametrize(
    "attribute",
    ["worker", "app.worker", "build", "build_async", "resources", "resources_async", "Resources", "opened_already"],
)
def test_a_target_leads_to_a_worker(shop: str, attribute: str) -> None:
    worker = asyncio.run(_open(f"{shop}:{attribute}"))

    assert isinstance(worker, Worker)
    assert [declared.name for declared in worker.declarations] == ["greet"]


@pytest.mark.parametrize("attribute", ["resources", "resources_async", "Resources", "opened_already"])
def test_a_managers_resources_are_closed_after_the_block(shop: str, attribute: str) -> None:
    asyncio.run(_open(f"{shop}:{attribute}"))
    assert len(sys.modules[shop].closed) == 1


@pytest.mark.parametrize(
    "spec, said",
    [
        ("{shop}", r"target '{shop}': write module:attribute, such as {shop}:worker"),
        ("{shop}.py:build", r"write module:attribute, such as {shop}:build"),
        ("./shop/worker.py:app", r"write module:attribute, such as shop.worker:app"),
        (":worker", r"write module:attribute, such as shop.worker:worker"),
        ("{shop}:wroker", r"{shop} has no attribute 'wroker'; did you mean 'worker'\?"),
        (
            "{shop}x:worker",
            r"there is no module '{shop}x' here or among the installed packages; did you mean '{shop}'\?",
        ),
        ("{shop}:number", r"leads to a value of type int; name a Worker, a callable"),
        ("{shop}:Worker", r"is the class Worker; name a Worker"),
        ("{shop}:Greet", r"leads to a value of type Greet"),
        ("{shop}:bare", r"is a bare async generator; put @contextlib.asynccontextmanager above its def"),
        ("{shop}:plain_manager", r"leads to a value of type _GeneratorContextManager"),
        ("{shop}:needs", r"TypeError: needs\(\) missing 1 required positional argument: 'argument'"),
        ("{shop}:fails", r"ValueError: no settings file \(.*{shop}\.py:\d+\)$"),
        ("{shop}:misdeclared", r"^database: 'oracle' is not supported"),
    ],
)
def test_what_leads_nowhere_is_told_with_the_way_out(shop: str, spec: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said.replace("{shop}", shop)) as raised:
        asyncio.run(_open(spec.format(shop=shop)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "source, said",
    [
        (
            "import nonexistent_package",
            r"ModuleNotFoundError: No module named 'nonexistent_package' \(.*broken\d*\.py:1\)",
        ),
        ("def f(:\n", r"SyntaxError: .*\(.*broken\d*\.py:1\)"),
        ("import sys\nsys.exit(3)", r"SystemExit: 3 \(.*broken\d*\.py:2\)"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(.*broken\d*\.py:1\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    name = f"broken{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigurationError, match=said):
        targets.load(f"{name}:worker")


def test_a_module_within_a_package_gets_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"package{next(_numbers)}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "worker.py").touch()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigurationError, match=rf"no module '{name}\.wroker' .*; did you mean 'worker'\?"):
        targets.load(f"{name}.wroker:worker")


@pytest.mark.parametrize("given", [None, ""])
def test_without_a_target_the_variable_is_named(given: str | None) -> None:
    with pytest.raises(ConfigurationError, match="or set CONSUMERKIT_APP"):
        targets.given(given)


def test_a_manager_that_fails_to_open_is_told_in_one_line_without_a_secret(shop: str) -> None:
    async def open_it() -> None:
        async with targets.opened(f"{shop}:fails_to_open"):
            raise AssertionError("it cannot be opened")

    with pytest.raises(ConfigurationError, match="it is not a URL of a database") as caught:
        asyncio.run(open_it())
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)


def test_what_fails_within_the_block_is_told_as_it_is(shop: str) -> None:
    async def work() -> None:
        async with targets.opened(f"{shop}:resources"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(work())


@pytest.mark.parametrize("attribute", ["in_another_library", "has_lines"])
def test_an_error_out_of_a_library_names_the_users_line(shop: str, attribute: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"\(.*{shop}\.py:\d+\)(\n|$)") as caught:
        asyncio.run(_open(f"{shop}:{attribute}"))
    lines = (Path.cwd() / f"{shop}.py").read_text().splitlines()
    number = int(str(caught.value).splitlines()[0].rpartition(":")[2].rstrip(")"))
    assert ("json.loads" in lines[number - 1]) or ("model_validate" in lines[number - 1])


def test_lines_of_an_error_of_the_targets_stay_lines(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(_open(f"{shop}:has_lines"))
    complain(caught.value)
    written = capsys.readouterr().err.splitlines()
    assert written[0].startswith(f"error: target '{shop}:has_lines': ValidationError: 2 validation errors for Settings")
    assert "  port" in written
    assert "\\n" not in "".join(written)


def test_a_traceback_follows_where_it_is_asked_for(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(_open(f"{shop}:fails"))
    assert "File" not in str(caught.value)
    monkeypatch.setattr(typed, "_traceback", False)
    assert typed.take_traceback(["run", "--traceback", f"{shop}:fails"]) == ["run", f"{shop}:fails"]
    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(_open(f"{shop}:fails"))
    assert f'{shop}.py", line' in str(caught.value)
    assert 'raise ValueError("no settings file")' in str(caught.value)
