"""Small Barchart answers of our own making, in the shape the site sends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

Row = dict[str, Any]


def quote(
    code: str,
    strike: int,
    side: str,
    *,
    bid: float | None = None,
    ask: float | None = None,
    last: float | None = None,
    settled: bool = False,
    open_: float | None = None,
    change: float | None = None,
    volume: int | None = None,
    open_interest: int | None = None,
    at: datetime | date = datetime(2025, 6, 10, 14, 38, tzinfo=UTC),
    multiplier: int = 20,
) -> Row:
    """One row: display and raw twins; `at` is a trade's time, or the date of a settlement."""
    symbol = f"{code}|{strike}{side}"
    text, number = _price(last)
    if isinstance(at, datetime):
        time = (f"{at.astimezone(ZoneInfo('America/Chicago')):%H:%M} CT", int(at.timestamp()))
    else:
        time = (f"{at:%m/%d/%y}", int(datetime(at.year, at.month, at.day, tzinfo=UTC).timestamp()))
    cells: dict[str, tuple[str, Any]] = {
        "strike": (f"{strike:,.2f}{side}", strike),
        "openPrice": _price(open_),
        "highPrice": _price(last),
        "lowPrice": _price(last),
        "lastPrice": (text + "s" * settled, number),
        "priceChange": ("N/A", 0)
        if change is None
        else (f"{change:+,.2f}", change)
        if change
        else ("unch", 0),
        "bidPrice": _price(bid),
        "askPrice": _price(ask),
        "volume": _count(volume),
        "openInterest": _count(open_interest),
        "premium": _price(None if last is None else last * multiplier),
        "tradeTime": time,
        "longSymbol": (symbol, symbol),
        "optionType": (("Call", "Call"), ("Put", "Put"))[side == "P"],
        "symbol": (symbol, symbol),
    }
    return {name: shown for name, (shown, _) in cells.items()} | {
        "raw": {name: raw for name, (_, raw) in cells.items()}
    }


def traded(code: str, strike: int, side: str, last: float = 11.0, **more: Any) -> Row:
    """A contract that traded in the session."""
    facts: dict[str, Any] = {
        "bid": 5.75,
        "ask": 6.25,
        "open_": 21.0,
        "volume": 2,
        "open_interest": 8,
        "change": -20.5,
    }
    return quote(code, strike, side, last=last, **(facts | more))


def settled(code: str, strike: int, side: str, last: float = 808.25, **more: Any) -> Row:
    """A contract that did not trade since it was settled the day before."""
    facts: dict[str, Any] = {
        "bid": 806.0,
        "ask": 814.75,
        "change": 0.0,
        "at": date(2025, 6, 9),
        "settled": True,
    }
    return quote(code, strike, side, last=last, **(facts | more))


def board(code: str, strikes: Sequence[int] = (21000, 21350, 22000)) -> list[Row]:
    """A small healthy board: one strike traded, the others settled."""
    return [
        traded(code, strike, side) if strike == strikes[1] else settled(code, strike, side)
        for side in "CP"
        for strike in strikes
    ]


def chain(rows: Sequence[Row], *, group: str | None = "optionType", total: int | None = None) -> bytes:
    """An answer of the quotes API."""
    data: Any = list(rows)
    if group and rows:
        data = {}
        for row in rows:
            key = row["optionType"] if group == "optionType" else row["strike"][:-1]
            data.setdefault(key, []).append(row)
    count = len(data)
    return json.dumps({"count": count, "total": len(rows) if total is None else total, "data": data}).encode()


def futures(**prices: float) -> bytes:
    """A list of futures' quotes."""
    now = datetime(2025, 6, 10, 14, 50, tzinfo=UTC)
    rows = [
        {
            "symbol": symbol,
            "lastPrice": f"{price:,.2f}",
            "tradeTime": "09:50 CT",
            "raw": {"symbol": symbol, "lastPrice": price, "tradeTime": int(now.timestamp())},
        }
        for symbol, price in prices.items()
    ]
    return chain(rows, group=None)


def page(code: str, expiry: str, *, put: int, call: int) -> bytes:
    """An options page with what is read from it."""
    config = {"optionContract": code, "currentSymbol": {"raw": {"symbol": "NQM25", "lastPrice": 21745}}}
    total = '<div class="bc-futures-options-quotes-totals__data-row">{} Open Interest Total <b>{:,}</b></div>'
    return f"""<!doctype html><html><head>
<script id="bc-dynamic-config" type="application/json">{json.dumps(config)}</script></head><body>
<select id="bc-options-toolbar__dropdown-month">
<option value="/futures/quotes/NQM25/options/{code}">Week 2: Jun 2025</option></select>
<div class="bc-options-toolbar__second-row">
<div><strong>1 Days</strong> to expiration on <strong>{expiry}</strong></div>
<div>Price Value of Option point: <strong>$20</strong></div></div>
{total.format("Put", put)}{total.format("Call", call)}</body></html>""".encode()


def _price(value: float | None) -> tuple[str, float]:
    return ("N/A", 0) if value is None else (f"{value:,.2f}", value)


def _count(value: int | None) -> tuple[str, int | None]:
    return ("N/A", None) if value is None else (f"{value:,}", value)
