"""The HTTP edge with Starlette and FastAPI: every row of its table of cases, on PostgreSQL and SQLite."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import uvicorn
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from consumerkit import ConfigurationError, MessageState, Tables, events, message_status, outbox
from consumerkit.http import Idempotency
from consumerkit.http.fastapi import IdempotentRoute
from consumerkit.maintenance.pruner import forget
from consumerkit.monitoring import Metrics
from consumerkit.storage import sqlite_engine
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.maintenance.pruning import PruneStatements
from consumerkit.storage.tables import DEFAULT_TABLES
from tests.services import PostgresServer
from tests.services.tables import make_tables


class Base(DeclarativeBase): ...


class Effect(Base):
    """Append-only and without a unique key: a repeated effect shows twice."""

    __tablename__ = "edge_effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


class Place:
    """A database, an edge, and an application of the one framework or the other, called over ASGI."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.engine = create_engine(url.replace("+asyncpg", "+psycopg"))
        with Session(self.engine) as session, session.begin():
            make_tables(session)
            Base.metadata.create_all(session.connection())
        self.edge = Idempotency(database=url, name="shop", **settings)
        self.client = httpx.AsyncClient()
        self.ran: list[str] = []

    def serve(self, app: Any, *, raises: bool = False) -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://shop")

    async def post(
        self, key: str | None = "k-1", body: Any = None, path: str = "/orders", **headers: str
    ) -> httpx.Response:
        given = {"caller": "alice", **headers} | ({} if key is None else {"Idempotency-Key": key})
        return await self.client.post(path, headers=given, json={"what": "order"} if body is None else body)

    def effects(self) -> int:
        with Session(self.engine) as session:
            return session.scalars(select(func.count(Effect.id))).one()

    def kept(self) -> int:
        with Session(self.engine) as session:
            return session.scalar(text("SELECT count(*) FROM consumerkit_processed_messages")) or 0

    async def close(self) -> None:
        await self.client.aclose()
        await self.edge.database.dispose()
        self.engine.dispose()


