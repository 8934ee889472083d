"""Finds the application's answer to an `HTTPException` through its exception handlers."""

from __future__ import annotations

import inspect
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response


async def response_for(request: Request, error: HTTPException) -> Response:
    """Return the application's answer to an error, as Starlette would find it."""
    handlers, by_status = request.scope.get("starlette.exception_handlers", ({}, {}))
    handler: Any = by_status.get(error.status_code)
    if handler is None:
        handler = next((handlers[kind] for kind in type(error).__mro__ if kind in handlers), None)
    if handler is None:
        return PlainTextResponse(error.detail, status_code=error.status_code, headers=error.headers)
    made = (
        await handler(request, error)
        if inspect.iscoroutinefunction(handler)
        else await run_in_threadpool(handler, request, error)
    )
    assert isinstance(made, Response)
    return made
