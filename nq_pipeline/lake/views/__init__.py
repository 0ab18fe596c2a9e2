"""What the catalog shows beside the lake's tables: views, and table macros for what takes a parameter.

One SQL file each, written against the tables' views, in the order of `VIEWS`. They are pure SQL
and so work in the published `nq.duckdb`, too, in whatever tool opens it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from nq_pipeline.lake.tables import (
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
from nq_pipeline.lake.tables.table import PRODUCT


@dataclass(frozen=True, slots=True)
class View:
    """A view, or a table macro.

    Attributes
    ----------
    parameters
        Of a macro, as one writes them in the call; empty for a view.
    columns
        What it returns. Beside every instant of a declared table stands `<name>_ns`.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    parameters: str = ""

    @property
    def is_macro(self) -> bool:
        return bool(self.parameters)

    @property
    def sql(self) -> str:
        return (Path(__file__).parent / f"{self.name}.sql").read_text()


_S, _F, _I, _B, _D = pl.String(), pl.Float64(), pl.Int64(), pl.Boolean(), pl.Date()
_SHOWN = pl.Datetime("us", "UTC")
"""An instant that has no exact column beside it."""
_SUM = pl.Decimal(38, 9)
"""Money, added up by DuckDB."""


def _from(table: Table, *names: str) -> tuple[Column, ...]:
    return tuple(column for column in table.columns if column.name in names)


def _one(table: Table, name: str, shown: str = "") -> Column:
    """A column as its table declares it, under the same or another name."""
    (column,) = _from(table, name)
    dtype = _SHOWN if column.dtype == INSTANT else column.dtype
    return Column(shown or name, dtype, column.meaning)


_GREEKS = ("implied_volatility", "delta", "gamma", "theta", "vega")
_COMPUTED = {column.name: column for column in _from(OPTION_PRICING, *_GREEKS)}
_PRICED_AS = {
    name: replace(column, meaning=f"as in option_chain_priced: {column.meaning}")
    for name, column in _COMPUTED.items()
}
_ADDED = tuple(column for column in OPTION_PRICING.columns if column.name not in OPTION_CHAIN.schema)

_WHOSE = (
    Column("iv_source", _S, "whose the volatility and the Greeks are: computed, else vendor"),
    Column("vendor_implied_volatility", _F, "the vendor's, as a fraction, used or not"),
)

_PRODUCT = Column("product", _S, PRODUCT.meaning)
_CHAIN = (*OPTION_CHAIN.columns, _PRODUCT)
_PRICED = (
    *(_COMPUTED.get(column.name, column) for column in OPTION_CHAIN.columns),
    *_WHOSE,
    *_ADDED,
    _PRODUCT,
)

VIEWS = (
    View(
        "option_chain_latest",
        "The current chain: for every series of the newest trade date the rows its newest decision chose, "
        "one row per contract. Rows of a proxy show only while no native source has won since.",
        _CHAIN,
    ),
    View(
        "option_chain_asof",
        "The chain as it stood at `ts`: of every series not expired the newest snapshot asked for by then "
        "whose quotes speak of then or before, within the newest trade date that has one; of a proxy none "
        "older than the newest of a native source. With "
        "`newest_per_contract` the newest row of every contract of that trade date, also where a later "
        "snapshot left it out. Days without any snapshot are bridged up to `lookback`.",
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
        "vendor's; iv_source says whose, unpriced why not ours.",
        _PRICED,
    ),
    View(
        "option_chain_latest_priced",
        "The current chain with our volatility and Greeks: option_chain_priced, of the rows of "
        "option_chain_latest alone.",
        _PRICED,
    ),
    View(
        "smile",
        "The smile of the current chain: of every strike the out-of-the-money contract that could be priced.",
        (*IV_SMILE.columns, _PRODUCT),
    ),
    View(
        "term_structure",
        "The current chain by series: volatility at the forward, expected move, put/call ratios, max pain, "
        "gamma exposure. By `expiration` it is the term structure.",
        (*SERIES_METRICS.columns, _PRODUCT),
    ),
    View(
        "pressure",
        "Aggressors in windows of five minutes, one row per window and option that traded, counted from "
        "`trades` as they are now, with what filled gaps brought; a window that goes on is in it, too.",
        (
            *(
                _one(TRADE_PRESSURE, column.name)
                for column in TRADE_PRESSURE.columns
                if column.name != "run_id"
            ),
            Column("is_whole", _B, "whether the window is over and touched by no gap that is not filled"),
            _PRODUCT,
        ),
    ),
    View(
        "trades_enriched",
        "Trades of options with the aggressor and the underlying future at that time: its last trade at or "
        "before the option's within the trade date. Which future that is the day's definitions say, else "
        "CME's rule. Null where the future's trades were not captured.",
        (
            *TRADES.columns,
            Column("aggressor", _S, "buy or sell; null when not known"),
            Column("underlying_price", _F, "last trade of the underlying by then, points"),
            Column("underlying_ts", INSTANT, "when that was"),
            Column("moneyness", _F, "strike ÷ underlying_price"),
            Column("in_the_money", _B, "whether exercise would have brought something"),
            _PRODUCT,
        ),
    ),
    View(
        "bars",
        "Bars of the captured trades, of options and futures: `width` is an interval, and a bar without a "
        "trade has no row. Bars begin at multiples of the width since 1970-01-01 UTC, as Databento's do, so "
        "that a session has two bars of a day; they share its `trade_date`.",
        (
            Column("trade_date", _D, "CME session date; a bar never spans two"),
            Column("bar_start", _SHOWN, "when the bar begins, included"),
            Column("raw_symbol", _S, "exchange symbol"),
            Column("instrument_kind", _S, "option, future, spread or other"),
            Column("contract_key", _S, "of an option: series, side and strike"),
            Column("open", _F, "points"),
            Column("high", _F, "points"),
            Column("low", _F, "points"),
            Column("close", _F, "points"),
            Column("volume", _I, "contracts"),
            Column("buy_volume", _I, "contracts whose aggressor bought"),
            Column("sell_volume", _I, "contracts whose aggressor sold"),
            Column("trades", _I, "number of trades"),
            Column("vwap", _F, "average price, weighed by size"),
        ),
        "width",
    ),
    View(
        "contracts",
        "Every contract that any vendor listed, one row each, as it was last seen.",
        (
            *(
                _one(OPTION_CHAIN, name)
                for name in (
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
                )
            ),
            Column("first_seen", _SHOWN, "the first snapshot it was in"),
            Column("last_seen", _SHOWN, "the last snapshot it was in"),
            Column("sources", pl.List(_S), "vendors that listed it"),
            _PRODUCT,
        ),
    ),
    View(
        "source_agreement",
        "Vendors against each other, contract by contract: one row per contract and pair of vendors, of "
        "the newest snapshot each has of the series on the newest trade date. Gaps are the other's less "
        "the source's; look at as_of before blaming anybody, since vendors differ in delay.",
        (
            *(_one(OPTION_CHAIN, name) for name in ("trade_date", "series", "contract_key", "source")),
            Column("other_source", _S, "the vendor it is compared with"),
            _one(OPTION_CHAIN, "as_of"),
            Column("other_as_of", _SHOWN, "the other's as_of"),
            _one(OPTION_CHAIN, "bid"),
            _one(OPTION_CHAIN, "ask"),
            Column("other_bid", _F, "the other's bid"),
            Column("other_ask", _F, "the other's ask"),
            Column("mid_gap", _F, "between the middles of bid and ask, points; null unless both have one"),
            Column("quotes_overlap", _B, "whether some price lies within both quotes"),
            Column("settlement_gap", _F, "points; null unless both are settlements of the same trade date"),
            Column("volume_gap", _I, "contracts"),
            Column("open_interest_gap", _I, "contracts"),
        ),
    ),
    View(
        "openbb_chain",
        "option_chain_latest in the columns of OpenBB's standard model OptionsChainsData; contract_size is "
        "the multiplier (20 for NQ). Columns of the model that no vendor here fills are left out.",
        (
            Column("underlying_symbol", _S, "underlying future, index or fund"),
            _one(OPTION_CHAIN, "underlying_price"),
            Column("contract_symbol", _S, "exchange symbol, or contract_key where there is none"),
            _one(OPTION_CHAIN, "trade_date", "eod_date"),
            _one(OPTION_CHAIN, "expiration_date", "expiration"),
            Column("dte", _I, "calendar days from eod_date to expiration"),
            _one(OPTION_CHAIN, "strike"),
            Column("option_type", _S, "call or put"),
            _one(OPTION_CHAIN, "multiplier", "contract_size"),
            _one(OPTION_CHAIN, "open_interest"),
            _one(OPTION_CHAIN, "volume"),
            _one(OPTION_CHAIN, "last", "last_trade_price"),
            _one(OPTION_CHAIN, "last_ts", "last_trade_time"),
            _one(OPTION_CHAIN, "bid"),
            _one(OPTION_CHAIN, "bid_size"),
            _one(OPTION_CHAIN, "quote_ts", "bid_time"),
            _one(OPTION_CHAIN, "ask"),
            _one(OPTION_CHAIN, "ask_size"),
            _one(OPTION_CHAIN, "quote_ts", "ask_time"),
            Column("mark", _F, "middle of bid and ask; null when one is missing or they are crossed"),
            *(_one(OPTION_CHAIN, name) for name in ("open", "high", "low")),
            Column("close", _F, "settlement of eod_date; null until the vendor has it"),
            Column("prev_close", _F, "settlement of an earlier trade date"),
            _one(OPTION_CHAIN, "change"),
            *(_PRICED_AS[name] for name in _GREEKS),
        ),
    ),
    View(
        "optopsy_chain",
        "Options on the future in the columns optopsy takes: of every trade date the newest row of every "
        "contract that has bid, ask and delta. Prices are points, and so are its results: a point is worth "
        "the contract's multiplier in dollars (20 for NQ).",
        (
            Column("underlying_symbol", _S, "underlying future"),
            Column("option_type", _S, "c or p"),
            _one(OPTION_CHAIN, "expiration_date", "expiration"),
            _one(OPTION_CHAIN, "trade_date", "quote_date"),
            *(_one(OPTION_CHAIN, name) for name in ("strike", "bid", "ask")),
            _PRICED_AS["delta"],
            _one(OPTION_CHAIN, "underlying_price"),
            *(_PRICED_AS[name] for name in ("gamma", "theta", "vega", "implied_volatility")),
            *(replace(_one(OPTION_CHAIN, name), dtype=_F) for name in ("volume", "open_interest")),
        ),
    ),
    View(
        "spend_daily",
        "The spend ledger by day, vendor and purpose (`plan`: the monthly fee): USD paid and still reserved, "
        "requests, refusals, and what the month had come to at the end of the day.",
        (
            Column("day", _D, "in the zone of the budgets"),
            Column("vendor", _S, "who bills it"),
            Column("purpose", _S, "chains, backfill, gap_repair, verify or plan"),
            Column("spent_usd", _SUM, "paid"),
            Column("reserved_usd", _SUM, "still reserved"),
            Column("requests", _I, "reservations made"),
            Column("refused", _I, "reservations refused"),
            Column("month_usd", _SUM, "what the month had come to"),
            Column("zone", _S, "zone of the budgets"),
        ),
    ),
)
"""In the order they are made: openbb_chain and optopsy_chain read option_chain_priced."""
