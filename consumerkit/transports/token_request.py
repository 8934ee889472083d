"""Requests an access token from an endpoint by OAuth 2.0's client credentials (RFC 6749, section 4.4)."""

from __future__ import annotations

import base64
import json
import re
import ssl
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote_plus, urlencode

from consumerkit.errors import ConfigurationError
from consumerkit.transports.access_token import AccessToken, NoToken
from consumerkit.transports.tls import Tls

if TYPE_CHECKING:
    from consumerkit.transports.token_endpoint import TokenEndpoint

_TIMEOUT: Final = 8.0
_LARGEST: Final = 1024 * 1024
_ERROR: Final = re.compile(r"[a-z_]{1,60}")


def request_token(endpoint: TokenEndpoint, secret: str) -> AccessToken:
    """Ask for a token; blocks.

    Raises:
        NoToken: The endpoint gave none; the text says why, and what to do.
    """
    where = f"the token endpoint {endpoint.place}"
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if endpoint.url.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=Tls(ca_file=endpoint.ca_file).context()))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(_request(endpoint, secret), timeout=_TIMEOUT) as answer:
            found = answer.read(_LARGEST)
    except HTTPError as error:
        with error:
            raise _refusal(where, error.code, _error_in(error)) from None
    except (OSError, HTTPException) as error:  # URLError is an OSError
        reason = error.reason if isinstance(error, URLError) else error
        permanent = isinstance(reason, ssl.SSLCertVerificationError)
        hint = "give TokenEndpoint(ca_file=...)" if permanent else "check its URL and that it runs"
        raise NoToken(f"{where} cannot be reached: {_words(reason)}; {hint}", permanent=permanent) from None
    return _token(where, found)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the request would go without its parameters to any address that the redirect names."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _request(endpoint: TokenEndpoint, secret: str) -> urllib.request.Request:
    fields = {**endpoint.parameters, "grant_type": "client_credentials"}
    headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
    if endpoint.scope is not None:
        fields["scope"] = endpoint.scope
    if endpoint.authentication == "post":
        fields |= {"client_id": endpoint.client_id, "client_secret": secret}
    else:
        # RFC 6749 requires both to be encoded as in a form before they are joined.
        both = f"{quote_plus(endpoint.client_id)}:{quote_plus(secret)}"
        headers["Authorization"] = f"Basic {base64.b64encode(both.encode()).decode()}"
    # The scheme was checked.
    return urllib.request.Request(endpoint.url, urlencode(fields).encode(), headers)  # noqa: S310


def _token(where: str, answer: bytes) -> AccessToken:
    try:
        told = json.loads(answer)
        value, kind = told["access_token"], str(told.get("token_type", "bearer"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NoToken(f"{where} gave an answer without an access token; check its URL") from None
    if kind.lower() != "bearer":
        raise NoToken(f"{where} gave a token of another kind than bearer; check the client's set-up there")
    try:
        token = AccessToken(value, **_lifetime(value, told.get("expires_in")))
    except (ConfigurationError, ValueError, AttributeError, OverflowError, RecursionError):
        raise NoToken(f"{where} gave no token, or one without a known expiry") from None
    if token.seconds_left <= 0:
        raise NoToken(f"{where} gave a token that has expired already; check the clocks of both machines")
    return token


def _lifetime(value: str, expires_in: object) -> dict[str, float]:
    """Return a token's expiry from the answer, or from the token itself if it is a JWT."""
    if isinstance(expires_in, str | int | float) and not isinstance(expires_in, bool):
        return {"expires_in": float(expires_in)}
    payload = value.split(".")[1] if value.count(".") == 2 else ""
    claims: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return {"expires_at": claims["exp"]} if isinstance(claims, dict) and "exp" in claims else {}


def _refusal(where: str, status: int, error: str) -> NoToken:
    told = f"HTTP {status}{f', {error}' if error else ''}"
    if status == 429 or status >= 500:
        return NoToken(f"{where} answered {told}")
    if status in (400, 401, 403):
        hint = "check client_id, client_secret and scope"
        return NoToken(f"{where} refused the client ({told}); {hint}", permanent=True)
    return NoToken(f"{where} answered {told}; check its URL", permanent=True)


def _error_in(answer: HTTPError) -> str:
    """Return the standard's own word for the error; other text of the answer may quote what was sent."""
    try:
        error = json.loads(answer.read(_LARGEST))["error"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return ""
    return error if isinstance(error, str) and _ERROR.fullmatch(error) else ""


def _words(reason: object) -> str:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({reason.verify_message})"
    if isinstance(reason, TimeoutError):
        return f"no answer within {_TIMEOUT:g} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return type(reason).__name__
