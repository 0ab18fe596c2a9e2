"""Globex as Databento shows it: the instruments of a trade date, and records about them as DBN.

The historical stand-in and the gateway take the same instruments, ids and records from here, so
that what was streamed and what is asked for later agree. Spans are nanoseconds UTC, `end` excluded.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.market.settlements import published_at
from nq_pipeline.sandbox.synthetic import price_path
from nq_pipeline.sandbox.synthetic.market import AnyMarket, previous_trade_date
from nq_pipeline.sandbox.synthetic.profiles import SHAPES

if TYPE_CHECKING:
    from polars.expr.datetime import ExprDateTimeNameSpace

LAYOUTS = {
    "definition": ("InstrumentDefMsg", 19),
    "statistics": ("StatMsg", 24),
    "mbo": ("MBOMsg", 160),
    "trades": ("TradeMsg", 0),
    "mbp-1": ("MBP1Msg", 1),
    "tbbo": ("MBP1Msg", 1),
    "bbo-1s": ("BBOMsg", 195),
    "bbo-1m": ("BBOMsg", 196),
    "ohlcv-1s": ("OHLCVMsg", 32),
    "ohlcv-1m": ("OHLCVMsg", 33),
    "ohlcv-1h": ("OHLCVMsg", 34),
    "ohlcv-1d": ("OHLCVMsg", 35),
}
"""The record of each schema, and its rtype."""
RTYPES = {schema: rtype for schema, (_, rtype) in LAYOUTS.items()}

DAY_NS, MINUTE_NS = 86_400 * NS_PER_S, 60 * NS_PER_S
UNDEF_PRICE = np.iinfo(np.int64).max
UNDEF_TIME = np.iinfo(np.uint64).max
PRELIMINARY, FINAL = 2, 3
"""`stat_flags` of an actual settlement, without and with the bit for final."""

BOOK = pl.Schema(
    {
        "instrument_id": pl.Int64(),
        "bid": pl.Float64(),
        "bid_size": pl.Int64(),
        "ask": pl.Float64(),
        "ask_size": pl.Int64(),
        "last": pl.Float64(),
        "last_ts": pl.Datetime("ns", "UTC"),
        "t": pl.Int64(),
    }
)
"""Columns from which `bbo-1m` is made; `t` is the end of the minute."""
SIDES = ("bid", "bid_size", "ask", "ask_size")
_PRODUCT_OF = {code: root.product.code for code, root in ROOTS.items()}

Array = npt.NDArray[Any]


def sessions_of(start: int, end: int) -> list[sessions.Session]:
    """The sessions that trade in [start, end)."""
    first, last = from_ns(start).date(), from_ns(end).date()
    return [
        s
        for s in sessions.sessions(first - timedelta(1), last + timedelta(4))
        if any(to_ns(opens) < end and to_ns(closes) > start for opens, closes in s.segments)
    ]


@lru_cache(maxsize=8)
def universe(market: AnyMarket, trade_date: date | None) -> pl.DataFrame:
    """Options, futures and spreads of a trade date; no rows for None."""
    listed = market.listed(trade_date or date(2025, 6, 10))
    options = listed.select(
        pl.col("instrument_id").cast(pl.Int64),
        "raw_symbol",
        (pl.col("root") + ".OPT").alias("parent"),
        pl.col("option_type").alias("instrument_class"),
        pl.col("root").replace_strict(_PRODUCT_OF).alias("product"),
        "root",
        "strike",
        "expiration",
        "exercise_style",
        "underlying",
    )
    expires = pl.col("expiration").dt
    futures = market.futures(sessions.session(trade_date or date(2025, 6, 10)).open).select(
        future_ids(pl.col("product"), expires).alias("instrument_id"),
        pl.col("symbol").alias("raw_symbol"),
        (pl.col("product") + ".FUT").alias("parent"),
        pl.lit("F").alias("instrument_class"),
        "product",
        pl.col("product").alias("root"),
        pl.lit(None, pl.Float64).alias("strike"),
        "expiration",
        pl.lit("").alias("exercise_style"),
        pl.lit("").alias("underlying"),
    )
    first = options.group_by("parent", maintain_order=True).first()
    numbers = (
        pl.col("parent").replace_strict([f"{root}.OPT" for root in ROOTS], range(len(ROOTS))) + 2_900_001
    )
    spreads = first.with_columns(
        numbers.cast(pl.Int64).alias("instrument_id"),
        pl.concat_str(pl.lit("UD:1V: VT "), numbers).alias("raw_symbol"),
        pl.lit("T").alias("instrument_class"),
        pl.lit(None, pl.Float64).alias("strike"),
    ).select(options.columns)
    ids = pl.DataFrame(futures.select(underlying="raw_symbol", underlying_id="instrument_id"))
    whole = pl.concat([options, futures, spreads]).join(
        ids, on="underlying", how="left", maintain_order="left"
    )
    return whole if trade_date else whole.clear()


def future_ids(product: pl.Expr, expires: ExprDateTimeNameSpace) -> pl.Expr:
    """Ids of futures: year and month of expiration, after the first id of their product."""
    first = product.replace_strict({code: shape.first_id for code, shape in SHAPES.items()})
    return first + expires.year().cast(pl.Int64) * 100 + expires.month()


# ── records ─────────────────────────────────────────────────────────────────────────────────────


def layout(schema: str) -> np.dtype[Any]:
    import databento_dbn

    return np.dtype(list(getattr(databento_dbn.v3, LAYOUTS[schema][0])._dtypes))


def blank(schema: str, ids: Array) -> Array:
    """Records of instruments with their heads filled in, prices undefined and the rest zero."""
    array = np.zeros(len(ids), layout(schema))
    for name, (kind, *_) in (array.dtype.fields or {}).items():
        if kind == np.int64:
            array[name] = UNDEF_PRICE
    array["length"], array["rtype"] = array.dtype.itemsize // 4, RTYPES[schema]
    array["publisher_id"], array["instrument_id"] = 1, ids
    return array


def fixed(prices: pl.Series) -> Array:
    """Prices as integers of 1e-9; null is undefined."""
    filled = prices.fill_null(0).to_numpy()
    return np.where(
        prices.is_null().to_numpy(), UNDEF_PRICE, np.round(filled * 100).astype(np.int64) * 10_000_000
    )


def texts(column: pl.Series) -> Array:
    return np.array(column.fill_null("").to_list(), "S")


def daily_definitions(instruments: pl.DataFrame, start: int, end: int) -> Array:
    """A snapshot of everything at each midnight UTC of a span, as history has it."""
    snapshots = [
        definitions(instruments, ts_event=midnight - 7 * 3600 * NS_PER_S, ts_recv=midnight)
        for midnight in range(-(-start // DAY_NS) * DAY_NS, end, DAY_NS)
        if sessions_of(midnight, midnight + DAY_NS)
    ]
    return np.concatenate(snapshots) if snapshots else blank("definition", np.empty(0, np.int64))


def definitions(instruments: pl.DataFrame, *, ts_event: int, ts_recv: int) -> Array:
    """A record per instrument (rows of `universe`), and for a spread one per leg."""
    spreads = instruments.filter(pl.col("instrument_class") == "T")
    rows = pl.concat([instruments, spreads])
    a = blank("definition", rows["instrument_id"].to_numpy())
    a["ts_event"], a["ts_recv"] = ts_event, ts_recv
    a["expiration"] = rows["expiration"].cast(pl.Int64).to_numpy()
    a["activation"] = a["expiration"] - np.uint64(60 * DAY_NS)
    a["strike_price"] = fixed(rows["strike"])
    multipliers = {code: int(product.multiplier) * NS_PER_S for code, product in PRODUCTS.items()}
    exchanges = {code: shape.exchange for code, shape in SHAPES.items()}
    a["unit_of_measure_qty"] = rows["product"].replace_strict(multipliers).to_numpy()
    a["display_factor"] = 10_000_000
    a["raw_instrument_id"] = a["instrument_id"]
    a["underlying_id"] = rows["underlying_id"].fill_null(0).to_numpy()
    a["contract_multiplier"] = a["decay_quantity"] = a["original_contract_size"] = np.iinfo(np.int32).max
    a["maturity_year"] = rows["expiration"].dt.year().to_numpy()
    a["maturity_month"] = rows["expiration"].dt.month().to_numpy()
    a["maturity_day"] = a["maturity_week"] = 255
    option = np.isin(kinds := texts(rows["instrument_class"]), (b"C", b"P"))
    a["raw_symbol"], a["asset"], a["group"] = (
        texts(rows["raw_symbol"]),
        texts(rows["root"]),
        texts(rows["product"]),
    )
    a["underlying"], a["instrument_class"] = texts(rows["underlying"]), kinds
    a["currency"], a["exchange"] = b"USD", texts(rows["product"].replace_strict(exchanges))
    a["unit_of_measure"] = b"IPNT"
    a["strike_price_currency"] = np.where(option, b"USD", b"")
    a["security_type"] = np.where(option, b"OOF", np.where(kinds == b"F", b"FUT", b"MLEG"))
    style = np.where(rows["exercise_style"].to_numpy() == "american", b"A", b"E")
    a["cfi"] = np.where(option, np.char.add(np.char.add(np.char.add(b"O", kinds), style), b"FPS"), b"FFIXSX")
    a["match_algorithm"], a["security_update_action"] = b"F", b"A"
    a["user_defined_instrument"] = np.where(kinds == b"T", b"Y", b"N")
    a["leg_count"] = np.where(kinds == b"T", 2, 0)
    a["leg_index"][instruments.height :] = 1
    return a


def quotes(market: AnyMarket, instruments: pl.DataFrame | None, start: int, end: int) -> Array:
    """A row per instrument and minute in which its book changed, stamped with the minute's end.

    `instruments` are rows of `universe`, None for all of each session.
    """
    parts = [blank("bbo-1m", np.empty(0, np.int64))]
    for session in sessions_of(start - MINUTE_NS, end):
        first, last = max(start, to_ns(session.open) + 1), min(end, to_ns(session.close) + 1)
        stamps = [t for t in range(-(-first // MINUTE_NS) * MINUTE_NS, last, MINUTE_NS) if _open_before(t)]
        if stamps:
            wanted = universe(market, session.trade_date) if instruments is None else instruments
            parts.append(_session_quotes(market, session.trade_date, wanted, stamps))
    return np.concatenate(parts)


def _session_quotes(market: AnyMarket, day: date, instruments: pl.DataFrame, stamps: list[int]) -> Array:
    futures = [
        market.futures(from_ns(t))
        .join(instruments, left_on="symbol", right_on="raw_symbol")
        .with_columns(t=pl.lit(t, pl.Int64))
        .select(list(BOOK))
        for t in (stamps if "F" in instruments["instrument_class"] else [])
    ]
    options = _option_quotes(market, day, instruments, np.array(stamps, np.int64))
    rows = pl.concat([options, *futures]).sort("t", "instrument_id")
    a = blank("bbo-1m", rows["instrument_id"].to_numpy())
    a["ts_recv"] = rows["t"].to_numpy()
    a["ts_event"] = rows["last_ts"].cast(pl.Int64).cast(pl.UInt64).fill_null(UNDEF_TIME).to_numpy()
    a["price"], a["size"] = fixed(rows["last"]), rows["last"].is_not_null().to_numpy()
    a["side"], a["flags"], a["sequence"] = b"N", 128, rows["t"].to_numpy() // MINUTE_NS
    for side in ("bid", "ask"):
        a[f"{side}_px_00"] = fixed(rows[side])
        a[f"{side}_sz_00"] = rows[f"{side}_size"].fill_null(0).to_numpy()
        a[f"{side}_ct_00"] = -(-a[f"{side}_sz_00"] // 4)
    return a


def _option_quotes(market: AnyMarket, day: date, instruments: pl.DataFrame, ends: Array) -> pl.DataFrame:
    listed = market.listed(day)
    listed = listed.filter(pl.col("instrument_id").is_in(instruments["instrument_id"].implode()))
    if listed.is_empty():
        return pl.DataFrame(schema=BOOK)
    # The minute before each tells whether a book changed in it.
    known = np.union1d(ends, ends - MINUTE_NS)
    many = listed[np.tile(np.arange(listed.height), len(known))]
    books = market.quotes(many, np.repeat(known, listed.height)).select(SIDES)
    shape = (len(known), listed.height)
    values = [books[name].cast(pl.Float64).fill_null(-1.0).to_numpy().reshape(shape) for name in SIDES]
    was_open = np.array([_open_before(int(t)) for t in known])
    before = np.searchsorted(known, ends - MINUTE_NS)
    now = np.searchsorted(known, ends)
    changed = np.zeros((len(ends), listed.height), bool)
    for value in values:
        earlier = np.where(was_open[before][:, None], value[before], -1.0)
        changed |= value[now] != earlier
    minute, contract = np.nonzero(changed)
    rows = books[(now[minute] * listed.height + contract)].with_columns(
        instrument_id=listed["instrument_id"].gather(contract).cast(pl.Int64), t=pl.Series(ends[minute])
    )
    done = pl.concat([market.trades(previous_trade_date(day)), market.trades(day)]).select(
        pl.col("instrument_id").cast(pl.Int64), pl.col("ts_event").cast(pl.Int64), last="price"
    )
    done = done.with_columns(last_ts=pl.col("ts_event").cast(pl.Datetime("ns", "UTC"))).sort("ts_event")
    return rows.join_asof(
        done, left_on="t", right_on="ts_event", by="instrument_id", check_sortedness=False
    ).select(list(BOOK))


def _open_before(t: int) -> bool:
    """Whether the market traded in the minute that ends at `t`."""
    return sessions.is_open(from_ns(t - NS_PER_S))


def statistics(market: AnyMarket, instruments: pl.DataFrame, start: int, end: int) -> Array:
    """Settlements, session lows and highs, cleared volume and open interest, as each comes out."""
    wanted, hour = instruments.select("instrument_id"), 3600 * NS_PER_S
    parts = []
    for session in sessions_of(start - 5 * DAY_NS, end):
        day, close = session.trade_date, to_ns(session.close)
        settled = {part.product.code: published_at(day, part.product) for part in market.parts}
        if min(session.close, *settled.values()) >= from_ns(end):
            continue
        closed = _state(market, max(session.close, *settled.values()), wanted)
        product = pl.col("root").replace_strict(_PRODUCT_OF)
        publications = [
            *(
                (to_ns(at), 3, closed.filter(product == code), "settlement", PRELIMINARY)
                for code, at in settled.items()
            ),
            (close, 4, closed, "low", 0),
            (close, 5, closed, "high", 0),
            (close + hour * 3 // 2, 3, closed, "settlement", FINAL),
            (close + 4 * hour, 6, closed.filter(pl.col("volume") > 0), "volume", 0),
        ]
        if close < end:
            following = _state(market, sessions.next_open(session.close), wanted)
            preliminary = following.with_columns((pl.col("open_interest") * 0.98).floor().cast(pl.Int64))
            publications += [
                (close + 4 * hour, 9, preliminary, "open_interest", 0),
                (close + 17 * hour, 9, following, "open_interest", 0),
            ]
        parts += [
            _statistic(at, stat_type, frame, column, flags, day)
            for at, stat_type, frame, column, flags in publications
            if start <= at < end
        ]
    if not parts:
        return blank("statistics", np.empty(0, np.int64))
    whole = np.concatenate(parts)
    return whole[np.argsort(whole["ts_recv"], kind="stable")]


def _state(market: AnyMarket, instant: datetime, wanted: pl.DataFrame) -> pl.DataFrame:
    return market.chain(instant).with_columns(pl.col("instrument_id").cast(pl.Int64)).join(
        wanted, on="instrument_id", how="semi", maintain_order="left"
    )  # fmt: skip


def _statistic(at: int, stat_type: int, frame: pl.DataFrame, column: str, flags: int, day: date) -> Array:
    known = frame.drop_nulls(column)
    a = blank("statistics", known["instrument_id"].to_numpy())
    a["ts_recv"], a["ts_event"], a["ts_ref"] = at, at, price_path.day_number(day) * DAY_NS
    if known[column].dtype.is_float():
        a["price"] = fixed(known[column])
    else:
        a["quantity"] = known[column].to_numpy()
    a["stat_type"], a["stat_flags"], a["update_action"] = stat_type, flags, 1
    return a
