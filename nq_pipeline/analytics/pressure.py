"""Trade pressure: stores the windows of the view `pressure` in the table `trade_pressure`."""

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
    """The rows of the view `pressure` of a trade date whose window ended by `until`, sorted.

    With `until=None`, all rows, including those of the current window.
    """
    over = (
        "FROM pressure WHERE trade_date = $day "
        "AND ($until IS NULL OR window_start + INTERVAL 5 MINUTES <= $until::TIMESTAMPTZ)"
    )
    rows: pl.DataFrame = lake.sql(over, params={"day": trade_date, "until": until}).pl()
    return rows.sort("window_start", "contract_key")


def measure_pressure(settings: Settings, trade_date: date, *, until: datetime, run_id: str) -> pl.DataFrame:
    """Append the windows of a trade date that ended by `until` (the capture's time, UTC) to `trade_pressure`.

    A window is appended again, with more trades, after a gap in it was filled. Returns the current rows, one
    per window and contract.
    """
    with catalog.connect(Workspace.of(settings).lake) as lake:
        windows = windows_over(lake, trade_date, until).drop("is_whole", "product")
    rows = conform(TRADE_PRESSURE, windows.with_columns(run_id=pl.lit(run_id)))
    Workspace.of(settings).lake.append(TRADE_PRESSURE, rows, run_id=run_id)
    return rows
