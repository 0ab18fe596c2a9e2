"""Measures trade dates: bars of the futures, and how open interest changed.

Rows come from figures that do not change any more and are written once. Repeat `measure_days` when more data
have arrived; publish the catalog afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import date, datetime, time, timedelta

import polars as pl

from nq_pipeline.lake import tables
from nq_pipeline.lake.store import Lake
from nq_pipeline.market import sessions
from nq_pipeline.market.listing import expiration_of_future
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.market.sessions import CHICAGO
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

RECENT_DAYS = 8
"""Trade dates that are measured by default: gaps of the live capture are filled within ten days."""
FINAL_OPEN_INTEREST = time(10)
"""Chicago time from which a chain shows the final open interest of the trade date before. The exchange
publishes preliminary figures in the evening and final ones in the morning; the hour is uncertain."""
NEXT_OPEN_INTEREST = time(17)
"""Chicago time from which a chain may show the figure of its own trade date. Only before a weekend or a
holiday does a later chain have this trade date; on other days the next session opens at this hour."""
BEHIND = timedelta(minutes=1)
"""Captured hours are complete when the newest trade or proof is at most this much before their end."""
LONGEST_GAP = timedelta(days=10)
"""How long before these hours a gap in them may have begun."""
OPEN_INTEREST = 9
"""`stat_type` of open interest."""
STATISTICS_SOURCE = "databento"
"""The vendor of purchased statistics."""

_CONTRACT = ("contract_key", "underlying_class", "root", "series", "option_type", "strike")


def measure_days(
    settings: Settings, trade_dates: Iterable[date] | None = None, *, run_id: str
) -> dict[str, pl.DataFrame]:
    """Compute what the data of these trade dates allow, append it, and return the new rows by table name.

    Bars are of the same date as the data, open interest is of the one before. By default these are the newest
    `RECENT_DAYS` that have data. Raises `LakeError` when a table cannot be read or written.
    """
    lake = Workspace.of(settings).lake
    days = dates_with_data(lake)[-RECENT_DAYS:] if trade_dates is None else _with_next(trade_dates)
    parts: dict[tables.Table, list[pl.DataFrame]] = {tables.OPEN_INTEREST_CHANGE: [], tables.FUTURE_BARS: []}
    for day in filter(sessions.is_trade_date, days):
        parts[tables.OPEN_INTEREST_CHANGE].append(open_interest_changes(lake, day))
        parts[tables.FUTURE_BARS].append(future_bars(lake, day))
    rows = {}
    for table, frames in parts.items():
        given = {"environment": pl.lit(lake.environment), "run_id": pl.lit(run_id)}
        rows[table.name] = pl.concat(
            [
                table.empty(),
                *(tables.conform(table, frame.with_columns(**given)) for frame in frames if len(frame)),
            ]
        )
        lake.append(table, rows[table.name], run_id=run_id)
    return rows


def _with_next(trade_dates: Iterable[date]) -> list[date]:
    """The dates and the trade date after each, whose changes of open interest begin with their figures."""
    days = set(trade_dates)
    later = (sessions.sessions(day + timedelta(days=1), day + timedelta(days=12)) for day in days)
    return sorted(days | {following[0].trade_date for following in later})


def dates_with_data(lake: Lake) -> list[date]:
    """The trade dates that have chains, trades or purchased history, oldest first."""
    with_data = (tables.SOURCE_CHAIN, tables.TRADES, tables.OHLCV_1M, tables.STATISTICS)
    return sorted({file.trade_date for table in with_data for file in lake.manifest(table).files})


def future_bars(lake: Lake, trade_date: date) -> pl.DataFrame:
    """Bars of the regular trading hours of every future, from each kind of data that is complete.

    Returns rows of `FUTURE_BARS` without `environment` and `run_id`; none for a date that has them already
    or has no such hours.
    """
    hours = sessions.session(trade_date).rth
    known = set(lake.scan(tables.FUTURE_BARS, [trade_date]).select("made_from").collect()["made_from"])
    parts = []
    if hours and "ohlcv-1m" not in known and _is_bought(lake, "ohlcv-1m", trade_date):
        parts.append(_bars(_minutes(lake, trade_date), "ohlcv-1m", trade_date, hours))
    if hours and "trades" not in known:
        bars = _bars(_ticks(lake, trade_date), "trades", trade_date, hours)
        schemas = bars["schemas"].explode().to_list()
        if _is_bought(lake, "trades", trade_date) or _is_captured(lake, trade_date, hours, schemas):
            parts.append(bars)
    if not parts:
        return tables.FUTURE_BARS.empty().drop("environment", "run_id")
    return pl.concat(parts).drop("schemas")


def open_interest_changes(lake: Lake, trade_date: date) -> pl.DataFrame:
    """How open interest changed on the trade date before this one, from the figures of this one.

    Returns rows of `OPEN_INTEREST_CHANGE` without `environment` and `run_id`, for the series of each vendor
    that have none yet.
    """
    changed_on = sessions.previous_trade_date(trade_date)
    stored = lake.scan(tables.OPEN_INTEREST_CHANGE, [changed_on])
    known = stored.select("source", "series").unique().collect()
    parts = []
    # Later chains of the same trade date may have series that the first one lacked.
    newest = max((file.trade_date for file in lake.manifest(tables.SOURCE_CHAIN).files), default=None)
    if known.is_empty() or trade_date == newest:
        parts.append(_changes(*(_chain_figures(lake, day, known) for day in (trade_date, changed_on))))
    if all(_is_bought(lake, "statistics", day) for day in (trade_date, changed_on)):
        parts.append(_changes(*(_statistics(lake, day, known) for day in (trade_date, changed_on))))
    if not parts:
        return tables.OPEN_INTEREST_CHANGE.empty().drop("environment", "run_id")
    rows = pl.concat(parts).unique(["source", "contract_key"], keep="first", maintain_order=True)
    before = sessions.previous_trade_date(changed_on)
    return rows.with_columns(trade_date=pl.lit(changed_on), previous_trade_date=pl.lit(before))


def _changes(now: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """The contracts that have a figure of both days."""
    earlier = before.select("source", "contract_key", previous_open_interest="open_interest")
    change = pl.col("open_interest") - pl.col("previous_open_interest")
    return now.join(earlier, on=["source", "contract_key"]).with_columns(open_interest_change=change)


def _chain_figures(lake: Lake, trade_date: date, known: pl.DataFrame) -> pl.DataFrame:
    """Open interest in each vendor's newest chain of every series, requested while it is final."""
    shown = (datetime.combine(trade_date, at, CHICAGO) for at in (FINAL_OPEN_INTEREST, NEXT_OPEN_INTEREST))
    first, end = (pl.lit(at).cast(tables.INSTANT) for at in shown)
    chains = (
        lake.scan(tables.SOURCE_CHAIN, [trade_date])
        .filter(pl.col("snapshot_ts").is_between(first, end, closed="left"))
        .join(known.lazy(), on=["source", "series"], how="anti")
    )
    newest = chains.group_by("source", "series").agg(pl.col("snapshot_ts").max())
    return (
        chains.join(newest, on=["source", "series", "snapshot_ts"], how="semi")
        .filter(pl.col("open_interest").is_not_null())
        .select("source", *_CONTRACT, "open_interest", figure=pl.lit("chain"), known_at="snapshot_ts")
        .collect()
    )


