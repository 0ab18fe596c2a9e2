"""Who was the aggressor: the windows of the view `pressure`, kept in the lake as they are counted."""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import TRADE_PRESSURE, conform
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    import duckdb


def windows_over(lake: duckdb.DuckDBPyConnection, trade_date: date, until: datetime | None) -> pl.DataFrame:
    """The rows of the view `pressure` of a trade date whose window is over by a moment, in order.

    Without a moment all rows, also those of a window that goes on.
    """
    over = (
        "FROM pressure WHERE trade_date = $day "
        "AND ($until IS NULL OR window_start + INTERVAL 5 MINUTES <= $until::TIMESTAMPTZ)"
    )
    rows: pl.DataFrame = lake.sql(over, params={"day": trade_date, "until": until}).pl()
    return rows.sort("window_start", "contract_key")


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
    with catalog.connect(Workspace.of(settings).lake) as lake:
        windows = windows_over(lake, trade_date, until).drop("is_whole", "product")
    rows = conform(TRADE_PRESSURE, windows.with_columns(run_id=pl.lit(run_id)))
    Workspace.of(settings).lake.append(TRADE_PRESSURE, rows, run_id=run_id)
    return rows
