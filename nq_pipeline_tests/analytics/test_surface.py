"""The surface of whole chains: inside bid and ask, near the true one, the same from the lake."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import nq_pipeline as nq
from nq_pipeline.analytics import quality
from nq_pipeline.analytics.metrics import priced_chain
from nq_pipeline.analytics.snapshot import price_and_measure
from nq_pipeline.analytics.surface import surface_rows
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import SURFACE_ARBITRAGE, SURFACE_SLICES, conform
from nq_pipeline.market.pricing import price_chain
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing import surfaces
from nq_pipeline_tests.testing.report_lake import store_snapshot


@pytest.fixture(scope="module")
def chain() -> pl.DataFrame:
    return surfaces.market_chain()


def share(of: pl.Series) -> float:
    return float(of.to_numpy().mean())


@pytest.mark.parametrize("product", ["NQ", "ES", "GC"])
def test_surface_lies_between_bid_and_ask_of_the_sandbox(product: str) -> None:
    chain = surfaces.market_chain(product)
    rows = surfaces.inside_quotes(surfaces.fit(chain), chain)
    assert rows["series"].n_unique() > 30 and rows.height > 2_000
    assert share(rows["is_inside"]) > 0.995
    error = (rows["fitted_volatility"] - rows["true_volatility"]).abs()
    assert share(error <= rows["iv_uncertainty"]) > 0.995


@pytest.mark.parametrize("board", list(surfaces.BOARDS))
def test_surface_lies_between_bid_and_ask_of_recorded_boards(shared: Path, board: str) -> None:
    chain = surfaces.recorded_chain(shared, board)
    surface = surfaces.fit(chain)
    rows = surfaces.inside_quotes(surface, chain)
    assert rows.height > 80
    assert share(rows["is_inside"]) > 0.95
    assert surface.slices["inside_share"].item() > 0.95


def test_strikes_and_expirations_left_out_are_found(chain: pl.DataFrame) -> None:
    """Every other strike and every third expiration are hidden; the band there holds the true volatility."""
    into_one_future = chain.filter(underlying="NQU5")
    hidden = into_one_future["expiration"].unique().sort()[1::3].to_list()
    known = into_one_future.filter(~pl.col("expiration").is_in(hidden), pl.col("strike") % 100 == 0)
    calls = into_one_future.filter(option_type="C")
    found = surfaces.fit(known).implied_volatility(calls["strike"], calls["expiration"].to_list())
    found = found.with_columns(true=calls["implied_volatility"]).drop_nulls("implied_volatility")
    for is_hidden in (False, True):
        rows = found.filter(pl.col("expiration").is_in(hidden) == is_hidden)
        assert rows.height > 500
        assert share(rows["true"].is_between(rows["lower"], rows["upper"])) > 0.99
        assert share((rows["implied_volatility"] - rows["true"]).abs() < 0.003) > 0.99


def test_lake_and_view_have_the_surface_that_the_api_gives(tmp_path: Path) -> None:
    settings, snapshot = store_snapshot(tmp_path)
    chain = snapshot.chain
    measured = price_and_measure(settings, chain, run_id="run")
    catalog.publish(Workspace.of(settings).lake)
    surface = nq.surface(settings=settings)
    stored = measured[SURFACE_SLICES.name].sort("expiration")
    assert stored.height == chain["series"].n_unique() == 4
    assert_frame_equal(stored.select(surface.slices.columns), surface.slices)
    arbitrage = measured[SURFACE_ARBITRAGE.name]
    assert_frame_equal(arbitrage.select(surface.arbitrage().columns), surface.arbitrage())
    assert set(arbitrage["kind"]) == {"calendar"}, "all expirations have the same prices"
    with nq.connect(settings) as lake:
        view = lake.sql("from surface_fit").pl().sort("series", "strike")
    fitted = surface.quotes.sort("series", "strike")
    assert view["fitted_volatility"].to_list() == pytest.approx(fitted["fitted_volatility"].to_list())
    assert view["inside"].sum() == pytest.approx((stored["inside_share"] * stored["quotes"]).sum())
    assert not view["inside"].all()

    asked = snapshot.request.snapshot_ts
    assert nq.surface(as_of=asked, settings=settings).slices.equals(surface.slices)
    for empty in (
        nq.surface(as_of=asked - timedelta(days=1), settings=settings),
        nq.surface(product="ES", settings=settings),
    ):
        assert empty.slices.is_empty() and empty.arbitrage().is_empty() and empty.grid().is_empty()
        assert empty.implied_volatility(21_500, asked)["implied_volatility"].to_list() == [None]


def test_products_and_snapshots_have_surfaces_of_their_own(chain: pl.DataFrame) -> None:
    first = chain.filter(pl.col("series").is_in(["Q2D-2025-06-12", "QN2-2025-06-13"]))
    second = first.with_columns(pl.col("snapshot_ts", "as_of").dt.offset_by("5m"))
    other = first.with_columns(source=pl.lit("databento"))
    both = pl.concat([first, second, other])
    rows = surface_rows(priced_chain(both, price_chain(both, rate=0.043)))
    slices = rows[SURFACE_SLICES]
    assert slices.group_by("source", "snapshot_ts").len()["len"].to_list() == [2, 2, 2]
    assert slices.group_by("series").agg(pl.col("atm_iv").n_unique())["atm_iv"].to_list() == [2, 2]
    alone = surfaces.fit(first).slices
    assert np.allclose(slices.head(2)["atm_iv"], alone["atm_iv"])


def test_a_chain_without_quotes_has_no_surface(chain: pl.DataFrame) -> None:
    for rows in (chain.clear(), chain.with_columns(bid=None, ask=None)):
        found = surface_rows(priced_chain(rows, price_chain(rows, rate=0.043)))
        for table, frame in found.items():
            assert conform(table, frame.with_columns(run_id=pl.lit("run"))).is_empty()


def test_a_good_surface_passes_its_checks(chain: pl.DataFrame) -> None:
    """And one that misses quotes, or falls with time by more than their width, does not."""
    front = chain.filter(pl.col("series").is_in(["Q2C-2025-06-11", "Q2D-2025-06-12"]))
    rows = surface_rows(priced_chain(front, price_chain(front, rate=0.043)))
    slices, arbitrage = rows[SURFACE_SLICES], rows[SURFACE_ARBITRAGE]
    inside = quality.quotes_inside(slices)
    free = quality.no_surface_arbitrage(arbitrage.with_columns(run_id=pl.lit("run")), slices)
    assert inside is not None and inside.passed and inside.numbers["series"] == 2
    assert free is not None and free.passed and free.table is None
    missed = quality.quotes_inside(slices.with_columns(inside_share=pl.Series([0.99, 0.5])))
    assert missed is not None and not missed.passed and missed.severity == "warn"
    assert missed.table is not None and missed.table["series"].to_list() == ["Q2D-2025-06-12"]
    empty = slices.clear()
    assert quality.quotes_inside(empty) is None is quality.no_surface_arbitrage(arbitrage, empty)
