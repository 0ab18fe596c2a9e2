"""Polygon's (Massive's) stand-in: the chain snapshot, reference contracts and market status.

Like the vendor it has no options on futures, only the proxies NDX with NDXP, QQQ, SPX with SPXW, and
SPY. A key comes in the `Authorization` header or as `apiKey`; a `next_url` carries none.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from nq_pipeline.clock import to_ns
from nq_pipeline.market import sessions
from nq_pipeline.market.products import PROXIES
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.vendors.endpoint import ScenarioOf, endpoint, json_number, json_response

UPGRADE = "Please upgrade your plan at https://massive.com/pricing"
EXCHANGES = {"NDX": "GMNI", "QQQ": "BATO", "SPX": "XCBO", "SPY": "BATO"}
SIDES = {"C": "call", "P": "put"}
NEW_YORK = ZoneInfo("America/New_York")


def polygon_routes(scenario_of: ScenarioOf) -> list[BaseRoute]:
    """The vendor's addresses below its mount point."""
    return [
        Route("/v3/snapshot/options/{underlying}", endpoint(snapshot, scenario_of)),
        Route("/v3/reference/options/contracts", endpoint(contracts, scenario_of)),
        Route("/v1/marketstatus/now", endpoint(market_status, scenario_of)),
    ]


