"""A snapshot's metrics in the lake, computed from its chain and its pricing."""

from __future__ import annotations

import polars as pl

from nq_pipeline.analytics.metrics import gamma_levels, iv_smile, priced_chain, series_metrics, strike_profile
from nq_pipeline.lake.lake import Lake
from nq_pipeline.lake.schemas import GAMMA_LEVELS, IV_SMILE, SERIES_METRICS, STRIKE_PROFILE, conform
from nq_pipeline.settings import Settings

METRICS = (
    (IV_SMILE, iv_smile),
    (STRIKE_PROFILE, strike_profile),
    (SERIES_METRICS, series_metrics),
    (GAMMA_LEVELS, gamma_levels),
)


def measure_snapshot(
    settings: Settings, chain: pl.DataFrame, pricing: pl.DataFrame, *, run_id: str
) -> dict[str, pl.DataFrame]:
    """Compute every metric of a chain and append the rows to the lake, by name of table.

    Rows that are there stay as they are. Publish the catalog afterwards, so that its views show them.

    Parameters
    ----------
    chain, pricing
        Rows of `option_chain`, whole snapshots, and what `price_snapshot` returned for them.
    """
    priced = priced_chain(chain, pricing)
    lake, measured = Lake(settings.environment_dir / "lake"), {}
    for table, metric in METRICS:
        rows = conform(table, metric(priced).with_columns(run_id=pl.lit(run_id)))
        lake.append(table, rows, run_id=run_id)
        measured[table.name] = rows
    return measured
