"""Barchart's stand-in: the options pages and the quotes API behind them.

Shapes follow recorded answers: every value twice (display and raw), `N/A` with raw 0 for
prices and raw null for counts, `s` behind a settlement, one-digit years in rows, a list
instead of a mapping when nothing is found. Quotes are ten minutes old, as the site's are.
The site's codes for a fifth Monday and Thursday are not known, so those series are not here.
"""

from __future__ import annotations

import base64
import html
import json
import secrets
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

import orjson
import polars as pl
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.listing import underlying_future
from nq_pipeline.market.products import NQ, Family
from nq_pipeline.market.symbology import barchart_code
from nq_pipeline.sandbox.faults import WorldOf, serve
from nq_pipeline.sandbox.market import Market
from nq_pipeline.sandbox.world import World

DELAY = timedelta(minutes=10)
POINT_VALUE = 20
CHICAGO = ZoneInfo("America/Chicago")

FIELDS = {
    # name: (title, type)
    "strike": ("Strike", "strikePrice"),
    "strikePrice": ("Strike", "price"),
    "openPrice": ("Open", "price"),
    "highPrice": ("High", "price"),
    "lowPrice": ("Low", "price"),
    "lastPrice": ("Last", "price"),
    "priceChange": ("Change", "priceChange"),
    "previousPrice": ("Previous", "price"),
    "bidPrice": ("Bid", "price"),
    "askPrice": ("Ask", "price"),
    "volume": ("Volume", "integer"),
    "openInterest": ("Open Int", "integer"),
    "premium": ("Premium", "float"),
    "tradeTime": ("Time", "time"),
    "longSymbol": ("Long Symbol", "string"),
    "optionType": ("Type", "string"),
    "symbol": ("Symbol", "string"),
    "contractSymbol": ("Contract", "string"),
    "contractExpirationDate": ("Expiration", "date"),
    "expirationDate": ("Expiration", "date"),
    "daysToExpiration": ("DTE", "integer"),
    "symbolName": ("Name", "string"),
    "baseSymbol": ("Base", "string"),
    "optImpliedVolatility": ("IV", "percent"),
    "delta": ("Delta", "float"),
    "gamma": ("Gamma", "float"),
    "theta": ("Theta", "float"),
    "vega": ("Vega", "float"),
    "hasOptions": ("Options", "boolean"),
    "symbolCode": ("Symbol Code", "string"),
    "symbolType": ("Type", "string"),
}
PAGE_FIELDS = (
    "strike,openPrice,highPrice,lowPrice,lastPrice,priceChange,bidPrice,askPrice,volume,openInterest,"
    "premium,tradeTime,longSymbol,optionType,symbol"
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")

Cell = tuple[str, Any]
"""A value as the site sends it: (display, raw)."""
Row = dict[str, Cell]


def routes(world_of: WorldOf) -> list[BaseRoute]:
    """The site's addresses below its mount point."""
    return [
        Route("/futures/quotes/{future}/options", serve(page, world_of)),
        Route("/futures/quotes/{future}/options/{code}", serve(page, world_of)),
        Route("/proxies/core-api/v1/quotes/get", serve(quotes, world_of)),
    ]


# The API


def quotes(request: Request, body: bytes, world: World) -> Response:
    """`/proxies/core-api/v1/quotes/get`: one series' board, or quotes of futures."""
    refusal = _refusal(request, world)
    if refusal is not None:
        return refusal
    asked = request.query_params
    fields = [name for name in asked.get("fields", PAGE_FIELDS).split(",") if name]
    if "symbols" in asked or asked.get("symbol", "").endswith("^F"):
        wanted = set(asked["symbols"].split(",")) if "symbols" in asked else None
        rows = [r for r in _future_rows(world) if wanted is None or r["symbol"][0] in wanted]
        always = ["symbolCode", "symbolType", "hasOptions"]
    else:
        rows = _option_rows(world, asked.get("symbol", ""))
        always = ["symbolCode", "symbolType"]
    if asked.get("orderDir") == "desc":
        rows = rows[::-1]
    if world.fault == "empty":
        rows = []
    shown = [_twin(row, [*fields, *always], raw="raw" in asked) for row in rows]
    if world.fault == "malformed":
        shown = [_spoilt(position, row) for position, row in enumerate(shown)]
    data = _grouped(shown, asked.get("groupBy"))
    reply = {
        "count": len(data),
        "total": len(shown),
        "data": data,
        "meta": {"field": _meta(asked.get("meta", ""), [*fields, *always])},
    }
    return _with_token(Response(orjson.dumps(reply), media_type="application/json"))


def _refusal(request: Request, world: World) -> Response | None:
    """What the site says instead of an answer, if it refuses."""
    wants_html = "text/html" in request.headers.get("accept", "")
    if world.fault == "challenged":
        challenge = {"x-amzn-waf-action": "challenge"}
        return HTMLResponse("<html>challenge</html>" if wants_html else "", 202, headers=challenge)
    if world.fault == "blocked":
        return HTMLResponse("<html><head><title>403 Forbidden</title></head></html>", 403)
    if world.fault in ("rate_limited", "penalty"):
        return HTMLResponse("<html><title>429 Too Many Requests</title></html>", 429, {"Retry-After": "1"})
    if world.fault == "not_entitled":
        return Response(b'{"message":"Unauthenticated."}', 401, media_type="application/json")
    same_origin = request.headers.get("sec-fetch-site") == "same-origin"
    token = unquote(request.cookies.get("XSRF-TOKEN", ""))
    with_token = (
        bool(token) and request.headers.get("x-xsrf-token") == token and "laravel_session" in request.cookies
    )
    if request.url.path.endswith("/quotes/get") and not (same_origin or with_token):
        return HTMLResponse("<html><head><title>403 Forbidden</title></head></html>", 403)
    return None


def _option_rows(world: World, symbol: str) -> list[Row]:
    """The board of a series by the site's code; empty for a code that is not listed."""
    instant = world.shown - DELAY
    series = _boards(world.market.chain(instant)).get(symbol.upper())
    return _board_rows(world.market, world.market.moment(instant), series) if series else []


@lru_cache(maxsize=64)
def _board_rows(market: Market, moment: datetime, series: Series) -> list[Row]:
    """All rows of one board; kept, because the page sums up what the API sends."""
    board = market.chain(moment).filter(pl.col("series") == series.key)
    code = barchart_code(series, year_digits=1)
    closed = moment >= sessions.current_session(moment).close
    first = board["contract_key"][0]
    return [
        _option_row(row, series, str(code), moment, closed, quirk=row["contract_key"] == first)
        for row in board.iter_rows(named=True)
    ]


def _option_row(
    row: dict[str, Any], series: Series, code: str, moment: datetime, closed: bool, *, quirk: bool
) -> Row:
    """One contract as the site shows it.

    Traded today: the last trade, at its time. Otherwise the settlement with an `s`, dated by
    its session, with the volume of that session. The lowest call lacks the `s`, as recorded.
    """
    today = row["volume"] > 0 and not closed and not row["expired"]
    prefix = "" if today or (closed and row["volume"] > 0) else "prior_"
    traded = row[f"{prefix}volume"] > 0 and (today or row["settlement"] is not None)
    last = row["last"] if today else row["settlement"]
    before = row["settlement"] if today else row["previous_settlement"]
    high = max(row[f"{prefix}high"], last) if traded else last
    low = min(row[f"{prefix}low"], last) if traded else last
    time: Cell
    if today:
        time = (f"{row['last_ts'].astimezone(CHICAGO):%H:%M} CT", int(row["last_ts"].timestamp()))
    elif last is not None:
        time = (f"{row['settlement_date']:%m/%d/%y}", _midnight(row["settlement_date"]))
    else:
        time = ("N/A", None)
    suffix = "" if today or quirk or last is None else "s"
    text, number = _price(last)
    side, strike = row["option_type"], row["strike"]
    symbol = f"{code}|{strike:.0f}{side}"
    sides = {"C": "Call", "P": "Put"}
    days = (series.expiration_date - moment.astimezone(CHICAGO).date()).days
    volatility = 0.0 if days == 0 else round(row["implied_volatility"] * 100, 2)
    return {
        "strike": (f"{strike:,.2f}{side}", _plain(strike)),
        "strikePrice": _price(strike),
        "openPrice": _price(row[f"{prefix}open"] if traded and (today or not quirk) else None),
        "highPrice": _price(high),
        "lowPrice": _price(low),
        "lastPrice": (text + suffix, number),
        "priceChange": _change(last, before),
        "previousPrice": _price(before),
        "bidPrice": _price(row["bid"]),
        "askPrice": _price(row["ask"]),
        "volume": _count(row[f"{prefix}volume"] if traded else 0),
        "openInterest": _count(row["open_interest"]),
        "premium": _price(None if last is None else round(last * POINT_VALUE, 2)),
        "tradeTime": time,
        "longSymbol": (symbol, symbol),
        "optionType": (sides[side], sides[side]),
        "symbol": (symbol, symbol),
        "symbolName": (_name(series), _name(series)),
        "baseSymbol": (underlying_future(series, 2),) * 2,
        "expirationDate": (f"{series.expiration_date:%m/%d/%y}", f"{series.expiration_date:%Y-%m-%d}"),
        "daysToExpiration": (str(days), days),
        "optImpliedVolatility": (f"{volatility:.2f}%", volatility),
        **{name: (f"{row[name]:.4f}", round(row[name], 8)) for name in ("delta", "gamma", "theta")},
        "vega": (f"{row['vega'] / 100:.4f}", round(row["vega"] / 100, 8)),
        "symbolCode": ("FUTOPT", "FUTOPT"),
        "symbolType": (12, 12),  # type: ignore[dict-item]  # a number in both twins, as recorded
    }


def _future_rows(world: World) -> list[Row]:
    instant = world.shown - DELAY
    closed = not sessions.is_open(instant)
    rows = []
    for future in world.market.futures(instant).iter_rows(named=True):
        symbol = _year_symbol(future["symbol"], future["expiration"])
        last, before = future["last"], future["settlement"]
        if closed:
            last, before = future["settlement"], future["previous_settlement"]
        moment = future["last_ts"].astimezone(CHICAGO)
        text, number = _price(last)
        rows.append(
            {
                "symbol": (symbol, symbol),
                "contractSymbol": (_contract(symbol, future["expiration"]),) * 2,
                "symbolName": ("Nasdaq 100 E-Mini",) * 2,
                "contractExpirationDate": (
                    f"{future['expiration']:%m/%d/%y}",
                    f"{future['expiration']:%Y-%m-%d}",
                ),
                "lastPrice": (text + ("s" if closed else ""), number),
                "priceChange": _change(last, before),
                "openPrice": _price(future["open"]),
                "highPrice": _price(future["high"]),
                "lowPrice": _price(future["low"]),
                "previousPrice": _price(before),
                "bidPrice": _price(future["bid"]),
                "askPrice": _price(future["ask"]),
                "volume": _count(future["volume"]),
                "openInterest": _count(future["open_interest"]),
                "tradeTime": (
                    f"{moment:%m/%d/%y}" if closed else f"{moment:%H:%M} CT",
                    int(moment.timestamp()),
                ),
                "symbolCode": ("FUT", "FUT"),
                "symbolType": (2, 2),
                "hasOptions": ("Yes", True),
            }
        )
    return rows  # type: ignore[return-value]  # symbolType again


def _twin(row: Row, fields: list[str], *, raw: bool) -> dict[str, Any]:
    cells = {name: row.get(name, ("N/A", None)) for name in fields}
    shown: dict[str, Any] = {name: display for name, (display, _) in cells.items()}
    return shown | ({"raw": {name: value for name, (_, value) in cells.items()}} if raw else {})


def _grouped(rows: list[dict[str, Any]], group_by: str | None) -> Any:
    """Rows by side or strike, as asked; an empty answer is a list whatever was asked."""
    if not rows or group_by not in ("optionType", "strikePrice"):
        return rows
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = row["optionType"] if group_by == "optionType" else str(row["strike"])[:-1]
        groups.setdefault(str(key), []).append(row)
    return groups


def _meta(asked: str, fields: list[str]) -> Any:
    known = {name: FIELDS.get(name, (name, "string")) for name in dict.fromkeys(fields)}
    parts = {
        "field.shortName": {name: title for name, (title, _) in known.items()},
        "field.description": {name: f"{title} of the contract." for name, (title, _) in known.items()},
        "field.type": {name: kind for name, (_, kind) in known.items()},
    }
    return {part.partition(".")[2]: parts[part] for part in asked.split(",") if part in parts}


def _spoilt(position: int, row: dict[str, Any]) -> dict[str, Any]:
    """Every tenth row is broken, each time in another way."""
    if position % 10:
        return row
    spoilt: dict[str, Any] = json.loads(json.dumps(row))
    match position // 10 % 5:
        case 0:
            spoilt["bidPrice"] = "bid"
            spoilt.get("raw", {})["bidPrice"] = {"nested": True}
        case 1:
            spoilt.get("raw", {}).pop("strike", None)
            spoilt["strike"] = None
        case 2:
            spoilt["symbol"] = spoilt["longSymbol"] = "???"
        case 3:
            spoilt["raw"] = None
        case 4:
            spoilt["lastPrice"] = "12,34.5.6s"
            spoilt.get("raw", {})["lastPrice"] = "NaN"
    return spoilt


def _price(value: float | None) -> Cell:
    return ("N/A", 0) if value is None else (f"{value:,.2f}", _plain(value))


def _change(value: float | None, before: float | None) -> Cell:
    if value is None or before is None:
        return "N/A", 0
    change = round(value - before, 2)
    return (f"{change:+,.2f}", _plain(change)) if change else ("unch", 0)


def _count(value: int) -> Cell:
    return (f"{value:,}", value) if value else ("N/A", None)


def _plain(value: float) -> float | int:
    """The site's JSON writes a whole number without a decimal point."""
    return int(value) if value == int(value) else value


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


# Codes and names


def site_code(series: Series) -> str:
    """The site's code with a two-digit year (`MM1N25`), or '' where it is not known."""
    code = barchart_code(series)
    return code if isinstance(code, str) else ""


def _boards(chain: pl.DataFrame) -> dict[str, Series]:
    """Listed series by each code they answer to, with one and two digits of the year."""
    boards: dict[str, Series] = {}
    for series in _listed(chain):
        code = site_code(series)
        boards[code] = series
        boards.setdefault(code[:-2] + code[-1], series)
    return boards


def _year_symbol(symbol: str, expiration: datetime) -> str:
    return f"{symbol[:-1]}{expiration:%y}"


def _contract(symbol: str, expiration: datetime) -> str:
    return f"{symbol} ({expiration:%b '%y})"


def _family(series: Series) -> str:
    """The name of a series' family in the page's first dropdown."""
    family = series.root_info.family
    if family.weekday is None or family.kind != "weekly":
        return "EOM Options" if family.kind == "end_of_month" else "Monthly Options"
    return f"{DAYS[family.weekday]} Weekly Options"


def _name(series: Series) -> str:
    week = f" Week {series.root_info.week}" if series.root_info.week else ""
    return (
        f"Nasdaq 100 {_family(series).removesuffix(' Options')}{week} Options {series.expiration_date:%b '%y}"
    )


# The page


def page(request: Request, body: bytes, world: World) -> Response:
    """`/futures/quotes/{future}/options/{code?}`: everything about a series but its rows."""
    refusal = _refusal(request, world)
    if refusal is not None:
        return refusal
    instant = world.shown - DELAY
    chain = world.market.chain(instant)
    boards = _boards(chain)
    future = request.path_params["future"].upper()
    if future == "NQ*0":
        future = next(r["symbol"][0] for r in _future_rows(world))
    series = boards.get(request.path_params.get("code", future).upper())
    if series is None:
        return HTMLResponse("<html><head><title>Page Not Found</title></head></html>", 404)
    underlying = underlying_future(series, 2)
    quote_row = next((r for r in _future_rows(world) if r["symbol"][0] == underlying), None)
    if quote_row is None or world.fault == "empty":
        return HTMLResponse("<html><head><title>No data</title></head><body></body></html>")
    return _with_token(HTMLResponse(_html(world, chain, series, underlying, quote_row)))


def _html(world: World, chain: pl.DataFrame, series: Series, underlying: str, future: Row) -> str:
    instant = world.shown - DELAY
    today = instant.astimezone(CHICAGO).date()
    code = site_code(series)
    expiry = f"{series.expiration_date:%m/%d/%y}"
    days = (series.expiration_date - today).days
    last = future["lastPrice"][1]
    config = {
        "api": {
            "method": "quotes",
            "symbol": code,
            "list": "futures.options",
            "fields": PAGE_FIELDS,
            "meta": "field.shortName,field.description,field.type",
            "groupBy": "optionType",
            "orderBy": "strike",
            "orderDir": "asc",
        }
    }
    options = {
        "emptyText": "There is no option data for this symbol and month.",
        "groupNameKeys": {"Call": "Calls", "Put": "Puts"},
        "itm": {"compareWith": "strike", "lastPrice": last, "dailyLastPrice": future["previousPrice"][1]},
        "futureOptions": True,
        "noPagination": True,
    }
    named = {
        "symbol": future["symbol"],
        "lastPrice": future["lastPrice"],
        "priceChange": future["priceChange"],
        "exchange": ("CME", "CME"),
        "pointValue": (f"${POINT_VALUE}", POINT_VALUE),
        "symbolRoot": ("NQ", "NQ"),
        "tradeTime": future["tradeTime"],
        "symbolType": (2, 2),
    }
    current = {name: display for name, (display, _) in named.items()}
    current["raw"] = {name: value for name, (_, value) in named.items()}
    dynamic = {
        "optionContract": code,
        "currentSymbol": current,
        "pagination": {"desktop": 100},
        "lifetime": 120,
    }
    header = {
        **{name: future[name][0] for name in ("symbol", "lastPrice", "priceChange", "bidPrice", "askPrice")},
        "symbolName": "Nasdaq 100 E-Mini",
        "tradeTime": future["tradeTime"][0],
        "daysToContractExpiration": str(days),
        "exchange": "CME",
        "symbolRoot": "NQ",
    }
    listed, family = _listed(chain), _family(series)
    types = "".join(_options(_first_of_each_family(listed), series, by_family=True))
    months = "".join(_options([s for s in listed if _family(s) == family], series, by_family=False))
    totals = "".join(
        f'<div class="bc-futures-options-quotes-totals__data-row"> {name} '
        f'<strong class="right"> {text} </strong> </div>'
        for name, text in _totals(world, code)
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<title>Nasdaq 100 E-Mini Futures Options Prices - synthetic market</title>
<meta name="csrf-token" content="sandbox">
<script id="bc-dynamic-config" type="application/json">{json.dumps(dynamic)}</script>
</head><body>
<div class="page-title symbol-header-info" data-ng-controller="symbolHeaderCtrl"
 data-ng-init="init({html.escape(json.dumps(header))})"><h1>({underlying})</h1></div>
<div class="bc-datatable-toolbar bc-options-toolbar">
<select id="bc-options-toolbar__dropdown-type" data-barchart-nav-dropdown>{types}</select>
<select id="bc-options-toolbar__dropdown-month" data-barchart-nav-dropdown>{months}</select>
<div class="row bc-options-toolbar__second-row">
<div class="column"><div> <strong>{days} Days</strong> to expiration on <strong>{expiry}</strong> </div></div>
<div class="column"><div> Price Value of Option point: <strong>${POINT_VALUE}</strong> </div></div>
</div>
<a data-bc-download-button="{underlying} options {family} exp-{expiry}">download</a>
</div>
<div class="bc-datatable-middleware-wrapper" data-api-config="{html.escape(json.dumps(config))}"
 data-options="{html.escape(json.dumps(options))}"><bc-data-grid></bc-data-grid></div>
<div class="bc-futures-options-quotes-totals">{totals}</div>
</body></html>
"""


def _first_of_each_family(listed: list[Series]) -> list[Series]:
    first: dict[Family, Series] = {}
    for series in listed:
        first.setdefault(series.root_info.family, series)
    return [first[family] for family in NQ.families if family in first]


def _listed(chain: pl.DataFrame) -> list[Series]:
    """Series of the chain that the site has a code for, by expiration."""
    series = (Series.parse(key) for key in chain["series"].unique(maintain_order=True))
    return [s for s in series if site_code(s)]


def _options(listed: list[Series], chosen: Series, *, by_family: bool) -> Iterator[str]:
    for series in listed:
        path = f"/futures/quotes/{underlying_future(series, 2)}/options"
        path += "" if series.root == "NQ" else f"/{site_code(series)}"
        week = f"Week {series.root_info.week}: " if series.root_info.week else ""
        label = _family(series) if by_family else f"{week}{series.expiration_date:%b %Y}"
        same = _family(series) == _family(chosen) if by_family else series == chosen
        selected = ' selected="selected"' if same else ""
        yield f'<option value="{path}"{selected}>{label}</option>'


def _totals(world: World, code: str) -> Iterator[tuple[str, str]]:
    """Sums of premium and open interest over the very rows the API sends for the series."""
    sums: Counter[tuple[str, str]] = Counter()
    for row in _option_rows(world, code):
        for name in ("premium", "openInterest"):
            sums[row["optionType"][1], name] += row[name][1] or 0
    for name, title, form in (
        ("premium", "Premium", "${:,.2f}"),
        ("openInterest", "Open Interest", "{:,.0f}"),
    ):
        put, call = sums["Put", name], sums["Call", name]
        yield f"Put {title} Total", form.format(put)
        yield f"Call {title} Total", form.format(call)
        yield f"Put/Call {title} Ratio", f"{put / call:.2f}" if call else "N/A"


def _with_token(response: Response) -> Response:
    """The session's cookies; the token changes with every answer."""
    value = base64.b64encode(json.dumps({"iv": "sandbox", "value": secrets.token_hex(8)}).encode()).decode()
    response.set_cookie("XSRF-TOKEN", quote(value), path="/", samesite="lax")
    response.set_cookie("laravel_token", "sandbox", path="/", httponly=True, samesite="lax")
    response.set_cookie("laravel_session", "sandbox", path="/", httponly=True, samesite="lax")
    response.set_cookie("market", "sandbox", path="/")
    return response
