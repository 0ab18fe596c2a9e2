"""QuantLib reads the exported surface and gives its volatilities."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import nq_pipeline as nq
from nq_pipeline.export import export
from nq_pipeline.export.quantlib import variance_grid
from nq_pipeline.market.surface import VolatilitySurface
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing import surfaces

ql = pytest.importorskip("QuantLib", reason="QuantLib is not installed")


def as_quantlib(grid: dict[str, Any]) -> Any:
    """As the documentation shows it."""
    reference, *dates = (ql.DateParser.parseISO(day) for day in (grid["reference_date"], *grid["dates"]))
    matrix = ql.Matrix(grid["volatilities"])
    return ql.BlackVarianceSurface(
        reference, ql.NullCalendar(), dates, grid["strikes"], matrix, ql.Actual365Fixed()
    )


def test_quantlib_gives_the_total_variance_of_the_surface() -> None:
    surface = surfaces.fit(surfaces.market_chain())
    grid = variance_grid(surface)
    assert grid is not None and grid.reference_date == date(2025, 6, 10)
    assert len(grid.dates) == 36 == len(set(grid.dates)), "not that day's, nor the morning of the 20th"
    theirs = as_quantlib(json.loads(orjson.dumps(grid._asdict(), option=orjson.OPT_SERIALIZE_NUMPY)))
    for column, day in enumerate(grid.dates[::5]):
        strikes = grid.strikes[grid.quoted[:, 5 * column]]
        ours = surface.implied_volatility(strikes, day)
        assert ours["implied_volatility"].null_count() == 0
        years = surface.slices.filter(expiration=ours["expiration"][0])["years"].item()
        expected = ours["implied_volatility"].to_numpy() ** 2 * years
        then = ql.DateParser.parseISO(day.isoformat())
        found = [theirs.blackVariance(then, float(strike)) for strike in strikes]
        assert found == pytest.approx(expected.tolist(), rel=1e-9)
    beyond = grid.volatilities[~grid.quoted]
    assert beyond.size and np.isfinite(beyond).all(), "the volatility at the edge"


def test_a_surface_of_today_alone_has_no_dates() -> None:
    quotes = surfaces.fit(surfaces.market_chain()).quotes
    today = quotes.filter(series="Q2B-2025-06-10").drop("fitted_volatility")
    assert variance_grid(VolatilitySurface(today)) is None


def test_export_is_read_by_quantlib(settings: Settings, tmp_path: Path) -> None:
    moment = datetime(2025, 6, 10, 15, tzinfo=UTC)
    written = export(settings, "quantlib", tmp_path / "surface.json", as_of=moment)
    grids = json.loads((tmp_path / "surface.json").read_text())
    surface = nq.surface(moment, settings=settings)
    assert written.rows == {"NQ expirations": len(grids["NQ"]["dates"])}
    assert sum((*written.rows.values(), *written.left_out.values())) == surface.slices.height
    last = grids["NQ"]["dates"][-1]
    theirs = as_quantlib(grids["NQ"])
    row = surface.implied_volatility(21_500, date.fromisoformat(last)).row(0, named=True)
    years = surface.slices["years"][-1]
    variance = theirs.blackVariance(ql.DateParser.parseISO(last), 21_500.0)
    assert variance == pytest.approx(row["implied_volatility"] ** 2 * years, rel=0.01)
