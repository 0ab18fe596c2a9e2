"""A small Tradovate made here: login and library as answers, market data on a real websocket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from nq_pipeline_tests.testing.http_server import Answer, Asked

QUOTED_AT = datetime(2025, 6, 10, 14, 59, 30, tzinfo=UTC)
BOARDS = {"Q2C": "Q2CM5", "Q2D": "Q2DM5"}
STRIKES = (21600, 21650, 21700, 21750, 21800)
FUTURE = {"id": 900, "name": "NQM5"}


def product_id(root: str) -> int:
    return 10 + list(BOARDS).index(root)


def contracts(root: str) -> list[dict[str, Any]]:
    """The contracts of a board; ids tell board, side and strike."""
    first = product_id(root) * 1000
    names = [f"{BOARDS[root]} {side}{strike}" for side in "CP" for strike in STRIKES]
    return [
        {"id": first + n, "name": name, "contractMaturityId": product_id(root) * 10}
        for n, name in enumerate(names)
    ]


def token(text: str, *, life: timedelta = timedelta(minutes=80)) -> dict[str, Any]:
    ends = datetime.now(UTC) + life
    return {
        "accessToken": text,
        "mdAccessToken": f"md-{text}",
        "expirationTime": f"{ends:%Y-%m-%dT%H:%MZ}",
        "userId": 1,
    }


def rest(asked: Asked, *, life: timedelta = timedelta(minutes=80), secret: str = "t") -> Answer:
    """What the healthy REST side answers."""
    if asked.path.startswith("/auth/"):
        return as_json(token(secret, life=life))
    if asked.headers.get("authorization") != f"Bearer {secret}":
        return Answer(status=401, body=b"Access is denied")
    name, master = asked.query.get("name", ""), int(asked.query.get("masterid", "0"))
    if asked.path == "/product/find" and name in BOARDS:
        return as_json({"id": product_id(name), "name": name, "productType": "Options", "valuePerPoint": 20})
    if asked.path == "/contractMaturity/deps":
        day = 11 + list(map(product_id, BOARDS)).index(master)
        months = {"expirationMonth": 202506, "expirationDate": f"2025-06-{day}T20:00Z"}
        later = {"expirationMonth": 202507, "expirationDate": "2025-07-09T20:00Z"}
        return as_json([{"id": master * 10, "productId": master, **months}, {"id": master * 10 + 1, **later}])
    if asked.path == "/contract/deps":
        return as_json(contracts(next(root for root in BOARDS if product_id(root) == master // 10)))
    if asked.path == "/contract/find" and name == FUTURE["name"]:
        return as_json(FUTURE)
    return Answer(status=404, body=b"")


def as_json(value: Any) -> Answer:
    return Answer(orjson.dumps(value))


def quote(contract_id: int, *, at: datetime = QUOTED_AT, **entries: Any) -> dict[str, Any]:
    """One quote event; by default a whole quote around 100, the future's around 21,710."""
    level = 21_710.0 if contract_id == FUTURE["id"] else 100.0
    whole = {
        "Bid": {"price": level - 0.5, "size": 3},
        "Offer": {"price": level + 0.5, "size": 4},
        "Trade": {"price": level + 0.25, "size": 1},
        "TotalTradeVolume": {"size": 12},
        "OpenInterest": {"size": 345},
        "SettlementPrice": {"price": level - 2},
    }
    stamp = f"{at:%Y-%m-%dT%H:%M:%S}.000Z"
    return {
        "e": "md",
        "d": {"quotes": [{"timestamp": stamp, "contractId": contract_id, "entries": entries or whole}]},
    }


@dataclass
class Feed:
    """The websocket side: what it was sent, and how it answers a subscription."""

    url: str = ""
    frames: list[str] = field(default_factory=list)

    @property
    def subscribed(self) -> list[int]:
        return [
            json.loads(f.split("\n")[3])["symbol"] for f in self.frames if f.startswith("md/subscribeQuote")
        ]


Speak = Callable[[ServerConnection, str, int, str], bool]
"""Given endpoint, request id and body, answer; False hands over to the healthy answer."""


def quiet(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
    return False


@contextmanager
def feed(speak: Speak = quiet, *, secret: str = "t") -> Iterator[Feed]:
    """Run the websocket side on a free loopback port."""
    state = Feed()

    def handle(connection: ServerConnection) -> None:
        connection.send("o")
        connection.send("h")
        for frame in connection:
            assert isinstance(frame, str)
            state.frames.append(frame)
            if frame == "[]":
                continue
            endpoint, text, _, body = frame.split("\n", 3)
            number = int(text)
            if speak(connection, endpoint, number, body):
                continue
            if endpoint == "authorize":
                send(connection, {"s": 200 if body == f"md-{secret}" else 401, "i": number})
            else:
                contract_id = json.loads(body)["symbol"]
                send(connection, {"s": 200, "i": number, "d": {"mode": "RealTime"}})
                send(connection, quote(contract_id))

    with serve_websocket(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        state.url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        try:
            yield state
        finally:
            server.shutdown()


def send(connection: ServerConnection, *messages: dict[str, Any]) -> None:
    connection.send(f"a{orjson.dumps(messages).decode()}")
