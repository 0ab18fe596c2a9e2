"""`option_pricing` in the lake, and the view that joins it to the chain."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

from nq_pipeline.analytics.snapshot import price_snapshot
from nq_pipeline.clock import NS_PER_S, from_ns
from nq_pipeline.configuration import build_settings
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import OPTION_CHAIN, OPTION_PRICING, conform
from nq_pipeline.market.pricing import PRICED, price_chain
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.quoted_chains import GREEKS, SIGMA, lake_chain
from nq_pipeline_tests.testing.quoted_chains import LAKE_NOON as NOON
from nq_pipeline_tests.testing.quoted_chains import LAKE_RATE as RATE


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return build_settings(data_dir=tmp_path, risk_free_rate=RATE)


def test_table_has_the_pricing_columns_and_the_run() -> None:
    assert [column.name for column in OPTION_PRICING.columns] == [*PRICED, "run_id"]


def test_snapshot_is_priced_and_written_once(settings: Settings) -> None:
    rows = price_snapshot(settings, lake_chain(), run_id="first")
    assert set(rows["rate"]) == {RATE}
    priced = rows.filter(pl.col("unpriced").is_null())
    assert priced.height == rows.height - 1
    assert priced["implied_volatility"].to_numpy() == pytest.approx(SIGMA, abs=1e-6)
    price_snapshot(settings, lake_chain(), run_id="again")
    stored = Workspace.of(settings).lake.scan(OPTION_PRICING).collect()
    assert stored.height == rows.height and set(stored["run_id"]) == {"first"}


def test_view_names_the_source_of_every_number(settings: Settings) -> None:
    lake = Workspace.of(settings).lake
    later = NOON + 300 * NS_PER_S
    silent_vendor = lake_chain(later).with_columns(pl.lit(None, pl.Float64).alias(name) for name in GREEKS)
    for rows in (lake_chain(), silent_vendor):
        lake.append(OPTION_CHAIN, conform(OPTION_CHAIN, rows), run_id="run")
        price_snapshot(settings, rows, run_id="run")
    with catalog.connect(Workspace.of(settings).lake) as connection:
        shown = connection.sql("SELECT * FROM option_chain_priced ORDER BY snapshot_ts, contract_key").pl()
    assert shown.height == 44
    sources = shown.group_by("snapshot_ts_ns", "iv_source").len().sort("snapshot_ts_ns", "len")
    assert sources.rows() == [
        (NOON, "vendor", 1),
        (NOON, "computed", 21),
        (later, None, 1),
        (later, "computed", 21),
    ]
    computed = shown.filter(iv_source="computed")
    assert computed["implied_volatility"].to_numpy() == pytest.approx(SIGMA, abs=1e-6)
    assert np.abs(computed["delta"].to_numpy()).max() <= 1
    vendors = shown.filter(iv_source="vendor").row(0, named=True)
    assert [vendors[name] for name in GREEKS] == [9.0] * 5 and vendors["unpriced"] == "no_quote"
    assert set(shown.filter(snapshot_ts_ns=NOON)["vendor_implied_volatility"]) == {9.0}
    nobodys = shown.filter(pl.col("iv_source").is_null()).row(0, named=True)
    assert [nobodys[name] for name in GREEKS] == [None] * 5


def test_unpriced_chain_shows_the_vendors_numbers(settings: Settings) -> None:
    Workspace.of(settings).lake.append(OPTION_CHAIN, conform(OPTION_CHAIN, lake_chain()), run_id="run")
    with catalog.connect(Workspace.of(settings).lake) as connection:
        shown = connection.sql("SELECT iv_source, delta, unpriced FROM option_chain_priced").fetchall()
    assert set(shown) == {("vendor", 9.0, None)} and len(shown) == 22


def test_every_view_column_has_a_comment(settings: Settings) -> None:
    with duckdb.connect(catalog.publish(Workspace.of(settings).lake), read_only=True) as connection:
        silent = connection.execute(
            "SELECT column_name FROM duckdb_columns() WHERE table_name = ? AND comment IS NULL",
            [catalog.PRICED],
        ).fetchall()
        names = {row[0] for row in connection.execute(f"DESCRIBE {catalog.PRICED}").fetchall()}
    assert silent == []
    assert {"iv_source", "unpriced", "valued_at_ns", "parity_gap", "vendor_implied_volatility"} <= names


def test_chain_without_settlement_dates_is_priced(settings: Settings) -> None:
    lake = Workspace.of(settings).lake
    columns = tuple(column for column in OPTION_CHAIN.columns if column.name != "settlement_date")
    settled = lake_chain().with_columns(
        bid=pl.lit(None, pl.Float64),
        ask=pl.lit(None, pl.Float64),
        is_settlement=pl.lit(True),
        settlement=(pl.col("bid") + pl.col("ask")) / 2,
    )
    old = conform(OPTION_CHAIN, settled).drop("settlement_date")
    lake.append(replace(OPTION_CHAIN, version=1, columns=columns), old, run_id="old")
    with catalog.connect(Workspace.of(settings).lake) as connection:
        shown = catalog.chain(connection, from_ns(NOON + NS_PER_S))
    for rows in (lake.scan(OPTION_CHAIN).collect(), shown):
        assert rows.height == 22 and rows["settlement_date"].null_count() == 22
        priced = price_chain(rows, rate=RATE)
        made = datetime(2025, 6, 27, 20, tzinfo=UTC)  # Friday's, the newest that was out on Monday at noon
        assert set(priced.filter(price_used="settlement")["valued_at"]) == {made}
