"""A small Tradovate, healthy and with its own faults, for the contract of sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from websockets.sync.server import ServerConnection

from nq_pipeline.configuration import load
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainAnswer
from nq_pipeline.sources.tradovate.source import Tradovate
from nq_pipeline.transport.vendor_session import VendorSession
from nq_pipeline_tests.testing import tradovate_server
from nq_pipeline_tests.testing.http_server import Answer, Asked, Server
from nq_pipeline_tests.testing.source_contract import MARK, SourceContract
from nq_pipeline_tests.testing.tradovate_server import (
    BOARDS,
    QUOTED_AT,
    Feed,
    Speak,
    as_json,
    product_id,
    quote,
    send,
)

AHEAD = QUOTED_AT + timedelta(days=83)
TICKET = {"p-ticket": "ticket-1", "p-time": 0.05}


def login(answer: Answer) -> Any:
    """A fault of the login alone."""
    return lambda self, asked: answer if asked.path.startswith("/auth/") else self.answer(asked)


def library(path: str, answer: Answer) -> Any:
    """A fault of one address of the library alone."""
    return lambda self, asked: answer if asked.path == path else self.answer(asked)


def closes_at_login(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
    connection.close()
    return True


def refuses_login(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
    send(connection, {"s": 401, "i": number, "d": '"Access is denied"'})
    return True


def refuses_quotes(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
    if endpoint == "authorize":
        return False
    error = {"errorText": "Symbol is inaccessible", "errorCode": "UnknownSymbol", "mode": "None"}
    send(connection, {"s": 200, "i": number, "d": error})
    return True


def too_many(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
    send(connection, {"s": 429, "i": number})
    return True


def quota(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
    send(connection, {"e": "shutdown", "d": {"reasonCode": "ConnectionQuotaReached"}})
    return True


def goes_away(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
    if endpoint == "authorize":
        return False
    if len(json.loads(body)) and number > 4:
        connection.send('c[3000,"Go away!"]')
        return True
    return False


def days_old(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
    if endpoint == "authorize":
        return False
    send(
        connection,
        {"s": 200, "i": number},
        quote(json.loads(body)["symbol"], at=QUOTED_AT - timedelta(days=7)),
    )
    return True


def says_nothing(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
    if endpoint == "authorize":
        return False
    send(connection, {"s": 200, "i": number, "d": {"mode": "RealTime"}})
    return True


def babbles(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
    if endpoint != "authorize":
        connection.send("a[{")
        connection.send('a[{"e":"md","d":{"quotes":[{"contractId":"x","entries":7}]}},7]')
        connection.send("> subscribe 1 1")
    return False


def unreadable(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
    if endpoint == "authorize":
        return False
    answer = {"s": 200, "i": number, "d": {"mode": "RealTime"}}
    send(connection, answer, quote(json.loads(body)["symbol"], at=AHEAD, Bid=7, Offer=[]))
    return True


FEEDS: dict[str, Speak] = {
    "feed_closes": closes_at_login,
    "feed_refuses_login": refuses_login,
    "feed_refuses_quotes": refuses_quotes,
    "feed_too_many": too_many,
    "feed_quota": quota,
    "feed_goes_away": goes_away,
    "feed_stale": days_old,
    "feed_silent": says_nothing,
    "feed_babbles": babbles,
    "feed_unreadable": unreadable,
}


class TradovateContract(SourceContract):
    """The contract of sources for Tradovate."""

    outcomes: ClassVar = {
        "http_401": Outcome.NOT_ENTITLED,
        "http_403": Outcome.BLOCKED,
        "wrong_password": Outcome.NOT_CONFIGURED,
        "captcha_ticket": Outcome.BLOCKED,
        "ticket_for_ever": Outcome.BLOCKED,
        "ticket_for_an_hour": Outcome.RATE_LIMITED,
        "denied": Outcome.NOT_ENTITLED,
        "unknown_error": Outcome.UNAVAILABLE,
        "violations": Outcome.BAD_PAYLOAD,
        "no_product": Outcome.EMPTY,
        "product_is_futures": Outcome.EMPTY,
        "no_maturities": Outcome.EMPTY,
        "no_contracts": Outcome.EMPTY,
        "unreadable_names": Outcome.BAD_PAYLOAD,
        "unreadable_maturities": Outcome.BAD_PAYLOAD,
        "other_names": Outcome.EMPTY,
        "no_future": Outcome.OK,
        "feed_closes": Outcome.UNAVAILABLE,
        "feed_refuses_login": Outcome.NOT_ENTITLED,
        "feed_refuses_quotes": Outcome.UNAVAILABLE,
        "feed_too_many": Outcome.RATE_LIMITED,
        "feed_quota": Outcome.RATE_LIMITED,
        "feed_goes_away": Outcome.PARTIAL,
        "feed_stale": Outcome.STALE,
        "feed_silent": Outcome.PARTIAL,
        "feed_babbles": Outcome.PARTIAL,
        "feed_unreadable": Outcome.BAD_PAYLOAD,
    }
    faults: ClassVar = {
        "wrong_password": login(as_json({"errorText": "Incorrect username or password. Please try again."})),
        "captcha_ticket": login(as_json(TICKET | {"p-captcha": True})),
        "ticket_for_ever": login(as_json(TICKET)),
        "ticket_for_an_hour": login(as_json(TICKET | {"p-time": 3600})),
        "denied": library("/product/find", as_json({"errorText": "Access is denied", "ok": False})),
        "unknown_error": library("/product/find", as_json({"errorText": "Operation failed", "ok": False})),
        "violations": library("/product/find", as_json({"violations": [{"constraint": "name"}]})),
        "no_product": library("/product/find", Answer(status=404)),
        "product_is_futures": library("/product/find", as_json({"id": 1, "productType": "Futures"})),
        "no_maturities": library("/contractMaturity/deps", as_json([])),
        "no_contracts": library("/contract/deps", as_json([])),
        "unreadable_names": library("/contract/deps", as_json([{"id": 1, "name": "ES_Feb24"}])),
        "unreadable_maturities": library(
            "/contractMaturity/deps", as_json([{"id": 1, "expirationMonth": "?"}])
        ),
        "other_names": library("/contract/deps", as_json([{"id": 1, "name": "Q4CM5 C21000"}])),
        "no_future": library("/contract/find", Answer(status=404)),
        **{name: lambda self, asked: self.answer(asked) for name in FEEDS},
    }
    feed_url: str = ""

    @contextmanager
    def vendor(self, fault: str | None = None, only: str | None = None) -> Iterator[Server]:
        with self.both(FEEDS.get(fault or "", tradovate_server.quiet), fault, only) as (server, _):
            yield server

    @pytest.fixture(autouse=True)
    def _with_a_user_of_its_own(self, tmp_path: Path) -> None:
        # A token is kept by address and user; a port of a test before may come again.
        self.user = f"{MARK}-{tmp_path.name}"

    @contextmanager
    def both(
        self, speak: Speak = tradovate_server.quiet, fault: str | None = None, only: str | None = None
    ) -> Iterator[tuple[Server, Feed]]:
        with tradovate_server.feed(speak, secret=MARK) as feed, super().vendor(fault, only) as server:
            self.feed_url = feed.url
            yield server, feed

    def settings(self, server: Server, **more: Any) -> Settings:
        return load(
            environment="live",
            tradovate_url=server.url,
            tradovate_md_url=self.feed_url,
            tradovate_username=self.user,
            tradovate_password=f"{MARK}-password",
            tradovate_cid=f"{MARK}-cid",
            tradovate_sec=f"{MARK}-sec",
            **{"tradovate_quote_wait_s": 1.0, **more},
        )

    def source(self, settings: Settings) -> Tradovate:
        return Tradovate(settings)

    def answer(self, asked: Asked) -> Answer:
        return tradovate_server.rest(asked, secret=MARK)

    def series_asked(self, asked: Asked) -> str | None:
        boards = {
            str(product_id(root) * 10): series.key for root, series in zip(BOARDS, self.series, strict=True)
        }
        return boards.get(asked.query.get("masterid", ""))

    def asked_with(
        self, server: Server, folder: Path, *, allowed_s: float = 60.0, **more: Any
    ) -> tuple[ChainAnswer, VendorSession]:
        source = Tradovate(self.settings(server, **more))
        session = self.session(source, folder, allowed_s=allowed_s)
        try:
            return source.ask(self.request(), session), session
        finally:
            session.close()
