"""Parse Databento's answers into the rows of an option chain.

Ids are reused from day to day, so they are only ever read with the symbol mapping of the answer they came
in; answers are joined on raw symbols. Quotes are keyed and ordered by `ts_recv` (the end of their minute);
their `ts_event` is the last trade. A contract whose book did not change within the window has no quote
here, though one may rest in the market.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

import numpy as np
import polars as pl
import polars.selectors as cs

from nq_pipeline.clock import to_ns
from nq_pipeline.dbn.columns import INSTANT, instants, is_defined, nulled, prices, sizes, texts
from nq_pipeline.dbn.layout import DAY_NS
from nq_pipeline.dbn.stream import Records
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS, Series
from nq_pipeline.market.listing import underlying_future
from nq_pipeline.market.symbology import contract_keys, globex_code, series_keys
from nq_pipeline.sources.databento.query import DEFINITION, QUOTES, STATISTICS, TRADES
from nq_pipeline.sources.failures import MAX_UNUSABLE_SHARE
from nq_pipeline.sources.rows import (
    MOST_CONTRACTS,
    SKEW_NS,
    drop_faulty,
    keep_requested,
    null_future_instants,
)

SETTLEMENT, CLEARED_VOLUME, OPEN_INTEREST = 3, 6, 9
"""Values of `stat_type`."""
DELETED = 2
"""A value of `update_action`."""
FINAL, INTRADAY = 1, 8
"""Bits of a settlement's `stat_flags`."""
UNDEF_FLAGS = 255
"""`stat_flags` that say nothing, as in Databento's own samples of GLBX."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed chain: rows of the chain schema without provenance, and the answers that lost more than a
    trace of their records, in words (`holes`).
    """

    frame: pl.DataFrame
    dropped: Counter[str]
    controls: Mapping[str, bool]
    holes: tuple[str, ...]


def parse_chain(
    records: Mapping[str, Records],
    wanted: tuple[Series, ...],
    *,
    session: sessions.Session,
    until: int,
    published: int | None = None,
) -> Parsed:
    """Join the answers of one snapshot into rows of the chain schema, without provenance.

    Parameters
    ----------
    records
        By schema; definitions are required.
    session
        The requested session: volume and range cover it alone.
    until
        End of quotes and trades, nanoseconds UTC; no instant in them is later. Data that end before the
        session opens give no volume.
    published
        End of the statistics, nanoseconds UTC; by default that of the quotes.
    """
    dropped: Counter[str] = Counter()
    latest = until + SKEW_NS
    defined = definitions(records[DEFINITION], dropped)
    options = defined.filter(pl.col("instrument_class").is_in(["C", "P"]))
    contracts = _contracts(options, wanted, dropped)
    known = defined["raw_symbol"]
    data = {s: records.get(s) or Records.empty(s) for s in (QUOTES, STATISTICS, TRADES)}
    lost = {schema: Counter[str]() for schema in data}
    _count_undefined(data[QUOTES], records[DEFINITION], dropped)
    books = quotes(data[QUOTES], known, lost[QUOTES], latest=latest)
    stats = statistics(
        data[STATISTICS],
        known,
        lost[STATISTICS],
        latest=latest if published is None else published + SKEW_NS,
        trade_date=session.trade_date,
    )
    traded = trades(data[TRADES], known, lost[TRADES], since=to_ns(session.open), latest=latest)
    holes = tuple(
        f"{lost[schema].total()} of {len(given.array)} records of {schema} could not be used"
        for schema, given in data.items()
        if lost[schema].total() > MAX_UNUSABLE_SHARE * len(given.array)
    )
    dropped.update(sum(lost.values(), Counter()))
    cleared = pl.when(pl.col("volume_date") == session.trade_date).then(pl.col("cleared_volume"))
    # The volume of an untraded contract is 0 where the session's trades are complete.
    has_session = TRADES in records and until > to_ns(session.open)
    volume = pl.col("traded").fill_null(0) if has_session else pl.lit(None, pl.Int64)
    underlying = books.select(
        underlying="raw_symbol",
        underlying_price=pl.coalesce((pl.col("bid") + pl.col("ask")) / 2, "quoted_last"),
    )
    last = pl.coalesce("traded_last", "quoted_last")
    frame = (
        contracts.join(books, on="raw_symbol", how="left", maintain_order="left")
        .join(stats, on="raw_symbol", how="left", maintain_order="left")
        .join(traded, on="raw_symbol", how="left", maintain_order="left")
        .join(underlying, on="underlying", how="left", maintain_order="left")
        .with_columns(
            last.alias("last"),
            pl.coalesce("traded_last_ts", "quoted_last_ts").alias("last_ts"),
            (last.is_null() & pl.col("settlement").is_not_null()).alias("is_settlement"),
            pl.coalesce(cleared, volume).alias("volume"),
        )
        .drop(cs.matches("^(quoted|traded)_last"), "traded", "cleared_volume", "volume_date")
    )
    controls = {"ids_resolve": dropped["unknown_id"] == 0} | _compare_underlying(contracts, wanted)
    return Parsed(frame, dropped, controls, holes)


