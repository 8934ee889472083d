"""One request and its answer: claim, run or answer again, commit, and then send."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from consumerkit.errors import ConfigurationError, InProgress
from consumerkit.failpoints import reach
from consumerkit.handlers.message_id import possible_digests, shown
from consumerkit.http import key_header
from consumerkit.http.answers import NEVER_KEPT, RETENTION, Answer, parsed, problem
from consumerkit.http.http_errors import response_for
from consumerkit.http.request_digest import fingerprint
from consumerkit.http.request_report import RequestReport
from consumerkit.http.route import RouteDeclaration, callers, encoded, route_of
from consumerkit.http.transaction import EdgeTransaction, TakenKey
from consumerkit.storage.faults import Fault, fault_of
from consumerkit.storage.keys import Key

if TYPE_CHECKING:
    from consumerkit.http.edge import Idempotency

_OUT_OF_REACH: Final = frozenset({Fault.CONNECTION, Fault.CAPACITY, Fault.CONFLICT})
_FIRST_LOOK: Final = 0.05
_LONGEST_LOOK: Final = 0.5
_CLIENT_GONE: Final = 499
_log = logging.getLogger(__name__)


class Exchange:
    """The edge's state of one request while it is handled.

    Args:
        edge: The edge that handles the request.
        request: The request.
    """

    def __init__(self, edge: Idempotency, request: Request) -> None:
        self.edge = edge
        self.is_routed = False
        self._request = request
        self._declaration: RouteDeclaration | None = None
        self._kind: type[AsyncSession] | type[Session] | None = None
        self._transaction: EdgeTransaction | None = None
        self._key: Key | None = None
        self._entered = False
        self._handed_out = False
        self._answered = False
        self._report = RequestReport()
        self._is_ours = False  # whether the edge's own statements run, rather than the endpoint

    def session(self, kind: type[AsyncSession] | type[Session]) -> AsyncSession | Session:
        """Return the request's session to the endpoint.

        Raises:
            ConfigurationError: The request's session is of the other kind.
        """
        self._handed_out = True
        return self._own(kind).session

    def _own(self, kind: type[AsyncSession] | type[Session]) -> EdgeTransaction:
        if self._transaction is None:
            self._kind, self._transaction = kind, self.edge.new_transaction(kind)
        if self._kind is not kind:
            raise ConfigurationError(
                f"{self.edge.owner}: a coroutine takes edge.session, a plain function edge.plain_session; this request "
                "asks for both"
            )
        return self._transaction

    def prepare(self, declaration: RouteDeclaration, kind: type[AsyncSession] | type[Session]) -> None:
        """Record the endpoint's declaration, and create a session of its kind."""
        self._declaration = declaration
        self._own(kind)

    async def routed(self, handle: Callable[[], Awaitable[Response]]) -> Response:
        """Handle a request to its rendered answer, commit, and return the answer for sending."""
        self.is_routed = True
        await self._request.body()  # once a form is read, the body is no longer there to compare
        response: Response | None = None
        try:
            response = await self._completed(await handle())
        except Exception as error:
            response = self._out_of_reach(error)
            if response is None:
                self._report.raised(error)
                raise
        finally:
            await self._leave()
            self._report.tell(self.edge.announce, self.edge.owner, None if response is None else response.status_code)
        return response

    async def run(self, caller: object, call: Callable[[], Awaitable[Any]]) -> Any:
        """Claim the key and run the endpoint, or return the answer that is kept.

        Returns:
            The endpoint's result, or the edge's own response.
        """
        assert self._declaration is not None
        self._report.endpoint = self._declaration.label
        try:
            text = key_header.read(self._request.headers)
        except key_header.MalformedKey as error:
            return self._refusal(400, "Idempotency-Key cannot be read", str(error))
        if text is None and self._declaration.required:
            return self._refusal(400, "Idempotency-Key is missing", "this operation takes effect once for each key")
        if text is not None:
            self._key = self._made(text, caller, await self._request.body())
        self._is_ours = True
        answer = await self._begun()
        self._is_ours = False
        if answer is not None:
            return answer
        reach("request_claimed")
        return await self._called(call)

    def _made(self, text: str, caller: object, body: bytes) -> Key:
        assert self._declaration is not None
        parts = [encoded(self._declaration.label, part) for part in callers(caller) or [None]]
        raw = text.encode()
        digest = possible_digests(*parts, route_of(self._request).encode(), raw)[0]
        return Key(self.edge.owner, digest, shown(raw), fingerprint(self._request, body, self._declaration.fields))

    async def _begun(self) -> Response | None:
        """Begin the transaction with the claim; return an answer where the endpoint must not run."""
        assert self._declaration is not None
        assert self._transaction is not None
        loop = asyncio.get_running_loop()
        end, look = loop.time() + self._declaration.wait, _FIRST_LOOK
        if self._key is not None:
            waited = await self.edge.in_flight.enter(self._key.digest, self._declaration.wait)
            self._report.waited = self._declaration.wait if waited is None else waited
            if waited is None:
                return self._in_progress()
            self._entered = True
        found = await self.edge.found()
        while True:
            try:
                taken = await self._transaction.begin(found, self._key)
            except InProgress:
                # Another process has the key. This request waits without a connection.
                await self._transaction.roll_back()
                if loop.time() + look > end:
                    return self._in_progress()
                await asyncio.sleep(look)
                self._report.waited += look
                look = min(_LONGEST_LOOK, look * 2)
                continue
            if taken is None:
                return None
            await self._transaction.roll_back()
            return self._again(taken)

    def _again(self, taken: TakenKey) -> Response:
        assert self._key is not None
        if taken.kept.fingerprint != self._key.fingerprint:
            self._report.outcome = "conflict"
            return self._refusal(
                422, "Idempotency-Key is already used", "this key was used with another request; use a new key"
            )
        if taken.answer is None:
            self._report.outcome = "erased"
            return self._refusal(
                409, "The answer is gone", "this key was used, and its answer is erased; use a new key"
            )
        self._answered, self._report.outcome = True, "replayed"
        return self._stated(parsed(taken.answer, self.edge.sealer).response())

    async def _called(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except HTTPException as error:
            if not 400 <= error.status_code < 500:
                raise
            # `_completed` rolls back, and keeps the answer where that is declared.
            if not self._keeps(error.status_code):
                raise
            return await response_for(self._request, error)

    def _keeps(self, status: int) -> bool:
        assert self._declaration is not None
        return self._declaration.keep_4xx and self._key is not None and status not in NEVER_KEPT

    async def _completed(self, response: Response) -> Response:
        """Commit the transaction with the answer, or roll it back."""
        if self._transaction is None or not self._transaction.is_open or self._answered:
            return response
        assert self._declaration is not None
        self._is_ours = True
        if response.status_code < 400:
            answer = self._answer(response)
            if await self._request.is_disconnected():
                self._report.outcome = "client_gone"
                return Response(status_code=_CLIENT_GONE)  # no client reads it, and no background task runs
            await self._commit(answer)
            self._warn_of_other_sessions()
            return self._stated(response) if self._key is not None else response
        await self._transaction.roll_back()
        self._report.outcome = "rolled_back"
        return (
            await self._kept(response) if response.status_code < 500 and self._keeps(response.status_code) else response
        )

    async def _commit(self, answer: str | None) -> None:
        assert self._transaction is not None
        reach("request_handled")
        await self._transaction.commit(self._key, answer)
        reach("request_committed")
        self._report.outcome = "unprotected" if self._key is None else "new"

    async def _kept(self, response: Response) -> Response:
        """Keep an answer of 4xx in a new transaction; another request may have used the key since."""
        assert self._transaction is not None
        answer = self._answer(response)
        if (first := await self._begun_again()) is not None:
            return first
        await self._commit(answer)
        return self._stated(response)

    async def _begun_again(self) -> Response | None:
        assert self._transaction is not None
        try:
            taken = await self._transaction.begin(await self.edge.found(), self._key)
        except InProgress:
            return self._in_progress()
        if taken is None:
            return None
        await self._transaction.roll_back()
        return self._again(taken)

    def _answer(self, response: Response) -> str | None:
        """Return the answer as stored text; None where the request has no key.

        Raises:
            ConfigurationError: The answer is streamed or too large.
        """
        assert self._declaration is not None
        answer = Answer.of(response, self._declaration.headers)
        if len(answer.body) > self.edge.largest_answer:
            raise ConfigurationError(
                f"{self._declaration.label}: its answer has {len(answer.body)} bytes and cannot be kept; return less, "
                f"or give Idempotency(largest_answer=...) more than {self.edge.largest_answer}"
            )
        return answer.text(self.edge.sealer) if self._key is not None else None

    def _stated(self, response: Response) -> Response:
        response.headers[RETENTION] = str(self.edge.retention)
        return response

    def _refusal(self, status: int, title: str, detail: str, *, retry_after: int | None = None) -> Response:
        self._answered = True
        if status == 400:
            self._report.outcome = "refused"
        return problem(status, title, detail, type=self.edge.documentation, retry_after=retry_after)

    def _in_progress(self) -> Response:
        if self._key is None:  # on SQLite another transaction is the one writer
            self._report.outcome, self._report.error = "out_of_reach", "InProgress"
            return self._refusal(503, "The database is busy", "another request writes to it", retry_after=1)
        self._report.outcome = "in_progress"
        detail = "a request with this key is being handled; repeat this one later"
        return self._refusal(409, "Request in progress", detail, retry_after=1)

    def _out_of_reach(self, error: Exception) -> Response | None:
        """Return the answer to a request that failed because of the database; None for any other error."""
        if self._transaction is None or isinstance(error, HTTPException):
            return None
        if fault_of(error, in_handler=not self._is_ours) not in _OUT_OF_REACH:
            return None
        self._report.outcome, self._report.error = "out_of_reach", type(error).__name__
        detail = "it is not known whether anything changed; repeat the request with the same key"
        return problem(503, "The database is out of reach", detail, type=self.edge.documentation, retry_after=1)

    def _warn_of_other_sessions(self) -> None:
        assert self._declaration is not None
        if not self._handed_out and self._declaration.label not in self.edge.warned:
            self.edge.warned.add(self._declaration.label)
            _log.warning(
                "%s did not take the edge's session; its changes in another session are not committed with its key",
                self._declaration.label,
            )

    async def _leave(self) -> None:
        """End the transaction if it is open, and release the key to the next request."""
        try:
            if self._transaction is not None:
                await self._transaction.end()
        finally:
            if self._entered and self._key is not None:
                self._entered = False
                self.edge.in_flight.leave(self._key.digest)
