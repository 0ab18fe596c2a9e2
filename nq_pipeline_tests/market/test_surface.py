"""The surface between and beyond its quotes, and its arbitrage."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from nq_pipeline.market.surface import VolatilitySurface

NOW = datetime(2025, 6, 10, 15, tzinfo=UTC)
FRIDAYS = [datetime(2025, 6, day, 20, tzinfo=UTC) for day in (13, 20, 27)]
F, HALF_WIDTH = 21_000.0, 0.004
STRIKES = np.arange(19_500.0, 22_100.0, 50.0)


def smile(
    expiration: datetime, *, level: float = 0.2, skew: float = -0.6, forward: float = F, series: str = ""
) -> pl.DataFrame:
    """Quotes around a parabola in log-moneyness."""
    k = np.log(STRIKES / forward)
    return pl.DataFrame(
        {
            "series": series or f"QN-{expiration.date()}",
            "expiration": expiration,
            "years": (expiration - NOW) / timedelta(days=365),
            "forward": forward,
            "strike": STRIKES,
            "log_moneyness": k,
            "implied_volatility": level + skew * k + 2 * k * k,
            "iv_uncertainty": HALF_WIDTH,
        }
    )


WEEKS = [smile(friday, level=0.2 + week / 100) for week, friday in enumerate(FRIDAYS)]
SURFACE = VolatilitySurface(pl.concat(WEEKS))


def at(strike: object, expiration: datetime | date, surface: VolatilitySurface = SURFACE) -> pl.DataFrame:
    return surface.implied_volatility(strike, expiration)  # type: ignore[arg-type]


def test_band_holds_bid_and_ask_and_the_curve() -> None:
    for quotes in SURFACE.quotes.partition_by("series"):
        rows = at(quotes["strike"], quotes["expiration"][0])
        middle, quoted = rows["implied_volatility"], quotes["implied_volatility"]
        assert middle.to_list() == pytest.approx(quotes["fitted_volatility"].to_list())
        assert (middle - quoted).abs().max() < HALF_WIDTH / 4  # type: ignore[operator]
        assert rows["lower"].to_list() == pytest.approx((quoted - HALF_WIDTH).to_list())
        assert rows["upper"].to_list() == pytest.approx((quoted + HALF_WIDTH).to_list())
    wrong = SURFACE.quotes.with_columns(
        implied_volatility=pl.when(strike=21_000.0).then(0.3).otherwise("implied_volatility")
    )
    row = at(21_000, FRIDAYS[0], VolatilitySurface(wrong.drop("fitted_volatility")))
    assert row["upper"].item() == pytest.approx(0.3 + HALF_WIDTH)
    assert row["implied_volatility"].item() == row["lower"].item() == pytest.approx(0.2, abs=HALF_WIDTH)


def test_total_variance_is_linear_between_expirations() -> None:
    first, second = (float(at(20_800, friday)["implied_volatility"].item()) for friday in FRIDAYS[:2])
    years = [(friday - NOW) / timedelta(days=365) for friday in FRIDAYS]
    for share in (0.25, 0.5):
        then = FRIDAYS[0] + share * (FRIDAYS[1] - FRIDAYS[0])
        time = (1 - share) * years[0] + share * years[1]
        variance = (1 - share) * first**2 * years[0] + share * second**2 * years[1]
        row = at(20_800, then).row(0, named=True)
        assert row["implied_volatility"] == pytest.approx((variance / time) ** 0.5, rel=1e-9)
        assert row["forward"] == pytest.approx(F)
        assert row["lower"] < min(first, second) and row["upper"] > max(first, second) - HALF_WIDTH


def test_there_is_nothing_beyond_the_quotes() -> None:
    inside = [19_500.0, 22_050.0]
    outside = [19_499.0, 22_051.0, float("nan")]
    rows = at([*inside, *outside], FRIDAYS[1])
    assert rows["implied_volatility"].is_null().to_list() == [False] * 2 + [True] * 3
    for name in ("lower", "upper"):
        assert rows[name].null_count() == 3
    for never in (FRIDAYS[0] - timedelta(seconds=1), FRIDAYS[-1] + timedelta(seconds=1)):
        assert at(21_000, never).null_count().row(0) == (0, 0, 1, 1, 1, 1, 1)
    high = VolatilitySurface(pl.concat([smile(FRIDAYS[0]), smile(FRIDAYS[1], forward=23_000.0)]))
    between = FRIDAYS[0] + timedelta(days=3)
    assert at(21_000, FRIDAYS[0], high)["lower"].null_count() == 0
    assert at(20_600, between, high)["implied_volatility"].null_count() == 0
    assert at(21_500, between, high)["implied_volatility"].null_count() == 1, "one has no quote there"


def test_a_date_is_its_last_listed_expiration() -> None:
    noon = FRIDAYS[1] - timedelta(hours=6, minutes=30)
    both = VolatilitySurface(pl.concat([smile(noon, series="AM"), *WEEKS[1:]]))
    assert at(21_000, FRIDAYS[1].date(), both)["expiration"].item() == FRIDAYS[1]
    assert at(21_000, date(2025, 6, 24), both)["expiration"].item() == datetime(2025, 6, 24, 20, tzinfo=UTC)
    pairs = both.implied_volatility(21_000, [noon, FRIDAYS[1], FRIDAYS[1].date()])
    assert pairs["expiration"].to_list() == [noon, FRIDAYS[1], FRIDAYS[1]]
    with pytest.raises(ValueError, match="time zone"):
        at(21_000, datetime(2025, 6, 24))


def test_grid_spans_the_quotes_of_every_expiration() -> None:
    grid = SURFACE.grid(11)
    assert grid.height == 33 and grid.null_count().sum_horizontal().item() == 0
    assert grid.group_by("expiration").agg(pl.col("strike").min(), top=pl.col("strike").max()).sort(
        "expiration"
    ).rows() == [(friday, 19_500.0, 22_050.0) for friday in FRIDAYS]


def test_falling_total_variance_is_calendar_arbitrage() -> None:
    assert SURFACE.arbitrage().is_empty()
    monday = FRIDAYS[0] + timedelta(days=1)
    flat = VolatilitySurface(pl.concat([WEEKS[0], smile(monday, skew=0.0, series="later")]))
    (row,) = flat.arbitrage().rows(named=True)
    assert (row["kind"], row["series"], row["earlier_series"]) == ("calendar", "later", "QN-2025-06-13")
    # By brute force, where (0.2 − 0.6 k + 2 k²)² × 3.2 days is more than (0.2 + 2 k²)² × 4.2 days
    years = [(then - NOW) / timedelta(days=365) for then in (FRIDAYS[0], monday)]
    k = np.linspace(np.log(19_500 / F), np.log(22_050 / F), 100_001)
    variances = [
        (0.2 + skew * k + 2 * k * k) ** 2 * time for skew, time in zip((-0.6, 0), years, strict=True)
    ]
    drop = (np.sqrt(variances[0]) - np.sqrt(variances[1])) / years[1] ** 0.5
    strikes = F * np.exp(k[drop > 0])
    assert row["strike_from"] == row["strike"] == pytest.approx(19_500)
    assert row["strike_to"] == pytest.approx(strikes.max(), abs=20)
    assert row["volatility_drop"] == pytest.approx(drop.max(), abs=5e-4)
    assert row["iv_uncertainty"] == pytest.approx(HALF_WIDTH * (1 + (years[0] / years[1]) ** 0.5))


def test_negative_density_is_butterfly_arbitrage() -> None:
    k = np.linspace(-1.4, 1.4, 141)
    w = -0.0410 + 0.1331 * (0.3060 * (k - 0.3586) + np.sqrt((k - 0.3586) ** 2 + 0.4153**2))  # Axel Vogt's
    rows = pl.DataFrame(
        {
            "series": "QN",
            "expiration": NOW + timedelta(days=365),
            "years": 1.0,
            "forward": F,
            "strike": F * np.exp(k),
            "log_moneyness": k,
            "implied_volatility": np.sqrt(w),
            "iv_uncertainty": 0.001,
        }
    )
    surface = VolatilitySurface(rows)
    (row,) = surface.arbitrage().rows(named=True)
    assert row["kind"] == "butterfly" and row["earlier_series"] is None
    assert F * np.exp(0.5) < row["strike_from"] < row["strike"] < row["strike_to"] <= F * np.exp(1.4)
    assert row["durrleman_g"] == surface.slices["durrleman_min"].item() < 0


def test_quotes_without_width_and_short_smiles_have_no_slice() -> None:
    last_trades = smile(FRIDAYS[0]).with_columns(iv_uncertainty=None)
    assert VolatilitySurface(last_trades).slices.is_empty()
    assert VolatilitySurface(smile(FRIDAYS[0]).head(5)).slices.is_empty()
    assert VolatilitySurface(smile(FRIDAYS[0]).head(6)).slices.height == 1
    one = VolatilitySurface(smile(FRIDAYS[0]))
    assert one.slices["atm_iv"].item() == pytest.approx(0.2, abs=1e-3)
    assert at(21_000, FRIDAYS[0], one)["implied_volatility"].item() is not None