def definitions(records: Records, dropped: Counter[str]) -> pl.DataFrame:
    """Return the defined options and futures, the last definition of each; spreads are left out.

    Columns: instrument_id, raw_symbol, instrument_class (C, P, F), root (the definition's
    `asset`), underlying, strike (null for futures), expiration, multiplier.
    """
    a = records.array
    frame = pl.DataFrame(
        {
            "instrument_id": a["instrument_id"].astype(np.int64),
            "raw_symbol": texts(a["raw_symbol"]),
            "instrument_class": texts(a["instrument_class"]),
            "root": texts(a["asset"]),
            "underlying": texts(a["underlying"]),
            "strike": prices(a["strike_price"]),
            "expiration": instants(a["expiration"]),
            "multiplier": prices(a["unit_of_measure_qty"]),
            "action": texts(a["security_update_action"]),
            "user_defined": a["user_defined_instrument"] == b"Y",
        }
    )
    # Options come with spreads, user-defined ones above all, with a record for each leg.
    kind, symbol = pl.col("instrument_class"), pl.col("raw_symbol")
    spread = kind.is_in(["T", "M", "S"]) | pl.col("user_defined") | symbol.str.starts_with("UD:")
    usable = symbol.is_not_null() & pl.col("root").is_not_null() & pl.col("expiration").is_not_null()
    option = kind.is_in(["C", "P"]) & (pl.col("strike") > 0)
    fault = (
        pl.when(spread.fill_null(False))
        .then(pl.lit("spread"))
        .when(pl.col("action") == "D")
        .then(pl.lit("deleted_definition"))
        .when(usable & (option | (kind == "F")))
        .then(None)
        .otherwise(pl.lit("malformed_definition"))
    )
    latest = frame.unique(["instrument_id", "raw_symbol"], keep="last", maintain_order=True)
    return drop_faulty(latest, fault, dropped).drop("action", "user_defined")


def _contracts(options: pl.DataFrame, wanted: tuple[Series, ...], dropped: Counter[str]) -> pl.DataFrame:
    """The contracts of the requested series, with the lake's column names.

    Contracts of other roots are counted as dropped, and so are those whose symbol names a requested series
    and whose expiration is another's. An expiration stamped midnight UTC is a date without a time (in Chicago
    it would be the day before): it is read as its date, with the time by rule, and counted
    (`expiration_without_time`).
    """
    roots = pl.DataFrame(
        {
            "root": list(ROOTS),
            "settlement_style": [root.family.settlement_style for root in ROOTS.values()],
            "exercise_style": [root.family.exercise_style for root in ROOTS.values()],
            "underlying_class": [root.product.underlying_class for root in ROOTS.values()],
            "usual_multiplier": [root.product.multiplier for root in ROOTS.values()],
        }
    )
    ends = pl.col("expiration")
    midnight = ends.dt.time() == time()
    local = ends.dt.convert_time_zone(str(sessions.CHICAGO)).dt.date()
    listed = options.with_columns(
        pl.when(midnight).then(ends.dt.date()).otherwise(local).alias("expiration_date")
    ).with_columns(series_keys(pl.col("root"), pl.col("expiration_date")).alias("series"))
    by_rule = {series.key: series.expiration.astimezone(UTC) for series in wanted}
    of_roots = keep_requested(listed, pl.col("root").is_in([series.root for series in wanted]), dropped)
    codes = {globex_code(series): series.key for series in wanted}
    code = pl.col("raw_symbol").str.extract("^([^ ]+) ")
    named = code.replace_strict(codes, default=None, return_dtype=pl.String)
    if contradictory := int(of_roots.select((named != pl.col("series")).sum()).item()):
        dropped["malformed_definition"] += contradictory
    requested = of_roots.filter(pl.col("series").is_in(list(by_rule)))
    if without := int(requested.select(midnight.sum()).item()):
        dropped["expiration_without_time"] += without
    frame = (
        requested.with_columns(
            pl.when(midnight)
            .then(pl.col("series").replace_strict(by_rule, return_dtype=INSTANT))
            .otherwise(ends)
            .alias("expiration")
        )
        .join(roots, on="root", maintain_order="left")
        .rename({"instrument_class": "option_type"})
        .with_columns(
            contract_keys(pl.col("series"), pl.col("option_type"), pl.col("strike")).alias("contract_key"),
            pl.col("raw_symbol").alias("vendor_symbol"),
            pl.coalesce("multiplier", "usual_multiplier").alias("multiplier"),
        )
        .drop("usual_multiplier")
    )
    once = frame.unique("contract_key", keep="last", maintain_order=True)
    if once.height < frame.height:
        dropped["duplicate_contract"] += frame.height - once.height
    return once


