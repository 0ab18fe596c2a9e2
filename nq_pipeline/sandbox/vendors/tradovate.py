"""Tradovate's stand-in: login, contract library and the market-data websocket.

Bodies are bare objects and lists; business errors come with status 200. How the vendor names
options is not known: contracts are called as on Globex here (`Q2BF6 C21000`), and the product
of the quarterly options is `NQ Options`, since `NQ` is the future's (likewise `ES Options`). Ids
are derived from what they name, so the stand-in keeps no state between requests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson
import polars as pl
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from nq_pipeline.market.contracts import MONTH_CODES, ROOTS, Series
from nq_pipeline.market.products import NQ, Product
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.profiles import PROFILES
from nq_pipeline.sandbox.vendors.endpoint import ScenarioOf, endpoint, json_response

TOKEN = "sandbox-access-token"
TOKEN_LIFE = timedelta(minutes=80)
HEARTBEAT_S = 2.5
SILENCE_S = 15.0
"""A client that sends no frame for this long is sent away."""
FUTURE_PRODUCTS = {code: 900 + shape.number for code, shape in PROFILES.items()}
_SINCE = date(2015, 1, 1)


def tradovate_routes(scenario_of: ScenarioOf) -> list[BaseRoute]:
    """The vendor's addresses below its mount point."""
    gets = {
        "auth/renewaccesstoken": renew,
        "product/find": product_find,
        "product/list": product_list,
        "product/suggest": product_suggest,
        "contractMaturity/deps": maturity_deps,
        "contractMaturity/items": maturity_items,
        "contract/deps": contract_deps,
        "contract/ldeps": contract_deps,
        "contract/find": contract_find,
        "contract/suggest": contract_suggest,
        "contract/item": contract_items,
        "contract/items": contract_items,
    }

    async def socket(connection: WebSocket) -> None:
        await market_data(connection, scenario_of(connection))

    return [
        Route("/v1/auth/accesstokenrequest", endpoint(login, scenario_of), methods=["POST"]),
        *(Route(f"/v1/{path}", endpoint(_authorised(answer), scenario_of)) for path, answer in gets.items()),
        WebSocketRoute("/v1/websocket", socket),
    ]


# Login


