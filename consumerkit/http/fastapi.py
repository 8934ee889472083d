"""FastAPI's part of the edge: the route that commits an answer before it is sent."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from consumerkit.http.edge import DECLARATION, EDGE

__all__ = ["IdempotentRoute"]


class IdempotentRoute(APIRoute):
    """The route class for routers whose endpoints have `@edge.idempotent`; it does not change other endpoints.

    FastAPI renders the answer, the edge commits it, and FastAPI sends it; background tasks run
    after that.

    Example:
        router = APIRouter(route_class=IdempotentRoute)
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that handles a request."""
        handle = super().get_route_handler()
        if not hasattr(self.endpoint, DECLARATION):
            return handle
        edge = getattr(self.endpoint, EDGE)

        async def commit_first(request: Request) -> Response:
            response: Response = await edge.exchange(request).routed(lambda: handle(request))
            return response

        return commit_first
