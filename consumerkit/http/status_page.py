"""A status URL that shows `message_status` of a message, for polling and as server-sent events."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from consumerkit.errors import ConfigurationError
from consumerkit.http.answers import problem
from consumerkit.outcome import MessageState
from consumerkit.status import Asked, message_status
from consumerkit.storage.database import Database, Given
from consumerkit.storage.status import MessageStatus
from consumerkit.storage.tables import DEFAULT_TABLES, Tables

ROUTE: Final = "consumerkit-status"
_EVENTS: Final = "text/event-stream"
_OUT_OF_REACH: Final = ": the database is out of reach\n\n"
Authorize = Callable[[Request, str, str], Any]


def status_route(
    path: str = "/status/{handler}/{message_id}",
    *,
    database: Given,
    handlers: Iterable[Asked],
    authorize: Authorize,
    results: bool = False,
    interval: float = 1.0,
    longest: float = 60.0,
    tables: Tables = DEFAULT_TABLES,
) -> Route:
    """Return a route that shows the status of a message: append it to an application's `router.routes`.

    A GET answers with JSON: handler, message_id, state, since, attempts, due_at, reason and
    `final`, which is true if the state will not change. While it is false, `Retry-After` says when
    to ask again. A client that accepts `text/event-stream` instead gets an event `status` at each
    change, until the state is final: `EventSource` in a page needs only the URL. No database
    connection is held between two looks.

    Args:
        path: The path, with `{handler}` and `{message_id}`; use `{message_id:path}` for IDs with
            slashes.
        database: A URL, an engine or a sessionmaker, as for `Idempotency`.
        handlers: The handlers whose messages may be shown: classes, instances or names. Any other
            name is 404.
        authorize: Called with the request, the handler's name and the message ID before anything is
            looked up. It returns True, or False for 404, or raises an `HTTPException`. It may be a
            coroutine function.
        results: Whether to show what `handle` returned, too.
        interval: Seconds between two looks, for events and in `Retry-After`.
        longest: Seconds after which a stream of events ends; the browser then reconnects by itself.
        tables: The table definitions, if they are not the default ones.

    Raises:
        ConfigurationError: An argument cannot be used.

    Example:
        app.router.routes.append(status_route(database=engine, handlers=[BillOrders], authorize=owns_order))
    """
    if not all(part in path for part in ("{handler}", "{message_id")):
        raise ConfigurationError(f"status_route({path!r}): the path needs {{handler}} and {{message_id}}")
    if not callable(authorize):
        raise ConfigurationError("status_route(authorize=...): give a function that decides who may see which message")
    for name, value in (("interval", interval), ("longest", longest)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
            raise ConfigurationError(f"status_route({name}={value!r}): give seconds above 0, up to 3600")
    by_name = {_name(one): one for one in handlers}
    page = _Page(Database(database), by_name, authorize, results, float(interval), float(longest), tables)
    return Route(path, page.answer, methods=["GET"], name=ROUTE)


def accepted(request: Request, handler: Asked, message_id: str) -> JSONResponse:
    """Return an answer 202 to a request whose work a handler does, with the status URL, also as `Location`.

    Args:
        request: The request; its application has a `status_route`.
        handler: The handler's class, instance or name.
        message_id: The ID of the message that was published.

    Example:
        message_id = await outbox.publish(session, "orders.placed", value=order)
        return accepted(request, BillOrders, message_id)
    """
    url = str(request.url_for(ROUTE, handler=_name(handler), message_id=message_id))
    return JSONResponse({"message_id": message_id, "status": url}, 202, {"Location": url})


def _name(handler: Asked) -> str:
    name = handler if isinstance(handler, str) else getattr(handler, "name", None)
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{handler!r} does not set name in the class; give an instance, or the name as text")
    return name


@dataclass(frozen=True, slots=True)
class _Page:
    database: Database
    handlers: Mapping[str, Asked]
    authorize: Authorize
    results: bool
    interval: float
    longest: float
    tables: Tables

    async def answer(self, request: Request) -> Response:
        name, message_id = request.path_params["handler"], request.path_params["message_id"]
        streams = _EVENTS in request.headers.get("accept", "")
        try:
            if name not in self.handlers or not await self._may(request, name, message_id):
                return problem(404, "Not found", "this message does not exist, or you may not see it")
        except (SQLAlchemyError, OSError):
            # A browser reconnects after a stream ends, but never after a status of 5xx.
            return _stream(_nothing()) if streams else self._out_of_reach()
        status = await self._seen(name, message_id)
        if streams and (status is None or not _was_told(request, status)):
            return _stream(self._events(request, name, message_id, status))
        if status is None:
            return self._out_of_reach()
        return Response(status_code=204) if streams else self._told(status)  # after 204 a browser does not reconnect

    def _out_of_reach(self) -> Response:
        return problem(503, "The database is out of reach", "ask again later", retry_after=self._again)

    @property
    def _again(self) -> int:
        return max(1, round(self.interval))

    async def _may(self, request: Request, name: str, message_id: str) -> bool:
        if inspect.iscoroutinefunction(self.authorize):
            return bool(await self.authorize(request, name, message_id))
        return bool(await run_in_threadpool(self.authorize, request, name, message_id))

    async def _look(self, name: str, message_id: str) -> MessageStatus:
        found = await self.database.run(
            lambda session: message_status(session, self.handlers[name], message_id, probe=False, tables=self.tables)
        )
        return found if self.results else replace(found, result=None)

    def _told(self, status: MessageStatus) -> Response:
        headers = {"Cache-Control": "no-store"}
        if not is_final(status):
            headers["Retry-After"] = str(self._again)
        return JSONResponse(self._content(status), headers=headers)

    def _content(self, status: MessageStatus) -> dict[str, Any]:
        moments = {name: getattr(status, name) for name in ("since", "due_at")}
        told = {
            "handler": status.handler,
            "message_id": status.message_id,
            "state": status.state.value,
            "final": is_final(status),
            "attempts": status.attempts,
            "reason": status.reason,
            **{name: None if one is None else one.isoformat() for name, one in moments.items()},
        }
        return {**told, "result": status.result} if self.results else told

    async def _seen(self, name: str, message_id: str) -> MessageStatus | None:
        """Return the status of a message; None while the database is out of reach."""
        try:
            return await self._look(name, message_id)
        except (SQLAlchemyError, OSError):
            return None

    async def _events(
        self, request: Request, name: str, message_id: str, status: MessageStatus | None
    ) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        end, sent = loop.time() + self.longest, ""
        while True:
            event = sent if status is None else self._event(status)
            # A comment where nothing changed: sending it shows whether the client is still there.
            yield _OUT_OF_REACH if status is None else ": no change\n\n" if event == sent else event
            sent = event
            if (status is not None and is_final(status)) or loop.time() >= end or await request.is_disconnected():
                return
            await asyncio.sleep(self.interval)
            status = await self._seen(name, message_id)

    def _event(self, status: MessageStatus) -> str:
        return f"event: status\nid: {_event_id(status)}\ndata: {json.dumps(self._content(status))}\n\n"


def is_final(status: MessageStatus) -> bool:
    """Tell whether a state is final: processed, or dead and not redriven."""
    if status.state is MessageState.DEAD:
        return status.letter_state != "redriven"
    return status.state is MessageState.PROCESSED


def _was_told(request: Request, status: MessageStatus) -> bool:
    return is_final(status) and request.headers.get("last-event-id") == _event_id(status)


def _stream(events: AsyncIterator[str]) -> Response:
    # The header asks proxies such as nginx to pass each event on at once.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type=_EVENTS, headers=headers)


async def _nothing() -> AsyncIterator[str]:
    yield _OUT_OF_REACH


def _event_id(status: MessageStatus) -> str:
    return f"{status.state.value}-{status.attempts or 0}"
