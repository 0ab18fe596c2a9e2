"""Tradovate's login. It answers with a token, a penalty ticket or an error text, all HTTP 200.

Tokens are kept in the memory of the process: a new login can end the session of the one before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from nq_pipeline.clock import real_now
from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.settings import Settings
from nq_pipeline.sources.failures import rejecting
from nq_pipeline.sources.tradovate.parse import Token, Unlisted, error_of_reply, parse_object, read_token
from nq_pipeline.sources.tradovate.spec import TradovateSettings
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.vendor_session import Reply, VendorSession

Parsed = TypeVar("Parsed")

RENEW_BEFORE = timedelta(minutes=10)
"""A token that expires sooner is renewed; the vendor states the time in `expirationTime`."""

_tokens: dict[tuple[str, str], Token] = {}
"""By address and user."""
_login_lock = threading.Lock()


class TradovateLogin:
    """The token of one run. It logs in when the first request really leaves."""

    def __init__(self, settings: Settings, session: VendorSession) -> None:
        self._own, self._session = settings.vendor(TradovateSettings), session
        self._token: Token | None = None
        self._reused = False
        self._failure: SourceError | None = None

    def token(self) -> Token:
        """The token of this process and user, renewed or new where needed.

        Raises `NotConfigured` for a missing or wrong credential; `Blocked` or `RateLimited` for a penalty,
        with a captcha that only a person can answer, or longer than the time left.
        """
        if self._failure is not None:
            raise self._failure  # logins are few and punished: one that failed is not tried again
        if self._token is None:
            try:
                self._token = self._current_token()
                self._session.learn(self._token.access, self._token.market_data)
            except SourceError as error:
                self._failure = error
                raise
        return self._token

    def forget(self) -> bool:
        """Drop a token of an earlier run that the vendor rejects; False when the token is of this run."""
        if not self._reused:
            return False
        _tokens.pop((self._own.url, self._credentials()["name"]), None)
        self._token, self._reused = None, False
        return True

    def _current_token(self) -> Token:
        credentials = self._credentials()
        key = self._own.url, credentials["name"]
        with _login_lock:
            known = _tokens.get(key)
            left = known.expires - real_now() if known else timedelta()
            self._reused = left > RENEW_BEFORE
            if known is None or left <= timedelta():
                known = self._log_in(credentials)
            elif not self._reused:
                known = self._renew(known) or self._log_in(credentials)
            _tokens[key] = known
        return known

    def _credentials(self) -> dict[str, str]:
        own = self._own
        required = {
            "TRADOVATE_USERNAME": ("name", own.username),
            "TRADOVATE_PASSWORD": ("password", own.password),
            "TRADOVATE_CID": ("cid", own.cid),
            "TRADOVATE_SEC": ("sec", own.sec),
        }
        missing = [variable for variable, (_, secret) in required.items() if secret is None]
        if missing:
            raise NotConfigured(f"set {', '.join(missing)} to use Tradovate")
        optional = {"appId": own.app_id, "appVersion": own.app_version, "deviceId": own.device_id}
        return {
            name: secret.get_secret_value() for name, secret in required.values() if secret is not None
        } | {name: text for name, text in optional.items() if text is not None}

    def _log_in(self, credentials: dict[str, str]) -> Token:
        """A new session; waits out one penalty when it is short and wants no captcha."""
        answer, reply = self._request_token(credentials)
        if "p-ticket" not in answer:
            return read_token(answer)
        ticket, wait_s = str(answer["p-ticket"]), answer.get("p-time")
        with rejecting(self._session, reply):
            if answer.get("p-captcha") or not isinstance(wait_s, int | float):
                raise Blocked("Tradovate asks for a captcha; log in with a browser, or wait an hour")
            self._session.learn(ticket)
            if not 0 <= wait_s < self._session.remaining():
                raise RateLimited(f"Tradovate delays the login by {wait_s:g} s")
        time.sleep(wait_s)
        answer, reply = self._request_token(credentials | {"p-ticket": ticket})
        with rejecting(self._session, reply):
            if "p-ticket" in answer:
                raise Blocked("Tradovate delayed the login twice in a row; wait an hour")
        return read_token(answer)

    def _request_token(self, credentials: dict[str, str]) -> tuple[dict[str, Any], Reply]:
        reply = self._session.post("/auth/accesstokenrequest", operation="login", json=credentials)
        with rejecting(self._session, reply):
            if reply.status == 404:
                raise Unavailable("no login at this address (HTTP 404); check NQ_TRADOVATE_URL")
        return parse_reply(self._session, reply, parse_object), reply

    def _renew(self, token: Token) -> Token | None:
        """The same session for longer; None when the vendor refuses, and a new login then says why."""
        try:
            reply = self._session.get(
                "/auth/renewaccesstoken",
                operation="renew",
                headers={"Authorization": f"Bearer {token.access}"},
                keep=Keep.NEVER,
                archive=False,
            )
            return read_token(parse_reply(self._session, reply, parse_object))
        except (BadPayload, NotEntitled, NotConfigured, Unavailable, Unlisted):
            return None


def parse_reply(session: VendorSession, reply: Reply, parse: Callable[[bytes], Parsed]) -> Parsed:
    """The parsed body of a reply; raises its error and rejects it when it has one."""
    with rejecting(session, reply):
        error = error_of_reply(reply)
        if error is not None:
            raise error
        return parse(reply.body)
