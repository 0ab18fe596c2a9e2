"""What we compute from chains and trades: pricing and metrics of a snapshot, pressure of a trade date.

The step follows the chain's in the same run. When it fails, the chain is in the lake and materialized, and
the next run prices what this one left. One step computes all tables from one frame, in a fraction of a
second.
"""

import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from nq_pipeline.analytics import quality
from nq_pipeline.capture import quality as capture_quality
from nq_pipeline.clock import from_ns
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import (
    CONSTANT_MATURITY,
    GAMMA_LEVELS,
    IV_SMILE,
    OPTION_CHAIN,
    OPTION_PRICING,
    SERIES_METRICS,
    STRIKE_PROFILE,
    SURFACE_ARBITRAGE,
    SURFACE_SLICES,
    TRADE_PRESSURE,
)
from nq_pipeline.market import sessions
from nq_pipeline.orchestration import checks, freshness, metadata
from nq_pipeline.orchestration.names import (
    ARBITRAGE,
    CHOSEN_CHAIN,
    LEVELS,
    LIVE_TRADES,
    MATURITIES,
    PRESSURE,
    PRICING,
    PROFILE,
    SERIES,
    SMILE,
    SURFACE,
)
from nq_pipeline.orchestration.partitions import CAPTURE_DATES, CHAIN_DATES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.steps import Event, computed_spec, failing_in_one_sentence
from nq_pipeline.report import markdown
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from nq_pipeline.charts import Picture

WINDOW = timedelta(minutes=5)

TABLES = {
    PRICING: OPTION_PRICING,
    SMILE: IV_SMILE,
    SURFACE: SURFACE_SLICES,
    ARBITRAGE: SURFACE_ARBITRAGE,
    PROFILE: STRIKE_PROFILE,
    SERIES: SERIES_METRICS,
    MATURITIES: CONSTANT_MATURITY,
    LEVELS: GAMMA_LEVELS,
}
DETAILS = {
    PRICING: "Black-76 on the parity forward, plus the early exercise premium for American quarterlies. "
    "`unpriced` says why a row has no volatility. ",
    MATURITIES: "At-the-money volatility and 25-delta skew, interpolated in total variance; null where no "
    "two expirations bracket the maturity. ",
    LEVELS: "Net gamma, delta, vanna and charm exposure if dealers are long calls and short puts, the call "
    "wall and the put wall, and the level at which the gamma exposure changes sign. ",
}
"""What the meaning of the table does not say."""
SPECS = [
    computed_spec(
        key,
        table,
        *([CHOSEN_CHAIN] if key == PRICING else [CHOSEN_CHAIN, PRICING]),
        description=f"{DETAILS.get(key, '')}Computed after every chain, in the same run.",
        freshness_policy=freshness.SNAPSHOT,
    )
    for key, table in TABLES.items()
]


@dg.multi_asset(specs=SPECS, check_specs=checks.specs(*TABLES), partitions_def=CHAIN_DATES, can_subset=True)
def chain_analytics(context: dg.AssetExecutionContext, vendors: dg.ResourceParam[Vendors]) -> Iterator[Event]:
    """Price and measure the newest snapshot and those that earlier runs left; always all tables."""
    from nq_pipeline.analytics.snapshot import price_and_measure, to_measure

    started = time.perf_counter()
    with failing_in_one_sentence():
        settings = vendors.settings()
        day = _day(context, settings)
        chain, measured, snapshots = OPTION_CHAIN.empty(), {}, 0
        for chain in to_measure(settings, day):
            measured = price_and_measure(settings, chain, run_id=context.run.run_id)
            snapshots += 1
        if not measured:
            context.log.info(f"There is no chain of {day} to price.")
            return
        catalog.publish(Workspace.of(settings).lake)

    charts = markdown.metric_charts(measured, settings.products[0])
    sparklines = markdown.metric_sparklines(measured, settings.products[0])
    effort = {"snapshots": snapshots, "elapsed_s": round(time.perf_counter() - started, 3)}
    for key in TABLES:
        if key in context.selected_asset_keys:
            yield dg.MaterializeResult(
                asset_key=key,
                metadata={
                    **_images(charts.get(TABLES[key].name), sparklines.get(TABLES[key].name)),
                    **_figures(key, measured, day, settings),
                    **effort,
                },
            )
    findings = quality.judge_snapshot(chain, measured, tolerance=settings.pricing.parity_tolerance)
    for key, table in TABLES.items():
        yield from checks.results(key, findings[table.name], context.selected_asset_check_keys)


PRESSURE_SPEC = computed_spec(
    PRESSURE,
    TRADE_PRESSURE,
    LIVE_TRADES,
    description="Computed from the live trades every five minutes while the capture's window is open and for "
    "an hour after it, and once more early in the next session.",
    freshness_policy=freshness.SEALED,
)


