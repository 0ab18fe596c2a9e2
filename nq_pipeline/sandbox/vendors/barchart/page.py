"""Barchart's options page: a series, its underlying, dropdowns and totals. Only the API has the rows."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator

import polars as pl

from nq_pipeline.market.contracts import Series
from nq_pipeline.market.products import Family
from nq_pipeline.market.symbology import barchart_future
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.vendors.barchart.rows import (
    CHICAGO,
    DELAY,
    Row,
    family_name,
    future_name,
    future_rows,
    listed_series,
    option_rows,
    series_by_code,
    site_code,
)

PAGE_FIELDS = (
    "strike,openPrice,highPrice,lowPrice,lastPrice,priceChange,bidPrice,askPrice,volume,openInterest,"
    "premium,tradeTime,longSymbol,optionType,symbol"
)


def render_page(scenario: Scenario, future: str, code: str) -> str | None:
    """The page of a series' code under a future's address; None when the site has no such page."""
    chain = scenario.market.chain(scenario.shown - DELAY)
    futures = future_rows(scenario)
    if future.endswith("*0"):
        of_product = (row["symbol"][0] for row in futures if row["symbol"][0][:-3] == future[:-2])
        future = next(of_product, future)
    series = series_by_code(chain).get(code or future)
    if series is None:
        return None
    underlying = barchart_future(series)
    quoted = next((row for row in futures if row["symbol"][0] == underlying), None)
    if quoted is None or scenario.fault == "empty":
        return "<html><head><title>No data</title></head><body></body></html>"
    return _html(scenario, chain, series, underlying, quoted)


def _html(scenario: Scenario, chain: pl.DataFrame, series: Series, underlying: str, future: Row) -> str:
    instant = scenario.shown - DELAY
    today = instant.astimezone(CHICAGO).date()
    code, product = site_code(series), series.root_info.product
    name, point = future_name(product.code), int(product.multiplier)
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
        "pointValue": (f"${point}", point),
        "symbolRoot": (product.code, product.code),
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
        "symbolName": name,
        "tradeTime": future["tradeTime"][0],
        "daysToContractExpiration": str(days),
        "exchange": "CME",
        "symbolRoot": product.code,
    }
    shown = [s for s in listed_series(chain) if s.root_info.product is product]
    family = family_name(series)
    types = "".join(_options(_first_of_each_family(shown), series, by_family=True))
    months = "".join(_options([s for s in shown if family_name(s) == family], series, by_family=False))
    totals = "".join(
        f'<div class="bc-futures-options-quotes-totals__data-row"> {title} '
        f'<strong class="right"> {text} </strong> </div>'
        for title, text in _totals(scenario, code)
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<title>{name} Futures Options Prices - synthetic market</title>
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
<div class="column"><div> Price Value of Option point: <strong>${point}</strong> </div></div>
</div>
<a data-bc-download-button="{underlying} options {family} exp-{expiry}">download</a>
</div>
<div class="bc-datatable-middleware-wrapper" data-api-config="{html.escape(json.dumps(config))}"
 data-options="{html.escape(json.dumps(options))}"><bc-data-grid></bc-data-grid></div>
<div class="bc-futures-options-quotes-totals">{totals}</div>
</body></html>
"""


def _first_of_each_family(by_expiration: list[Series]) -> list[Series]:
    first: dict[Family, Series] = {}
    for series in by_expiration:
        first.setdefault(series.root_info.family, series)
    families = by_expiration[0].root_info.product.families
    return [first[family] for family in families if family in first]


def _options(shown: list[Series], chosen: Series, *, by_family: bool) -> Iterator[str]:
    for series in shown:
        path = f"/futures/quotes/{barchart_future(series)}/options"
        path += "" if series.root_info.family.is_standard else f"/{site_code(series)}"
        week = f"Week {series.root_info.week}: " if series.root_info.week else ""
        label = family_name(series) if by_family else f"{week}{series.expiration_date:%b %Y}"
        same = family_name(series) == family_name(chosen) if by_family else series == chosen
        selected = ' selected="selected"' if same else ""
        yield f'<option value="{path}"{selected}>{label}</option>'


def _totals(scenario: Scenario, code: str) -> Iterator[tuple[str, str]]:
    """Titles and texts of the totals: premium and open interest over the rows that the API sends."""
    sums: Counter[tuple[str, str]] = Counter()
    for row in option_rows(scenario, code):
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
