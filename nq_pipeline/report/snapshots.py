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
WITH won AS (
    SELECT *, max(snapshot_ts) OVER (PARTITION BY run_id, trade_date) AS newest
    FROM decisions WHERE won AND ($day IS NULL OR trade_date = $day)
), chosen AS (
    FROM won QUALIFY row_number() OVER (PARTITION BY newest, series ORDER BY decided_at DESC, run_id) = 1
)
SELECT newest AS snapshot_ts, trade_date, sum(contracts)::BIGINT AS contracts, count(*) AS series,
       list_sort(list(DISTINCT source)) AS sources
FROM chosen GROUP BY ALL ORDER BY snapshot_ts DESC
"""

_EARLIER = """
WITH before AS (
    SELECT run_id, trade_date, max(snapshot_ts) AS snapshot_ts FROM decisions
    WHERE won AND trade_date <= $day AND trade_date >= $day - INTERVAL 14 DAYS
    GROUP BY ALL HAVING max(snapshot_ts) < $ts
)
SELECT CASE WHEN trade_date = $day THEN 'previous' ELSE 'close' END AS name, snapshot_ts, trade_date
FROM before
QUALIFY snapshot_ts = max(snapshot_ts) OVER (PARTITION BY name)
    AND row_number() OVER (PARTITION BY snapshot_ts) = 1
ORDER BY snapshot_ts DESC
"""


def find_snapshots(settings: Settings, trade_date: date | None = None) -> pl.DataFrame:
    """The snapshots of the lake, or of a trade date, newest first.

    The columns are `snapshot_ts` (UTC, microseconds), `trade_date`, `contracts`, `series` and `sources`. A
    snapshot counts from its newest rows. Of runs with the same one, the last that decided a series counts.
    """
    with catalog.connect(Workspace.of(settings).existing_lake) as lake:
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


def earlier(lake: duckdb.DuckDBPyConnection, snapshot_ts: datetime, trade_date: date) -> pl.DataFrame:
    """The snapshots with which a report compares: `name`, `snapshot_ts` and `trade_date`, the newest first.

    `previous` is the snapshot before, `close` the last one of the newest trade date before. If the snapshot
    before is that one, it is the `close` only.
    """
    rows: pl.DataFrame = lake.sql(_EARLIER, params={"ts": snapshot_ts, "day": trade_date}).pl()
    return rows
