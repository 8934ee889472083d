"""The status page of the HTTP edge: for polling, as server-sent events, and only for who may see it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from consumerkit import ConfigurationError, Context, Handler, Outcome, Reason, header
from consumerkit.handlers.message_id import possible_digests
from consumerkit.http import accepted, status_route
from consumerkit.message import Message
from consumerkit.storage import consumers
from consumerkit.storage.database import Database
from consumerkit.storage.dead_letters import letters as dead_letters
from consumerkit.storage.dead_letters.letters import DeadMessage
from consumerkit.storage.dialects import Claim, dialect_for
from consumerkit.storage.ledger import Ledger
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.services.tables import make_tables


class Bill(Handler[bytes]):
    name = "bill"
    topic = "orders"
    message_id = header("message-id")

    async def handle(self, event: bytes, context: Context) -> None: ...


class Desk:
    """A ledger to write into, and an application that answers from it."""

    def __init__(self, directory: Path) -> None:
        self.url = f"sqlite:///{directory}/status.sqlite"
        self.engine = create_engine(self.url)
        self.served = create_async_engine(self.url.replace("sqlite:", "sqlite+aiosqlite:"))
        with Session(self.engine) as session, session.begin():
            make_tables(session)
            number = consumers.bind(session, DEFAULT_TABLES, name="bill", group="bill", topics=["orders"])
        self.ledger = Ledger(DEFAULT_TABLES, dialect_for("sqlite", DEFAULT_TABLES), number)
        self.client = httpx.AsyncClient()

    def serve(self, **options: Any) -> None:
        route = status_route(
            database=self.served, handlers=[Bill], **{"authorize": may_see, "interval": 0.01, **options}
        )

        async def order(request: Request) -> Response:
            return accepted(request, Bill, "o/1 é")

        app = Starlette(routes=[Route("/orders", order, methods=["POST"]), route])
        transport = httpx.ASGITransport(app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://shop", headers={"user": "alice"})

    def process(self, name: str, outcome: Outcome = Outcome.PROCESSED) -> None:
        digest = possible_digests(name)[0]
        with Session(self.engine) as session, session.begin():
            self.ledger.claim(session.connection(), [Claim(digest, name, b"f" * 16, outcome)])
            self.ledger.keep_results(session.connection(), {digest: json.dumps({"cents": 7})})

    def dead_letter(self, name: str) -> None:
        self.process(name, Outcome.DEAD)
        dead = DeadMessage(
            message=Message("orders", 0, 0, b"alice", b"secret", (), 0, "T1"), digest=possible_digests(name)[0],
            message_id=name, reason=Reason.REJECTED, error_type="shop.Refused", error="secret", attempts=3,
        )  # fmt: skip
        with Session(self.engine) as session, session.begin():
            dead_letters.add(session.connection(), DEFAULT_TABLES, self.ledger.consumer, [dead])

    async def close(self) -> None:
        await self.client.aclose()
        self.engine.dispose()
        await self.served.dispose()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    made = Desk(tmp_path)
    yield made
    await made.close()


def may_see(request: Request, handler: str, message_id: str) -> bool:
    if "user" not in request.headers:
        raise HTTPException(401)
    return request.headers["user"] == "alice"


async def test_a_page_polls_until_the_state_is_final(desk: Desk) -> None:
    desk.serve()
    waiting = await desk.client.get("/status/bill/o-1")
    assert (waiting.status_code, waiting.json()["state"], waiting.json()["final"]) == (200, "unknown", False)
    assert (waiting.headers["Retry-After"], waiting.headers["Cache-Control"]) == ("1", "no-store")
    desk.process("o-1")
    done = await desk.client.get("/status/bill/o-1")
    assert (done.json()["state"], done.json()["final"], "Retry-After" in done.headers) == ("processed", True, False)
    assert "result" not in done.json()
    desk.dead_letter("o-2")
    dead = await desk.client.get("/status/bill/o-2")
    assert {"state": "dead", "final": True, "reason": "rejected", "attempts": 3}.items() <= dead.json().items()
    assert "secret" not in dead.text
    with desk.engine.begin() as connection:
        connection.execute(update(DEFAULT_TABLES.dead_letters).values(state="redriven"))
    assert not (await desk.client.get("/status/bill/o-2")).json()["final"]
    desk.serve(results=True)
    assert (await desk.client.get("/status/bill/o-1")).json()["result"] == {"cents": 7}


async def test_only_who_may_see_a_message_is_told(desk: Desk) -> None:
    async def none_may(request: Request, handler: str, message_id: str) -> bool:
        return False

    desk.serve()
    desk.process("o-1")
    for headers, path, status in (
        ({"user": "bob"}, "/status/bill/o-1", 404),
        ({}, "/status/other/o-1", 404),
        ({}, "/status/bill/o-1", 200),
    ):
        assert (await desk.client.get(path, headers=headers)).status_code == status
    del desk.client.headers["user"]
    assert (await desk.client.get("/status/bill/o-1")).status_code == 401
    desk.serve(authorize=none_may)
    assert (await desk.client.get("/status/bill/o-1")).status_code == 404


async def test_events_tell_each_change_and_end_with_the_final_one(desk: Desk) -> None:
    desk.serve()
    app: Any = desk.client._transport.app  # type: ignore[attr-defined]
    told: list[str] = []

    async def send(message: Any) -> None:
        told.append(message.get("body", b"").decode())
        if told[-1].startswith(": no change") and sum(one.startswith(":") for one in told) == 1:
            desk.process("o-1")

    async def receive() -> Any:
        await asyncio.Event().wait()

    headers = [(b"accept", b"text/event-stream"), (b"user", b"alice")]
    scope = {
        "type": "http", "method": "GET", "path": "/status/bill/o-1", "headers": headers, "query_string": b"",
        "http_version": "1.1", "scheme": "http", "server": ("shop", 80),
    }  # fmt: skip
    async with asyncio.timeout(240):
        await app(scope, receive, send)
    states = [json.loads(one.partition("data: ")[2])["state"] for one in told if one.startswith("event: status")]
    assert states == ["unknown", "processed"]
    again = {"Accept": "text/event-stream", "Last-Event-ID": "processed-0"}
    assert (await desk.client.get("/status/bill/o-1", headers=again)).status_code == 204


async def test_events_end_in_time_so_that_no_stream_lasts_for_ever(desk: Desk) -> None:
    desk.serve(longest=0.001)
    answer = await desk.client.get("/status/bill/o-1", headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.startswith("event: status\nid: unknown-0\ndata: {")


async def test_events_outlast_trouble_of_the_database(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser never asks again after a status of 5xx: the page would stand still for ever."""
    desk.serve()
    looks = 0

    async def look(self: Database, work: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks in (1, 3):
            raise OperationalError("SELECT", {}, ConnectionError())
        if looks == 4:
            desk.process("o-1")
        return await run(self, work)

    run = Database.run
    monkeypatch.setattr(Database, "run", look)
    answer = await desk.client.get("/status/bill/o-1", headers={"Accept": "text/event-stream"})
    lines = [one.partition("\n")[0] for one in answer.text.split("\n\n")]
    assert lines == [": the database is out of reach", "event: status", ": the database is out of reach",
                     "event: status", ""]  # fmt: skip
    assert answer.headers["X-Accel-Buffering"] == "no"


async def test_a_stream_whose_reader_cannot_be_checked_tells_nothing_and_ends(desk: Desk) -> None:
    async def database_is_down(request: Request, handler: str, message_id: str) -> bool:
        raise OperationalError("SELECT", {}, ConnectionError())

    desk.process("o-1")
    desk.serve(authorize=database_is_down)
    assert (await desk.client.get("/status/bill/o-1")).status_code == 503
    answer = await desk.client.get("/status/bill/o-1", headers={"Accept": "text/event-stream"})
    assert (answer.status_code, answer.text) == (200, ": the database is out of reach\n\n")


async def test_an_accepted_request_is_told_where_its_status_is(desk: Desk) -> None:
    desk.serve(path="/status/{handler}/{message_id:path}")
    answer = await desk.client.post("/orders")
    assert (answer.status_code, answer.headers["Location"]) == (202, answer.json()["status"])
    desk.process("o/1 é")
    assert (await desk.client.get(answer.json()["status"])).json()["state"] == "processed"


async def test_a_database_that_is_down_is_503() -> None:
    route = status_route(database="postgresql+psycopg://a@127.0.0.1:1/a", handlers=[Bill], authorize=may_see)
    transport = httpx.ASGITransport(Starlette(routes=[route]))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", headers={"user": "alice"}) as client:
        assert (await client.get("/status/bill/o-1")).status_code == 503


@pytest.mark.parametrize(
    "options, words",
    [
        ({"path": "/status"}, "needs {handler}"),
        ({"authorize": None}, "who may see"),
        ({"interval": 0}, "interval=0"),
        ({"longest": -1}, "longest=-1"),
        ({"handlers": [Handler]}, "does not set name"),
    ],
)  # fmt: skip
def test_a_page_that_cannot_be_kept_is_refused(tmp_path: Path, options: Any, words: str) -> None:
    given = {"database": f"sqlite:///{tmp_path}/a.sqlite", "handlers": [Bill], "authorize": may_see}
    with pytest.raises(ConfigurationError, match=words):
        status_route(**{**given, **options})
