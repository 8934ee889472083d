"""A web service that is killed around the COMMIT of a request: the client repeats it with the same key."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.orm import Session

from consumerkit.http import Idempotency
from tests.crash.requests_app import Base, Effect, made
from tests.lines import whole_lines
from tests.services import PostgresServer
from tests.services.tables import make_tables

pytestmark = pytest.mark.crash
HEADERS = {"caller": "alice", "Idempotency-Key": '"click-1"'}


class Killed(NamedTuple):
    """Where the service is killed, and what it leaves.

    Attributes:
        at: The failpoint.
        effects: What the request has changed by then.
        replayed: What the answer to its repetition says of itself.
    """

    at: str
    effects: int
    replayed: str | None


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(Killed("request_claimed", 0, None), marks=pytest.mark.matrix),
        Killed("request_handled", 0, None),
        Killed("request_committed", 1, "true"),
    ],
    ids=lambda killed: killed.at,
)
async def test_a_request_whose_service_is_killed_takes_effect_once(
    killed: Killed, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    url = postgres.url(database)
    engine = create_engine(url)
    with Session(engine) as session, session.begin():
        make_tables(session)
        Base.metadata.create_all(session.connection())

    def counted() -> tuple[int, int]:
        with Session(engine) as session:
            sent = session.scalar(text("SELECT count(*) FROM consumerkit_outbox_messages")) or 0
            return session.scalars(select(func.count(Effect.id))).one(), sent

    ask_until_killed(url, killed.at, tmp_path)
    assert counted() == (killed.effects, killed.effects)
    edge = Idempotency(database=url, name="shop")
    transport = httpx.ASGITransport(made(edge))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", headers=HEADERS) as client:
        answers = [await client.post("/orders", json={"item": "tea"}) for _ in range(2)]
    with Session(engine) as session:
        number = session.scalars(select(Effect.id)).one()
    assert [one.headers.get("Idempotent-Replayed") for one in answers] == [killed.replayed, "true"]
    assert [(one.status_code, one.json()) for one in answers] == [(201, {"number": number})] * 2
    assert counted() == (1, 1)
    await edge.database.dispose()
    engine.dispose()


def ask_until_killed(url: str, failpoint: str, directory: Path) -> None:
    """Send one request to a service that a failpoint kills: the client gets no answer."""
    port_file, fired = directory / "port", directory / "fired"
    environment = {
        **os.environ,
        "CONSUMERKIT_FAILPOINT": f"{failpoint}:kill",
        "CONSUMERKIT_FAILPOINT_LOG": str(fired),
    }
    command = [sys.executable, "-m", "tests.crash.requests_app", url, str(port_file)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as service:
        while not (port := whole_lines(port_file)):
            assert service.poll() is None, service.stderr and service.stderr.read()
            time.sleep(0.02)
        with pytest.raises(httpx.TransportError):
            httpx.post(f"http://127.0.0.1:{port[0]}/orders", headers=HEADERS, json={"item": "tea"}, timeout=240)
        assert service.wait(240) == -signal.SIGKILL
    assert fired.read_text().split()[:2] == [failpoint, "kill"]
