"""A real pgbouncer in front of a PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg

from tests.services.postgres import PostgresServer
from tests.services.process import ServiceError, free_port, new_directory

_SETTINGS = """
[databases]
* = host={host} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 8
server_round_robin = 1
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
server_tls_sslmode = disable
"""


def found() -> str:
    """Return where pgbouncer is.

    Raises:
        ServiceError: It is not installed.
    """
    at = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if at is None:
        raise ServiceError("pgbouncer is not on PATH; on Debian: apt-get install pgbouncer")
    return at


@contextmanager
def pgbouncer(postgres: PostgresServer, mode: str = "transaction") -> Iterator[str]:
    """Start one; yields its `host:port`. Each database of the server can be reached through it."""
    where, own, directory = urlsplit(postgres.admin_dsn), free_port(), new_directory("pgbouncer")
    settings = directory / "pgbouncer.ini"
    settings.write_text(_SETTINGS.format(host=where.hostname, port=where.port, own=own, mode=mode))
    command = [found(), str(settings)]
    if os.geteuid() == 0:
        directory.chmod(0o755)
        command += ["-u", "nobody"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"postgresql://postgres@127.0.0.1:{own}/postgres", process)
        yield f"127.0.0.1:{own}"
    finally:
        process.terminate()
        process.wait(30)


def _wait(dsn: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(dsn, prepare_threshold=None, connect_timeout=5).close()
            return
        except psycopg.Error as error:
            if process.poll() is not None or time.monotonic() > until:
                raise ServiceError(f"pgbouncer did not start: {error}") from None
            time.sleep(0.1)
