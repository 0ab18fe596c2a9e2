"""Who was the aggressor: the windows of the view `pressure`, kept in the lake as they are counted."""

from __future__ import annotations

from datetime import date, datetime

import polars as pl

from nq_pipeline.lake import catalog
from nq_pipeline.lake.lake import Lake
from nq_pipeline.lake.schemas import TRADE_PRESSURE, conform
from nq_pipeline.settings import Settings

_OVER = "FROM pressure WHERE trade_date = $day AND window_start + INTERVAL 5 MINUTES <= $until"


def measure_pressure(settings: Settings, trade_date: date, *, until: datetime, run_id: str) -> pl.DataFrame:
    """Append to the lake what is new of the windows of a trade date that are over.

    A window is written when it is over, and once more, with more trades, when a gap that touched
    it was filled.

    Parameters
    ----------
    until
        UTC, by the capture's clock.

    Returns
    -------
    The rows of `trade_pressure` as they are now, one per window and contract.
    """
    with catalog.connect(settings.environment_dir) as lake:
        windows: pl.DataFrame = lake.sql(_OVER, params={"day": trade_date, "until": until}).pl()
    rows = windows.drop("is_whole", "product").sort("window_start", "contract_key")
    rows = conform(TRADE_PRESSURE, rows.with_columns(run_id=pl.lit(run_id)))
    Lake(settings.environment_dir / "lake").append(TRADE_PRESSURE, rows, run_id=run_id)
    return rows
