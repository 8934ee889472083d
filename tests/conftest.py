"""The real servers, started when the first test asks for one, and shared by the whole run."""

import gc
import importlib.metadata
import logging
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from typing import TypeVar
from uuid import uuid4

import hypothesis
import pytest

from tests import variants
from tests.services import KafkaServer, PostgresServer, ServiceError
from tests.services.databases import Databases

_LIBRARIES = ("confluent-kafka", "aiokafka", "SQLAlchemy", "psycopg", "asyncpg", "aiosqlite", "pydantic")
Server = TypeVar("Server", KafkaServer, PostgresServer)
_SERVERS = pytest.StashKey[dict[str, str]]()
_SHARED = pytest.StashKey[ExitStack]()
_ENDED_BY = "ended-by.log"
_QUIETED = ("", "aiokafka", "aiosqlite", "alembic", "asyncio")


# A deadline would make the verdict depend on what else the machine does.
hypothesis.settings.register_profile("any-pace", deadline=None)
hypothesis.settings.load_profile("any-pace")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="also run the tests marked `matrix`: the long form")
    also = "also run all other variants of each test; `--matrix` does, too"
    parser.addoption("--variants", action="store_true", help=also)
    late = "have the servers' answers to commits and sends reach the tests' processes so many seconds late"
    parser.addoption("--late", type=float, default=0.0, metavar="SECONDS", help=late)


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Run in a shell's background: the processes that tests interrupt would inherit that they cannot be.
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_SERVERS] = {}
    config.stash[_SHARED] = ExitStack()
    _keep_last_words(config)
    if seconds := config.getoption("--late"):
        from tests.late import answer_late  # brings both Kafka clients

        answer_late(seconds)
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        _share_servers(config)


def _keep_last_words(config: pytest.Config) -> None:
    """Have a watchdog that ends a process of the tests themselves say why: what was captured goes with the process."""
    file = config.rootpath / ".pytest_cache" / _ENDED_BY
    if not hasattr(config, "workerinput"):
        file.unlink(missing_ok=True)
    file.parent.mkdir(exist_ok=True)
    logging.getLogger("consumerkit.worker.watchdog").addHandler(logging.FileHandler(file, delay=True))


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_SHARED].close()


def _share_servers(config: pytest.Config) -> None:
    """Start the servers before several processes run the tests: they find them by the environment."""
    stack = config.stash[_SHARED]
    kafka = stack.enter_context(_or_end_the_run(KafkaServer.find_or_start))
    postgres = stack.enter_context(_or_end_the_run(PostgresServer.find_or_start))
    os.environ |= {
        "CONSUMERKIT_TEST_KAFKA": kafka.bootstrap,
        "CONSUMERKIT_TEST_KAFKA_VERSION": kafka.version,
        "CONSUMERKIT_TEST_POSTGRES": postgres.admin_dsn,
    }
    config.stash[_SERVERS] = {
        "Kafka": f"{kafka.version} at {kafka.bootstrap}",
        "PostgreSQL": postgres.version,
    }


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long form and the further variants; deselected, not skipped: they have their own commands."""
    for item in items:
        # It freezes its broker; one that then has no processor for long is not what the test is about.
        if "private_kafka" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.calm)
    if config.getoption("--matrix"):
        return
    left_out = {item for item in items if item.get_closest_marker("matrix")}
    if not config.getoption("--variants") and not any("::" in name for name in config.args):
        left_out.update(variants.further(items))  # a test that is named is wanted, whatever its variant
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """What pytest keeps until the end is no garbage: the collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_collection_per_worker() -> Iterator[None]:
    """Hundreds of workers begin and end in this process: each would spend a third of a second on pytest's own objects.

    `tests/unit/worker/test_gc.py` tests what is left out here, and every worker in its own process does it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consumerkit.worker.worker.seldom_collected", nullcontext)
        yield


@pytest.fixture(autouse=True)
def _levels_of_loggers() -> Iterator[None]:
    """A test that runs a command within this process quiets the clients' loggers, for the tests after it, too."""
    before = {name: logging.getLogger(name).level for name in _QUIETED}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Iterator[KafkaServer]:
    """The broker of this run; a test that stops its broker starts its own with `KafkaServer.start_private()`."""
    with _or_end_the_run(KafkaServer.find_or_start) as server:
        pytestconfig.stash[_SERVERS]["Kafka"] = f"{server.version} at {server.bootstrap}"
        yield server


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """The database server of this run; as with `kafka`, a test that stops it starts its own."""
    with _or_end_the_run(PostgresServer.find_or_start) as server:
        pytestconfig.stash[_SERVERS]["PostgreSQL"] = server.version
        yield server


def _or_end_the_run(start: Callable[[], Server]) -> Server:
    try:
        return start()
    except ServiceError as error:
        # One line, once: every further test would fail for the same reason.
        pytest.exit(str(error), returncode=1)


@pytest.fixture
def topic_name() -> str:
    """A topic name no other test uses; the topic itself is not created."""
    return f"t-{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def databases(postgres: PostgresServer) -> Iterator[Databases]:
    """Empty databases on the server of this run."""
    lender = Databases(postgres)
    yield lender
    lender.close()


@pytest.fixture
def database(databases: Databases) -> Iterator[str]:
    """The name of an empty PostgreSQL database, which is dropped after the test."""
    with databases.lend() as name:
        yield name


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the run really used, and why a process of it ended."""
    ended_by = config.rootpath / ".pytest_cache" / _ENDED_BY
    if ended_by.exists():
        terminalreporter.section("a process of the tests was ended by a watchdog")
        terminalreporter.write_line(ended_by.read_text())
    servers = config.stash[_SERVERS]
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    terminalreporter.section("versions used")
    for name in ("Kafka", "PostgreSQL"):
        terminalreporter.write_line(f"{name}: {servers.get(name, 'not used')}")
    terminalreporter.write_line(f"Python: {platform.python_version()}, {os.cpu_count()} cores")
    terminalreporter.write_line(f"Libraries: {libraries}")
