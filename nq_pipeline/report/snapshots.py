"""The snapshots of the lake: which there are, and which of them a report compares."""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.errors import LakeError
from nq_pipeline.lake import catalog
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    import duckdb

_SNAPSHOTS = """
WITH runs AS (
    SELECT run_id, trade_date, max(snapshot_ts) AS snapshot_ts, count(*) AS series,
           sum(contracts)::BIGINT AS contracts, list_sort(list(DISTINCT source)) AS sources
    FROM decisions WHERE won AND ($day IS NULL OR trade_date = $day) GROUP BY ALL
)
SELECT snapshot_ts, trade_date, contracts, series, sources FROM runs
QUALIFY row_number() OVER (PARTITION BY snapshot_ts ORDER BY contracts DESC, run_id) = 1
ORDER BY snapshot_ts DESC
"""


def find_snapshots(settings: Settings, trade_date: date | None = None) -> pl.DataFrame:
    """The snapshots of the lake, or of a trade date, newest first.

    The columns are `snapshot_ts` (UTC, microseconds), `trade_date`, `contracts`, `series` and `sources`. A
    snapshot counts from its newest rows; two runs that chose the same rows are one snapshot.
    """
    with catalog.connect(Workspace.of(settings).existing_lake) as lake:
        return snapshots(lake, trade_date)


def snapshots(lake: duckdb.DuckDBPyConnection, trade_date: date | None = None) -> pl.DataFrame:
    """As `find_snapshots`, on an open connection."""
    rows: pl.DataFrame = lake.sql(_SNAPSHOTS, params={"day": trade_date}).pl()
    return rows


def newest_snapshot(settings: Settings, trade_date: date) -> datetime:
    """The time of the newest snapshot of a trade date. Raises `LakeError` when it has none."""
    found = find_snapshots(settings, trade_date)
    if found.is_empty():
        raise LakeError(
            f"the lake has no chain of trade date {trade_date} to report on; `nq report --list` shows the "
            "snapshots that it has"
        )
    newest: datetime = found.item(0, "snapshot_ts")
    return newest