def login(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`auth/accesstokenrequest`: a token, a penalty ticket, or an error text; all with status 200."""
    if scenario.fault == "rate_limited":
        return Response(status_code=429)
    try:
        asked = json.loads(body)
        name, password = str(asked["name"]), str(asked["password"])
    except (ValueError, KeyError, TypeError):
        return Response("Bad request", 400)
    if scenario.fault in ("blocked", "challenged"):
        return json_response({"p-ticket": "sandbox-ticket", "p-time": 60, "p-captcha": True})
    if scenario.fault == "penalty" and asked.get("p-ticket") != "sandbox-ticket":
        return json_response({"p-ticket": "sandbox-ticket", "p-time": 1, "p-captcha": False})
    if not name or password in ("", "wrong"):
        return json_response({"errorText": "Incorrect username or password. Please try again."})
    return json_response(_token(scenario, name))


def renew(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`auth/renewaccesstoken`: the same session for longer."""
    return json_response(_token(scenario, "sandbox"))


def _token(scenario: Scenario, name: str) -> dict[str, Any]:
    """The life of a token is real time, even where the market's clock stands still."""
    ends = max(datetime.now(UTC), scenario.now) + TOKEN_LIFE
    return {
        "accessToken": TOKEN,
        "mdAccessToken": TOKEN,
        "expirationTime": f"{ends:%Y-%m-%dT%H:%M:%S}.000Z",
        "passwordExpirationTime": f"{ends + timedelta(days=365):%Y-%m-%dT%H:%M:%S}.000Z",
        "userStatus": "Active",
        "userId": 1,
        "name": name,
        "hasLive": True,
    }


def _authorised(answer: Callable[..., Response]) -> Callable[[Request, bytes, Scenario], Response]:
    def checked(request: Request, body: bytes, scenario: Scenario) -> Response:
        if scenario.fault == "rate_limited":
            return Response(status_code=429)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Response("Access is denied", 401)
        return answer(request, body, scenario)

    return checked


# Contract library


def product_find(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`product/find?name=`: one product."""
    name = request.query_params.get("name", "")
    return _one([p for p in _products(scenario) if p["name"] == name])


def product_list(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`product/list`: all of them."""
    return json_response([] if scenario.fault == "empty" else _products(scenario))


def product_suggest(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`product/suggest?t=&l=`: those whose name starts with the text."""
    text, most = request.query_params.get("t", ""), int(request.query_params.get("l", "10"))
    return json_response([p for p in _products(scenario) if p["name"].startswith(text.upper())][:most])


def maturity_deps(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`contractMaturity/deps?masterid=`: the expirations of a product."""
    product = request.query_params.get("masterid")
    return json_response([m for m in _maturities(scenario) if str(m["productId"]) == product])


def maturity_items(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`contractMaturity/items?ids=`: expirations by id."""
    ids = request.query_params.get("ids", "").split(",")
    return json_response([m for m in _maturities(scenario) if str(m["id"]) in ids])


def contract_deps(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`contract/deps?masterid=` and `contract/ldeps?masterids=`: the contracts of expirations."""
    masters = request.query_params.get("masterid", request.query_params.get("masterids", "")).split(",")
    found = [c for c in _contracts(scenario) if str(c["contractMaturityId"]) in masters]
    if scenario.fault == "malformed":
        found = [{"id": "?", "name": None} if i % 10 == 0 else c for i, c in enumerate(found)]
    return json_response([] if scenario.fault == "empty" else found)


def contract_find(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`contract/find?name=`: one contract."""
    name = request.query_params.get("name", "")
    return _one([c for c in _contracts(scenario) if c["name"] == name])


def contract_suggest(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`contract/suggest?t=&l=`: those whose name starts with the text."""
    text, most = request.query_params.get("t", ""), int(request.query_params.get("l", "10"))
    return json_response([c for c in _contracts(scenario) if c["name"].startswith(text.upper())][:most])


def contract_items(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`contract/items?ids=` and `contract/item?id=`: contracts by id."""
    asked = request.query_params
    ids = set(asked.get("ids", asked.get("id", "")).split(","))
    found = [c for c in _contracts(scenario) if str(c["id"]) in ids]
    return _one(found) if "ids" not in asked else json_response(found)


def _products(scenario: Scenario) -> list[dict[str, Any]]:
    return [one for part in scenario.market.markets for one in _products_of(part.product)]


def _products_of(product: Product) -> list[dict[str, Any]]:
    shape = PROFILES[product.code]
    name = "E-mini NASDAQ 100" if product is NQ else product.name
    common = {
        "currencyId": 1,
        "exchangeId": 2,
        "status": "Verified",
        "valuePerPoint": int(product.multiplier),
        "priceFormatType": "Decimal",
        "priceFormat": -2,
    }
    future = {
        "id": FUTURE_PRODUCTS[product.code],
        "name": product.code,
        "productType": "Futures",
        "description": name,
        "contractGroupId": 1,
        "months": "".join(MONTH_CODES[month - 1] for month in product.future_months),
        "tickSize": shape.future_tick,
        **common,
    }
    options = [
        {
            "id": _product_id(root),
            "name": f"{root} Options" if root == product.code else root,
            "productType": "Options",
            "description": f"Options on {name} ({root})",
            "contractGroupId": 2,
            "tickSize": product.ticks[0][1],
            **common,
        }
        for root, info in ROOTS.items()
        if info.product is product
    ]
    return [future, *options]


def _maturities(scenario: Scenario) -> Iterator[dict[str, Any]]:
    chain, futures = scenario.market.chain(scenario.shown), scenario.market.futures(scenario.shown)
    ids: dict[str, int] = {}
    for future in futures.iter_rows(named=True):
        product = FUTURE_PRODUCTS[future["product"]]
        front = product not in {number // 100_000 for number in ids.values()}
        ids[future["symbol"]] = _maturity_id(product, future["expiration"].date())
        yield {
            "id": ids[future["symbol"]],
            "productId": product,
            "expirationMonth": int(f"{future['expiration']:%Y%m}"),
            "expirationDate": f"{future['expiration']:%Y-%m-%dT%H:%MZ}",
            "isFront": front,
        }
    boards = chain.filter(~pl.col("expired")).unique("series", maintain_order=True)
    for board in boards.iter_rows(named=True):
        year, month = Series(board["root"], board["expiration_date"]).contract_month
        yield {
            "id": _maturity_id(_product_id(board["root"]), board["expiration_date"]),
            "productId": _product_id(board["root"]),
            "expirationMonth": year * 100 + month,
            "expirationDate": f"{board['expiration']:%Y-%m-%dT%H:%MZ}",
            "underlyingId": ids.get(board["underlying"]),
            "isFront": False,
        }


def _contracts(scenario: Scenario) -> Iterator[dict[str, Any]]:
    for future in scenario.market.futures(scenario.shown).iter_rows(named=True):
        maturity = _future_id(future)
        yield {"id": maturity, "name": future["symbol"], "contractMaturityId": maturity}
    chain = scenario.market.chain(scenario.shown).filter(~pl.col("expired"))
    maturities = {
        key: _maturity_id(_product_id(Series.parse(key).root), Series.parse(key).expiration_date)
        for key in chain["series"].unique()
    }
    for key, name, number in chain.select("series", "raw_symbol", "instrument_id").iter_rows():
        yield {"id": number, "name": name, "contractMaturityId": maturities[key]}


def _product_id(root: str) -> int:
    return 1000 + list(ROOTS).index(root)


def _future_id(future: dict[str, Any]) -> int:
    """A future is the one contract of its maturity, and has its id."""
    return _maturity_id(FUTURE_PRODUCTS[future["product"]], future["expiration"].date())


def _maturity_id(product: int, day: date) -> int:
    return product * 100_000 + (day - _SINCE).days


# Market data


async def market_data(connection: WebSocket, scenario: Scenario) -> None:
    """The websocket: `o`, heartbeats `h`, answers and quotes in `a[…]`, `c[…]` at the end."""
    if scenario.fault == "unavailable":
        await connection.close()
        return
    await connection.accept()
    await connection.send_text("o")
    feed = _Feed(connection, scenario)
    beat = asyncio.create_task(feed.beat())
    try:
        while True:
            frame = await asyncio.wait_for(connection.receive_text(), SILENCE_S)
            if frame != "[]":
                await feed.answer(frame)
    except TimeoutError:
        await connection.send_text('c[3000,"Go away!"]')
        await connection.close()
    except WebSocketDisconnect:
        pass
    finally:
        beat.cancel()


class _Feed:
    """One connection: whether it is authorised and what it subscribed to."""

    def __init__(self, connection: WebSocket, scenario: Scenario) -> None:
        self.connection, self.scenario = connection, scenario
        self.authorised = False
        self.subscribed: dict[int, None] = {}
        self.moment: datetime | None = None
        self.rows: dict[int, dict[str, Any]] = {}
        self.ids: dict[str, int] = {}
        self.sent = 0

    async def beat(self) -> None:
        """Heartbeats, and the books of subscribed contracts whenever the market moved on."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self.connection.send_text("h")
            if self.subscribed and self.scenario.market.moment(self.scenario.shown) != self.moment:
                await self.load()
                for number in list(self.subscribed):
                    await self.push(number, ("Bid", "Offer"))

    async def load(self) -> None:
        """Read the market as it is now, indexed by contract id and by name."""
        self.moment = self.scenario.market.moment(self.scenario.shown)
        self.rows = await run_in_threadpool(_books, self.scenario)
        self.ids = {str(row["name"]): number for number, row in self.rows.items()}

    async def answer(self, frame: str) -> None:
        """Answer one request frame: endpoint, id, query and body on four lines."""
        endpoint, number, _, body = [*frame.split("\n", 3), "", "", ""][:4]
        request = int(number) if number.isdigit() else 0
        if self.scenario.fault == "rate_limited":
            await self.reply(request, 429)
        elif endpoint == "authorize":
            self.authorised = body.strip() == TOKEN
            await self.reply(request, 200 if self.authorised else 401)
        elif not self.authorised:
            await self.reply(request, 401, "Access is denied")
        elif endpoint in ("md/subscribeQuote", "md/subscribequote"):
            await self.subscribe(request, body)
        elif endpoint in ("md/unsubscribeQuote", "md/unsubscribequote"):
            number_ = await self.find(body)
            self.subscribed.pop(number_ or 0, None)
            await self.reply(request, 200)
        else:
            await self.reply(request, 404, json.dumps(f"Not found: {endpoint}"))

    async def subscribe(self, request: int, body: str) -> None:
        """Confirm, then send the book, then the rest of the quote."""
        if self.scenario.fault == "not_entitled":
            await self.reply(request, 401, json.dumps("Access is denied"))
            return
        number = await self.find(body)
        if number is None:
            error = {"errorText": "Symbol is inaccessible", "errorCode": "UnknownSymbol", "mode": "None"}
            await self.reply(request, 200, error)
            return
        self.subscribed[number] = None
        await self.reply(request, 200, {"mode": "RealTime"})
        if self.scenario.fault not in ("empty", "slow"):
            await self.push(number, ("Bid", "Offer"))
            await self.push(number, None)

    async def find(self, body: str) -> int | None:
        """The contract a subscription names, by symbol or id."""
        if self.moment is None:
            await self.load()
        try:
            symbol = json.loads(body)["symbol"]
        except (ValueError, KeyError, TypeError):
            return None
        number = int(symbol) if str(symbol).isdigit() else self.ids.get(str(symbol))
        return number if number in self.rows else None

    async def push(self, number: int, only: tuple[str, ...] | None) -> None:
        """Send a quote; entries that do not exist are left out, as are those not in `only`."""
        row = self.rows[number]
        entries = {
            name: entry
            for name, entry in row["entries"].items()
            if (name in only if only else name not in ("Bid", "Offer"))
        }
        self.sent += 1
        if self.scenario.fault == "truncated" and self.sent > 20:
            await self.connection.close(1011)
            raise WebSocketDisconnect(1011)
        if self.scenario.fault == "malformed" and self.sent % 10 == 0:
            await self.connection.send_text('a[{"e":"md","d":{"quotes":[{"contractId":"x","entries":7}]}}]')
            await self.connection.send_text('a[{"e":"md","d":')
            return
        if entries:
            quote = {"timestamp": row["timestamp"], "contractId": number, "entries": entries}
            await self.send({"e": "md", "d": {"quotes": [quote]}})

    async def reply(self, request: int, status: int, data: Any = None) -> None:
        """Answer a request; a text is JSON inside a string, as the vendor sends it."""
        await self.send({"s": status, "i": request} | ({} if data is None else {"d": data}))

    async def send(self, message: dict[str, Any]) -> None:
        await self.connection.send_text(f"a{orjson.dumps([message]).decode()}")


def _books(scenario: Scenario) -> dict[int, dict[str, Any]]:
    """Everything that can be quoted now, by contract id."""
    futures = scenario.market.futures(scenario.shown).with_columns(name="symbol").rows(named=True)
    for future in futures:
        future["instrument_id"] = _future_id(future)
    chain = scenario.market.chain(scenario.shown).filter(~pl.col("expired"))
    stamp = scenario.market.moment(scenario.shown).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    columns = [
        "bid",
        "bid_size",
        "ask",
        "ask_size",
        "last",
        "open",
        "high",
        "low",
        "volume",
        "settlement",
        "open_interest",
        "instrument_id",
    ]
    options = chain.select(*columns, name="raw_symbol").rows(named=True)
    return {
        row["instrument_id"]: {"name": row["name"], "timestamp": stamp, "entries": _entries(row)}
        for row in [*futures, *options]
    }


def _entries(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """A quote's entries; each exists only where there is something to say."""
    entries = {
        "Bid": {"price": row["bid"], "size": row["bid_size"]},
        "Offer": {"price": row["ask"], "size": row["ask_size"]},
        "Trade": {"price": row["last"]},
        "TotalTradeVolume": {"size": row["volume"] or None},
        "OpenInterest": {"size": row["open_interest"] or None},
        "OpeningPrice": {"price": row["open"]},
        "HighPrice": {"price": row["high"]},
        "LowPrice": {"price": row["low"]},
        "SettlementPrice": {"price": row["settlement"]},
    }
    return {name: entry for name, entry in entries.items() if None not in entry.values()}


def _one(found: list[dict[str, Any]]) -> Response:
    return json_response(found[0]) if found else Response("Not found", 404)