def _statistics(lake: Lake, trade_date: date, known: pl.DataFrame) -> pl.DataFrame:
    """The exchange's last figure of the trade date before, among the purchased statistics of this one."""
    about = sessions.previous_trade_date(trade_date)
    return (
        lake.scan(tables.STATISTICS, [trade_date])
        .filter(stat_type=OPEN_INTEREST, update_action=1)
        .filter(pl.col("ts_ref").dt.date() == about, pl.col("contract_key", "quantity").is_not_null())
        .with_columns(source=pl.lit(STATISTICS_SOURCE))
        .join(known.lazy(), on=["source", "series"], how="anti")
        .sort("ts_recv", "sequence")
        .group_by("contract_key")
        .last()
        .select(
            "source", *_CONTRACT, open_interest="quantity", figure=pl.lit("statistics"), known_at="ts_recv"
        )
        .collect()
    )


def _minutes(lake: Lake, trade_date: date) -> pl.LazyFrame:
    """Minute bars of futures; `moment` is when a bar begins."""
    bars = lake.scan(tables.OHLCV_1M, [trade_date]).filter(instrument_kind="future")
    return bars.with_columns(moment="ts_event", schema=pl.lit("ohlcv-1m")).sort("moment")


def _ticks(lake: Lake, trade_date: date) -> pl.LazyFrame:
    """Trades of futures as bars of one price each, in time order."""
    ticks = lake.scan(tables.TRADES, [trade_date]).filter(
        pl.col("instrument_kind") == "future", pl.col("price").is_not_null(), pl.col("size") > 0
    )
    moment = pl.when("is_misdated").then("ts_recv").otherwise("ts_event")
    prices = {name: pl.col("price") for name in ("open", "high", "low", "close")}
    return ticks.with_columns(moment=moment, volume="size", schema="source_schema", **prices).sort(
        "moment", "sequence", "ordinal"
    )