def _compare_underlying(contracts: pl.DataFrame, wanted: tuple[Series, ...]) -> dict[str, bool]:
    """Whether the stated futures are those of our rule, which other vendors' rows and trades go by."""
    stated = contracts.drop_nulls("underlying")
    if stated.is_empty():
        return {}
    by_rule = {series.key: underlying_future(series) for series in wanted}
    same = pl.col("underlying") == pl.col("series").replace_strict(by_rule, return_dtype=pl.String)
    return {"underlying_by_rule": stated.select(same.all()).item()}


def _count_undefined(quoted: Records, defined: Records, dropped: Counter[str]) -> None:
    """Count instruments with quotes but no definition, except user-defined spreads, which are created all
    day.
    """
    names = pl.Series(quoted.symbols.names, dtype=pl.String)
    new = ~names.is_in(texts(defined.array["raw_symbol"]).implode()) & ~names.str.starts_with("UD:")
    if new.any():
        dropped["undefined_instrument"] += int(new.sum())


def quotes(records: Records, known: pl.Series, dropped: Counter[str], *, latest: int) -> pl.DataFrame:
    """Return the last book of each instrument, none later than `latest` (nanoseconds UTC).

    A bid or ask of 0 is null: it is no price, and books at night have been reported to show it.

    Columns: raw_symbol, bid, bid_size, ask, ask_size, quote_ts, quoted_last, quoted_last_ts.
    """
    a = records.array
    bid, ask = (nulled(prices(a[name]), a[name] != 0) for name in ("bid_px_00", "ask_px_00"))
    last, last_ts = prices(a["price"]), instants(a["ts_event"])
    frame = pl.DataFrame(
        {
            "instrument_id": a["instrument_id"],
            "quote_ts": instants(a["ts_recv"]),
            "bid": bid,
            "bid_size": sizes(a["bid_sz_00"]),
            "ask": ask,
            "ask_size": sizes(a["ask_sz_00"]),
            "quoted_last": last,
            "quoted_last_ts": last_ts,
        }
    )
    named = _named(frame, records, "quote_ts", known, dropped, latest)
    traded = pl.col("quoted_last").is_not_null() & pl.col("quoted_last_ts").is_not_null()
    return (
        null_future_instants(named, ["quoted_last_ts"], latest, dropped)
        .sort("quote_ts", maintain_order=True)
        .unique("raw_symbol", keep="last", maintain_order=True)
        .with_columns(
            pl.when(pl.col("bid").is_not_null()).then("bid_size").alias("bid_size"),
            pl.when(pl.col("ask").is_not_null()).then("ask_size").alias("ask_size"),
            pl.when(traded).then("quoted_last").alias("quoted_last"),
            pl.when(traded).then("quoted_last_ts").alias("quoted_last_ts"),
        )
    )


