"""A snapshot priced and measured, in the lake: `option_pricing` and the metrics computed from it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

import polars as pl

from nq_pipeline.analytics.metrics import gamma_levels, iv_smile, priced_chain, series_metrics, strike_profile
from nq_pipeline.analytics.pricing import price_snapshot
from nq_pipeline.lake.tables import (
    GAMMA_LEVELS,
    INSTANT,
    IV_SMILE,
    OPTION_CHAIN,
    OPTION_PRICING,
    SERIES_METRICS,
    STRIKE_PROFILE,
    conform,
)
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

METRICS = (
    (IV_SMILE, iv_smile),
    (STRIKE_PROFILE, strike_profile),
    (SERIES_METRICS, series_metrics),
    (GAMMA_LEVELS, gamma_levels),
)
"""In the order of writing: a snapshot that is in the last table is in all of them."""


def price_and_measure(settings: Settings, chain: pl.DataFrame, *, run_id: str) -> dict[str, pl.DataFrame]:
    """Price a chain, compute every metric of it and append all to the lake; rows by name of table.

    Publish the catalog afterwards, so that its views show the rows. Rows that are there stay as
    they are; what is returned is what was computed.

    Parameters
    ----------
    chain
        Rows of `option_chain`, whole snapshots.

    Raises
    ------
    LakeError
        The chain is not what `option_chain` declares, or the lake cannot be written.
    """
    pricing = price_snapshot(settings, chain, run_id=run_id)
    return {
        OPTION_PRICING.name: pricing,
        **measure_snapshot(settings, chain, pricing, run_id=run_id),
    }


def measure_snapshot(
    settings: Settings, chain: pl.DataFrame, pricing: pl.DataFrame, *, run_id: str
) -> dict[str, pl.DataFrame]:
    """Compute every metric of a chain and append the rows to the lake, by name of table.

    Parameters
    ----------
    chain, pricing
        Rows of `option_chain`, whole snapshots, and what `price_snapshot` returned for them.
    """
    priced = priced_chain(chain, pricing)
    measured = {
        table: conform(table, metric(priced).with_columns(run_id=pl.lit(run_id))) for table, metric in METRICS
    }
    Workspace.of(settings).lake.append_all(measured.items(), run_id=run_id).check()
    return {table.name: rows for table, rows in measured.items()}


def to_measure(settings: Settings, trade_date: date) -> Iterator[pl.DataFrame]:
    """The chains of a trade date that were not measured yet, oldest first, and at last the newest one.

    The newest comes in any case; what earlier runs left behind comes with it. One snapshot is in
    memory at a time.
    """
    lake, key = Workspace.of(settings).lake, ["source", "snapshot_ts"]
    taken = lake.scan(OPTION_CHAIN, [trade_date])
    snapshots = taken.select(key).unique().collect()
    measured = lake.scan(GAMMA_LEVELS, [trade_date]).select(key).unique().collect()
    left = snapshots.join(measured, on=key, how="anti")["snapshot_ts"].to_physical()
    for instant in sorted({*left, *snapshots["snapshot_ts"].to_physical().top_k(1)}):
        yield taken.filter(pl.col("snapshot_ts") == pl.lit(instant).cast(INSTANT)).collect()
