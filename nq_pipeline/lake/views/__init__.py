"""The views of the catalog by subject. A view with parameters is a table macro.

Each has one SQL file, `<name>.sql`. They are pure SQL, so they work in `nq.duckdb` in any tool.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from nq_pipeline.lake.tables import (
    CONSTANT_MATURITY,
    GAMMA_LEVELS,
    INSTANT,
    IV_SMILE,
    OPTION_CHAIN,
    OPTION_PRICING,
    SERIES_METRICS,
    TRADE_PRESSURE,
    TRADES,
    Column,
    Table,
)
from nq_pipeline.lake.tables.table import BOOL, DATE, FLOAT, INT, PRODUCT, TEXT
from nq_pipeline.lake.views.daily import DAILY_VIEWS
from nq_pipeline.lake.views.view import View

_SHOWN = pl.Datetime("us", "UTC")
"""An instant without a `<name>_ns` column."""
_SUM = pl.Decimal(38, 9)
"""A sum of money in DuckDB."""


def _from(table: Table, *names: str) -> tuple[Column, ...]:
    return tuple(column for column in table.columns if column.name in names)


def _one(table: Table, name: str, shown: str = "") -> Column:
    """A column as its table declares it, under the same or another name."""
    (column,) = _from(table, name)
    dtype = _SHOWN if column.dtype == INSTANT else column.dtype
    return Column(shown or name, dtype, column.meaning)


def _shown(table: Table, *names: str) -> tuple[Column, ...]:
    return tuple(_one(table, name) for name in names)


_GREEKS = ("implied_volatility", "delta", "gamma", "theta", "vega")
_COMPUTED = {column.name: column for column in _from(OPTION_PRICING, *_GREEKS)}
_PRICED_AS = {
    name: replace(column, meaning=f"as in option_chain_priced: {column.meaning}")
    for name, column in _COMPUTED.items()
}
_ADDED = tuple(column for column in OPTION_PRICING.columns if column.name not in OPTION_CHAIN.schema)

_IV_SOURCE = (
    Column("iv_source", TEXT, "source of the volatility and the Greeks: computed or vendor"),
    Column("vendor_implied_volatility", FLOAT, "the vendor's, as a fraction, whether or not it is used"),
)

_PRODUCT = Column("product", TEXT, PRODUCT.meaning)
_CHAIN = (*OPTION_CHAIN.columns, _PRODUCT)
_PRICED = (
    *(_COMPUTED.get(column.name, column) for column in OPTION_CHAIN.columns),
    *_IV_SOURCE,
    *_ADDED,
    _PRODUCT,
)

_CHAIN_VIEWS = (
    View(
        "option_chain_latest",
        "The current chain: for every series of the newest trade date, the rows that its newest decision "
        "chose, one row per contract. A proxy's rows are shown only until a native source wins.",
        _CHAIN,
    ),
    View(
        "option_chain_asof",
        "The chain as of `ts`: for every series not yet expired, the newest snapshot requested by then with "
        "quotes from then or earlier, within the newest trade date that has one; a proxy's only if no "
        "native source is newer. `newest_per_contract` gives the newest row of every contract of that "
        "trade date, even if a later snapshot left it out. `lookback` limits how far back a snapshot may "
        "lie.",
        _CHAIN,
        "ts, newest_per_contract := false, lookback := INTERVAL 7 DAYS",
    ),
    View(
        "chain_history",
        "Every chosen row of one contract, oldest first.",
        _CHAIN,
        "key",
    ),
    View(
        "option_chain_priced",
        "The chosen rows with implied volatility and Greeks: ours where the row could be priced, else the "
        "vendor's. `iv_source` says which, and `unpriced` why a row could not be priced.",
        _PRICED,
    ),
    View(
        "option_chain_latest_priced",
        "The current chain with our volatility and Greeks: option_chain_priced for the rows of "
        "option_chain_latest.",
        _PRICED,
    ),
)

_ANALYTICS_VIEWS = (
    View(
        "smile",
        "The volatility smile of the current chain: the priced out-of-the-money contract of every strike.",
        (*IV_SMILE.columns, _PRODUCT),
    ),
    View(
        "surface_fit",
        "Fit of the surface by strike: every quote of the smile beside the fitted curve of its series. "
        "`inside` is false where the quote disagrees with the curve by more than half its width.",
        (
            *IV_SMILE.columns,
            Column("fitted_volatility", FLOAT, "the curve's, as a fraction; null where the series has none"),
            Column("error", FLOAT, "fitted less quoted volatility"),
            Column("error_widths", FLOAT, "error in half-widths of the quote; null without quote"),
            Column("inside", BOOL, "whether the curve passes between bid and ask; null without quote"),
            _PRODUCT,
        ),
    ),
    View(
        "term_structure",
        "The current chain by series: ATM volatility, expected move, put/call ratios, max pain, gamma "
        "exposure. Ordered by `expiration` it is the term structure.",
        (*SERIES_METRICS.columns, _PRODUCT),
    ),
    View(
        "market_history",
        "The market over time: one row per source, snapshot and product, from gamma_levels, the front series "
        "and the constant maturities. The front series is the next to expire that has a forward.",
        (
            *(replace(column, nullable=True) for column in GAMMA_LEVELS.columns),
            _one(SERIES_METRICS, "series", "front_series"),
            _one(SERIES_METRICS, "atm_iv"),
            *(
                replace(_one(CONSTANT_MATURITY, "atm_iv", f"atm_iv_{days}"), meaning=f"ATM IV at {days} days")
                for days in (7, 14, 30, 60, 90)
            ),
            _one(SERIES_METRICS, "expected_move_straddle", "expected_move"),
            *_shown(SERIES_METRICS, "risk_reversal_25", "butterfly_25", "skew_slope"),
        ),
    ),
)

_TRADE_VIEWS = (
    View(
        "pressure",
        "Volume by aggressor in windows of five minutes, one row per window and option that traded, computed "
        "from the current rows of `trades`, including filled gaps and the current window.",
        (
            *(
                _one(TRADE_PRESSURE, column.name)
                for column in TRADE_PRESSURE.columns
                if column.name != "run_id"
            ),
            Column("is_whole", BOOL, "whether the window has ended and no unfilled gap overlaps it"),
            _PRODUCT,
        ),
    ),
    View(
        "trades_enriched",
        "Option trades with the aggressor and the underlying future's last trade at or before the option's, "
        "within the trade date. The future comes from the day's definitions, or else from CME's rule. The "
        "price is null if the future's trades were not captured.",
        (
            *TRADES.columns,
            Column("aggressor", TEXT, "buy or sell; null when not known"),
            Column("underlying_price", FLOAT, "last trade of the underlying by then, points"),
            Column("underlying_ts", INSTANT, "time of that trade"),
            Column("moneyness", FLOAT, "strike ÷ underlying_price"),
            Column("in_the_money", BOOL, "whether the option had intrinsic value"),
            _PRODUCT,
        ),
    ),
    View(
        "bars",
        "Bars of the captured trades of options and futures. `width` is an interval; a bar without a trade "
        "has no row. Bars begin at multiples of the width since 1970-01-01 UTC, like Databento's, so a "
        "session has two daily bars, which share its `trade_date`.",
        (
            Column("trade_date", DATE, "CME session date; a bar never spans two"),
            Column("bar_start", _SHOWN, "when the bar begins, included"),
            Column("raw_symbol", TEXT, "exchange symbol"),
            Column("instrument_kind", TEXT, "option, future, spread or other"),
            Column("contract_key", TEXT, "of an option: series, side and strike"),
            Column("open", FLOAT, "points"),
            Column("high", FLOAT, "points"),
            Column("low", FLOAT, "points"),
            Column("close", FLOAT, "points"),
            Column("volume", INT, "contracts"),
            Column("buy_volume", INT, "contracts bought by the aggressor"),
            Column("sell_volume", INT, "contracts sold by the aggressor"),
            Column("trades", INT, "number of trades"),
            Column("vwap", FLOAT, "volume-weighted average price, points"),
        ),
        "width",
    ),
)

_VENDOR_VIEWS = (
    View(
        "contracts",
        "Every contract that any vendor has listed, one row each, as last seen.",
        (
            *_shown(
                OPTION_CHAIN,
                "contract_key",
                "underlying_class",
                "root",
                "series",
                "option_type",
                "strike",
                "expiration",
                "expiration_date",
                "settlement_style",
                "exercise_style",
                "multiplier",
                "underlying",
                "raw_symbol",
            ),
            Column("first_seen", _SHOWN, "the first snapshot it was in"),
            Column("last_seen", _SHOWN, "the last snapshot it was in"),
            Column("sources", pl.List(TEXT), "vendors that listed it"),
            _PRODUCT,
        ),
    ),
    View(
        "source_agreement",
        "Comparison of vendors: one row per contract and pair of vendors, from each vendor's newest snapshot "
        "of the series on the newest trade date. A gap is the other vendor's value less the source's. "
        "Compare as_of first, because vendors differ in delay.",
        (
            *_shown(OPTION_CHAIN, "trade_date", "series", "contract_key", "source"),
            Column("other_source", TEXT, "the vendor it is compared with"),
            _one(OPTION_CHAIN, "as_of"),
            Column("other_as_of", _SHOWN, "the other's as_of"),
            *_shown(OPTION_CHAIN, "bid", "ask"),
            Column("other_bid", FLOAT, "the other's bid"),
            Column("other_ask", FLOAT, "the other's ask"),
            Column("mid_gap", FLOAT, "difference of the mid prices, points; null unless both have one"),
            Column("quotes_overlap", BOOL, "whether the two quotes overlap"),
            Column(
                "settlement_gap", FLOAT, "points; null unless both are settlements of the same trade date"
            ),
            Column("volume_gap", INT, "contracts"),
            Column("open_interest_gap", INT, "contracts"),
        ),
    ),
)

_OPENBB = (
    Column("underlying_symbol", TEXT, "underlying future, index or fund"),
    _one(OPTION_CHAIN, "underlying_price"),
    Column("contract_symbol", TEXT, "exchange symbol, or contract_key where there is none"),
    _one(OPTION_CHAIN, "trade_date", "eod_date"),
    _one(OPTION_CHAIN, "expiration_date", "expiration"),
    Column("dte", INT, "calendar days from eod_date to expiration"),
    _one(OPTION_CHAIN, "strike"),
    Column("option_type", TEXT, "call or put"),
    _one(OPTION_CHAIN, "multiplier", "contract_size"),
    *_shown(OPTION_CHAIN, "open_interest", "volume"),
    _one(OPTION_CHAIN, "last", "last_trade_price"),
    _one(OPTION_CHAIN, "last_ts", "last_trade_time"),
    *_shown(OPTION_CHAIN, "bid", "bid_size"),
    _one(OPTION_CHAIN, "quote_ts", "bid_time"),
    *_shown(OPTION_CHAIN, "ask", "ask_size"),
    _one(OPTION_CHAIN, "quote_ts", "ask_time"),
    Column("mark", FLOAT, "mid of bid and ask; null when one is missing or they are crossed"),
    *_shown(OPTION_CHAIN, "open", "high", "low"),
    Column("close", FLOAT, "settlement of eod_date; null until the vendor has it"),
    Column("prev_close", FLOAT, "settlement of an earlier trade date"),
    _one(OPTION_CHAIN, "change"),
    *(_PRICED_AS[name] for name in _GREEKS),
)

_TOOL_VIEWS = (
    View(
        "openbb_history",
        "option_chain_priced in the columns of OpenBB's standard model OptionsChainsData, after those that "
        "say which snapshot a row is of. contract_size is the multiplier (20 for NQ). Columns of the model "
        "that no vendor fills are left out.",
        (
            *_from(OPTION_CHAIN, "trade_date", "snapshot_ts", "source", "series", "contract_key"),
            *_OPENBB,
        ),
    ),
    View(
        "openbb_chain",
        "option_chain_latest in the columns of OpenBB's standard model OptionsChainsData.",
        _OPENBB,
    ),
    View(
        "optopsy_chain",
        "Options on the future in the columns that optopsy reads: for every trade date, the newest row of "
        "every contract that has bid, ask and delta. Prices and optopsy's results are in points; multiply "
        "by the contract's multiplier for dollars (20 for NQ).",
        (
            Column("underlying_symbol", TEXT, "underlying future"),
            Column("option_type", TEXT, "c or p"),
            _one(OPTION_CHAIN, "expiration_date", "expiration"),
            _one(OPTION_CHAIN, "trade_date", "quote_date"),
            *_shown(OPTION_CHAIN, "strike", "bid", "ask"),
            _PRICED_AS["delta"],
            _one(OPTION_CHAIN, "underlying_price"),
            *(_PRICED_AS[name] for name in ("gamma", "theta", "vega", "implied_volatility")),
            *(replace(_one(OPTION_CHAIN, name), dtype=FLOAT) for name in ("volume", "open_interest")),
        ),
    ),
)

_SPEND_VIEWS = (
    View(
        "spend_daily",
        "The spend ledger by day, vendor and purpose (`plan`: the monthly fee): USD paid and still reserved, "
        "requests, refusals, and the month's total at the end of the day.",
        (
            Column("day", DATE, "in the time zone of the budgets"),
            Column("vendor", TEXT, "who bills it"),
            Column("purpose", TEXT, "chains, backfill, gap_repair, verify or plan"),
            Column("spent_usd", _SUM, "paid"),
            Column("reserved_usd", _SUM, "still reserved"),
            Column("requests", INT, "reservations made"),
            Column("refused", INT, "reservations refused"),
            Column("month_usd", _SUM, "total of the month at the end of the day"),
            Column("zone", TEXT, "time zone of the budgets"),
        ),
    ),
)

VIEWS = (
    *_CHAIN_VIEWS,
    *_ANALYTICS_VIEWS,
    *_TRADE_VIEWS,
    *DAILY_VIEWS,
    *_VENDOR_VIEWS,
    *_TOOL_VIEWS,
    *_SPEND_VIEWS,
)
"""In order of creation, because _TOOL_VIEWS read option_chain_priced."""
