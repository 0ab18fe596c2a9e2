"""Barchart's rows of contracts: every value twice, as display text and raw.

A missing value is `N/A` with raw 0 for prices and raw null for counts; `s` follows a settlement; rows
carry one digit of the year. Quotes are ten minutes old, as on the site. The site's codes for a fifth
Monday and Thursday are not known, so those series are missing.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.symbology import barchart_code, barchart_future
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.market import AnyMarket
from nq_pipeline.sandbox.synthetic.profiles import PROFILES
from nq_pipeline.sandbox.vendors.endpoint import json_number

DELAY = timedelta(minutes=10)
CHICAGO = ZoneInfo("America/Chicago")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")

Cell = tuple[str, Any]
"""A value as the site sends it: (display, raw)."""
Row = dict[str, Cell]


def option_rows(scenario: Scenario, symbol: str) -> list[Row]:
    """The options of a series by the site's code; empty for a code that is not listed."""
    instant = scenario.shown - DELAY
    series = series_by_code(scenario.market.chain(instant)).get(symbol.upper())
    minute = instant.replace(second=0, microsecond=0)
    return _series_rows(scenario.market, minute, series) if series else []


@lru_cache(maxsize=64)
def _series_rows(market: AnyMarket, minute: datetime, series: Series) -> list[Row]:
    """All rows of one series; cached, because the page adds up what the API sends."""
    options = market.chain(minute).filter(pl.col("series") == series.key)
    moment = market.moment(minute)
    days = (series.expiration_date - moment.astimezone(CHICAGO).date()).days
    same: Row = {
        "symbolName": (_name(series),) * 2,
        "baseSymbol": (barchart_future(series),) * 2,
        "expirationDate": (f"{series.expiration_date:%m/%d/%y}", f"{series.expiration_date:%Y-%m-%d}"),
        "daysToExpiration": (str(days), days),
        "symbolCode": ("FUTOPT", "FUTOPT"),
        "symbolType": (12, 12),  # type: ignore[dict-item]  # a number in both twins, as recorded
    }
    session = sessions.current_session(moment)
    code, multiplier = str(barchart_code(series, year_digits=1)), series.root_info.product.multiplier
    return [
        _option_row(row, code, multiplier, session, moment, lowest=number == 0) | same
        for number, row in enumerate(options.iter_rows(named=True))
    ]


def _option_row(
    row: dict[str, Any],
    code: str,
    multiplier: float,
    session: sessions.Session,
    moment: datetime,
    *,
    lowest: bool,
) -> Row:
    """One contract as the site shows it, without what is the same for the whole series.

    A contract that traded today shows its last trade until the session is closed and settled, even when
    its series has expired meanwhile (an assumption: only answers after the close were recorded). Any
    other shows the settlement with an `s`, dated by its session and with that session's volume. The
    lowest call lacks the `s`, as recorded.
    """
    settled = row["settlement_date"] == session.trade_date
    today = row["volume"] > 0 and not (settled and moment >= session.close)
    prefix = "" if today or settled else "prior_"
    traded = row[f"{prefix}volume"] > 0 and (today or row["settlement"] is not None)
    last = row["last"] if today else row["settlement"]
    before = row["settlement"] if today and not settled else row["previous_settlement"]
    high = max(row[f"{prefix}high"], last) if traded else last
    low = min(row[f"{prefix}low"], last) if traded else last
    time: Cell
    if today:
        time = (f"{row['last_ts'].astimezone(CHICAGO):%H:%M} CT", int(row["last_ts"].timestamp()))
    elif last is not None:
        time = (f"{row['settlement_date']:%m/%d/%y}", _midnight(row["settlement_date"]))
    else:
        time = ("N/A", None)
    suffix = "" if today or lowest or last is None else "s"
    text, number = _price(last)
    side, strike = row["option_type"], row["strike"]
    symbol = f"{code}|{strike:.0f}{side}"
    sides = {"C": "Call", "P": "Put"}
    expires_today = row["expiration_date"] == moment.astimezone(CHICAGO).date()
    volatility = 0.0 if expires_today else round(row["implied_volatility"] * 100, 2)
    return {
        "strike": (f"{strike:,.2f}{side}", json_number(strike)),
        "strikePrice": _price(strike),
        "openPrice": _price(row[f"{prefix}open"] if traded and (today or not lowest) else None),
        "highPrice": _price(high),
        "lowPrice": _price(low),
        "lastPrice": (text + suffix, number),
        "priceChange": _change(last, before),
        "previousPrice": _price(before),
        "bidPrice": _price(row["bid"]),
        "askPrice": _price(row["ask"]),
        "volume": _count(row[f"{prefix}volume"] if traded else 0),
        "openInterest": _count(row["open_interest"]),
        "premium": _price(None if last is None else round(last * multiplier, 2)),
        "tradeTime": time,
        "longSymbol": (symbol, symbol),
        "optionType": (sides[side], sides[side]),
        "symbol": (symbol, symbol),
        "optImpliedVolatility": (f"{volatility:.2f}%", volatility),
        **{name: (f"{row[name]:.4f}", round(row[name], 8)) for name in ("delta", "gamma", "theta")},
        "vega": (f"{row['vega'] / 100:.4f}", round(row["vega"] / 100, 8)),
    }