@dg.multi_asset(
    specs=[PRESSURE_SPEC], check_specs=checks.specs(PRESSURE), partitions_def=CAPTURE_DATES, can_subset=True
)
def trade_pressure(context: dg.AssetExecutionContext, vendors: dg.ResourceParam[Vendors]) -> Iterator[Event]:
    """Measure the closed windows of the trade date."""
    from nq_pipeline.analytics.pressure import measure_pressure

    with failing_in_one_sentence():
        settings, now = vendors.settings(), vendors.market_now()
        day = _day(context, settings) if context.has_partition_key else sessions.trade_date(now)
        rows = measure_pressure(settings, day, until=now, run_id=context.run.run_id)
        catalog.publish(Workspace.of(settings).lake)
    if rows.is_empty():
        context.log.info(f"No closed window of {day} has a captured trade of an option.")
        return
    bought, sold = int(rows["buy_volume"].sum()), int(rows["sell_volume"].sum())
    newest = rows.filter(pl.col("window_start") == pl.col("window_start").max())
    net = pl.col("buy_volume") - pl.col("sell_volume")
    by_side = {side: int(newest.filter(option_type=side).select(net.sum()).item()) for side in "CP"}
    yield dg.MaterializeResult(
        asset_key=PRESSURE,
        metadata={
            **metadata.of_partition(TRADE_PRESSURE, day, settings),
            "environment": settings.environment,
            "windows": rows["window_start"].n_unique(),
            "trades": int(rows["trades"].sum()),
            "buy_volume": bought,
            "sell_volume": sold,
            **({"imbalance": round((bought - sold) / (bought + sold), 6)} if bought + sold else {}),
            "net_calls_last_window": by_side["C"],
            "net_puts_last_window": by_side["P"],
            "picture": dg.MetadataValue.md(markdown.pressure_charts(rows, settings.products[0])),
        },
    )
    findings = quality.judge_pressure(rows, _windows_in_gaps(settings, now, day, rows))
    yield from checks.results(PRESSURE, findings, context.selected_asset_check_keys)


def _day(context: dg.AssetExecutionContext, settings: Settings) -> date:
    """The partition. Checks launched alone have none; they judge the newest trade date."""
    if context.has_partition_key:
        return date.fromisoformat(context.partition_key)
    files = Workspace.of(settings).lake.manifest(OPTION_CHAIN).files
    return max((file.trade_date for file in files), default=sessions.trade_date(settings.clock.now()))


def _figures(
    key: dg.AssetKey, measured: dict[str, pl.DataFrame], day: date, settings: Settings
) -> metadata.Metadata:
    """The figures of one table of the newest snapshot."""
    rows = measured[TABLES[key].name]
    shown = {
        **metadata.of_partition(TABLES[key], day, settings),
        "rows": rows.height,
        "environment": settings.environment,
        "catalog": metadata.catalog(settings),
    }
    series = measured[SERIES_METRICS.name]
    first = quality.front_series(series)
    if key == PRICING:
        usable = rows.filter(pl.col("price").is_not_null()).height
        priced = rows["implied_volatility"].count()
        shown |= {"priced": priced, **({"priced_share": round(priced / usable, 6)} if usable else {})}
    elif key == SMILE and first.height:
        name = first.item(0, "series")
        shown |= {"front": name, "strikes_front": rows.filter(series=name).height}
        shown |= _numbers(first, "atm_iv")
    elif key == SURFACE and rows.height:
        shown |= {"series": rows.height, "quotes": int(rows["quotes"].sum())}
        shown["inside_share"] = round(quality.inside_share(rows), 6)
    elif key == SERIES and first.height:
        shown |= {"front": first.item(0, "series")}
        shown |= _numbers(
            first, "forward", "atm_iv", "expected_move_straddle", "max_pain", "put_call_open_interest"
        )
        columns = ("forward", "atm_iv", "expected_move_straddle", "put_call_open_interest", "max_pain")
        by_series = rows.sort("expiration", "series").select("source", "series", *columns)
        shown["by_series"] = metadata.markdown_table(by_series)
    elif key == MATURITIES and rows.height:
        known = rows.filter(product=settings.products[0]).drop_nulls("atm_iv").select("days", "atm_iv")
        shown |= {f"atm_iv_{days}": round(iv, 6) for days, iv in known.iter_rows()}
        shown["by_days"] = metadata.markdown_table(
            rows.select("source", "product", "days", "atm_iv", "risk_reversal_25", "butterfly_25", "forward")
        )
    elif key == LEVELS and rows.height:
        own = pl.col("product") != settings.products[0]
        shown |= _numbers(
            rows.sort(own, -pl.col("contracts").cast(pl.Int64)).head(1),
            "forward",
            "zero_gamma",
            "gex_per_pct",
            "call_wall",
            "put_wall",
            "delta_exposure",
            "vanna_exposure",
            "charm_exposure",
            "put_call_open_interest",
            "put_call_volume",
            "open_interest_left_out",
        )
    return shown


def _images(chart: "Picture | None", sparkline: str | None) -> metadata.Metadata:
    return {
        **({"sketch": dg.MetadataValue.md(sparkline)} if sparkline else {}),
        **({} if chart is None else {"picture": dg.MetadataValue.md(markdown.chart(chart))}),
    }


def _numbers(row: pl.DataFrame, *names: str) -> dict[str, float]:
    """The known numbers of a row, for Dagster to plot."""
    return {name: round(value, 6) for name in names if (value := row.item(0, name)) is not None}


def _windows_in_gaps(settings: Settings, now: datetime, day: date, rows: pl.DataFrame) -> int:
    """The number of windows in which trades may be missing."""
    gaps = [
        gap for gap in capture_quality.read_capture_day(settings, now, day).gaps if gap.state != "verified"
    ]
    spans = [(from_ns(gap.first_ns), now if gap.last_ns is None else from_ns(gap.last_ns)) for gap in gaps]
    starts = rows["window_start"].unique().to_list()
    return sum(any(a < start + WINDOW and start < b for a, b in spans) for start in starts)