def statistics(
    records: Records, known: pl.Series, dropped: Counter[str], *, latest: int, trade_date: date
) -> pl.DataFrame:
    """Return settlement, open interest and cleared volume, each of its newest trade date (`ts_ref`).

    Each is published more than once: the last final value counts, else the last. `stat_flags` says which, for
    settlements only; what its bits mean, among them that bit 3 marks an intraday settlement (left out here),
    is a third party's reading of real files. A deleted statistic is null. None is of a later trade date than
    `trade_date` or was received after `latest` (nanoseconds UTC).

    Columns: raw_symbol, settlement, settlement_date (null where `ts_ref` is not a trade date), open_interest,
    cleared_volume, volume_date.
    """
    a = records.array
    a = a[np.isin(a["stat_type"], (SETTLEMENT, CLEARED_VOLUME, OPEN_INTEREST))]
    flags = np.where((a["stat_type"] == SETTLEMENT) & (a["stat_flags"] != UNDEF_FLAGS), a["stat_flags"], 0)
    a, flags = a[flags & INTRADAY == 0], flags[flags & INTRADAY == 0]
    valid = a["update_action"] != DELETED
    counted = valid & (a["stat_type"] != SETTLEMENT) & is_defined(a["quantity"])
    possible = (a["quantity"] >= 0) & (a["quantity"] <= MOST_CONTRACTS)
    if impossible := int((counted & ~possible).sum()):
        dropped["malformed_cell"] += impossible
    frame = pl.DataFrame(
        {
            "instrument_id": a["instrument_id"],
            "ts_recv": instants(a["ts_recv"]),
            "day": instants(a["ts_ref"]),
            "stat_type": a["stat_type"],
            "final": flags & FINAL != 0,
            "price": nulled(prices(a["price"]), valid),
            "quantity": nulled(a["quantity"].astype(np.int64), counted & possible),
        }
    )
    end_of_day = to_ns(datetime.combine(trade_date, time(), UTC)) + DAY_NS - 1
    frame = null_future_instants(frame, ["day"], end_of_day, dropped).with_columns(pl.col("day").dt.date())
    newest = (
        _named(frame, records, "ts_recv", known, dropped, latest)
        .sort("day", "final", "ts_recv", nulls_last=False, maintain_order=True)
        .unique(["raw_symbol", "stat_type"], keep="last", maintain_order=True)
    )

    def of(stat_type: int, *columns: pl.Expr) -> pl.DataFrame:
        return newest.filter(pl.col("stat_type") == stat_type).select("raw_symbol", *columns)

    trade_dates = [day for day in newest["day"].unique().drop_nulls() if sessions.is_trade_date(day)]
    dated = pl.col("price").is_not_null() & pl.col("day").is_in(trade_dates)
    settled = of(
        SETTLEMENT, pl.col("price").alias("settlement"), pl.when(dated).then("day").alias("settlement_date")
    )
    interest = of(OPEN_INTEREST, pl.col("quantity").alias("open_interest"))
    cleared = of(
        CLEARED_VOLUME, pl.col("quantity").alias("cleared_volume"), pl.col("day").alias("volume_date")
    )
    return settled.join(interest, on="raw_symbol", how="full", coalesce=True).join(
        cleared, on="raw_symbol", how="full", coalesce=True
    )


def trades(
    records: Records, known: pl.Series, dropped: Counter[str], *, since: int, latest: int
) -> pl.DataFrame:
    """Return what each instrument traded between two instants (nanoseconds UTC).

    Columns: raw_symbol, traded_last, traded_last_ts, open, high, low, traded (contracts).
    """
    a = records.array
    frame = pl.DataFrame(
        {
            "instrument_id": a["instrument_id"],
            "ts_recv": instants(a["ts_recv"]),
            "ts_event": instants(a["ts_event"]),
            "price": prices(a["price"]),
            "size": sizes(a["size"]),
        }
    )
    named = _named(frame, records, "ts_recv", known, dropped, latest)
    # A record of size 0 traded nothing, so its price does not count.
    usable = named.drop_nulls(["ts_event", "price"]).filter(pl.col("size") > 0)
    if usable.height < named.height:
        dropped["malformed_trade"] += named.height - usable.height
    return (
        null_future_instants(usable, ["ts_event"], latest, dropped)
        .filter(pl.col("ts_event") >= pl.lit(since).cast(INSTANT))
        .sort("ts_event", maintain_order=True)
        .group_by("raw_symbol", maintain_order=True)
        .agg(
            pl.col("price").last().alias("traded_last"),
            pl.col("ts_event").last().alias("traded_last_ts"),
            pl.col("price").first().alias("open"),
            pl.col("price").max().alias("high"),
            pl.col("price").min().alias("low"),
            pl.col("size").sum().alias("traded"),
        )
    )


def _named(
    frame: pl.DataFrame, records: Records, stamp: str, known: pl.Series, dropped: Counter[str], latest: int
) -> pl.DataFrame:
    """The rows with their raw symbol in place of their id, by the mapping of their own answer and day.

    Rows of other instruments are dropped without a count; ids without a mapping are counted, and rows without
    a time.
    """
    if undefined := frame[stamp].null_count():
        dropped["undefined_time"] += undefined
    timed = null_future_instants(frame, [stamp], latest, dropped).drop_nulls(stamp)
    days = timed[stamp].dt.date().to_physical().to_numpy()
    codes = pl.Series(records.symbols.find(timed["instrument_id"].to_numpy(), days))
    if unmapped := int((codes < 0).sum()):
        dropped["unknown_id"] += unmapped
    names = pl.Series("raw_symbol", records.symbols.names, dtype=pl.String)
    named = timed.with_columns(names.gather(codes.set(codes < 0, None)))
    return named.filter(pl.col("raw_symbol").is_in(known.implode())).drop("instrument_id")