def future_rows(scenario: Scenario) -> list[Row]:
    """The listed futures, nearest first."""
    instant = scenario.shown - DELAY
    session = sessions.current_session(instant)
    rows = []
    for future in scenario.market.futures(instant).iter_rows(named=True):
        symbol = _year_symbol(future["symbol"], future["expiration"])
        settled = future["settlement_date"] == session.trade_date
        closed = settled and instant >= session.close
        last = future["settlement"] if closed else future["last"]
        before = future["previous_settlement"] if settled else future["settlement"]
        moment = future["last_ts"].astimezone(CHICAGO)
        text, number = _price(last)
        rows.append(
            {
                "symbol": (symbol, symbol),
                "contractSymbol": (_contract(symbol, future["expiration"]),) * 2,
                "symbolName": (future_name(future["product"]),) * 2,
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


def _price(value: float | None) -> Cell:
    return ("N/A", 0) if value is None else (f"{value:,.2f}", json_number(value))


def _change(value: float | None, before: float | None) -> Cell:
    if value is None or before is None:
        return "N/A", 0
    change = round(value - before, 2)
    return (f"{change:+,.2f}", json_number(change)) if change else ("unch", 0)


def _count(value: int) -> Cell:
    return (f"{value:,}", value) if value else ("N/A", None)


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def site_code(series: Series) -> str:
    """The site's code with a two-digit year (`MM1N25`), '' where it is not known."""
    code = barchart_code(series)
    return code if isinstance(code, str) else ""


def series_by_code(chain: pl.DataFrame) -> dict[str, Series]:
    """Listed series by their codes with one and two digits of the year."""
    by_code: dict[str, Series] = {}
    for series in listed_series(chain):
        code = site_code(series)
        by_code[code] = series
        by_code.setdefault(code[:-2] + code[-1], series)
    return by_code


def listed_series(chain: pl.DataFrame) -> list[Series]:
    """Series of the chain that the site has a code for, by expiration."""
    series = (Series.parse(key) for key in chain["series"].unique(maintain_order=True))
    return [s for s in series if site_code(s)]


def _year_symbol(symbol: str, expiration: datetime) -> str:
    return f"{symbol[:-1]}{expiration:%y}"


def _contract(symbol: str, expiration: datetime) -> str:
    return f"{symbol} ({expiration:%b '%y})"


def future_name(product: str) -> str:
    """The site's name of a product's future."""
    return PROFILES[product].name + (" E-Mini" if PROFILES[product].exchange == "XCME" else "")


def family_name(series: Series) -> str:
    """The name of a series' family in the page's first dropdown."""
    family = series.root_info.family
    if family.weekday is None or family.kind != "weekly":
        return "EOM Options" if family.kind == "end_of_month" else "Monthly Options"
    return f"{DAYS[family.weekday]} Weekly Options"


def _name(series: Series) -> str:
    family = family_name(series).removesuffix(" Options")
    week = f" Week {series.root_info.week}" if series.root_info.week else ""
    name = PROFILES[series.root_info.product.code].name
    return f"{name} {family}{week} Options {series.expiration_date:%b '%y}"