def snapshot(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`/v3/snapshot/options/{underlying}`: quotes, trades, Greeks and open interest, page by page."""
    if refusal := _refuse(request, scenario):
        return refusal
    underlying = _underlying(scenario, request.path_params["underlying"], prefixed=True)
    if underlying is None:
        return _error(request, 404, "NOT_FOUND", message="Ticker not found.")
    price = scenario.market.proxy_price(underlying, scenario.shown)
    at_ns = to_ns(scenario.market.rth_moment(scenario.shown))
    item = partial(_snapshot_item, underlying=underlying, price=price, at_ns=at_ns)
    return _page(request, scenario, _live_contracts(scenario, underlying), item, max_limit=250)


def contracts(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`/v3/reference/options/contracts`: the listed contracts without prices; every plan includes it."""
    if refusal := _refuse(request, scenario, entitled=True):
        return refusal
    try:
        ticker = _query(request)[0].get("underlying_ticker", "")
    except ValueError:
        return _error(request, 400, "ERROR", error="The cursor is invalid.")
    underlying = _underlying(scenario, ticker, prefixed=False)
    chain = _live_contracts(scenario, underlying) if underlying else pl.DataFrame()
    return _page(request, scenario, chain, _contract_item, max_limit=1000)


def market_status(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`/v1/marketstatus/now`: whether the stock market is open."""
    if refusal := _refuse(request, scenario, entitled=True):
        return refusal
    status = "open" if sessions.is_open(scenario.now, "rth") else "closed"
    return json_response(
        {
            "market": status,
            "earlyHours": False,
            "afterHours": False,
            "serverTime": scenario.now.astimezone(NEW_YORK).isoformat(timespec="seconds"),
            "exchanges": dict.fromkeys(("nyse", "nasdaq", "otc"), status),
            "currencies": {"fx": "open", "crypto": "open"},
        }
    )


def _refuse(request: Request, scenario: Scenario, *, entitled: bool = False) -> Response | None:
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if not (bearer or request.query_params.get("apiKey")):
        return _error(request, 401, "ERROR", error="API Key was not provided")
    if scenario.fault in ("blocked", "challenged"):
        return _error(request, 401, "ERROR", error="Unknown API Key")
    if scenario.fault in ("rate_limited", "penalty"):
        text = "You've exceeded the maximum requests per minute, please wait or upgrade your subscription to "
        return _error(request, 429, "ERROR", error=text + "continue. https://massive.com/pricing")
    if scenario.fault == "not_entitled" and not entitled:
        text = f"You are not entitled to this data. {UPGRADE}"
        return _error(request, 403, "NOT_AUTHORIZED", message=text)
    return None


def _underlying(scenario: Scenario, ticker: str, *, prefixed: bool) -> str | None:
    """The proxy of a ticker. An index is `I:NDX` in the snapshot, `NDX` in the reference; a fund is `QQQ`."""
    shown = [code for code, proxy in PROXIES.items() if proxy.stands_for in scenario.products]
    return next((code for code in shown if ticker == (_ticker(code) if prefixed else code)), None)


def _ticker(underlying: str) -> str:
    return f"I:{underlying}" if PROXIES[underlying].underlying_class == "index" else underlying


def _snapshot_item(row: dict[str, Any], underlying: str, price: float, at_ns: int) -> dict[str, Any]:
    side, strike, last = row["option_type"], row["strike"], row["last"] or row["settlement"]
    sign = 1 if side == "C" else -1
    break_even = round(strike + sign * (last or 0.0), 4)
    item: dict[str, Any] = {
        "break_even_price": break_even,
        "day": _day(row),
        "details": {
            "contract_type": SIDES[side],
            "exercise_style": row["exercise_style"],
            "expiration_date": f"{row['expiration_date']:%Y-%m-%d}",
            "shares_per_contract": 100,
            "strike_price": json_number(strike),
            "ticker": row["ticker"],
        },
        "open_interest": row["open_interest"],
        "underlying_asset": {
            "ticker": _ticker(underlying),
            "value" if PROXIES[underlying].underlying_class == "index" else "price": price,
            "change_to_break_even": round(break_even - price, 4),
            "last_updated": at_ns,
            "timeframe": "REAL-TIME",
        },
    }
    # The vendor omits Greeks and volatility deep in the money.
    if abs(row["delta"]) < 0.995 and row["bid"] is not None:
        item["greeks"] = {name: round(row[name], 10) for name in ("delta", "gamma", "theta")}
        item["greeks"]["vega"] = round(row["vega"] / 100, 10)
        item["implied_volatility"] = round(row["implied_volatility"], 10)
    if row["ask"] is not None:
        bid = row["bid"] or 0
        item["last_quote"] = {
            "ask": row["ask"],
            "ask_size": row["ask_size"],
            "bid": bid,
            "bid_size": row["bid_size"] or 0,
            "last_updated": at_ns,
            "midpoint": round((row["ask"] + bid) / 2, 4),
            "timeframe": "REAL-TIME",
        }
    prefix = "" if row["last"] is not None else "prior_"
    if row[f"{prefix}last"] is not None:
        item["last_trade"] = {
            "price": row[f"{prefix}last"],
            "size": 1,
            "conditions": [209],
            "exchange": 309,
            "sip_timestamp": to_ns(row[f"{prefix}last_ts"]),
            "timeframe": "REAL-TIME",
        }
    return item


def _day(row: dict[str, Any]) -> dict[str, Any]:
    """The session's bar; empty for a contract that did not trade in it."""
    if not row["volume"]:
        return {}
    before = row["settlement"]
    change = None if before is None else round(row["last"] - before, 4)
    return {
        "change": change,
        "change_percent": round(100 * change / before, 4) if change is not None and before else None,
        "close": row["last"],
        "high": row["high"],
        "last_updated": to_ns(row["last_ts"]),
        "low": row["low"],
        "open": row["open"],
        "previous_close": before,
        "volume": row["volume"],
        "vwap": round((row["high"] + row["low"]) / 2, 4),
    }


def _contract_item(row: dict[str, Any]) -> dict[str, Any]:
    style = "ASPS" if row["exercise_style"] == "american" else "EICS"
    return {
        "cfi": f"O{row['option_type']}{style}",
        "contract_type": SIDES[row["option_type"]],
        "exercise_style": row["exercise_style"],
        "expiration_date": f"{row['expiration_date']:%Y-%m-%d}",
        "primary_exchange": EXCHANGES[row["underlying"]],
        "shares_per_contract": 100,
        "strike_price": json_number(row["strike"]),
        "ticker": row["ticker"],
        "underlying_ticker": row["underlying"],
    }


def _live_contracts(scenario: Scenario, underlying: str) -> pl.DataFrame:
    return scenario.market.proxy_chain(underlying, scenario.shown).filter(~pl.col("expired"))


def _page(
    request: Request,
    scenario: Scenario,
    chain: pl.DataFrame,
    item: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    max_limit: int,
) -> Response:
    """One page of the filtered, sorted chain."""
    try:
        params, start = _query(request)
    except ValueError:
        return _error(request, 400, "ERROR", error="The cursor is invalid.")
    try:
        limit = int(params.get("limit", "10"))
        if not 1 <= limit <= max_limit:
            raise ValueError
        chosen = chain.filter(pl.all_horizontal(pl.lit(True), *_filters(params))) if chain.height else chain
    except (ValueError, pl.exceptions.InvalidOperationError):
        return _error(request, 400, "ERROR", error="A query parameter is invalid.")
    sort = params.get("sort", "ticker")
    column = {"ticker": "ticker", "expiration_date": "expiration_date", "strike_price": "strike"}.get(sort)
    if column is None:
        return _error(request, 400, "ERROR", error=f"{sort!r} cannot be sorted by.")
    if chosen.height:
        descending = params.get("order", "asc") == "desc"
        chosen = chosen.sort(column, "ticker", descending=[descending, False], maintain_order=True)
    if scenario.fault == "empty":
        chosen = chosen.clear()
    rows = [item(row) for row in chosen.slice(start, limit).iter_rows(named=True)]
    if scenario.fault == "malformed":
        rows = [_corrupt_row(start + position, row) for position, row in enumerate(rows)]
    reply: dict[str, Any] = {"request_id": _request_id(request), "results": rows, "status": "OK"}
    if start + limit < chosen.height:
        query = QueryParams([item for item in params.multi_items() if item[0] != "apiKey"])
        cursor = base64.urlsafe_b64encode(f"{query}#{start + limit}".encode()).decode()
        reply["next_url"] = f"{str(request.url).partition('?')[0]}?cursor={cursor}"
    return json_response(reply)


def _query(request: Request) -> tuple[QueryParams, int]:
    """The query and the first row, from the cursor if there is one; raises ValueError for a bad cursor."""
    params = request.query_params
    if "cursor" not in params:
        return params, 0
    query, _, offset = base64.urlsafe_b64decode(params["cursor"]).decode().rpartition("#")
    return QueryParams(query), int(offset)


def _filters(params: QueryParams) -> Iterator[pl.Expr]:
    compare = {"": "eq", ".gte": "ge", ".gt": "gt", ".lte": "le", ".lt": "lt"}
    for suffix, name in compare.items():
        if f"expiration_date{suffix}" in params:
            day = pl.lit(params[f"expiration_date{suffix}"]).str.to_date("%Y-%m-%d")
            yield getattr(pl.col("expiration_date"), name)(day)
        if f"strike_price{suffix}" in params:
            yield getattr(pl.col("strike"), name)(float(params[f"strike_price{suffix}"]))
    if "contract_type" in params:
        yield pl.col("option_type") == params["contract_type"][:1].upper()


def _corrupt_row(position: int, row: dict[str, Any]) -> dict[str, Any]:
    """Break every tenth row, in turn in four ways."""
    if position % 10:
        return row
    match position // 10 % 4:
        case 0:
            return {**row, "details": None, "ticker": 7}
        case 1:
            return {**row, "last_quote": {"bid": "cheap", "ask": [], "last_updated": "now"}}
        case 2:
            return {"open_interest": -1}
        case _:
            return {**row, "open_interest": "many", "day": [], "greeks": "?"}


def _error(request: Request, status: int, word: str, **text: str) -> Response:
    return json_response({"status": word, "request_id": _request_id(request), **text}, status)


def _request_id(request: Request) -> str:
    return hashlib.md5(str(request.url).encode(), usedforsecurity=False).hexdigest()
