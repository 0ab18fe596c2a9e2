"""Tradovate's stand-in: login, contract library and the market-data websocket.

Bodies are bare objects and lists; business errors come with status 200. How the vendor names options
is not known: contracts are named as on Globex here (`Q2BF6 C21000`), and the product of the quarterly
options is `NQ Options`, since `NQ` is the future (likewise `ES Options`). Ids are derived from names,
so the stand-in keeps no state between requests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache, partial
from typing import Any

import orjson
import polars as pl
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from nq_pipeline.clock import real_now
from nq_pipeline.market.contracts import MONTH_CODES, ROOTS, Series, roots_of
from nq_pipeline.market.products import NQ
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.market import AnyMarket
from nq_pipeline.sandbox.synthetic.profiles import PROFILES
from nq_pipeline.sandbox.vendors.endpoint import Answer, ScenarioOf, endpoint, json_response

TOKEN = "sandbox-access-token"
TOKEN_LIFETIME = timedelta(minutes=80)
HEARTBEAT_S = 2.5
SILENCE_S = 15.0
"""A client that sends no frame for this long is disconnected."""
LIBRARY = {
    "product": ("find", "list", "suggest"),
    "contractMaturity": ("deps", "items"),
    "contract": ("deps", "ldeps", "find", "suggest", "item", "items"),
}
"""Operations of the contract library by entity; `/contract/find` is an address."""
EMPTIED = ("product/list", "contract/deps", "contract/ldeps")
"""Addresses whose answer has no rows under the fault `empty`."""
FUTURE_PRODUCTS = {code: 900 + profile.number for code, profile in PROFILES.items()}
_FIRST_DAY = date(2015, 1, 1)
_QUOTE_COLUMNS = (
    "instrument_id", "bid", "bid_size", "ask", "ask_size", "last", "open", "high", "low", "volume",
    "settlement", "open_interest",
)  # fmt: skip


def tradovate_routes(scenario_of: ScenarioOf) -> list[BaseRoute]:
    """The vendor's addresses below its mount point."""

    async def socket(connection: WebSocket) -> None:
        await market_data(connection, scenario_of(connection))

    answers: dict[str, Answer] = {"auth/renewaccesstoken": renew}
    for entity, operations in LIBRARY.items():
        answers |= {f"{entity}/{operation}": partial(library, entity, operation) for operation in operations}
    routes = [Route(f"/v1/{path}", endpoint(_require_token(a), scenario_of)) for path, a in answers.items()]
    login_route = Route("/v1/auth/accesstokenrequest", endpoint(login, scenario_of), methods=["POST"])
    return [login_route, *routes, WebSocketRoute("/v1/websocket", socket)]


# Login


