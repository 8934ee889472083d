"""What one endpoint declares, by the decorator and by its signature."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, get_args, get_type_hints
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import FileResponse, StreamingResponse
from starlette.routing import Match

from consumerkit.errors import ConfigurationError
from consumerkit.handlers.message_id import encode_field

REQUEST: Final = "consumerkit_request"
CALLER: Final = "consumerkit_caller"
_FORBIDDEN: Final = frozenset({"set-cookie", "content-length", "transfer-encoding", "connection", "date"})
ALLOWED: Final = frozenset({"content-type", "content-language", "location", "link", "etag", "last-modified"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDeclaration:
    """The checked arguments of `Idempotency.idempotent`.

    Attributes:
        label: The endpoint's name, for errors.
        scope: Identifies the caller.
        required: Whether a request without a key is refused.
        wait: Seconds for which to wait for a request with the same key.
        fields: The fields of a JSON body that tell requests apart; the whole body where None.
        keep_4xx: Whether answers of 4xx are kept.
        headers: The headers that are kept with an answer, in lower case.
    """

    label: str
    scope: Callable[..., Any]
    required: bool
    wait: float
    fields: tuple[str, ...] | None
    keep_4xx: bool
    headers: frozenset[str]


def declared(
    endpoint: Callable[..., Any],
    *,
    scope: Any,
    required: bool,
    wait: float,
    fields: Sequence[str] | None,
    keep_4xx: bool,
    headers: Sequence[str],
) -> RouteDeclaration:
    """Return the checked declaration of an endpoint.

    Raises:
        ConfigurationError: An argument is wrong, or the endpoint streams its answer.
    """
    label = getattr(endpoint, "__qualname__", repr(endpoint))
    if not callable(scope):
        raise ConfigurationError(
            f"{label}: scope={type(scope).__name__}: give a function that returns the caller, from the request or, "
            "with FastAPI, as a dependency; callers must not share keys"
        )
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= 3600:
        raise ConfigurationError(f"{label}: wait={wait!r}: give seconds from 0 to 3600")
    if fields is not None and (
        isinstance(fields, str) or not fields or not all(isinstance(one, str) and one for one in fields)
    ):
        raise ConfigurationError(
            f"{label}: fields={fields!r}: give names of fields, such as fields=('account', 'amount')"
        )
    allowed = {one.lower() for one in headers}
    if isinstance(headers, str) or allowed & _FORBIDDEN:
        raise ConfigurationError(
            f"{label}: headers={headers!r}: name headers to keep with an answer; Set-Cookie and those of the "
            "connection are of one answer alone"
        )
    _check_kept_whole(label, endpoint)
    return RouteDeclaration(
        label=label,
        scope=scope,
        required=required,
        wait=float(wait),
        fields=None if fields is None else tuple(fields),
        keep_4xx=keep_4xx,
        headers=ALLOWED | allowed,
    )


def _check_kept_whole(label: str, endpoint: Callable[..., Any]) -> None:
    returned = _hints(endpoint).get("return")
    streams = isinstance(returned, type) and issubclass(returned, StreamingResponse | FileResponse)
    if streams or inspect.isasyncgenfunction(endpoint) or inspect.isgeneratorfunction(endpoint):
        raise ConfigurationError(
            f"{label}: it streams its answer, which cannot be kept whole; leave it without @idempotent"
        )


def refuse_other_sessions(label: str, endpoint: Callable[..., Any], ours: Sequence[Callable[..., Any]]) -> None:
    """Refuse an endpoint whose session does not come from the edge.

    Raises:
        ConfigurationError: A parameter is a session, and another dependency than the edge's
            provides it.
    """
    hints = _hints(endpoint)
    for name, parameter in inspect.signature(endpoint).parameters.items():
        dependency = _dependency(hints.get(name), parameter.default)
        if dependency is None or dependency in ours:
            continue
        kinds = [hints.get(name), *get_args(hints.get(name))]
        if any(isinstance(kind, type) and issubclass(kind, AsyncSession | Session) for kind in kinds):
            raise ConfigurationError(
                f"{label}: the parameter {name} is a session of its own, so that its changes and the key would not be "
                "one transaction; take the edge's, by Depends(edge.session)"
            )


def _hints(endpoint: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(endpoint, include_extras=True)
    except Exception:  # noqa: BLE001 - a name may exist only for the type checker
        return {}


def _dependency(hint: Any, default: Any) -> Callable[..., Any] | None:
    for one in (default, *getattr(hint, "__metadata__", ())):
        found = getattr(one, "dependency", None)
        if callable(found):
            return found  # type: ignore[no-any-return]
    return None


def extended_signature(endpoint: Callable[..., Any], scope: Callable[..., Any]) -> inspect.Signature | None:
    """Return the endpoint's signature plus the request and the caller, which FastAPI injects; None without FastAPI."""
    fastapi = sys.modules.get("fastapi")
    signature = inspect.signature(endpoint)
    if fastapi is None:
        return None
    hints = _hints(endpoint)
    given = [one.replace(annotation=hints.get(one.name, one.annotation)) for one in signature.parameters.values()]
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(CALLER, kind, annotation=Any, default=fastapi.Depends(scope))]
    if request_parameter(endpoint) == REQUEST:  # FastAPI passes the request to only one parameter
        added.append(inspect.Parameter(REQUEST, kind, annotation=Request))
    variable = [one for one in given if one.kind is inspect.Parameter.VAR_KEYWORD]
    plain = [one for one in given if one.kind is not inspect.Parameter.VAR_KEYWORD]
    returned = hints.get("return", signature.return_annotation)
    return signature.replace(parameters=[*plain, *added, *variable], return_annotation=returned)