@pytest.fixture(params=["psycopg", "asyncpg", "sqlite"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "sqlite":
        made = Place(f"sqlite:///{tmp_path}/edge.sqlite")
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        made = Place(server.url(request.getfixturevalue("database"), request.param))
    yield made
    await made.close()


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(f"sqlite:///{tmp_path}/edge.sqlite")
    yield made
    await made.close()


def caller(request: Request) -> str:
    if "caller" not in request.headers:
        raise HTTPException(401, "who are you?")
    return request.headers["caller"]


Act = Callable[[Request, Any], Response | None]


def starlette(place: Place, act: Act | None = None, *, plain: bool = False, **options: Any) -> None:
    """An application whose endpoint writes an effect and then acts."""

    def answer(request: Request, session: Any) -> Response:
        place.ran.append(request.headers.get("idempotency-key", ""))
        session.add(Effect(what="order"))
        done = act(request, session) if act is not None else None
        return done or JSONResponse({"number": len(place.ran)}, 201, {"Location": "/orders/1", "X-Once": "yes"})

    if plain:

        @place.edge.idempotent(scope=caller, **options)
        def order(request: Request) -> Response:
            return answer(request, place.edge.plain_session(request))

        place.serve(Starlette(routes=[Route("/orders", order, methods=["POST"])]))
        return

    @place.edge.idempotent(scope=caller, **options)
    async def order_in_coroutine(request: Request) -> Response:
        session = place.edge.session(request)
        made = answer(request, session)
        await session.flush()
        return made

    routes = [Route(path, order_in_coroutine, methods=["POST"]) for path in ("/orders", "/refunds")]
    place.serve(Starlette(routes=routes))


def told(response: httpx.Response) -> tuple[int, Any]:
    return response.status_code, response.headers.get("Idempotent-Replayed")


async def test_a_repeated_request_gets_the_first_answer_again(place: Place) -> None:
    starlette(place)
    first, again = await place.post(), await place.post('"k-1"')
    assert [told(first), told(again)] == [(201, None), (201, "true")]
    assert first.content == again.content
    assert first.headers["Idempotency-Retention"] == again.headers["Idempotency-Retention"] == str(7 * 86400)
    assert again.headers["Location"] == "/orders/1"
    assert "X-Once" not in again.headers
    assert (place.ran, place.effects()) == (["k-1"], 1)
    assert told(await place.post(body={"b": 1, "what": "order"}, key="k-2")) == (201, None)
    spaced = await place.client.post(
        "/orders", headers={"caller": "alice", "Idempotency-Key": "k-2", "Content-Type": "application/json"},
        content=b'{ "what" : "order",  "b": 1.0 }',
    )  # fmt: skip
    assert told(spaced) == (201, "true")


@pytest.mark.parametrize(
    "key", ["", '"', '""', '"a', 'a"b"', "a b", "a,b", '" "', "\xe4", "x" * 256], ids=lambda key: repr(key)[:9]
)
async def test_a_key_that_is_malformed_is_refused(file: Place, key: str) -> None:
    starlette(file, required=False)
    response = await file.client.post(
        "/orders", headers={b"caller": b"alice", b"Idempotency-Key": key.encode("latin-1")}
    )
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["title"] == "Idempotency-Key cannot be read"
    assert (file.ran, file.effects()) == ([], 0)


async def test_two_keys_are_refused(file: Place) -> None:
    starlette(file)
    headers = [("caller", "alice"), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert (await file.client.post("/orders", headers=headers)).status_code == 400


async def test_a_missing_key_is_refused_where_it_is_required(place: Place) -> None:
    starlette(place)
    response = await place.post(None)
    assert (response.status_code, response.json()["title"]) == (400, "Idempotency-Key is missing")
    assert place.effects() == 0
    starlette(place, required=False)
    assert [told(await place.post(None)) for _ in range(2)] == [(201, None)] * 2
    assert place.effects() == 2


async def test_another_request_under_a_key_is_refused(place: Place) -> None:
    starlette(place)
    await place.post()
    for response in (await place.post(body={"what": "other"}), await place.post(path="/orders?dry=1")):
        assert (response.status_code, response.json()["title"]) == (422, "Idempotency-Key is already used")
    assert place.effects() == 1


async def test_keys_of_two_callers_or_routes_do_not_meet(place: Place) -> None:
    starlette(place)
    answers = [await place.post(), await place.post(caller="bob"), await place.post(path="/refunds")]
    assert [told(one) for one in answers] == [(201, None)] * 3
    assert place.effects() == 3


async def test_a_key_is_of_the_route_and_not_of_its_parameters(file: Place) -> None:
    """Starlette keeps no route in the request, so that the path itself would stand for it."""

    @file.edge.idempotent(scope=caller)
    async def pay(request: Request) -> Response:
        file.edge.session(request).add(Effect(what=request.url.path))
        return JSONResponse({}, 201)

    pays = Route("/orders/{order:int}/pay", pay, methods=["POST"])
    shops = Mount("/shops/{shop}", routes=[pays, Mount("/old", app=Starlette(routes=[Route("/orders", pay)]))])
    file.serve(Starlette(routes=[pays, shops, Mount("/eu", app=Starlette(routes=[shops]))]))
    for first, other in (
        ("/orders/1/pay", "/orders/2/pay"),
        ("/shops/a/orders/1/pay", "/shops/b/orders/1/pay"),
        ("/eu/shops/a/orders/1/pay", "/eu/shops/a/orders/2/pay"),
    ):
        answers = [told(await file.post(path=path)) for path in (first, first, other)]
        assert answers == [(201, None), (201, "true"), (422, None)]
    assert file.effects() == 3
    with Session(file.engine) as session:
        for route in ("/orders/{order}/pay", "/shops/{shop}/orders/{order}/pay", "/eu/shops/{shop}/orders/{order}/pay"):
            status = message_status(session, "http:shop", "alice", f"POST {route}", "k-1")
            assert status.state is MessageState.PROCESSED, route


async def test_each_request_is_told_and_counted_by_what_became_of_it(place: Place) -> None:
    going, go, seen = asyncio.Event(), asyncio.Event(), list[events.Event]()
    registry = CollectorRegistry()
    place.edge.largest_answer = 10
    for observer in (seen.append, Metrics(registry)):
        place.edge.announce.add(observer)

    @place.edge.idempotent(scope=caller, wait=240)
    async def order(request: Request) -> Response:
        how = request.headers.get("how", "")
        place.edge.session(request).add(Effect(what="order"))
        if how == "waits":
            going.set()
            await go.wait()
        if how == "raises":
            raise Broken
        return Response("large answer" if how == "large" else "", int(how) if how.isdigit() else 201)

    @place.edge.idempotent(scope=caller, required=False, wait=0)
    async def free(request: Request) -> Response:
        place.edge.session(request).add(Effect(what="free"))
        return Response()

    place.serve(Starlette(routes=[Route("/orders", order, methods=["POST"]), Route("/free", free, methods=["POST"])]))
    first = asyncio.create_task(place.post(how="waits"))
    await going.wait()
    second = asyncio.create_task(place.post(how="waits"))
    running: Any = place.edge.in_flight._running
    while not any(ended._waiters for ended in running.values()):  # noqa: ASYNC110 - there is no event for that
        await asyncio.sleep(0.01)
    go.set()
    await asyncio.gather(first, second)
    await place.post(body={"other": 1})
    await place.post(None)
    await place.post('"')
    for how in ("raises", "large", "404", "503"):
        await place.post("k-2", how=how)
    await place.post(None, path="/free")
    assert (await place.client.post("/orders")).status_code == 401  # which never came to the edge
    with place.engine.begin() as connection:
        connection.execute(text("DELETE FROM consumerkit_message_results"))
    await place.post(how="waits")
    answered = [one for one in seen if isinstance(one, events.RequestAnswered)]
    assert [(one.outcome, one.status) for one in answered] == [
        ("new", 201), ("replayed", 201), ("conflict", 422), ("refused", 400), ("refused", 400), ("failed", None),
        ("failed", None), ("rolled_back", 404), ("rolled_back", 503), ("unprotected", 200), ("erased", 409),
    ]  # fmt: skip
    assert [bool(one.waited) for one in answered] == [False, True] + [False] * 9
    assert {one.handler for one in answered} == {"http:shop"}
    assert {one.endpoint.rpartition(".")[2] for one in answered} == {"order", "free"}
    labels = {"handler": "http:shop"}
    assert registry.get_sample_value("consumerkit_requests_total", {**labels, "outcome": "refused"}) == 2
    assert registry.get_sample_value("consumerkit_request_seconds_count", labels) == len(answered)
    assert registry.get_sample_value("consumerkit_request_wait_seconds_count", labels) == 1


async def test_a_database_that_another_request_writes_to_is_busy(file: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite, whose one writer is another transaction: without a key there is nothing in progress."""
    patient = f"busy_timeout = {sqlite_engine.BUSY_MILLISECONDS}"
    monkeypatch.setattr(sqlite_engine, "_SETTINGS", sqlite_engine._SETTINGS.replace(patient, "busy_timeout = 10"))
    starlette(file, required=False, wait=0)
    assert told(await file.post()) == (201, None)
    with file.engine.begin() as connection:
        connection.execute(text("DELETE FROM edge_effects"))
        answers = [await file.post(None), await file.post("k-2")]
    assert [one.json()["title"] for one in answers] == ["The database is busy", "Request in progress"]
    assert [one.status_code for one in answers] == [503, 409]
    assert {one.headers["Retry-After"] for one in answers} == {"1"}


async def test_named_fields_alone_tell_requests_apart(file: Place) -> None:
    starlette(file, fields=("order.id",))
    await file.post(body={"order": {"id": 1}, "sent": 1})
    assert told(await file.post(body={"order": {"id": 1}, "sent": 2})) == (201, "true")
    assert (await file.post(body={"order": {"id": 2}, "sent": 1})).status_code == 422


async def test_a_form_counts_without_its_boundary(file: Place) -> None:
    starlette(file)
    answers = []
    for boundary in ("aaa", "bbb"):
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        body = f'--{boundary}\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--{boundary}--\r\n'
        given = {"caller": "alice", "Idempotency-Key": "k", **kind}
        answers.append(told(await file.client.post("/orders", content=body, headers=given)))
    assert answers == [(201, None), (201, "true")]


class Broken(Exception): ...


async def test_a_request_that_fails_keeps_nothing_and_leaves_the_key_free(place: Place) -> None:
    def fail(request: Request, session: Any) -> Response | None:
        how = request.headers.get("how")
        if how == "raises":
            raise Broken
        if how in ("501", "404"):
            raise HTTPException(int(how))
        return Response(status_code=int(how)) if how else None

    starlette(place, fail)
    for how, status in (("raises", 500), ("501", 501), ("503", 503), ("404", 404), ("400", 400)):
        assert told(await place.post(how=how)) == (status, None)
        assert (place.effects(), place.kept()) == (0, 0)
    assert told(await place.post()) == (201, None)
    assert place.effects() == 1


@pytest.mark.parametrize("raised", [True, False], ids=["raised", "returned"])
async def test_an_answer_of_4xx_is_kept_by_choice_and_its_changes_never(place: Place, raised: bool) -> None:
    def refuse(request: Request, session: Any) -> Response:
        if raised:
            raise HTTPException(int(request.headers["how"]), "no")
        return Response("no", int(request.headers["how"]))

    starlette(place, refuse, keep_4xx=True)
    assert [told(await place.post(how="404")) for _ in range(2)] == [(404, None), (404, "true")]
    assert (await place.post(how="404", body={"other": 1})).status_code == 422
    for number, status in enumerate((401, 403, 408, 409, 425, 429)):
        for _ in range(2):
            assert told(await place.post(f"k-{status}", how=str(status))) == (status, None)
        assert len(place.ran) == 3 + 2 * number
    assert (place.effects(), place.kept()) == (0, 1)


async def test_a_request_waits_for_the_one_that_has_the_key(place: Place) -> None:
    going, go = asyncio.Event(), asyncio.Event()

    @place.edge.idempotent(scope=caller, wait=240)
    async def order(request: Request) -> Response:
        session = place.edge.session(request)
        session.add(Effect(what="order"))
        await session.flush()
        going.set()
        await go.wait()
        return JSONResponse({}, 201)

    place.serve(Starlette(routes=[Route("/orders", order, methods=["POST"])]))
    requests = [asyncio.create_task(place.post()) for _ in range(20)]
    await going.wait()
    pool: Any = place.edge.database.async_sessions.kw["bind"].pool  # type: ignore[union-attr]
    if hasattr(pool, "checkedout"):
        assert pool.checkedout() == 1
    go.set()
    answers = [told(await one) for one in requests]
    assert sorted(answers, key=str) == sorted([(201, "true")] * 19 + [(201, None)], key=str)
    assert place.effects() == 1


async def test_a_request_is_told_that_its_key_is_in_use(place: Place) -> None:
    going, go = asyncio.Event(), asyncio.Event()

    def app(edge: Idempotency) -> Any:
        @edge.idempotent(scope=caller, wait=0.1)
        async def order(request: Request) -> Response:
            session = edge.session(request)
            session.add(Effect(what="order"))
            await session.flush()
            going.set()
            await go.wait()
            return JSONResponse({}, 201)

        return Starlette(routes=[Route("/orders", order, methods=["POST"])])

    other = Idempotency(database=place.edge.database.async_sessions, name="shop")  # type: ignore[arg-type]
    place.serve(app(place.edge))
    first = asyncio.create_task(place.post())
    await going.wait()
    refused = [await place.post()]
    if "sqlite" not in str(place.engine.url):  # whose writer would wait for its own timeout
        place.serve(app(other))  # another process
        refused.append(await place.post())
    for answer in refused:
        assert (answer.status_code, answer.headers["Retry-After"]) == (409, "1")
    go.set()
    assert told(await first) == (201, None)
    assert told(await place.post()) == (201, "true")
    assert place.effects() == 1


async def test_a_database_that_is_down_is_503_and_nothing_runs(tmp_path: Path) -> None:
    for url in ("postgresql+psycopg://a@127.0.0.1:1/a", "postgresql+asyncpg://a@127.0.0.1:1/a"):
        edge = Idempotency(database=url, name="shop")

        @edge.idempotent(scope=caller, required=False)
        async def order(request: Request) -> Response:
            pytest.fail("it ran")

        transport = httpx.ASGITransport(Starlette(routes=[Route("/", order, methods=["POST"])]))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            for key in ({"Idempotency-Key": "k"}, {}):
                answer = await client.post("/", headers={"caller": "alice", **key})
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        await edge.database.dispose()


async def test_a_connection_that_is_lost_before_the_commit_keeps_nothing(
    postgres: PostgresServer, database: str
) -> None:
    for driver in ("psycopg", "asyncpg"):
        place = Place(postgres.url(database, driver))
        ended: list[int] = []

        @place.edge.idempotent(scope=caller)
        async def order(request: Request, place: Place = place, ended: list[int] = ended) -> Response:
            session = place.edge.session(request)
            session.add(Effect(what="order"))
            await session.flush()
            if not ended:
                ended.append(await session.scalar(text("SELECT pg_backend_pid()")) or 0)
                with place.engine.connect() as other:
                    assert other.scalar(text("SELECT pg_terminate_backend(:pid)"), {"pid": ended[0]})
            return JSONResponse({}, 201)

        place.serve(Starlette(routes=[Route("/orders", order, methods=["POST"])]))
        before = place.effects()
        assert (await place.post(driver)).status_code == 503
        assert place.effects() == before
        assert told(await place.post(driver)) == (201, None)
        assert place.effects() == before + 1
        await place.close()


async def test_an_answer_that_cannot_be_kept_whole_is_not_kept(place: Place) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"1"

    large = b"x" * 1_000_001
    kinds: dict[str, Callable[[], Response]] = {
        "large": lambda: Response(large),
        "streamed": lambda: StreamingResponse(pieces()),
    }
    starlette(place, lambda request, _: kinds[request.headers["how"]]())
    for how in kinds:
        assert (await place.post(how=how)).status_code == 500
    assert (place.effects(), place.kept()) == (0, 0)
    with pytest.raises(ConfigurationError, match="it streams its answer"):

        @place.edge.idempotent(scope=caller)
        async def stream(request: Request) -> StreamingResponse: ...  # type: ignore[empty-body]


async def test_an_endpoint_that_ends_its_transaction_fails(place: Place) -> None:
    async def commit(session: AsyncSession) -> None:
        await session.commit()

    async def roll_back(session: AsyncSession) -> None:
        await session.rollback()

    async def commit_by_hand(session: AsyncSession) -> None:
        await session.flush()
        await session.execute(text("ROLLBACK"))

    for act in (commit, roll_back, commit_by_hand):

        @place.edge.idempotent(scope=caller)
        async def order(request: Request, act: Any = act) -> Response:
            session = place.edge.session(request)
            session.add(Effect(what="order"))
            await act(session)
            return JSONResponse({}, 201)

        place.serve(Starlette(routes=[Route("/orders", order, methods=["POST"])]))
        assert (await place.post()).status_code == 500
        assert (place.effects(), place.kept()) == (0, 0)


async def test_a_plain_endpoint_is_answered_alike(file: Place) -> None:
    starlette(file, plain=True)
    assert [told(await file.post()) for _ in range(2)] == [(201, None), (201, "true")]
    assert file.effects() == 1


async def test_who_may_not_ask_is_told_so_before_a_kept_answer(place: Place) -> None:
    starlette(place)
    await place.post()
    answer = await place.client.post("/orders", headers={"Idempotency-Key": "k-1"}, json={"what": "order"})
    assert told(answer) == (401, None)
    assert len(place.ran) == 1


@pytest.mark.parametrize(
    "options, words",
    [
        ({"scope": None}, "scope=NoneType"),
        ({"scope": "alice"}, "scope=str"),
        ({"wait": -1}, "wait=-1"),
        ({"fields": "amount"}, "fields='amount'"),
        ({"headers": ("Set-Cookie",)}, "Set-Cookie"),
    ],
)  # fmt: skip
def test_a_declaration_that_cannot_be_kept_is_refused(tmp_path: Path, options: Any, words: str) -> None:
    edge = Idempotency(database=f"sqlite:///{tmp_path}/edge.sqlite", name="shop")

    async def order(request: Request) -> Response: ...  # type: ignore[empty-body]

    with pytest.raises(ConfigurationError, match=words):
        edge.idempotent(**{"scope": caller, **options})(order)
    with pytest.raises(TypeError, match="scope"):
        edge.idempotent()(order)  # type: ignore[call-arg]


@pytest.mark.parametrize("options", [{"name": ""}, {"name": "a b"}, {"retention": 0}, {"largest_answer": 0}])
def test_an_edge_that_cannot_be_kept_is_refused(tmp_path: Path, options: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Idempotency\("):
        Idempotency(**{"database": f"sqlite:///{tmp_path}/edge.sqlite", "name": "shop", **options})


async def test_a_scope_that_tells_nobody_is_an_error_and_keeps_nothing(file: Place) -> None:
    for nobody in (None, "", (), 1.5, ("a", None)):

        @file.edge.idempotent(scope=lambda request, nobody=nobody: nobody)
        async def order(request: Request) -> Response:
            pytest.fail("it ran")

        file.serve(Starlette(routes=[Route("/orders", order, methods=["POST"])]))
        assert (await file.post()).status_code == 500
    assert file.kept() == 0


async def test_an_answer_is_sealed_where_payloads_are(tmp_path: Path) -> None:
    class Rot:
        def seal(self, payload: bytes) -> bytes:
            return bytes(255 - byte for byte in payload)

        def unseal(self, sealed: bytes) -> bytes:
            return self.seal(sealed)

    place = Place(f"sqlite:///{tmp_path}/edge.sqlite", tables=Tables(sealer=Rot()))
    starlette(place, lambda *_: Response("c4nary"))
    await place.post()
    with place.engine.connect() as connection:
        [stored] = connection.scalars(text("SELECT result FROM consumerkit_message_results")).all()
    assert list(json.loads(stored)) == ["sealed"]
    assert (await place.post()).text == "c4nary"
    await place.close()


async def test_keys_are_forgotten_after_the_retention_that_was_stated(tmp_path: Path) -> None:
    place = Place(f"sqlite:///{tmp_path}/edge.sqlite", retention=3600)
    starlette(place)
    await place.post()
    with Session(place.engine) as session:
        status = message_status(session, "http:shop", "alice", "POST /orders", "k-1")
        assert status.state is MessageState.PROCESSED
        pruning = PruneStatements(DEFAULT_TABLES, dialect_for("sqlite", DEFAULT_TABLES))
        [plan] = pruning.plans(session, 0.0, ["other"], requests=True)
        assert [one.handler for one in pruning.plans(session, 0.0)] == [plan.handler] == ["http:shop"]
    database = place.edge.database
    assert (await forget(database.run, pruning, plan)).count == 0
    with place.engine.begin() as connection:
        connection.execute(
            text("UPDATE consumerkit_processed_messages SET processed_at = '2026-01-01 00:00:00.000000'")
        )
    assert (await forget(database.run, pruning, plan)).count == 1
    assert told(await place.post()) == (201, None)
    await place.close()


def fastapi(place: Place, *, own: Any = None) -> FastAPI:
    router = APIRouter(route_class=IdempotentRoute)
    edge = place.edge

    def user(caller: Annotated[str | None, Header()] = None) -> str:
        if caller is None:
            raise HTTPException(401)
        place.ran.append("user")
        return caller

    def may(forbidden: Annotated[str | None, Header()] = None) -> None:
        if forbidden is not None:
            raise HTTPException(403)

    @router.post("/orders", status_code=201)
    @edge.idempotent(scope=user)
    async def order(
        what: dict[str, Any],
        session: Annotated[AsyncSession, Depends(edge.session)],
        tasks: BackgroundTasks,
        response: Response,
        _: Annotated[None, Depends(may)],
    ) -> dict[str, int]:
        session.add(Effect(what="order"))
        await outbox.publish(session, "orders", value=what)
        tasks.add_task(lambda: place.ran.append(f"task sees {place.effects()}"))
        response.headers["Location"] = "/orders/1"
        if what.get("fails"):
            raise HTTPException(404)
        return {"effects": 1}

    @router.get("/free")
    async def free() -> str:
        return "free"

    app = FastAPI()
    app.include_router(router)
    return app


async def test_fastapi_commits_before_it_sends_and_runs_its_tasks_after(place: Place) -> None:
    app = fastapi(place)
    seen: list[Any] = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def see(message: Any) -> None:
            seen.append((message["type"], place.effects()))
            await send(message)

        await app(scope, receive, see)

    place.serve(watched)
    first = await place.post()
    assert (told(first), first.json(), first.headers["Location"]) == ((201, None), {"effects": 1}, "/orders/1")
    assert seen == [("http.response.start", 1), ("http.response.body", 1)]
    assert place.ran == ["user", "task sees 1"]
    again = await place.post()
    assert (told(again), again.json(), again.headers["Location"]) == ((201, "true"), {"effects": 1}, "/orders/1")
    assert place.ran == ["user", "task sees 1", "user"]
    with place.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM consumerkit_outbox_messages")) == 1
    for headers, status in (({"caller": ""}, 500), ({"forbidden": "1"}, 403)):
        assert (await place.post(**headers)).status_code == status
    without = await place.client.post("/orders", headers={"Idempotency-Key": "k-1"}, json={"what": "order"})
    assert without.status_code == 401
    assert (await place.post("k-2", {"fails": True})).status_code == 404
    assert (await place.post("k-3", "no object")).status_code == 422
    assert (place.effects(), place.kept()) == (1, 1)
    assert (await place.client.get("/free")).json() == "free"


async def test_fastapi_s_plain_endpoint_is_answered_alike(file: Place) -> None:
    app = FastAPI()
    app.router.route_class = IdempotentRoute

    @app.post("/plain")
    @file.edge.idempotent(scope=caller)
    def plain(session: Annotated[Session, Depends(file.edge.plain_session)]) -> dict[str, bool]:
        session.add(Effect(what="order"))
        return {"plain": True}

    file.serve(app)
    assert [told(await file.post(path="/plain")) for _ in range(2)] == [(200, None), (200, "true")]
    assert file.effects() == 1


async def test_fastapi_without_the_route_class_is_refused_before_anything_runs(file: Place) -> None:
    app = FastAPI()

    @app.post("/orders")
    @file.edge.idempotent(scope=caller)
    async def order() -> None:
        pytest.fail("it ran")

    file.serve(app, raises=True)
    with pytest.raises(ConfigurationError, match="route_class=IdempotentRoute"):
        await file.post()


async def test_a_session_of_its_own_is_refused_or_warned_of(file: Place, caplog: pytest.LogCaptureFixture) -> None:
    async def own() -> AsyncSession: ...  # type: ignore[empty-body]

    with pytest.raises(ConfigurationError, match="the parameter other is a session of its own"):

        @file.edge.idempotent(scope=caller)
        async def refused(other: Annotated[AsyncSession, Depends(own)]) -> None: ...

    @file.edge.idempotent(scope=caller)
    async def unseen(request: Request) -> Response:
        return Response()

    file.serve(Starlette(routes=[Route("/orders", unseen, methods=["POST"])]))
    await file.post("k-1")
    await file.post("k-2")
    assert [one.getMessage().partition(" did")[2] for one in caplog.records if "session" in one.message] == [
        " not take the edge's session; its changes in another session are not committed with its key"
    ]


async def test_a_dependency_cannot_use_the_session_before_the_claim(file: Place) -> None:
    async def load(session: Annotated[AsyncSession, Depends(file.edge.session)]) -> None:
        await session.execute(text("SELECT 1"))

    app = FastAPI()
    app.router.route_class = IdempotentRoute

    @app.post("/orders", dependencies=[Depends(load)])
    @file.edge.idempotent(scope=caller)
    async def order() -> None:
        pytest.fail("it ran")

    file.serve(app, raises=True)
    with pytest.raises(Exception, match="Autobegin is disabled"):
        await file.post()


async def test_a_client_that_hangs_up_before_the_commit_leaves_its_key_free(file: Place) -> None:
    """On a real socket: the server reports that the client is gone."""
    going, gone = asyncio.Event(), asyncio.Event()
    app = FastAPI()
    app.router.route_class = IdempotentRoute

    @app.post("/orders", status_code=201)
    @file.edge.idempotent(scope=caller)
    async def order(
        request: Request, session: Annotated[AsyncSession, Depends(file.edge.session)], tasks: BackgroundTasks
    ) -> int:
        session.add(Effect(what="order"))
        await session.flush()
        tasks.add_task(lambda: file.ran.append("task"))
        if not going.is_set():
            going.set()
            while not await request.is_disconnected():  # noqa: ASYNC110 - the server has no event to wait for
                await asyncio.sleep(0.01)
            gone.set()
        return file.effects()

    async with asyncio.timeout(240), served(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /orders HTTP/1.1\r\nHost: shop\r\ncaller: alice\r\nIdempotency-Key: k-1\r\nContent-Length: 0\r\n\r\n"
        )
        await going.wait()
        writer.close()
        await gone.wait()
        file.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=240)
        given = {"caller": "alice", "Idempotency-Key": "k-1"}
        answers = [await file.client.post("/orders", headers=given) for _ in range(2)]
    assert [(told(one), one.json()) for one in answers] == [((201, None), 0), ((201, "true"), 0)]
    assert (file.effects(), file.ran) == (1, ["task"])


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving
