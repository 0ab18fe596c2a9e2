"""The tables of the lake, declared once: columns, keys, order on disk, version.

Everything else derives from here: the cast on write, the Parquet footer, Dagster's column
schema, the views and the table reference in the documentation. Missing is null, never 0.
Instants are `timestamp[ns, UTC]`; prices and strikes are float64; DBN's integers keep their width.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from nq_pipeline.errors import LakeError

INSTANT = pl.Datetime("ns", "UTC")
PARTITION = "trade_date"
"""The column every table has and is partitioned by."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, polars type and what it means (unit, zone, when it is null).

    `was` is its type in files of an older version, where that was another.
    """

    name: str
    dtype: pl.DataType
    meaning: str
    nullable: bool = True
    was: pl.DataType | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the lake.

    Attributes
    ----------
    meaning
        What a row is, in one sentence.
    key
        Columns that make a row unique; appending a row whose key is there adds nothing.
    order
        Sort order inside a file. A chain is sorted by contract: a file of a whole trade date then holds a
        contract's day in one place, and the chain of a moment costs about as much as in order of time.
    since
        The instant column whose range a manifest keeps per file, so that readers prune files.
    """

    name: str
    version: int
    meaning: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    order: tuple[str, ...]
    since: str

    @property
    def schema(self) -> pl.Schema:
        return pl.Schema({column.name: column.dtype for column in self.columns})

    @property
    def total_order(self) -> list[str]:
        """`order`, made unambiguous by the key, so that sorted rows have one order."""
        return list(dict.fromkeys((*self.order, *self.key)))

    def empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema=self.schema)


def conform(table: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """Bring a frame to a table's columns, order and types; a nullable column may be missing.

    A column of text may come as categories (`pl.Enum`) and stays so: few texts in many rows are
    written several times faster, and read as text all the same.

    Raises
    ------
    LakeError
        A column is unknown, missing, of a type that does not fit, or null where it may not be.
    """
    names = table.schema.names()
    required = [column.name for column in table.columns if not column.nullable]
    unknown = sorted(set(frame.columns) - set(names))
    missing = [name for name in required if name not in frame.columns]
    if unknown or missing:
        raise LakeError(f"rows for {table.name} have unknown columns {unknown} and lack {missing}")
    given = {name: pl.col(name) if name in frame.columns else pl.lit(None) for name in names}
    types = dict(table.schema)
    for name, dtype in frame.schema.items():
        # Categories are text already. They have an order of their own, so not where rows are sorted by it.
        if isinstance(dtype, pl.Enum) and types[name] == pl.String and name not in table.total_order:
            types[name] = dtype
    try:
        frame = frame.select(given[name].cast(dtype).alias(name) for name, dtype in types.items())
    except pl.exceptions.PolarsError as error:
        raise LakeError(f"rows for {table.name} do not have its types: {error}") from None
    holes = [name for name in required if frame[name].null_count()]
    if holes:
        raise LakeError(f"rows for {table.name} hold nulls where none may be: {holes}")
    return frame


def _c(
    name: str, dtype: object, meaning: str, nullable: bool = True, was: pl.DataType | None = None
) -> Column:
    return Column(name, dtype, meaning, nullable, was)  # type: ignore[arg-type]


_S, _F, _I, _B, _D = pl.String(), pl.Float64(), pl.Int64(), pl.Boolean(), pl.Date()
USD = pl.Decimal(18, 9)
"""Money: exact, to the billionth of a dollar."""

CHAIN_COLUMNS = (
    _c("source", _S, "vendor: barchart, polygon, tradovate, databento", False),
    _c("environment", _S, "sandbox (synthetic) or live", False),
    _c("snapshot_ts", INSTANT, "when the pipeline asked; a cache hit keeps the original", False),
    _c("as_of", INSTANT, "the moment the vendor's quotes speak of", False),
    _c("trade_date", _D, "CME session date of the snapshot", False),
    _c("underlying_class", _S, "future (NQ, ES, GC), index (NDX, SPX) or etf (QQQ, SPY)", False),
    _c("underlying", _S, "underlying future (NQM5), index (NDX, SPX) or fund (QQQ, SPY)"),
    _c("underlying_price", _F, "price of the underlying as the vendor showed it, index points or dollars"),
    _c("root", _S, "Globex product code, or a proxy's: NDX, NDXP, QQQ, SPX, SPXW, SPY", False),
    _c("series", _S, "root and expiration date, Q1B-2025-07-01", False),
    _c("raw_symbol", _S, "exchange symbol: 'Q1BN5 C21330', or the OCC-style ticker"),
    _c("vendor_symbol", _S, "the vendor's own code for the contract, as sent", False),
    _c("contract_key", _S, "series, side and strike, Q1B-2025-07-01-C-21330", False),
    _c("expiration", INSTANT, "the instant trading ends", False),
    _c("expiration_date", _D, "its local date", False),
    _c("settlement_style", _S, "AM or PM", False),
    _c("exercise_style", _S, "american or european", False),
    _c("strike", _F, "index points or dollars", False),
    _c("option_type", _S, "C or P", False),
    _c("multiplier", _F, "dollars per point: 20 for NQ, 50 for ES, 100 for GC and proxies", False),
    _c("bid", _F, "best bid, points or dollars; null when the vendor shows none"),
    _c("bid_size", _I, "contracts at the bid"),
    _c("ask", _F, "best ask, points or dollars; null when the vendor shows none"),
    _c("ask_size", _I, "contracts at the ask"),
    _c("quote_ts", INSTANT, "when bid and ask were last updated, where the vendor says so"),
    _c("last", _F, "last trade, points or dollars; null on a settlement row"),
    _c("last_ts", INSTANT, "when the contract last traded (a date-only time is its midnight UTC)"),
    _c("is_settlement", _B, "the vendor's price is a settlement, not a trade", False),
    _c("settlement", _F, "settlement price, points or dollars"),
    _c("settlement_date", _D, "trade date the settlement is of; null where the vendor does not say"),
    _c("open", _F, "first trade of the session the row speaks of, points or dollars"),
    _c("high", _F, "session high, points or dollars"),
    _c("low", _F, "session low, points or dollars"),
    _c("change", _F, "last or settlement less the previous settlement, points or dollars"),
    _c("volume", _I, "contracts traded in the current session; null when of another session"),
    _c("open_interest", _I, "open contracts, as of the previous trade date"),
    _c("implied_volatility", _F, "the vendor's, as a fraction"),
    _c("delta", _F, "the vendor's, as a fraction"),
    _c("gamma", _F, "the vendor's, per point"),
    _c("theta", _F, "the vendor's, per day"),
    _c("vega", _F, "the vendor's, per 1.00 of volatility"),
    _c("instrument_id", _I, "Databento's id; reused over time, never a key across days"),
    _c("run_id", _S, "the run that wrote the row", False),
    _c("request_id", _S, "the request that brought it (fetches.request_id)", False),
    _c("raw_sha256", _S, "digest of the archived answer", False),
)

SOURCE_CHAIN = Table(
    name="source_chain",
    version=2,
    meaning="What vendors sent: one row per source, snapshot and contract.",
    columns=CHAIN_COLUMNS,
    key=("source", "snapshot_ts", "contract_key"),
    order=("contract_key", "source", "snapshot_ts"),
    since="snapshot_ts",
)

OPTION_CHAIN = Table(
    name="option_chain",
    version=2,
    meaning="The chosen rows: one row per snapshot and contract, from the source that won its series.",
    columns=(
        *CHAIN_COLUMNS,
        _c("selected_at", INSTANT, "when this source was first chosen for the series (real time)", False),
        _c("selection_reason", _S, "why this source won, in words", False),
    ),
    key=("source", "snapshot_ts", "contract_key"),
    order=("contract_key", "snapshot_ts"),
    since="snapshot_ts",
)

OPTION_PRICING = Table(
    name="option_pricing",
    version=1,
    meaning="What we compute from option_chain: implied volatility and Greeks, one row per row of it.",
    columns=(
        _c("source", _S, "vendor whose quote was priced", False),
        _c("environment", _S, "sandbox (synthetic) or live", False),
        _c("snapshot_ts", INSTANT, "that of the chain's row", False),
        _c("trade_date", _D, "CME session date of the snapshot", False),
        _c("series", _S, "root and expiration date, Q1B-2025-07-01", False),
        _c("contract_key", _S, "series, side and strike, Q1B-2025-07-01-C-21330", False),
        _c(
            "valued_at",
            INSTANT,
            "the chain's as_of; of a settlement the moment it was made, by its settlement_date",
            False,
        ),
        _c("price", _F, "the price that was valued, points or dollars"),
        _c("price_used", _S, "mid (of bid and ask), settlement or last"),
        _c("price_age_s", _F, "seconds from the last trade, or from the settlement, to as_of; 0 for a quote"),
        _c("forward", _F, "the future's price the row was valued on"),
        _c("forward_source", _S, "parity (of the series' quotes) or underlying (the vendor's future)"),
        _c("parity_forward", _F, "the series' forward by put-call parity near the money, used or not"),
        _c("parity_spread", _F, "interquartile range of the pairs' forwards, points"),
        _c("parity_pairs", _I, "pairs of call and put it was made from", False),
        _c(
            "parity_gap", _F, "parity_forward less the vendor's price of the underlying; null for settlements"
        ),
        _c("rate", _F, "interest rate per year, continuously compounded (NQ_RISK_FREE_RATE)", False),
        _c("years", _F, "from valued_at to expiration, in years of 365 days", False),
        _c("model", _S, "black76, or ju_zhong (American); null when not priced"),
        _c("implied_volatility", _F, "as a fraction"),
        _c("delta", _F, "by the future's price, as a fraction"),
        _c("gamma", _F, "per point"),
        _c("theta", _F, "per calendar day"),
        _c("vega", _F, "per 1.00 of volatility"),
        _c(
            "iv_uncertainty",
            _F,
            "half the width of the quote, at least half a tick, in volatility; null when not of a quote",
        ),
        _c(
            "unpriced",
            _S,
            "why there is no implied volatility: expired, crossed, one_sided, stale_last, "
            "no_quote, no_forward, below_intrinsic, above_bound, no_solution; null when there is",
        ),
        _c("run_id", _S, "the run that computed it", False),
    ),
    key=("source", "snapshot_ts", "contract_key"),
    order=("contract_key", "snapshot_ts"),
    since="snapshot_ts",
)

_SNAPSHOT = (
    _c("source", _S, "vendor of the chain", False),
    _c("environment", _S, "sandbox (synthetic) or live", False),
    _c("snapshot_ts", INSTANT, "that of the chain's rows", False),
    _c("trade_date", _D, "CME session date of the snapshot", False),
    _c("underlying_class", _S, "future (NQ, ES, GC), index (NDX, SPX) or etf (QQQ, SPY)", False),
)
_SERIES = (
    *_SNAPSHOT,
    _c("root", _S, "Globex product code, or a proxy's: NDX, NDXP, QQQ, SPX, SPXW, SPY", False),
    _c("series", _S, "root and expiration date, Q1B-2025-07-01", False),
)
_STRIKE = (*_SERIES, _c("strike", _F, "index points or dollars", False))
_TOTALS = (
    _c("call_open_interest", _I, "open calls; null when no row says"),
    _c("put_open_interest", _I, "open puts; null when no row says"),
    _c("call_volume", _I, "calls traded in the session; null when no row says"),
    _c("put_volume", _I, "puts traded in the session; null when no row says"),
)
_RATIOS = (
    _c("put_call_open_interest", _F, "puts per call; null without calls"),
    _c("put_call_volume", _F, "puts per call; null without calls"),
)
_GEX = (
    _c("gex_per_point", _F, "net gamma exposure, dollars per point, were dealers long calls, short puts"),
    _c("gex_per_pct", _F, "the same, dollars per 1 % of the forward"),
)

IV_SMILE = Table(
    name="iv_smile",
    version=1,
    meaning="The volatility smile: the out-of-the-money contract of every strike that has a price.",
    columns=(
        *_STRIKE,
        _c("option_type", _S, "P below the forward, else C", False),
        _c("forward", _F, "the future's price it was valued on", False),
        _c("years", _F, "to expiration, in years of 365 days", False),
        _c("log_moneyness", _F, "ln(strike / forward)", False),
        _c("deviations", _F, "log_moneyness in its own standard deviations, σ√t"),
        _c("implied_volatility", _F, "ours, as a fraction", False),
        _c(
            "iv_uncertainty",
            _F,
            "half the width of the quote, at least half a tick, in volatility; null when not of a quote",
        ),
        _c("run_id", _S, "the run that computed it", False),
    ),
    key=("source", "snapshot_ts", "series", "strike"),
    order=("snapshot_ts", "series", "strike"),
    since="snapshot_ts",
)

STRIKE_PROFILE = Table(
    name="strike_profile",
    version=1,
    meaning="Open interest, volume and gamma exposure by strike: one row per snapshot, series and strike.",
    columns=(
        *_STRIKE,
        *_TOTALS,
        _c("payout", _F, "dollars all open options would pay if settled at this strike", False),
        _c("call_gex_per_point", _F, "of the call; null without gamma or open interest"),
        _c("put_gex_per_point", _F, "of the put, at or below 0; null without gamma or open interest"),
        _c("call_gex_per_pct", _F, "of the call, dollars per 1 %"),
        _c("put_gex_per_pct", _F, "of the put, dollars per 1 %"),
        *_GEX,
        _c("run_id", _S, "the run that computed it", False),
    ),
    key=("source", "snapshot_ts", "series", "strike"),
    order=("snapshot_ts", "series", "strike"),
    since="snapshot_ts",
)

SERIES_METRICS = Table(
    name="series_metrics",
    version=1,
    meaning="Term structure, expected move, put/call ratios, max pain: one row per snapshot and series.",
    columns=(
        *_SERIES,
        _c("expiration", INSTANT, "the instant trading ends", False),
        _c("years", _F, "to expiration, in years of 365 days"),
        _c("forward", _F, "median of the forwards the series' rows were valued on"),
        _c("atm_iv", _F, "volatility at the forward, linear between the strikes around it"),
        _c("atm_strike", _F, "nearest the forward, of those with call and put quoted or settled"),
        _c("expected_move_straddle", _F, "price of its straddle, points: the mean absolute move"),
        _c("expected_move_iv", _F, "forward × atm_iv × √years, points: one standard deviation"),
        *_TOTALS,
        *_RATIOS,
        _c("max_pain", _F, "strike of the least payout, the lowest of equals; null without open interest"),
        *_GEX,
        _c("run_id", _S, "the run that computed it", False),
    ),
    key=("source", "snapshot_ts", "series"),
    order=("snapshot_ts", "series"),
    since="snapshot_ts",
)

GAMMA_LEVELS = Table(
    name="gamma_levels",
    version=1,
    meaning="All series of a product together: one row per source, snapshot and product.",
    columns=(
        *_SNAPSHOT,
        _c("product", _S, "what the options are on: NQ, ES, GC, or a proxy's NDX, QQQ, SPX, SPY", False),
        _c("forward", _F, "of the first contract to expire: what zero_gamma is measured in"),
        *_TOTALS,
        *_RATIOS,
        *_GEX,
        _c("zero_gamma", _F, "level where net exposure changes sign; null when none is within 10 %"),
        _c("contracts", _I, "contracts in the exposure", False),
        _c(
            "open_interest_left_out",
            _I,
            "open contracts that could not be priced, not in the exposure",
            False,
        ),
        _c("run_id", _S, "the run that computed it", False),
    ),
    key=("source", "snapshot_ts", "product"),
    order=("snapshot_ts", "source", "product"),
    since="snapshot_ts",
)

TRADE_PRESSURE = Table(
    name="trade_pressure",
    version=1,
    meaning="Aggressors in windows of five minutes, as counted at the time: one row per window and option "
    "that traded, another with more trades where a gap was filled later. The view `pressure` counts anew.",
    columns=(
        _c("environment", _S, "sandbox (synthetic) or live", False),
        _c("trade_date", _D, "CME session date", False),
        _c("window_start", INSTANT, "start of the five minutes, included", False),
        _c("root", _S, "Globex product code", False),
        _c("series", _S, "root and expiration date, Q1B-2025-07-01", False),
        _c("contract_key", _S, "series, side and strike, Q1B-2025-07-01-C-21330", False),
        _c("option_type", _S, "C or P", False),
        _c("strike", _F, "index points or dollars", False),
        _c("buy_volume", _I, "contracts whose aggressor bought", False),
        _c("sell_volume", _I, "contracts whose aggressor sold", False),
        _c("undefined_volume", _I, "contracts without a known aggressor, of neither side", False),
        _c("trades", _I, "number of trades, of all three", False),
        _c("average_size", _F, "contracts per trade, of all three", False),
        _c("buy_sell_ratio", _F, "buy_volume / sell_volume; null without sells"),
        _c("imbalance", _F, "(buy − sell) / (buy + sell), from −1 to 1; null without either"),
        _c("dominant_side", _S, "B or A, of the larger volume; null when equal"),
        _c("run_id", _S, "the run that computed it", False),
    ),
    key=("environment", "window_start", "contract_key", "trades"),
    order=("window_start", "contract_key", "trades"),
    since="window_start",
)

DECISIONS = Table(
    name="decisions",
    version=1,
    meaning="Which source won each series and why the others lost: one row per run, series and candidate.",
    columns=(
        _c("run_id", _S, "the run that decided", False),
        _c("decided_at", INSTANT, "when (real time)", False),
        _c("snapshot_ts", INSTANT, "snapshot of the source's rows; the run's own where it has none", False),
        _c("trade_date", _D, "CME session date", False),
        _c("environment", _S, "sandbox or live", False),
        _c("series", _S, "the series decided on; the proxy's own series where a proxy stood", False),
        _c("source", _S, "the candidate", False),
        _c("rank", _I, "its place in the priority, from 1", False),
        _c("outcome", _S, "outcome of the candidate for this series", False),
        _c("won", _B, "whether it was chosen", False),
        _c("reason", _S, "why it won or lost, one sentence", False),
        _c("contracts", _I, "rows it offered", False),
        _c("quoted", _I, "rows with a bid or an ask", False),
        _c("newest_ts", INSTANT, "newest quote or trade among them"),
    ),
    key=("run_id", "series", "source"),
    order=("decided_at", "series", "rank"),
    since="decided_at",
)

ANSWERS = Table(
    name="answers",
    version=1,
    meaning="What a vendor's whole answer came to, and what of it could not be used: one row per run and "
    "vendor asked.",
    columns=(
        _c("run_id", _S, "the run that asked", False),
        _c("answered_at", INSTANT, "when the run had it (real time)", False),
        _c("trade_date", _D, "CME session date of the run", False),
        _c("environment", _S, "sandbox or live", False),
        _c("source", _S, "vendor", False),
        _c("outcome", _S, "outcome of the whole answer", False),
        _c("reason", _S, "one sentence when it was not ok"),
        _c("contracts", _I, "rows it gave", False),
        _c("series", _I, "series it gave rows of", False),
        _c("dropped", _I, "rows and cells that were sent and could not be used", False),
        _c("dropped_by_reason", _S, "their number by reason, as JSON; null when there are none"),
        _c("controls", _S, "the vendor's control totals and whether they held, as JSON; null without any"),
        _c("cached", _B, "nobody was asked: a kept answer was still fresh", False),
        _c("elapsed_s", _F, "seconds of asking and parsing", False),
    ),
    key=("run_id", "source"),
    order=("answered_at", "source"),
    since="answered_at",
)

FETCHES = Table(
    name="fetches",
    version=2,
    meaning="One row per request to a vendor and what came of it.",
    columns=(
        _c("request_id", _S, "unique per request", False),
        _c("run_id", _S, "the run that asked", False),
        _c("source", _S, "vendor", False),
        _c("environment", _S, "sandbox or live", False),
        _c("trade_date", _D, "CME session date of the run", False),
        _c("snapshot_ts", INSTANT, "snapshot the answer belongs to; of the original on a hit", False),
        _c("requested_at", INSTANT, "when it was asked (real time)", False),
        _c("operation", _S, "what was asked: chain, page, snapshot, definition, …", False),
        _c("url", _S, "address without secrets", False),
        _c("status", _I, "HTTP status; null when nothing answered or not HTTP"),
        _c("outcome", _S, "what came of it", False),
        _c("detail", _S, "one sentence when it was not ok"),
        _c("latency_ms", _F, "from asking to the last byte, retries included", False),
        _c("bytes", _I, "size of the body", False),
        _c("cache", _S, "hit, miss or none", False),
        _c("cost_usd", USD, "metered cost; 0 where asking is free", False, was=_F),
        _c("raw_sha256", _S, "digest of the archived body; null when nothing was archived"),
    ),
    key=("request_id",),
    order=("requested_at",),
    since="requested_at",
)

_U8, _U16, _U32, _U64, _I32 = pl.UInt8(), pl.UInt16(), pl.UInt32(), pl.UInt64(), pl.Int32()

_TICK_KEY = ("publisher_id", "instrument_id", "ts_event", "sequence", "ordinal")
_TICK_ORDER = ("instrument_id", "ts_event", "sequence")


def _tick_columns(*own: Column) -> tuple[Column, ...]:
    """The columns of a table of DBN records: Databento's, its schema's own, and ours beside them."""
    return (
        _c("ts_event", INSTANT, "when the matching engine received it", False),
        _c("ts_recv", INSTANT, "when Databento received it"),
        _c("trade_date", _D, "CME session date of ts_event, of ts_recv where it is misdated", False),
        _c("publisher_id", _U16, "Databento's number of dataset and venue: 1 is GLBX.MDP3", False),
        _c("instrument_id", _U32, "Databento's id; reused over time, never a key across days", False),
        _c("sequence", _U32, "the venue's number of the message, per channel", False),
        _c("ordinal", _U32, "which record of its instrument, ts_event and sequence it is, from 0", False),
        _c("action", _S, "T trade, F fill, A add, C cancel, M modify, R clear, N none", False),
        _c("side", _S, "of a trade, the aggressor: A sells, B buys, N not known", False),
        _c("price", _F, "points; null where there is none"),
        _c("size", _U32, "contracts", False),
        _c("flags", _U8, "Databento's bits: 128 last of its event, 8 ts_recv is doubtful, …", False),
        _c("ts_in_delta", _I32, "nanoseconds from the venue's sending to ts_recv", False),
        *own,
        _c("raw_symbol", _S, "exchange symbol as the gateway said before; null when it did not"),
        _c("instrument_kind", _S, "option, future, spread (UD: and legs with a dash) or other"),
        _c("underlying_class", _S, "future; null when the symbol is not one of ours"),
        _c("underlying", _S, "of an option: the future it exercises into, by CME's rule"),
        _c("root", _S, "Globex product code of an option or a future"),
        _c("series", _S, "of an option: root and expiration date, Q1B-2025-07-01"),
        _c("contract_key", _S, "of an option: series, side and strike, Q1B-2025-07-01-C-21330"),
        _c("option_type", _S, "C or P"),
        _c("strike", _F, "index points or dollars"),
        _c("receive_latency_ns", _I, "ts_recv less ts_event"),
        _c("is_misdated", _B, "ts_event lies over a minute from ts_recv; null in rows of older versions"),
        _c("publish_latency_ns", _I, "when the row was about to be written, less ts_recv; null when bought"),
        _c("source_schema", _S, "the schema that was streamed: trades, mbp-1, mbo", False),
        _c("environment", _S, "sandbox (synthetic) or live", False),
        _c("log_session", _I, "segment of the log its session began with; 0 when bought later", False),
        _c("run_id", _S, "the run that wrote the row", False),
    )


TRADES = Table(
    name="trades",
    version=3,
    meaning="Trades as Databento sent them, live in whatever schema or bought: one row per trade.",
    columns=_tick_columns(_c("depth", _U8, "level of the book; null where mbo was streamed")),
    key=_TICK_KEY,
    order=_TICK_ORDER,
    since="ts_event",
)

MBP_1 = Table(
    name="mbp_1",
    version=3,
    meaning="Every change of the best bid and ask, and every trade, with the book after it (schema mbp-1).",
    columns=_tick_columns(
        _c("depth", _U8, "level of the book: 0", False),
        _c("bid_px_00", _F, "best bid; null when there is none"),
        _c("ask_px_00", _F, "best ask; null when there is none"),
        _c("bid_sz_00", _U32, "contracts at the bid", False),
        _c("ask_sz_00", _U32, "contracts at the ask", False),
        _c("bid_ct_00", _U32, "orders at the bid", False),
        _c("ask_ct_00", _U32, "orders at the ask", False),
    ),
    key=_TICK_KEY,
    order=_TICK_ORDER,
    since="ts_event",
)

MBO = Table(
    name="mbo",
    version=3,
    meaning="Every event of every order (schema mbo), without the snapshots of the book.",
    columns=_tick_columns(
        _c("order_id", _U64, "the venue's number of the order", False),
        _c("channel_id", _U8, "the venue's channel", False),
    ),
    key=_TICK_KEY,
    order=_TICK_ORDER,
    since="ts_event",
)

GAPS = Table(
    name="gaps",
    version=3,
    meaning="Holes in the live capture: one row per gap and state; the highest revision is the truth.",
    columns=(
        _c("gap_id", _S, "the same through all states of a gap", False),
        _c("revision", _I, "number of the state, from 0", False),
        _c("changed_at", INSTANT, "when the gap came into this state, by the capture's clock", False),
        _c("trade_date", _D, "CME session date of first_ts", False),
        _c("environment", _S, "sandbox or live", False),
        _c("dataset", _S, "Databento's dataset", False),
        _c("schema", _S, "what is missing: trades, mbp-1, mbo", False),
        _c(
            "cause",
            _S,
            "how the session before ended; late start or not running where there was none; another schema",
            False,
        ),
        _c("detail", _S, "what the gateway or the operating system said"),
        _c("first_ts", INSTANT, "the last moment (ts_event) proven before the gap", False),
        _c("last_ts", INSTANT, "the first moment proven after it; null while nothing came after"),
        _c("state", _S, "open, replayed, verified or unfillable", False),
        _c("reason", _S, "why it is unfillable, or open again; of a verified one, how the lake differs"),
        _c(
            "filled_by",
            _S,
            "live replay, historical (bought) or already there; null while nothing was filled",
        ),
        _c("records_replayed", _I, "records of the span that the replay, or the purchase, brought"),
        _c("records_counted", _I, "records of the span that an independent count found"),
        _c("rows_published", _I, "rows that the lake then had of them; null where it was not looked at"),
        _c("attempts", _I, "replays with which the count did not agree", False),
        _c(
            "cost_usd",
            USD,
            "what was paid to the historical API for it; a live replay is free",
            False,
            was=_F,
        ),
        _c("run_id", _S, "the capture that wrote the row", False),
    ),
    key=("gap_id", "revision"),
    order=("changed_at", "gap_id", "revision"),
    since="changed_at",
)

SESSIONS = Table(
    name="sessions",
    version=1,
    meaning="Sessions with the live gateway and attempts at one: a row when one ended.",
    columns=(
        _c("session_key", _S, "unique: the capture's run and the number of the attempt", False),
        _c("gateway_session", _S, "the gateway's own id; null when it gave none"),
        _c("trade_date", _D, "CME session date of the end", False),
        _c("environment", _S, "sandbox or live", False),
        _c("dataset", _S, "Databento's dataset", False),
        _c("started_at", INSTANT, "when the connection was asked for, by the capture's clock", False),
        _c("ended_at", INSTANT, "when it ended", False),
        _c("schemas", _S, "what was subscribed to, separated by commas", False),
        _c("replay_from", INSTANT, "earliest start of its replays; null without one"),
        _c("records", _I, "market data received", False),
        _c("bytes", _I, "bytes of the stream as they came", False),
        _c("ended", _S, "how: closed, reset, cut, silent, garbage, unreachable, refused, error, …", False),
        _c("detail", _S, "what the gateway or the operating system said"),
        _c("code", _I, "code of the gateway's error, where it sent one"),
        _c("proven_ts", INSTANT, "up to where everything came; null when its replay was not completed"),
        _c("missing", _S, "parents that are always listed and were not named, separated by commas"),
        _c("run_id", _S, "the capture", False),
    ),
    key=("session_key",),
    order=("ended_at",),
    since="ended_at",
)

_CONTRACT = (
    _c("raw_symbol", _S, "exchange symbol on that day; null when the vendor does not say"),
    _c("instrument_kind", _S, "option, future, spread (UD: and legs with a dash) or other"),
    _c("underlying_class", _S, "future; null when the symbol is not one of ours"),
    _c("root", _S, "Globex product code of an option or a future"),
    _c("series", _S, "of an option: root and expiration date, Q1B-2025-07-01"),
    _c("contract_key", _S, "of an option: series, side and strike, Q1B-2025-07-01-C-21330"),
    _c("option_type", _S, "C or P"),
    _c("strike", _F, "index points or dollars"),
)


def _history(name: str, meaning: str, own: tuple[Column, ...], since: str = "ts_recv") -> Table:
    """A table of what is bought from the historical API: Databento's columns and the contract's."""
    return Table(
        name=name,
        version=1,
        meaning=meaning,
        columns=(
            _c("trade_date", _D, "CME session date: from its open to the next session's", False),
            _c("publisher_id", _U16, "Databento's number of dataset and venue: 1 is GLBX.MDP3", False),
            _c("instrument_id", _U32, "Databento's id; reused over time, never a key across days", False),
            *own,
            _c("ordinal", _U32, f"which record of its instrument and {since} it is, from 0", False),
            *_CONTRACT,
            _c("environment", _S, "sandbox (synthetic) or live", False),
            _c("run_id", _S, "the run that wrote the row", False),
        ),
        key=("publisher_id", "instrument_id", since, "ordinal"),
        order=("instrument_id", since),
        since=since,
    )


_RECV = _c("ts_recv", INSTANT, "when Databento received it", False)
_EVENT = _c("ts_event", INSTANT, "when the matching engine received it")

DEFINITION = _history(
    "definition",
    "Instrument definitions (schema definition): daily snapshots and changes; a spread has a row per leg.",
    (
        _RECV,
        _EVENT,
        _c("instrument_class", _S, "C call, P put, F future, T and M option spreads, S future spread"),
        _c("asset", _S, "product root of the instrument"),
        _c("security_type", _S, "OOF option on a future, FUT, MLEG"),
        _c("exchange", _S, "XCME"),
        _c("currency", _S, "USD"),
        _c("underlying", _S, "raw symbol of the underlying future"),
        _c("underlying_id", _U32, "its instrument_id on that day"),
        _c("strike_price", _F, "points"),
        _c("expiration", INSTANT, "the instant trading ends"),
        _c("activation", INSTANT, "the instant it was listed"),
        _c("unit_of_measure_qty", _F, "dollars per point: the multiplier"),
        _c("min_price_increment", _F, "points"),
        _c("security_update_action", _S, "A added, M modified, D deleted"),
        _c("user_defined_instrument", _S, "Y or N"),
        _c("leg_count", _U16, "legs of a spread"),
        _c("leg_index", _U16, "which leg the row is of"),
        _c("leg_instrument_id", _U32, "its instrument_id"),
        _c("leg_raw_symbol", _S, "its raw symbol"),
        _c("leg_side", _S, "A or B"),
    ),
)

STATISTICS = _history(
    "statistics",
    "What the venue publishes beside trading (schema statistics): settlements, open interest, volume. Much "
    "of it comes in a later session than the one it is of: ts_ref says which.",
    (
        _RECV,
        _EVENT,
        _c("ts_ref", INSTANT, "the trade date the statistic is about, as its midnight UTC"),
        _c(
            "stat_type", _U16, "3 settlement, 4 session low, 5 high, 6 cleared volume, 9 open interest", False
        ),
        _c("price", _F, "points; null for quantities"),
        _c("quantity", _I, "contracts; null for prices"),
        _c("sequence", _U32, "the venue's number of the message, per channel", False),
        _c("channel_id", _U16, "the venue's channel", False),
        _c("update_action", _U8, "1 new, 2 deleted", False),
        _c("stat_flags", _U8, "of a settlement: 1 final, 2 actual, 4 rounded to the tick, 8 intraday", False),
    ),
)

_BAR = (
    _c("ts_event", INSTANT, "when the bar begins", False),
    _c("open", _F, "points"),
    _c("high", _F, "points"),
    _c("low", _F, "points"),
    _c("close", _F, "points"),
    _c("volume", _U64, "contracts", False),
)
OHLCV_1M = _history("ohlcv_1m", "Minute bars (schema ohlcv-1m); none without a trade.", _BAR, "ts_event")
OHLCV_1D = _history("ohlcv_1d", "Bars of UTC days (schema ohlcv-1d), not of sessions.", _BAR, "ts_event")

BBO_1M = _history(
    "bbo_1m",
    "The book's best bid and ask at the end of each minute in which it changed (schema bbo-1m).",
    (
        _c("ts_recv", INSTANT, "end of the minute", False),
        _c("ts_event", INSTANT, "when the last trade was; null before the first of the session"),
        _c("price", _F, "of the last trade"),
        _c("size", _U32, "of the last trade, contracts"),
        _c("side", _S, "of the last trade, the aggressor"),
        _c("flags", _U8, "Databento's bits"),
        _c("bid_px_00", _F, "best bid; null when there is none"),
        _c("ask_px_00", _F, "best ask; null when there is none"),
        _c("bid_sz_00", _U32, "contracts at the bid"),
        _c("ask_sz_00", _U32, "contracts at the ask"),
        _c("bid_ct_00", _U32, "orders at the bid"),
        _c("ask_ct_00", _U32, "orders at the ask"),
    ),
)

BACKFILLS = Table(
    name="backfills",
    version=1,
    meaning="Days bought from the historical API: one row per attempt at a trade date of a schema.",
    columns=(
        _c("run_id", _S, "the run that asked", False),
        _c("changed_at", INSTANT, "when it was known (real time)", False),
        _c("trade_date", _D, "CME session date", False),
        _c("environment", _S, "sandbox (synthetic) or live", False),
        _c("dataset", _S, "Databento's dataset", False),
        _c("schema", _S, "Databento's schema", False),
        _c("symbols", _S, "parents asked for, in order, separated by commas", False),
        _c("first_ts", INSTANT, "start of the span asked for (ts_recv; of bars ts_event), included", False),
        _c("last_ts", INSTANT, "its end, not included", False),
        _c("state", _S, "complete, empty, missing, pending, over_budget, not_entitled or failed", False),
        _c("reason", _S, "why it is not complete, one sentence"),
        _c("condition", _S, "the vendor's word on the days: available, degraded, pending, missing"),
        _c("records", _I, "records that were proven: as many as the vendor counts", False),
        _c("rows", _I, "rows that were new in the lake", False),
        _c("known", _I, "rows that the lake had already, as of the live capture", False),
        _c("dropped", _I, "records that could have no row", False),
        _c("bytes", _I, "bytes of the records, uncompressed: what is billed", False),
        _c("cost_usd", USD, "paid in this attempt, and left reserved by it", False),
        _c("mode", _S, "historical-streaming, or historical (a batch job); null when nothing was bought"),
        _c("request_ids", _S, "of the ledger's commits, or the batch job, separated by commas"),
        _c("sha256", _S, "of the kept files, separated by commas"),
    ),
    key=("run_id", "dataset", "schema", "trade_date", "symbols"),
    order=("changed_at",),
    since="changed_at",
)

ENTITLEMENTS = Table(
    name="entitlements",
    version=1,
    meaning="What vendors said about what the plan includes: one row per answer; the newest is in force.",
    columns=(
        _c("vendor", _S, "vendor", False),
        _c("dataset", _S, "Databento's dataset, or the vendor's product", False),
        _c("schema", _S, "Databento's schema, Polygon's underlying, or chain for the whole of it", False),
        _c("mode", _S, "live, or historical", False),
        _c("address", _S, "base address of who said so; empty for Databento's gateway and backfills", False),
        _c("environment", _S, "sandbox or live", False),
        _c("asked_at", INSTANT, "when it was said (real time)", False),
        _c("trade_date", _D, "CME session date, by the clock of whoever asked", False),
        _c("entitled", _B, "whether it was given", False),
        _c("text", _S, "what the vendor said, its code included"),
        _c("step", _S, "what was done about it"),
        _c("data_from", _D, "of history: what was refused is this trade date and later ones"),
        _c("ask_again", _D, "the first trade date on which it is worth asking again; null when entitled"),
    ),
    key=("vendor", "dataset", "schema", "mode", "address", "asked_at"),
    order=("asked_at",),
    since="asked_at",
)

SPEND = Table(
    name="spend",
    version=1,
    meaning="The lines of the spend ledger: what was reserved, paid, given back, refused and changed.",
    columns=(
        _c("ledger", INSTANT, "when the ledger was begun; tells one ledger from another", False),
        _c("line", _I, "number of the line in its ledger", False),
        _c("environment", _S, "sandbox (nothing was paid) or live", False),
        _c("recorded_at", INSTANT, "when it was written (real time)", False),
        _c("trade_date", _D, "CME session date of that moment", False),
        _c("kind", _S, "subscription, reserved, committed, released, reconciled, refused, …", False),
        _c("booked_at", INSTANT, "the moment the money counts at: that of the reservation", False),
        _c("day", _D, "its day in the zone of the budgets; of a plan's fee the first of the month", False),
        _c("zone", _S, "zone of the budgets at that time", False),
        _c("reservation_id", _S, "lines of one reservation share it; null on other lines"),
        _c("vendor", _S, "who bills it"),
        _c("purpose", _S, "chains, backfill, gap_repair, verify; null on a plan's fee"),
        _c("dataset", _S, "Databento's dataset"),
        _c("schema", _S, "Databento's schema"),
        _c("mode", _S, "historical-streaming, or historical (a batch job)"),
        _c("description", _S, "what was asked for"),
        _c("run_id", _S, "the run that asked"),
        _c("reserved_usd", USD, "held by the line; negative where it gives back", False),
        _c("spent_usd", USD, "paid by the line; negative where it corrects", False),
        _c("priced_usd", USD, "what the vendor said it would cost; null when it would not say"),
        _c("bytes", _I, "billable bytes: as priced on a reservation, as they came on a commit"),
        _c("unit_price_usd", USD, "price per GiB (2**30 bytes)"),
        _c("priced_at", INSTANT, "when the vendor said so"),
        _c("request_id", _S, "the request (fetches.request_id)"),
        _c("setting", _S, "of a change of budget: the setting"),
        _c("value", _S, "of a change of budget: its value from then on"),
        _c("reason", _S, "why: of refusals, releases, reconciliations, corrections, changes"),
    ),
    key=("ledger", "line"),
    order=("recorded_at", "line"),
    since="recorded_at",
)

TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        SOURCE_CHAIN,
        OPTION_CHAIN,
        OPTION_PRICING,
        IV_SMILE,
        STRIKE_PROFILE,
        SERIES_METRICS,
        GAMMA_LEVELS,
        TRADE_PRESSURE,
        DECISIONS,
        ANSWERS,
        FETCHES,
        TRADES,
        MBP_1,
        MBO,
        GAPS,
        SESSIONS,
        SPEND,
        DEFINITION,
        STATISTICS,
        OHLCV_1M,
        OHLCV_1D,
        BBO_1M,
        BACKFILLS,
        ENTITLEMENTS,
    )
}
