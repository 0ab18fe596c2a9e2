"""Who may use a server: everyone on this machine, or whoever has the token.

Without a token a server listens on loopback alone. There, a page of another site could still send requests
from the user's browser, under its own name (`Origin`) or under a name that it made point here (`Host`). Both
are refused.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import secrets
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from nq_pipeline.errors import ServeError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Whether a host to bind to is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_access(host: str, token: SecretStr | None) -> None:
    """Raise `ServeError` for a server that other machines could use without a token."""
    if not is_loopback(host) and token is None:
        raise ServeError(
            f"{host} can be reached from other machines; set NQ_SERVE_TOKEN, which clients then have to "
            "send, or leave out --host"
        )


class AccessGuard:
    """Middleware that refuses what `check_access` does not cover: wrong tokens, hosts and origins.

    A token comes as `Authorization: Bearer TOKEN`, or as the password of a browser's login (any user name).

    Parameters
    ----------
    host
        The host that the server is bound to.
    allow_links
        Whether a link on a page of another site may open a page of this server.
    """

    def __init__(
        self, app: ASGIApp, *, host: str, token: SecretStr | None, allow_links: bool = False
    ) -> None:
        self._app, self._token, self._allow_links = app, token, allow_links
        self._names = LOOPBACK_NAMES | {host} if is_loopback(host) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (refusal := self._refusal(Headers(scope=scope))):
            if scope["type"] == "http":
                await refusal(scope, receive, send)
            else:  # before it is accepted, which clients see as status 403
                await receive()
                await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._names is not None and _name(host) not in self._names:
            return _refuse(421, "this server answers to localhost only")
        # An image sends no origin, but this header; so does a link, with other values of the others.
        is_foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        is_link = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
        if (is_foreign and not (self._allow_links and is_link)) or (
            origin is not None and origin.partition("://")[2] != host
        ):
            return _refuse(403, "requests from pages of other sites are refused")
        if self._token is not None and not self._is_sent(headers.get("authorization", "")):
            refusal = _refuse(401, "send the token: Authorization: Bearer TOKEN")
            refusal.headers["WWW-Authenticate"] = 'Basic realm="nq", charset="UTF-8"'
            return refusal
        return None

    def _is_sent(self, authorization: str) -> bool:
        assert self._token is not None
        scheme, _, sent = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                sent = base64.b64decode(sent, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return secrets.compare_digest(sent.encode(), self._token.get_secret_value().encode())


def _name(host: str) -> str:
    """The name of a `Host` header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _refuse(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status)