def request_parameter(endpoint: Callable[..., Any]) -> str:
    """Return the name of the parameter that gets the request: the endpoint's own, or consumerkit's."""
    for name, hint in _hints(endpoint).items():
        if isinstance(hint, type) and issubclass(hint, Request) and name != "return":
            return name
    return REQUEST


def route_of(request: Request) -> str:
    """Return the name of a request's route: its method and its path with the parameters' names."""
    scope = request.scope
    root, declared_path = scope.get("app_root_path", scope.get("root_path", "")), None
    if "app_root_path" in scope or "route" not in scope:  # mounted: the prefix holds the parameters' values
        routes = getattr(scope.get("router"), "routes", ())
        outer = {**scope, "root_path": root, "path_params": {}}
        declared_path = _declared_path(routes, outer, scope.get("endpoint"))
    if declared_path is None:
        route = scope.get("route")
        path = getattr(route, "path_format", None) or getattr(route, "path", None)
        declared_path = path and f"{scope.get('root_path', '').removeprefix(root)}{path}"
    return f"{request.method} {root}{declared_path}" if declared_path else f"{request.method} {request.url.path}"


def _declared_path(routes: Sequence[Any], scope: MutableMapping[str, Any], endpoint: object) -> str | None:
    """Return the path, with the parameters' names, of the route to an endpoint; None where there is none."""
    for route in routes:
        match, child = route.matches(scope)
        if match is not Match.FULL:
            continue
        if getattr(route, "endpoint", None) is endpoint and endpoint is not None:
            return str(route.path_format)
        inner = _declared_path(getattr(route, "routes", None) or (), {**scope, **child}, endpoint)
        return None if inner is None else f"{getattr(route, 'path', '')}{inner}"
    return None


def callers(value: object) -> Sequence[object]:
    """Return a scope's result as parts: one value, or several."""
    return value if isinstance(value, tuple | list) else [value]


def encoded(label: str, part: object) -> bytes:
    """Return one part of a scope's result as bytes.

    Raises:
        ConfigurationError: The part is empty or of another type.
    """
    if not isinstance(part, str | bytes | int | UUID | date) or not (raw := encode_field(part)):
        what = type(part).__name__ if part else "nothing"
        raise ConfigurationError(
            f"{label}: scope returned {what}; return who asks as text, number or UUID, or raise an HTTPException"
        )
    return raw
