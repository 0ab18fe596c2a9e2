"""The synthetic market as DBN records: definitions, minute quotes and statistics of instruments.

The historical stand-in and the gateway build their records here, so that what was streamed and what
is bought later agree. Spans are nanoseconds UTC, `end` excluded.
"""

from __future__ import annotations

from datetime import date, datetime

import numpy as np
import polars as pl

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.dbn.layout import RTYPES, UNDEF_PRICE, UNDEF_TIMESTAMP, Array, record_dtype
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.market.settlements import published_at
from nq_pipeline.sandbox.synthetic import price_path
from nq_pipeline.sandbox.synthetic.instruments import PRODUCT_OF_ROOT, sessions_between, universe
from nq_pipeline.sandbox.synthetic.market import MINUTE_NS, AnyMarket
from nq_pipeline.sandbox.synthetic.price_path import DAY_NS
from nq_pipeline.sandbox.synthetic.profiles import PROFILES

SCHEMAS = frozenset({
    "definition", "statistics", "mbo", "trades", "mbp-1", "tbbo", "bbo-1s", "bbo-1m",
    "ohlcv-1s", "ohlcv-1m", "ohlcv-1h", "ohlcv-1d",
})  # fmt: skip
DBN_VERSION = 3
HOUR_NS = 3600 * NS_PER_S
PRELIMINARY, FINAL = 2, 3
"""`stat_flags` of an actual settlement, without and with the bit for final."""
_UNDEFINED = (
    "decay_start_date", "maturity_day", "tick_rule", "underlying_product", "main_fraction", "sub_fraction",
    "price_display_format", "contract_multiplier_unit", "flow_schedule_type",
)  # fmt: skip
"""Fields of a definition that are undefined here, which is their highest value."""
_LATEST_STATISTIC_NS = 17 * HOUR_NS
"""How long after a session's close its last statistic is published, the final open interest."""
_PRELIMINARY_INTEREST = (pl.col("open_interest") * 0.98).floor().cast(pl.Int64)
SIDES = ("bid", "bid_size", "ask", "ask_size")
_QUOTE_SCHEMA = pl.Schema(
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


def blank_records(schema: str, ids: Array | tuple[()] = ()) -> Array:
    """Records of instruments with their headers set, prices undefined and everything else zero."""
    array = np.zeros(len(ids), record_dtype(RTYPES[schema], DBN_VERSION))
    for name, (kind, *_) in (array.dtype.fields or {}).items():
        if kind == np.int64:
            array[name] = UNDEF_PRICE
    array["length"], array["rtype"] = array.dtype.itemsize // 4, RTYPES[schema]
    array["publisher_id"], array["instrument_id"] = 1, ids
    return array


def fixed_prices(prices: pl.Series) -> Array:
    """Prices in DBN's units of 1e-9; null becomes `UNDEF_PRICE`."""
    filled = prices.fill_null(0).to_numpy()
    return np.where(
        prices.is_null().to_numpy(), UNDEF_PRICE, np.round(filled * 100).astype(np.int64) * 10_000_000
    )


def encode_text(column: pl.Series) -> Array:
    return np.array(column.fill_null("").to_list(), "S")


def daily_definition_records(instruments: pl.DataFrame, start: int, end: int) -> Array:
    """A definition of each instrument at each UTC midnight of a span, as history has them."""
    snapshots = [
        definition_records(instruments, ts_event=midnight - 7 * HOUR_NS, ts_recv=midnight)
        for midnight in range(-(-start // DAY_NS) * DAY_NS, end, DAY_NS)
        if sessions_between(midnight, midnight + DAY_NS)
    ]
    return np.concatenate(snapshots) if snapshots else blank_records("definition")


def definition_records(instruments: pl.DataFrame, *, ts_event: int, ts_recv: int) -> Array:
    """One record per instrument (rows of `universe`), two for a spread, one per leg."""
    spreads = instruments.filter(pl.col("instrument_class") == "T")
    rows = pl.concat([instruments, spreads])
    a = blank_records("definition", rows["instrument_id"].to_numpy())
    a["ts_event"], a["ts_recv"] = ts_event, ts_recv
    a["expiration"] = rows["expiration"].cast(pl.Int64).to_numpy()
    a["activation"] = a["expiration"] - np.uint64(60 * DAY_NS)
    a["strike_price"] = fixed_prices(rows["strike"])
    kinds = encode_text(rows["instrument_class"])
    option, future, spread = np.isin(kinds, (b"C", b"P")), kinds == b"F", kinds == b"T"
    multipliers = {code: int(product.multiplier) for code, product in PRODUCTS.items()}
    multiplier = rows["product"].replace_strict(multipliers).to_numpy()
    ticks = {code: round(profile.future_tick * NS_PER_S) for code, profile in PROFILES.items()}
    tick = rows["product"].replace_strict(ticks).to_numpy()
    exchanges = {code: profile.exchange for code, profile in PROFILES.items()}
    a["unit_of_measure_qty"] = np.where(spread, UNDEF_PRICE, multiplier * NS_PER_S)
    # An option's tick depends on its price, so its definition has none.
    a["min_price_increment"] = np.where(future, tick, np.where(option, UNDEF_PRICE, 0))
    a["display_factor"] = 10_000_000
    amount = tick * multiplier // 100  # in hundreds of dollars, by the display factor
    a["min_price_increment_amount"] = np.where(future, amount, np.where(option, 0, UNDEF_PRICE))
    a["raw_instrument_id"] = a["instrument_id"]
    a["underlying_id"] = np.where(spread, 0, rows["underlying_id"].fill_null(0).to_numpy())
    a["contract_multiplier"] = a["decay_quantity"] = a["original_contract_size"] = np.iinfo(np.int32).max
    a["maturity_year"] = rows["expiration"].dt.year().to_numpy()
    a["maturity_month"] = rows["expiration"].dt.month().to_numpy()
    for name in _UNDEFINED:
        a[name] = np.iinfo(a.dtype[name]).max
    weeks = {code: root.week for code, root in ROOTS.items() if root.week}
    week = rows["root"].replace_strict(weeks, default=255, return_dtype=pl.UInt8).to_numpy()
    a["maturity_week"] = np.where(option, week, 255)
    a["raw_symbol"], a["asset"], a["group"] = (
        encode_text(rows["raw_symbol"]),
        encode_text(rows["root"]),
        encode_text(rows["product"]),
    )
    a["underlying"], a["instrument_class"] = np.where(spread, b"", encode_text(rows["underlying"])), kinds
    a["currency"], a["exchange"] = b"USD", encode_text(rows["product"].replace_strict(exchanges))
    a["unit_of_measure"] = b"IPNT"
    a["strike_price_currency"] = np.where(option, b"USD", b"")
    a["security_type"] = np.where(future, b"FUT", b"OOF")
    style = np.where(rows["exercise_style"].to_numpy() == "american", b"A", b"E")
    option_cfi = np.char.add(np.char.add(np.char.add(b"O", kinds), style), b"FPS")
    a["cfi"] = np.where(option, option_cfi, np.where(future, b"FFIXSX", b"OMXFPS"))
    a["match_algorithm"], a["security_update_action"] = b"F", b"A"
    a["user_defined_instrument"] = np.where(spread, b"Y", b"N")
    a["leg_count"] = np.where(spread, 2, 0)
    a["leg_index"][instruments.height :] = 1
    return a


def minute_quote_records(market: AnyMarket, instruments: pl.DataFrame | None, start: int, end: int) -> Array:
    """`bbo-1m`: one record per instrument and minute in which its book changed, stamped at its end.

    `instruments` are rows of `universe`, None for all of each session.
    """
    parts = [blank_records("bbo-1m")]
    for session in sessions_between(start - MINUTE_NS, end):
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
        .select(list(_QUOTE_SCHEMA))
        for t in (stamps if "F" in instruments["instrument_class"] else [])
    ]
    options = _option_quotes(market, day, instruments, np.array(stamps, np.int64))
    rows = pl.concat([options, *futures]).sort("t", "instrument_id")
    a = blank_records("bbo-1m", rows["instrument_id"].to_numpy())
    a["ts_recv"] = rows["t"].to_numpy()
    a["ts_event"] = rows["last_ts"].cast(pl.Int64).cast(pl.UInt64).fill_null(UNDEF_TIMESTAMP).to_numpy()
    a["price"], a["size"] = fixed_prices(rows["last"]), rows["last"].is_not_null().to_numpy()
    a["side"], a["flags"], a["sequence"] = b"N", 128, rows["t"].to_numpy() // MINUTE_NS
    for side in ("bid", "ask"):
        a[f"{side}_px_00"] = fixed_prices(rows[side])
        a[f"{side}_sz_00"] = rows[f"{side}_size"].fill_null(0).to_numpy()
        a[f"{side}_ct_00"] = -(-a[f"{side}_sz_00"].astype(np.int64) // 4)
    return a


def _option_quotes(market: AnyMarket, day: date, instruments: pl.DataFrame, ends: Array) -> pl.DataFrame:
    listed = market.listed(day)
    listed = listed.filter(pl.col("instrument_id").is_in(instruments["instrument_id"].implode()))
    if listed.is_empty():
        return pl.DataFrame(schema=_QUOTE_SCHEMA)
    # Compare with the minute before: only changed books are recorded.
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
    done = pl.concat([market.trades(sessions.previous_trade_date(day)), market.trades(day)]).select(
        pl.col("instrument_id").cast(pl.Int64), pl.col("ts_event").cast(pl.Int64), last="price"
    )
    done = done.with_columns(last_ts=pl.col("ts_event").cast(pl.Datetime("ns", "UTC"))).sort("ts_event")
    return rows.join_asof(
        done, left_on="t", right_on="ts_event", by="instrument_id", check_sortedness=False
    ).select(list(_QUOTE_SCHEMA))


def _open_before(t: int) -> bool:
    """Whether the market was open in the minute that ends at `t`."""
    return sessions.is_open(from_ns(t - NS_PER_S))


def statistics_records(market: AnyMarket, instruments: pl.DataFrame, start: int, end: int) -> Array:
    """Settlements, session lows and highs, cleared volume and open interest, when each is published."""
    wanted = instruments.select("instrument_id")
    product = pl.col("root").replace_strict(PRODUCT_OF_ROOT)
    parts = [blank_records("statistics")]
    for session in sessions_between(start - _LATEST_STATISTIC_NS - 1, end):
        day, close = session.trade_date, to_ns(session.close)
        settled = {one.product.code: published_at(day, one.product) for one in market.markets}
        closed, following = max(session.close, *settled.values()), sessions.next_open(session.close)
        publications: list[tuple[int, datetime, int, pl.Expr, int, pl.Expr | bool]] = [
            *(
                (to_ns(at), closed, 3, pl.col("settlement"), PRELIMINARY, product == code)
                for code, at in settled.items()
            ),
            (close, closed, 4, pl.col("low"), 0, True),
            (close, closed, 5, pl.col("high"), 0, True),
            (close + HOUR_NS * 3 // 2, closed, 3, pl.col("settlement"), FINAL, True),
            (close + 4 * HOUR_NS, closed, 6, pl.col("volume"), 0, pl.col("volume") > 0),
            (close + 4 * HOUR_NS, following, 9, _PRELIMINARY_INTEREST, 0, True),
            (close + _LATEST_STATISTIC_NS, following, 9, pl.col("open_interest"), 0, True),
        ]
        parts += [
            _statistic(at, stat_type, _state(market, instant, wanted).filter(rows), value, flags, day)
            for at, instant, stat_type, value, flags, rows in publications
            if start <= at < end
        ]
    records = np.concatenate(parts)
    return records[np.argsort(records["ts_recv"], kind="stable")]


def _state(market: AnyMarket, instant: datetime, wanted: pl.DataFrame) -> pl.DataFrame:
    return market.chain(instant).with_columns(pl.col("instrument_id").cast(pl.Int64)).join(
        wanted, on="instrument_id", how="semi", maintain_order="left"
    )  # fmt: skip


def _statistic(at: int, stat_type: int, frame: pl.DataFrame, value: pl.Expr, flags: int, day: date) -> Array:
    rows = frame.select("instrument_id", value=value).drop_nulls("value")
    a = blank_records("statistics", rows["instrument_id"].to_numpy())
    a["ts_recv"], a["ts_event"], a["ts_ref"] = at, at, price_path.day_number(day) * DAY_NS
    if rows["value"].dtype.is_float():
        a["price"] = fixed_prices(rows["value"])
    else:
        a["quantity"] = rows["value"].to_numpy()
    a["stat_type"], a["stat_flags"], a["update_action"] = stat_type, flags, 1
    return a
