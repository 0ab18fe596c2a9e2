"""Prices a snapshot, computes its metrics, and writes both to the lake.

Rows that are already in the tables stay unchanged, even if the interest rate has changed. Publish the catalog
afterwards, so that its views show the new rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

import polars as pl

from nq_pipeline.analytics.metrics import measure, priced_chain
from nq_pipeline.analytics.surface import surface_rows
from nq_pipeline.lake.tables import GAMMA_LEVELS, INSTANT, OPTION_CHAIN, OPTION_PRICING, conform
from nq_pipeline.market.pricing import price_chain
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace


def price_and_measure(settings: Settings, chain: pl.DataFrame, *, run_id: str) -> dict[str, pl.DataFrame]:
    """Price a chain, compute its metrics, append both to the lake, and return the rows by table name.

    `chain` has rows of `option_chain`, whole snapshots. Raises `LakeError` when the lake cannot be written.
    """
    pricing = price_snapshot(settings, chain, run_id=run_id)
    return {OPTION_PRICING.name: pricing, **measure_snapshot(settings, chain, pricing, run_id=run_id)}


def price_snapshot(settings: Settings, chain: pl.DataFrame, *, run_id: str) -> pl.DataFrame:
    """Price rows of `option_chain`, append the result to `option_pricing`, and return it."""
    rows = conform(OPTION_PRICING, price_as_set(settings, chain).with_columns(run_id=pl.lit(run_id)))
    Workspace.of(settings).lake.append(OPTION_PRICING, rows, run_id=run_id)
    return rows


def price_as_set(settings: Settings, chain: pl.DataFrame) -> pl.DataFrame:
    """`price_chain` at the rate of the chain's trade date."""
    rate = settings.pricing.rate_on(chain.item(0, "trade_date")) if chain.height else 0.0
    return price_chain(chain, rate=rate, max_last_age_s=settings.pricing.max_last_age_s)


def measure_snapshot(
    settings: Settings, chain: pl.DataFrame, pricing: pl.DataFrame, *, run_id: str, surfaces: bool = True
) -> dict[str, pl.DataFrame]:
    """Compute the metrics of a priced chain, append them to the lake, and return the rows by table name.

    `surfaces` says whether to fit volatility surfaces, too, which takes longer than all metrics.
    """
    priced = priced_chain(chain, pricing)
    rows = (surface_rows(priced) if surfaces else {}) | measure(priced)
    measured = {
        table: conform(table, frame.with_columns(run_id=pl.lit(run_id))) for table, frame in rows.items()
    }
    Workspace.of(settings).lake.append_all(measured.items(), run_id=run_id).check()
    return {table.name: rows for table, rows in measured.items()}


def to_measure(settings: Settings, trade_date: date) -> Iterator[pl.DataFrame]:
    """The snapshots of a trade date that have no metrics yet, oldest first; the newest in any case.

    One snapshot is in memory at a time.
    """
    lake, key = Workspace.of(settings).lake, ["source", "snapshot_ts"]
    chains = lake.scan(OPTION_CHAIN, [trade_date])
    snapshots = chains.select(key).unique().collect()
    measured = lake.scan(GAMMA_LEVELS, [trade_date]).select(key).unique().collect()
    left = snapshots.join(measured, on=key, how="anti")["snapshot_ts"].to_physical()
    for instant in sorted({*left, *snapshots["snapshot_ts"].to_physical().top_k(1)}):
        yield chains.filter(pl.col("snapshot_ts") == pl.lit(instant).cast(INSTANT)).collect()