def _bars(
    parts: pl.LazyFrame, made_from: str, trade_date: date, hours: tuple[datetime, datetime]
) -> pl.DataFrame:
    """One bar of these hours per future of our products, from bars of shorter spans in time order."""
    first, end = (pl.lit(at).cast(tables.INSTANT) for at in hours)
    rows = (
        parts.filter(
            pl.col("moment").is_between(first, end, closed="left"), pl.col("root").is_in(list(PRODUCTS))
        )
        .group_by(product="root", raw_symbol="raw_symbol")
        .agg(
            pl.col("open").first(),
            pl.col("high").max(),
            pl.col("low").min(),
            pl.col("close").last(),
            pl.col("volume").cast(pl.Int64).sum(),
            pl.col("schema").unique().alias("schemas"),
        )
        .collect()
    )
    ends = [
        expiration_of_future(symbol, PRODUCTS[code], trade_date)
        for code, symbol in rows.select("product", "raw_symbol").iter_rows()
    ]
    return rows.with_columns(
        made_from=pl.lit(made_from),
        trade_date=pl.lit(trade_date),
        previous_trade_date=pl.lit(sessions.previous_trade_date(trade_date, with_rth=True)),
        expiration=pl.Series(ends, dtype=tables.INSTANT),
        opened_at=first,
        closed_at=end,
    )


def _is_bought(lake: Lake, schema: str, trade_date: date) -> bool:
    """Whether a trade date of a schema was bought, and counted as complete."""
    bought = lake.scan(tables.BACKFILLS, [trade_date]).filter(schema=schema, state="complete")
    return bool(bought.select(pl.len()).collect().item())


def _is_captured(
    lake: Lake, trade_date: date, hours: tuple[datetime, datetime], schemas: Collection[str]
) -> bool:
    """Whether the live capture of these schemas has no unfilled gap in these hours and reached their end."""
    first, end = (pl.lit(at).cast(tables.INSTANT) for at in hours)
    days = {s.trade_date for s in sessions.sessions(trade_date - LONGEST_GAP, trade_date)}
    current = lake.scan(tables.GAPS, days).sort("revision").group_by("gap_id").last()
    gap = (
        (pl.col("state") != "verified")
        & pl.col("schema").is_in(list(schemas))
        & (pl.col("first_ts") < end)
        & (pl.col("last_ts").is_null() | (pl.col("last_ts") > first))
    )
    if current.filter(gap).select(pl.len()).collect().item():
        return False
    proven = lake.scan(tables.SESSIONS, [trade_date]).select(at=pl.col("proven_ts"))
    traded = lake.scan(tables.TRADES, [trade_date]).select(at=pl.col("ts_recv"))
    reached = pl.concat([proven, traded]).select(pl.col("at").max()).collect().item()
    return reached is not None and reached >= hours[1] - BEHIND
