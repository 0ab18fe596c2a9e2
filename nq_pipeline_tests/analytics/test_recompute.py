"""Computed tables of an existing lake are completed, and what they hold stays."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from nq_pipeline.analytics import recompute as module
from nq_pipeline.analytics.recompute import Recomputed, recompute
from nq_pipeline.analytics.snapshot import price_and_measure
from nq_pipeline.configuration import build_settings
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import (
    CONSTANT_MATURITY,
    GAMMA_LEVELS,
    OPTION_CHAIN,
    OPTION_PRICING,
    SERIES_METRICS,
    Table,
    conform,
)
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.quoted_chains import LAKE_NOON, lake_chain

DAY = date(2025, 7, 1)
FIVE_MINUTES = 300 * 10**9
ADDED = {
    OPTION_PRICING: {"rho", "vanna", "charm", "volga"},
    SERIES_METRICS: {
        *("iv_25_call", "iv_25_put", "iv_10_call", "iv_10_put", "risk_reversal_25", "risk_reversal_10"),
        *("butterfly_25", "butterfly_10", "skew_slope"),
    },
    GAMMA_LEVELS: {
        *("gamma_regime", "call_wall", "put_wall", "open_interest_left_out_share", "term_slope"),
        *("delta_exposure", "vanna_exposure", "charm_exposure", "underlying_price"),
    },
}


def chain(snapshot: int = 0) -> pl.DataFrame:
    """The snapshot of this number; they are five minutes apart."""
    rows = lake_chain(LAKE_NOON + snapshot * FIVE_MINUTES)
    return rows.with_columns(open_interest=pl.lit(10, pl.Int64), volume=pl.lit(1, pl.Int64))


def at_rate(folder: Path, rate: float) -> Settings:
    return build_settings(data_dir=folder, risk_free_rate=rate)


def store_as_before(lake: Lake, table: Table, rows: pl.DataFrame) -> None:
    """Append rows as the version of the table did that lacked these columns."""
    columns = tuple(column for column in table.columns if column.name not in ADDED[table])
    older = replace(table, version=1, columns=columns)
    lake.append(older, rows.select(older.schema.names()), run_id="run")


def test_columns_of_an_earlier_version_are_filled(tmp_path: Path) -> None:
    fresh = price_and_measure(at_rate(tmp_path / "now", 0.03), chain(), run_id="run")
    later = at_rate(tmp_path / "before", 0.09)
    lake = Workspace.of(later).lake
    lake.append(OPTION_CHAIN, conform(OPTION_CHAIN, chain()), run_id="run")
    for table in ADDED:
        store_as_before(lake, table, fresh[table.name])
    assert list(recompute(later, run_id="after")) == [Recomputed(DAY, 1, 24)]
    for table in ADDED:
        # A rate that changed since makes no difference.
        assert_frame_equal(lake.scan(table).collect(), fresh[table.name], check_row_order=False)
    assert fresh["option_pricing"]["vanna"].count() > 0 and fresh["gamma_levels"]["call_wall"].count() > 0
    assert lake.scan(CONSTANT_MATURITY).collect().height == 5
    assert list(recompute(later, run_id="again")) == [Recomputed(DAY, 0, 0)]


def test_snapshots_without_metrics_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = at_rate(tmp_path, 0.03)
    lake = Workspace.of(settings).lake
    for snapshot in range(12):
        lake.append(OPTION_CHAIN, conform(OPTION_CHAIN, chain(snapshot)), run_id="run")
    known = price_and_measure(settings, chain(3), run_id="run")
    monkeypatch.setattr(module, "SNAPSHOTS_AT_ONCE", 8)
    assert list(recompute(settings, since=date(2025, 7, 2), run_id="after")) == []
    assert list(recompute(settings, until=DAY, run_id="after")) == [Recomputed(DAY, 11, 0)]
    levels = lake.scan(GAMMA_LEVELS).sort("snapshot_ts").collect()
    assert levels["run_id"].to_list() == [*["after"] * 3, "run", *["after"] * 8]
    assert_frame_equal(levels.slice(3, 1), known["gamma_levels"])
    assert lake.scan(OPTION_PRICING).collect().height == 12 * chain().height
