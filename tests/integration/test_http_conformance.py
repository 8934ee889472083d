"""The conformance suite: the edge passes it, and for other servers it names the broken promise."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from consumerkit.http import Idempotency
from consumerkit.http.conformance import CASES, main
from consumerkit.storage.database import Database
from tests.services import PostgresServer
from tests.services.tables import make_tables

ARGUMENTS = ("--header", "caller: alice", "--other-caller", "caller: bob")


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/orders"
    finally:
        server.should_exit = True
        await serving


def counting() -> tuple[list[int], Any]:
    numbers: list[int] = []

    async def order(request: Request) -> Response:
        numbers.append(len(numbers))
        return JSONResponse({"number": len(numbers)}, 201)

    return numbers, order


async def test_our_edge_keeps_it(postgres: PostgresServer, database: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = Database(postgres.url(database))
    await place.run(lambda session: make_tables(session))
    edge = Idempotency(database=place.async_sessions, name="shop")  # type: ignore[arg-type]
    numbers, order = counting()

    @edge.idempotent(scope=lambda request: request.headers["caller"])
    async def once(request: Request) -> Response:
        edge.session(request)
        answer: Response = await order(request)
        return answer

    async with served(Starlette(routes=[Route("/orders", once, methods=["POST"])])) as url:
        status = await asyncio.to_thread(main, [url, *ARGUMENTS])
    said = capsys.readouterr().out
    assert (status, said.count("kept  ")) == (0, len(CASES)), said
    assert len(numbers) == 9  # as many keys were used with a request that may run
    await place.dispose()


async def test_a_server_that_breaks_a_promise_is_told_which(capsys: pytest.CaptureFixture[str]) -> None:
    answers: dict[str, Response] = {}
    _, order = counting()

    async def deaf(request: Request) -> Response:
        answer: Response = await order(request)
        return answer

    async def careless(request: Request) -> Response:
        """Answers by the key alone, without a look at caller and request."""
        key = request.headers.get("idempotency-key", "")
        if not key:
            return Response(status_code=400)
        if key in answers:
            return Response(answers[key].body, 201, {"Idempotent-Replayed": "true"})
        answers[key] = await order(request)
        return answers[key]

    broken = {}
    for name, endpoint in (("deaf", deaf), ("careless", careless)):
        async with served(Starlette(routes=[Route("/orders", endpoint, methods=["POST"])])) as url:
            assert await asyncio.to_thread(main, [url, *ARGUMENTS]) == 1
        lines = capsys.readouterr().out.splitlines()
        broken[name] = {line[12:].partition(":")[0] for line in lines if line.startswith("BROKEN")}
    every = set(CASES)
    assert broken["deaf"] == every - {
        "a first request is done",
        "a key may have 255 characters",
        "two keys are two requests",
        "keys of two callers do not meet",  # it marks no answer as a repeated one
    }
    assert broken["careless"] == {
        "a malformed key is refused with 400",
        "a refusal explains itself by problem details",
        "another request under the same key is refused with 422",
        "keys of two callers do not meet",
    }


def test_a_server_that_is_not_there_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["http://127.0.0.1:1/orders", "--header", "Authorization: $NOT_THERE"]) == 2
    assert capsys.readouterr().err == "error: the server cannot be asked: ConnectionRefusedError\n"
    for wrong in (["ftp://shop"], ["http://shop", "--body", "{"], ["http://shop", "--header", "nothing"]):
        with pytest.raises(SystemExit):
            main(wrong)
