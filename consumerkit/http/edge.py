"""The edge: an endpoint's changes, its outbox messages, its answer and its key in one transaction."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from consumerkit.errors import ConfigurationError
from consumerkit.events import Announcer, Observer
from consumerkit.http.exchange import Exchange
from consumerkit.http.inflight import InFlight
from consumerkit.http.route import (
    CALLER,
    REQUEST,
    RouteDeclaration,
    declared,
    extended_signature,
    refuse_other_sessions,
    request_parameter,
)
from consumerkit.http.transaction import EdgeTables, EdgeTransaction
from consumerkit.observability.logs import LoggingObserver
from consumerkit.redaction.plain_words import shown_word
from consumerkit.storage.database import Database, Given
from consumerkit.storage.dialects import dialect_for
from consumerkit.storage.keys import KeyLedger
from consumerkit.storage.tables import DEFAULT_TABLES, Tables

F = TypeVar("F", bound=Callable[..., Any])
OWNER: Final = "http:"
DECLARATION: Final = "__consumerkit_idempotent__"
EDGE: Final = "__consumerkit_edge__"
_EXCHANGE: Final = "consumerkit.exchange"
_NAME: Final = re.compile(r"[A-Za-z0-9._:-]{1,200}")
_DAY: Final = 86_400
_LARGEST: Final = 1_000_000


class Idempotency:
    """Idempotent endpoints of one web service, on the ledger of one database.

    Args:
        database: A URL, an engine or a sessionmaker, for the endpoints' changes and consumerkit's
            tables.
        name: The name of the keys in the ledger. It must be the same in all processes of the
            service, and must not change.
        retention: Seconds for which an answer is kept and given again; a week by default. Workers
            and `consumerkit db prune` remove older answers. Each answer states the retention as
            `Idempotency-Retention`.
        largest_answer: The most bytes of an answer's body. A request with a larger answer fails,
            and its key stays free.
        documentation: The URL of your page that explains the key; errors have it as the `type` of
            their problem details.
        tables: The table definitions, if they are not the default ones.
        observers: Called with each `RequestAnswered`, after the log; `Metrics()` counts them.

    Raises:
        ConfigurationError: An argument cannot be used.

    Example:
        edge = Idempotency(database=engine, name="shop")

        @router.post("/orders", status_code=201)
        @edge.idempotent(scope=current_user)
        async def place(order: NewOrder, session: Annotated[AsyncSession, Depends(edge.session)]) -> Placed:
            session.add(Order(**order.model_dump()))
            await outbox.publish(session, "orders.placed", value=order)
            return Placed(id=order.id)
    """

    def __init__(
        self,
        *,
        database: Given,
        name: str,
        retention: int = 7 * _DAY,
        largest_answer: int = _LARGEST,
        documentation: str = "about:blank",
        tables: Tables = DEFAULT_TABLES,
        observers: Sequence[Observer] = (),
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(f"Idempotency(name={shown_word(name)}): use letters, digits and . _ : -")
        for what, value in (("retention", retention), ("largest_answer", largest_answer)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
                raise ConfigurationError(f"Idempotency({what}={shown_word(value)}): give a whole number above 0")
        self.database = Database(database)
        self.owner = f"{OWNER}{name}"
        self.retention = retention
        self.largest_answer = largest_answer
        self.documentation = documentation
        self.announce = Announcer((LoggingObserver(), *observers))
        self.in_flight = InFlight()
        self.sealer = tables.sealer
        self.warned: set[str] = set()
        self._tables = tables
        self._found: EdgeTables | None = None
        self._finding = asyncio.Lock()

    def idempotent(
        self,
        *,
        scope: Callable[..., Any],
        required: bool = True,
        wait: float = 10.0,
        fields: Sequence[str] | None = None,
        keep_4xx: bool = False,
        headers: Sequence[str] = (),
    ) -> Callable[[F], F]:
        """Return the decorator for an endpoint that takes effect once per `Idempotency-Key`.

        Args:
            scope: Identifies the caller, so that the keys of two callers never collide: a function
                of the request, or with FastAPI a dependency. It returns text, a number, a UUID or a
                tuple of these, or raises an `HTTPException`. It runs before anything else. The
                route is part of the scope too.
            required: Whether a request without a key is refused. Otherwise the request runs in one
                transaction, without protection against repetition.
            wait: Seconds for which a request waits for another one with the same key, before it is answered with 409.
            fields: The fields of a JSON body that tell a repeated request from another one; a dot
                leads into a nested field. The whole body where None.
            keep_4xx: Whether an answer of 4xx is kept and given again. Its changes are rolled back in any case, and
                401, 403, 408, 409, 425 and 429 are never kept.
            headers: Headers to keep with an answer, besides Content-Type, Content-Language,
                Location, Link, ETag and Last-Modified.

        Raises:
            ConfigurationError: An argument cannot be used, the endpoint streams, or it has its own
                session.
        """

        def decorate(endpoint: F) -> F:
            declaration = declared(
                endpoint,
                scope=scope,
                required=required,
                wait=wait,
                fields=fields,
                keep_4xx=keep_4xx,
                headers=headers,
            )
            return self._wrapped(endpoint, declaration)

        return decorate

    def _wrapped(self, endpoint: F, declaration: RouteDeclaration) -> F:
        refuse_other_sessions(declaration.label, endpoint, (self.session, self.plain_session))
        is_coroutine = inspect.iscoroutinefunction(endpoint)
        if (self.database.async_sessions if is_coroutine else self.database.sync_sessions) is None:
            kinds = ("a coroutine", "coroutines") if is_coroutine else ("a plain function", "threads")
            raise ConfigurationError(
                f"{declaration.label}: it is {kinds[0]}, and the database has no driver for {kinds[1]}; write it the "
                "other way, or give a URL"
            )

        given = request_parameter(endpoint)

        @functools.wraps(endpoint)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            by_fastapi = CALLER in kwargs
            request = kwargs[given] if by_fastapi else _request(declaration, args)
            kwargs.pop(REQUEST, None)
            caller = kwargs.pop(CALLER, None)
            exchange = self.exchange(request)
            if by_fastapi and not exchange.is_routed:
                raise ConfigurationError(
                    f"{declaration.label}: FastAPI would send the answer before it is committed; give its router "
                    "route_class=IdempotentRoute, from consumerkit.http.fastapi"
                )

            async def call() -> Any:
                if is_coroutine:
                    return await endpoint(*args, **kwargs)
                return await run_in_threadpool(endpoint, *args, **kwargs)

            exchange.prepare(declaration, AsyncSession if is_coroutine else Session)
            if by_fastapi:
                return await exchange.run(caller, call)
            return await exchange.routed(lambda: self._starlette(exchange, declaration, request, call))

        setattr(wrapper, DECLARATION, declaration)
        setattr(wrapper, EDGE, self)
        if (signature := extended_signature(endpoint, declaration.scope)) is not None:
            wrapper.__signature__ = signature  # type: ignore[attr-defined]
            wrapper.__annotations__ = {}
            del wrapper.__wrapped__
        return wrapper  # type: ignore[return-value]

    @staticmethod
    async def _starlette(
        exchange: Exchange, declaration: RouteDeclaration, request: Request, call: Callable[[], Awaitable[Any]]
    ) -> Any:
        if inspect.iscoroutinefunction(declaration.scope):
            caller = await declaration.scope(request)
        else:
            caller = await run_in_threadpool(declaration.scope, request)
        return await exchange.run(caller, call)

    def exchange(self, request: Request) -> Exchange:
        """Return the exchange of a request that is being handled."""
        found: Exchange | None = request.scope.get(_EXCHANGE)
        if found is None or found.edge is not self:
            found = request.scope[_EXCHANGE] = Exchange(self, request)
        return found

    def session(self, request: Request) -> AsyncSession:
        """Return this request's session, whose transaction the edge begins and commits: a FastAPI dependency.

        The transaction begins with the endpoint. Dependencies cannot use the session: they run
        before the key is claimed. With Starlette, call this method in the endpoint.

        Raises:
            ConfigurationError: The database has no driver for coroutines, or the endpoint is a plain function.
        """
        session = self.exchange(request).session(AsyncSession)
        assert isinstance(session, AsyncSession)
        return session

    def plain_session(self, request: Request) -> Session:
        """Return this request's session, for an endpoint that is a plain function; see `session`."""
        session = self.exchange(request).session(Session)
        assert isinstance(session, Session)
        return session

    def new_transaction(self, kind: type[AsyncSession] | type[Session]) -> EdgeTransaction:
        """Return a transaction on a new session, which holds no connection yet."""
        sessions = self.database.async_sessions if kind is AsyncSession else self.database.sync_sessions
        if sessions is None:
            raise ConfigurationError(f"{self.owner}: the database has no driver that gives a {kind.__name__}")
        # Without autobegin, no statement runs before the claim or after the commit.
        return EdgeTransaction(sessions(autobegin=False))

    async def found(self) -> EdgeTables:
        """Return the tables of the keys, located at the first request.

        Raises:
            ConfigurationError: consumerkit's tables are not found.
            DBAPIError: The database is out of reach.
        """
        async with self._finding:
            if self._found is None:
                tables = await self.database.locate(self._tables)
                dialect = dialect_for(self.database.dialect_name, tables)
                keys = KeyLedger(tables, dialect)
                number = await self.database.run(
                    lambda session: keys.keep_for(session.connection(), self.owner, self.retention)
                )
                self._found = EdgeTables(tables, dialect, number)
        return self._found


def _request(declaration: RouteDeclaration, arguments: Sequence[Any]) -> Request:
    for one in arguments:
        if isinstance(one, Request):
            return one
    raise ConfigurationError(
        f"{declaration.label}: it was called without a request; decorate an endpoint, below the decorator of its route"
    )
