"""A snapshot of products beyond NQ: a winner for each series, and vendors that say what they lack."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from nq_pipeline import connect
from nq_pipeline.chains.ask import open_session
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.snapshot import take_snapshot
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import SettingsError
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.outcome import Outcome
from nq_pipeline.runtime import endpoints
from nq_pipeline.settings import Settings
from nq_pipeline.sources.registry import load_source

NOW = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)


def settings(tmp_path: Path, *products: str, **more: object) -> Settings:
    own = {
        "data_dir": tmp_path / "data",
        "now": NOW,
        "horizon_days": 0,
        "far_expirations": False,
        "products": products,
    }
    own |= {"source_deadline_s": 90.0, "http_timeout_s": 60.0, **more}
    return build_settings(**own)


def test_every_series_of_three_products_has_a_winner(tmp_path: Path) -> None:
    with endpoints(settings(tmp_path, "NQ", "ES", "GC")) as served:
        request = build_request(served)
        snapshot = take_snapshot(served, request)
    assert {s.root for s in request.series} == {"Q2B", "E2B", "G2T"}
    won = snapshot.decisions.filter("won")
    assert sorted(won["series"]) == sorted(s.key for s in request.series)
    # Barchart's codes of these roots are not known.
    assert "barchart" not in set(won.filter(pl.col("series").str.starts_with("E2"))["source"])
    told = snapshot.chain.select("root", "multiplier", "underlying_class").unique()
    for root, multiplier, kind in told.iter_rows():
        assert (multiplier, kind) == (ROOTS[root].product.multiplier, "future")
    assert set(snapshot.chain["underlying"].unique()) == {"NQM5", "ESM5", "GCQ5"}
    databento = snapshot.results["databento"].answer
    assert databento.outcome is Outcome.OK
    prices = databento.frame.group_by("underlying").agg(pl.col("underlying_price").mean())
    assert prices.filter(pl.col("underlying_price").is_null()).is_empty()


def test_deadline_grows_with_the_number_of_products(tmp_path: Path) -> None:
    own = settings(tmp_path, "NQ", "ES", "GC", source_deadline_s=1000.0)
    source = load_source("polygon", own)
    for series, allowed in (((), 3000), (("Q2B-2025-06-10", "Q2C-2025-06-11"), 1000)):
        session = open_session(source, own, build_request(own, series=series))
        assert session.remaining() == pytest.approx(allowed, abs=500)
        session.close()


def test_barchart_names_the_setting_for_a_code_that_it_lacks(tmp_path: Path) -> None:
    own = settings(tmp_path, "ES", sources=("barchart",))
    snapshot = take_snapshot(own, build_request(own))
    barchart = snapshot.results["barchart"].answer
    assert barchart.outcome is Outcome.NOT_CONFIGURED
    assert "not covered" in barchart.reason
    assert "NQ_BARCHART_CODES" in barchart.reason
    assert snapshot.results["barchart"].fetches.is_empty()


def test_a_proxy_wins_only_for_the_product_it_stands_for(tmp_path: Path) -> None:
    """No native source has the S&P here, gold has one, and nothing stands for gold."""
    own = settings(tmp_path, "ES", "GC", sources=("barchart", "polygon"))
    with endpoints(own) as served:
        snapshot = take_snapshot(served, build_request(served))
        shown = connect(served).sql("SELECT DISTINCT root FROM option_chain_latest").fetchall()
    won = snapshot.decisions.filter("won")
    assert {root for (root,) in shown} == {"G2T", "SPXW"}
    roots = {source: {s.partition("-")[0] for s in of["series"]} for (source,), of in won.group_by("source")}
    assert roots == {"barchart": {"G2T"}, "polygon": {"SPXW"}}
    assert "not ES options" in won.filter(source="polygon")["reason"][0]


def test_polygon_says_that_it_does_not_cover_gold(tmp_path: Path) -> None:
    own = settings(tmp_path, "GC", sources=("polygon",))
    snapshot = take_snapshot(own, build_request(own))
    polygon = snapshot.results["polygon"].answer
    assert polygon.outcome is Outcome.NOT_CONFIGURED
    assert "stands for GC" in polygon.reason
    assert snapshot.results["polygon"].fetches.is_empty()


def test_the_horizon_of_a_product_that_is_in_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"products are {', '.join(PRODUCTS)}"):
        build_request(settings(tmp_path, "NQ", "CL"))
