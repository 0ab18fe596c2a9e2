"""Barchart's stand-in: the quotes API and the options pages, and how the site refuses requests.

Answers have the structure of recorded ones, down to the list instead of a mapping when nothing is
found. The API requires what the page's own requests carry: `sec-fetch-site: same-origin`, or the token
of a page visit.
"""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any
from urllib.parse import quote, unquote

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.vendors.barchart.page import PAGE_FIELDS, render_page
from nq_pipeline.sandbox.vendors.barchart.rows import Row, future_rows, option_rows
from nq_pipeline.sandbox.vendors.endpoint import ScenarioOf, endpoint

FIELDS = {  # name: (title, type)
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


def barchart_routes(scenario_of: ScenarioOf) -> list[BaseRoute]:
    """The site's addresses below its mount point."""
    return [
        Route("/futures/quotes/{future}/options", endpoint(page, scenario_of)),
        Route("/futures/quotes/{future}/options/{code}", endpoint(page, scenario_of)),
        Route("/proxies/core-api/v1/quotes/get", endpoint(quotes, scenario_of)),
    ]


def quotes(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`/proxies/core-api/v1/quotes/get`: the options of one series, or quotes of futures."""
    if refusal := _refuse(request, scenario):
        return refusal
    params = request.query_params
    fields = [name for name in params.get("fields", PAGE_FIELDS).split(",") if name]
    if "symbols" in params or params.get("symbol", "").endswith("^F"):
        wanted = set(params["symbols"].split(",")) if "symbols" in params else None
        rows = [r for r in future_rows(scenario) if wanted is None or r["symbol"][0] in wanted]
        always = ["symbolCode", "symbolType", "hasOptions"]
    else:
        rows = option_rows(scenario, params.get("symbol", ""))
        always = ["symbolCode", "symbolType"]
    if params.get("orderDir") == "desc":
        rows = rows[::-1]
    if scenario.fault == "empty":
        rows = []
    shown = [_select_fields(row, [*fields, *always], raw="raw" in params) for row in rows]
    if scenario.fault == "malformed":
        shown = [_corrupt_row(position, row) for position, row in enumerate(shown)]
    data = _group_rows(shown, params.get("groupBy"))
    reply = {
        "count": len(data),
        "total": len(shown),
        "data": data,
        "meta": {"field": _meta(params.get("meta", ""), [*fields, *always])},
    }
    return _add_cookies(Response(orjson.dumps(reply), media_type="application/json"))


def page(request: Request, body: bytes, scenario: Scenario) -> Response:
    """`/futures/quotes/{future}/options/{code?}`: the page of a series, without its rows."""
    if refusal := _refuse(request, scenario):
        return refusal
    params = {name: str(value).upper() for name, value in request.path_params.items()}
    text = render_page(scenario, params["future"], params.get("code", ""))
    if text is None:
        return HTMLResponse("<html><head><title>Page Not Found</title></head></html>", 404)
    return _add_cookies(HTMLResponse(text))


def _refuse(request: Request, scenario: Scenario) -> Response | None:
    """The site's refusal, or None when it answers."""
    wants_html = "text/html" in request.headers.get("accept", "")
    if scenario.fault == "challenged":
        challenge = {"x-amzn-waf-action": "challenge"}
        return HTMLResponse("<html>challenge</html>" if wants_html else "", 202, headers=challenge)
    if scenario.fault == "blocked":
        return HTMLResponse("<html><head><title>403 Forbidden</title></head></html>", 403)
    if scenario.fault in ("rate_limited", "penalty"):
        return HTMLResponse("<html><title>429 Too Many Requests</title></html>", 429, {"Retry-After": "1"})
    if scenario.fault == "not_entitled":
        return Response(b'{"message":"Unauthenticated."}', 401, media_type="application/json")
    same_origin = request.headers.get("sec-fetch-site") == "same-origin"
    token = unquote(request.cookies.get("XSRF-TOKEN", ""))
    with_token = (
        bool(token) and request.headers.get("x-xsrf-token") == token and "laravel_session" in request.cookies
    )
    if request.url.path.endswith("/quotes/get") and not (same_origin or with_token):
        return HTMLResponse("<html><head><title>403 Forbidden</title></head></html>", 403)
    return None


def _select_fields(row: Row, fields: list[str], *, raw: bool) -> dict[str, Any]:
    cells = {name: row.get(name, ("N/A", None)) for name in fields}
    shown: dict[str, Any] = {name: display for name, (display, _) in cells.items()}
    return shown | ({"raw": {name: value for name, (_, value) in cells.items()}} if raw else {})


def _group_rows(rows: list[dict[str, Any]], group_by: str | None) -> Any:
    """Rows by side or strike; an empty answer is a list in any case."""
    if not rows or group_by not in ("optionType", "strikePrice"):
        return rows
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = row["optionType"] if group_by == "optionType" else str(row["strike"])[:-1]
        groups.setdefault(str(key), []).append(row)
    return groups


def _meta(params: str, fields: list[str]) -> Any:
    known = {name: FIELDS.get(name, (name, "string")) for name in dict.fromkeys(fields)}
    parts = {
        "field.shortName": {name: title for name, (title, _) in known.items()},
        "field.description": {name: f"{title} of the contract." for name, (title, _) in known.items()},
        "field.type": {name: kind for name, (_, kind) in known.items()},
    }
    return {part.partition(".")[2]: parts[part] for part in params.split(",") if part in parts}


def _corrupt_row(position: int, row: dict[str, Any]) -> dict[str, Any]:
    """Break every tenth row, in turn in five ways."""
    if position % 10:
        return row
    corrupt: dict[str, Any] = json.loads(json.dumps(row))
    match position // 10 % 5:
        case 0:
            corrupt["bidPrice"] = "bid"
            corrupt.get("raw", {})["bidPrice"] = {"nested": True}
        case 1:
            corrupt.get("raw", {}).pop("strike", None)
            corrupt["strike"] = None
        case 2:
            corrupt["symbol"] = corrupt["longSymbol"] = "???"
        case 3:
            corrupt["raw"] = None
        case 4:
            corrupt["lastPrice"] = "12,34.5.6s"
            corrupt.get("raw", {})["lastPrice"] = "NaN"
    return corrupt


def _add_cookies(response: Response) -> Response:
    """Add the session's cookies; the token changes with every answer."""
    value = base64.b64encode(json.dumps({"iv": "sandbox", "value": secrets.token_hex(8)}).encode()).decode()
    response.set_cookie("XSRF-TOKEN", quote(value), path="/", samesite="lax")
    response.set_cookie("laravel_token", "sandbox", path="/", httponly=True, samesite="lax")
    response.set_cookie("laravel_session", "sandbox", path="/", httponly=True, samesite="lax")
    response.set_cookie("market", "sandbox", path="/")
    return response
