"""Plain clients of the stand-ins: requests as each vendor's own page or documentation makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import databento
import requests
from pydantic import SecretStr
from websockets.sync.client import ClientConnection, connect

from nq_pipeline.sandbox.vendors.barchart.page import PAGE_FIELDS
from nq_pipeline.sources.databento.client import official_client

NOON = "2025-06-10T15:00:00Z"
"""An instant in the middle of a session."""

BARCHART_API = "/proxies/core-api/v1/quotes/get"
BARCHART_HEADERS = {"sec-fetch-site": "same-origin", "accept": "application/json"}
BARCHART_PARAMS = {
    "list": "futures.options",
    "fields": PAGE_FIELDS,
    "groupBy": "optionType",
    "orderBy": "strike",
    "orderDir": "asc",
    "raw": "1",
    "meta": "field.shortName,field.description,field.type",
}
POLYGON_HEADERS = {"Authorization": "Bearer sandbox"}
POLYGON_CHAIN = "/v3/snapshot/options/I:NDX"
TRADOVATE_LOGIN = {"name": "sandbox", "password": "sandbox", "appId": "x", "appVersion": "1.0"}

DATABENTO_PARAMS: dict[str, Any] = {"dataset": "GLBX.MDP3", "stype_in": "parent", "end": NOON}
DATABENTO_SPANS: dict[str, dict[str, Any]] = {
    "definition": {"start": "2025-06-10", "symbols": ["Q2B.OPT", "NQ.FUT"]},
    "bbo-1m": {"start": "2025-06-10T14:50:00Z", "symbols": ["Q2B.OPT", "NQ.FUT"]},
    "statistics": {"start": "2025-06-09T20:00:00Z", "symbols": ["Q2B.OPT"]},
    "trades": {"start": "2025-06-09T22:00:00Z", "symbols": ["Q2B.OPT"]},
    "ohlcv-1m": {"start": "2025-06-09T22:00:00Z", "symbols": ["Q2B.OPT"]},
    "ohlcv-1d": {"start": "2025-06-09T00:00:00Z", "symbols": ["Q2B.OPT"]},
    "mbo": {"start": "2025-06-09T22:00:00Z", "symbols": ["Q2B.OPT"]},
}
"""A short span of each schema."""


def get_barchart(base: str, symbol: str, **params: str) -> requests.Response:
    """The API's answer for one series."""
    params = {**BARCHART_PARAMS, "symbol": symbol, **params}
    return requests.get(base + BARCHART_API, params=params, headers=BARCHART_HEADERS, timeout=30)


def barchart_options(base: str, symbol: str, **params: str) -> dict[str, Any]:
    """The options of one series."""
    reply = get_barchart(base, symbol, **params)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    answer: dict[str, Any] = reply.json()
    return answer


def barchart_rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a grouped answer."""
    return [row for side in answer["data"].values() for row in side]


def get_polygon(url: str, **params: Any) -> dict[str, Any]:
    """The body of a successful answer."""
    reply = requests.get(url, params=params, headers=POLYGON_HEADERS, timeout=30)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def polygon_pages(url: str, **params: Any) -> Iterator[list[dict[str, Any]]]:
    """The rows of every page."""
    answer = get_polygon(url, **params)
    yield answer["results"]
    while "next_url" in answer:
        answer = get_polygon(answer["next_url"])
        yield answer["results"]


def login_tradovate(base: str, **changes: str) -> requests.Response:
    """The answer to a login."""
    url = base + "/v1/auth/accesstokenrequest"
    return requests.post(url, json={**TRADOVATE_LOGIN, **changes}, timeout=30)


def tradovate_token(base: str) -> str:
    answer = login_tradovate(base).json()
    assert answer["userStatus"] == "Active" and answer["expirationTime"].endswith("Z")
    return str(answer["accessToken"])


def get_tradovate(base: str, path: str, **params: Any) -> Any:
    headers = {"Authorization": f"Bearer {tradovate_token(base)}"}
    return requests.get(f"{base}/v1/{path}", params=params, headers=headers, timeout=30)


@contextmanager
def tradovate_socket(base: str) -> Iterator[ClientConnection]:
    """An open market-data websocket."""
    with connect(base.replace("http:", "ws:") + "/v1/websocket") as connection:
        assert connection.recv(timeout=60) == "o"
        yield connection


def receive_messages(connection: ClientConnection, count: int) -> list[dict[str, Any]]:
    """The next messages, without heartbeats."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        frame = str(connection.recv(timeout=60))
        if frame != "h":
            found += json.loads(frame.removeprefix("a"))
    return found


def send_request(connection: ClientConnection, path: str, number: int, body: Any = "") -> None:
    connection.send(f"{path}\n{number}\n\n{body if isinstance(body, str) else json.dumps(body)}")


def authorize(connection: ClientConnection, base: str) -> None:
    send_request(connection, "authorize", 1, tradovate_token(base))
    assert receive_messages(connection, 1) == [{"s": 200, "i": 1}]


def databento_client(url: str, key: str = "db-sandbox") -> Any:
    """The official client on a stand-in."""
    return official_client(SecretStr(key), url, timeout_s=20)


def databento_range(url: str, schema: str, **params: Any) -> databento.DBNStore:
    """The records of a schema in its short span, or in another."""
    params = {**DATABENTO_PARAMS, **DATABENTO_SPANS[schema], **params}
    store: databento.DBNStore = databento_client(url).timeseries.get_range(schema=schema, **params)
    return store