def login(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`auth/accesstokenrequest`: a token, a penalty ticket, or an error text; all with status 200."""
    if scenario.fault == "rate_limited":
        return Response(status_code=429)
    try:
        credentials = json.loads(body)
        name, password = str(credentials["name"]), str(credentials["password"])
    except (ValueError, KeyError, TypeError):
        return Response("Bad request", 400)
    if scenario.fault in ("blocked", "challenged"):
        return json_response({"p-ticket": "sandbox-ticket", "p-time": 60, "p-captcha": True})
    if scenario.fault == "penalty" and credentials.get("p-ticket") != "sandbox-ticket":
        return json_response({"p-ticket": "sandbox-ticket", "p-time": 1, "p-captcha": False})
    if not name or password in ("", "wrong"):
        return json_response({"errorText": "Incorrect username or password. Please try again."})
    return _token(scenario, name)


def renew(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`auth/renewaccesstoken`: the same session for longer."""
    return _token(scenario, "sandbox")


def _token(scenario: Scenario, name: str) -> Response:
    # A token lives in real time, even where the market's clock stands still.
    expires = max(real_now(), scenario.now) + TOKEN_LIFETIME
    token = {
        "accessToken": TOKEN,
        "mdAccessToken": TOKEN,
        "expirationTime": f"{expires:%Y-%m-%dT%H:%M:%S}.000Z",
        "passwordExpirationTime": f"{expires + timedelta(days=365):%Y-%m-%dT%H:%M:%S}.000Z",
    }
    return json_response(token | {"userStatus": "Active", "userId": 1, "name": name, "hasLive": True})


def _require_token(answer: Answer) -> Answer:
    def checked(request: Request, body: bytes, scenario: Scenario) -> Response:
        if scenario.fault == "rate_limited":
            return Response(status_code=429)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Response("Access is denied", 401)
        return answer(request, body, scenario)

    return checked


# Contract library


def library(entity: str, operation: str, request: Request, body: bytes, scenario: Scenario) -> Response:
    """One address of `LIBRARY`.

    `find?name=` gives one row, `list` all, `suggest?t=&l=` those whose name starts with a text,
    `item?id=` and `items?ids=` those with given ids, `deps?masterid=` and `ldeps?masterids=` those of
    given parents.
    """
    params, market = request.query_params, scenario.market
    rows = _rows(entity, market, market.moment(scenario.shown))
    if operation == "find":
        return _first_or_404(row for row in rows if row["name"] == params.get("name", ""))
    if operation == "suggest":
        text, limit = params.get("t", ""), int(params.get("l", "10"))
        return json_response([row for row in rows if row["name"].startswith(text.upper())][:limit])
    if operation in ("item", "items"):
        ids = params.get("ids", params.get("id", "")).split(",")
        rows = [row for row in rows if str(row["id"]) in ids]
        return json_response(rows) if "ids" in params else _first_or_404(rows)
    if operation in ("deps", "ldeps"):
        masters = params.get("masterid", params.get("masterids", "")).split(",")
        rows = [row for row in rows if str(row[_MASTER[entity]]) in masters]
        if scenario.fault == "malformed" and entity == "contract":
            rows = [{"id": "?", "name": None} if i % 10 == 0 else row for i, row in enumerate(rows)]
    emptied = scenario.fault == "empty" and f"{entity}/{operation}" in EMPTIED
    return json_response([] if emptied else rows)


def _first_or_404(rows: Iterable[dict[str, Any]]) -> Response:
    row = next(iter(rows), None)
    return json_response(row) if row else Response("Not found", 404)


@lru_cache(maxsize=12)
def _rows(entity: str, market: AnyMarket, moment: datetime) -> list[dict[str, Any]]:
    """All rows of an entity; cached, because a client asks for them parent by parent."""
    return list(_ROWS[entity](market, moment))


def _products(market: AnyMarket, moment: datetime) -> Iterator[dict[str, Any]]:
    for product in (one.product for one in market.markets):
        name = "E-mini NASDAQ 100" if product is NQ else product.name
        common = {
            "currencyId": 1,
            "exchangeId": 2,
            "status": "Verified",
            "valuePerPoint": int(product.multiplier),
            "priceFormatType": "Decimal",
            "priceFormat": -2,
        }
        yield {
            "id": FUTURE_PRODUCTS[product.code],
            "name": product.code,
            "productType": "Futures",
            "description": name,
            "contractGroupId": 1,
            "months": "".join(MONTH_CODES[month - 1] for month in product.future_months),
            "tickSize": PROFILES[product.code].future_tick,
            **common,
        }
        for root in roots_of([product]):
            yield {
                "id": _product_id(root),
                "name": f"{root} Options" if root == product.code else root,
                "productType": "Options",
                "description": f"Options on {name} ({root})",
                "contractGroupId": 2,
                "tickSize": product.ticks[0][1],
                **common,
            }


def _maturities(market: AnyMarket, moment: datetime) -> Iterator[dict[str, Any]]:
    chain, futures = _live_contracts(market, moment), market.futures(moment)
    ids: dict[str, int] = {}
    for future in futures.iter_rows(named=True):
        product = FUTURE_PRODUCTS[future["product"]]
        front = product not in {number // 100_000 for number in ids.values()}
        ids[future["symbol"]] = _future_id(future)
        yield {
            "id": ids[future["symbol"]],
            "productId": product,
            "expirationMonth": int(f"{future['expiration']:%Y%m}"),
            "expirationDate": f"{future['expiration']:%Y-%m-%dT%H:%MZ}",
            "isFront": front,
        }
    for option in chain.unique("series", maintain_order=True).iter_rows(named=True):
        series = Series(option["root"], option["expiration_date"])
        year, month = series.contract_month
        yield {
            "id": _series_id(series),
            "productId": _product_id(series.root),
            "expirationMonth": year * 100 + month,
            "expirationDate": f"{option['expiration']:%Y-%m-%dT%H:%MZ}",
            "underlyingId": ids.get(option["underlying"]),
            "isFront": False,
        }


def _contracts(market: AnyMarket, moment: datetime) -> Iterator[dict[str, Any]]:
    for future in market.futures(moment).iter_rows(named=True):
        maturity = _future_id(future)
        yield {"id": maturity, "name": future["symbol"], "contractMaturityId": maturity}
    chain = _live_contracts(market, moment)
    maturities = {key: _series_id(Series.parse(key)) for key in chain["series"].unique()}
    for key, name, number in chain.select("series", "raw_symbol", "instrument_id").iter_rows():
        yield {"id": number, "name": name, "contractMaturityId": maturities[key]}


_ROWS: dict[str, Callable[[AnyMarket, datetime], Iterator[dict[str, Any]]]] = {
    "product": _products, "contractMaturity": _maturities, "contract": _contracts,
}  # fmt: skip
_MASTER = {"contractMaturity": "productId", "contract": "contractMaturityId"}


def _live_contracts(market: AnyMarket, moment: datetime) -> pl.DataFrame:
    return market.chain(moment).filter(~pl.col("expired"))


def _product_id(root: str) -> int:
    return 1000 + list(ROOTS).index(root)


def _future_id(future: dict[str, Any]) -> int:
    """A future is the only contract of its maturity and shares its id."""
    return _maturity_id(FUTURE_PRODUCTS[future["product"]], future["expiration"].date())


def _series_id(series: Series) -> int:
    return _maturity_id(_product_id(series.root), series.expiration_date)


def _maturity_id(product: int, day: date) -> int:
    return product * 100_000 + (day - _FIRST_DAY).days


# Market data


async def market_data(connection: WebSocket, scenario: Scenario) -> None:
    """The websocket: `o`, heartbeats `h`, answers and quotes in `a[…]`, and `c[…]` at the end."""
    if scenario.fault == "unavailable":
        await connection.send_denial_response(Response(status_code=503))
        return
    await connection.accept()
    await connection.send_text("o")
    feed = _QuoteFeed(connection, scenario)
    heartbeat = asyncio.create_task(feed.send_heartbeats())
    try:
        while True:
            frame = await asyncio.wait_for(connection.receive_text(), SILENCE_S)
            if frame != "[]":
                await feed.handle(frame)
    except TimeoutError:
        await connection.send_text('c[3000,"Go away!"]')
        await connection.close()
    except WebSocketDisconnect:
        pass
    finally:
        heartbeat.cancel()


class _QuoteFeed:
    """One connection: whether it is authorized, and its subscriptions."""

    def __init__(self, connection: WebSocket, scenario: Scenario) -> None:
        self.connection, self.scenario = connection, scenario
        self.authorized = False
        self.subscribed: dict[int, None] = {}
        self.moment: datetime | None = None
        self.quotes: dict[int, dict[str, Any]] = {}
        self.ids: dict[str, int] = {}
        self.sent = 0

    async def send_heartbeats(self) -> None:
        """Send heartbeats, and the books of subscribed contracts whenever the market has moved on."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self.connection.send_text("h")
            if self.subscribed and self.scenario.market.moment(self.scenario.shown) != self.moment:
                await self.load_quotes()
                for contract in list(self.subscribed):
                    await self.send_quote(contract, book=True)

    async def load_quotes(self) -> None:
        """Read the market as it is now, by contract id."""
        self.moment = self.scenario.market.moment(self.scenario.shown)
        self.quotes = await run_in_threadpool(_quotes, self.scenario)
        self.ids = {str(quote["name"]): contract for contract, quote in self.quotes.items()}

    async def handle(self, frame: str) -> None:
        """Answer a request frame: endpoint, id, query and body on four lines."""
        path, number, _, body = [*frame.split("\n", 3), "", "", ""][:4]
        request = int(number) if number.isdigit() else 0
        if self.scenario.fault == "rate_limited":
            await self.reply(request, 429)
        elif path == "authorize":
            self.authorized = body.strip() == TOKEN
            await self.reply(request, 200 if self.authorized else 401)
        elif not self.authorized:
            await self.reply(request, 401, "Access is denied")
        elif path.lower() == "md/subscribequote":
            await self.subscribe(request, body)
        else:
            await self.reply(request, 404, json.dumps(f"Not found: {path}"))

    async def subscribe(self, request: int, body: str) -> None:
        """Confirm, then send the book, then the rest of the quote."""
        if self.scenario.fault == "not_entitled":
            await self.reply(request, 401, json.dumps("Access is denied"))
            return
        contract = await self.find_contract(body)
        if contract is None:
            error = {"errorText": "Symbol is inaccessible", "errorCode": "UnknownSymbol", "mode": "None"}
            await self.reply(request, 200, error)
            return
        self.subscribed[contract] = None
        await self.reply(request, 200, {"mode": "RealTime"})
        if self.scenario.fault not in ("empty", "slow"):
            await self.send_quote(contract, book=True)
            await self.send_quote(contract, book=False)

    async def find_contract(self, body: str) -> int | None:
        """The contract a subscription names, by symbol or id."""
        if self.moment is None:
            await self.load_quotes()
        try:
            symbol = json.loads(body)["symbol"]
        except (ValueError, KeyError, TypeError):
            return None
        contract = int(symbol) if str(symbol).isdigit() else self.ids.get(str(symbol))
        return contract if contract in self.quotes else None

    async def send_quote(self, contract: int, *, book: bool) -> None:
        """Send the book of a contract, or everything else of its quote."""
        quote = self.quotes[contract]
        entries = {k: entry for k, entry in quote["entries"].items() if (k in ("Bid", "Offer")) == book}
        self.sent += 1
        if self.scenario.fault == "truncated" and self.sent > 20:
            await self.connection.close(1011)
            raise WebSocketDisconnect(1011)
        if self.scenario.fault == "malformed" and self.sent % 10 == 0:
            await self.connection.send_text('a[{"e":"md","d":{"quotes":[{"contractId":"x","entries":7}]}}]')
            await self.connection.send_text('a[{"e":"md","d":')
            return
        if entries:
            message = {"timestamp": quote["timestamp"], "contractId": contract, "entries": entries}
            await self.send({"e": "md", "d": {"quotes": [message]}})

    async def reply(self, request: int, status: int, data: Any = None) -> None:
        """Answer a request; a text is JSON inside a string, as the vendor sends it."""
        await self.send({"s": status, "i": request} | ({} if data is None else {"d": data}))

    async def send(self, message: dict[str, Any]) -> None:
        await self.connection.send_text(f"a{orjson.dumps([message]).decode()}")


def _quotes(scenario: Scenario) -> dict[int, dict[str, Any]]:
    """Name, timestamp and entries of everything quoted now, by contract id."""
    futures = scenario.market.futures(scenario.shown).with_columns(name="symbol").rows(named=True)
    for future in futures:
        future["instrument_id"] = _future_id(future)
    options = (
        _live_contracts(scenario.market, scenario.shown)
        .select(*_QUOTE_COLUMNS, name="raw_symbol")
        .rows(named=True)
    )
    stamp = scenario.market.moment(scenario.shown).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return {
        row["instrument_id"]: {"name": row["name"], "timestamp": stamp, "entries": _entries(row)}
        for row in [*futures, *options]
    }


def _entries(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """A quote's entries; one without a value is left out."""
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
