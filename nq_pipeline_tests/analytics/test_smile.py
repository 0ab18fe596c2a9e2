"""Wings and constant maturities against QuantLib, and against plain loops."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from nq_pipeline.analytics.metrics import constant_maturity
from nq_pipeline.analytics.quality import total_variance_rises, wings_known
from nq_pipeline.analytics.smile import skew, wings
from nq_pipeline.lake.tables import INSTANT

NOON = datetime(2025, 6, 30, 17, tzinfo=UTC)
MATURITIES = (7, 14, 30, 60, 90)
F = 21_000.0


def smile(strikes: list[float], ivs: list[float], forward: float = F, years: float = 0.1) -> pl.DataFrame:
    """Rows of `iv_smile` of one series."""
    frame = pl.DataFrame({"strike": strikes, "implied_volatility": ivs})
    return frame.with_columns(
        source=pl.lit("barchart"),
        snapshot_ts=pl.lit(NOON).cast(INSTANT),
        series=pl.lit("QN2-2025-07-10"),
        option_type=pl.when(pl.col("strike") < forward).then(pl.lit("P")).otherwise(pl.lit("C")),
        forward=pl.lit(forward),
        years=pl.lit(years),
        log_moneyness=(pl.col("strike") / forward).log(),
    )


def volatility(strike: float) -> float:
    """A skewed smile."""
    k = math.log(strike / F)
    return 0.2 - 0.4 * k + 1.5 * k * k


def test_wings_are_the_volatilities_at_quantlibs_delta() -> None:
    ql = pytest.importorskip("QuantLib", reason="the reference library is not installed")
    years, strikes = 0.1, np.arange(15_000.0, 27_000.0, 10.0)
    row = wings(smile(strikes.tolist(), [volatility(k) for k in strikes], years=years)).row(0, named=True)
    for side, sign in ((ql.Option.Call, 1), (ql.Option.Put, -1)):
        for hundredths in (25, 10):

            def miss(strike: float, side: int = side, delta: float = sign * hundredths / 100) -> float:
                deviation = volatility(strike) * math.sqrt(years)
                theirs = ql.BlackDeltaCalculator(side, ql.DeltaVolQuote.Fwd, F, 0.99, 0.99, deviation)
                return float(theirs.deltaFromStrike(strike)) - delta

            strike = brentq(miss, F, 26_000) if sign > 0 else brentq(miss, 16_000, F)
            name = f"iv_{hundredths}_{'call' if sign > 0 else 'put'}"
            assert row[name] == pytest.approx(volatility(strike), abs=2e-6), name


def test_skew_slope_is_the_slope_between_the_two_strikes() -> None:
    strikes = np.arange(15_000.0, 27_000.0, 10.0)
    rows = wings(smile(strikes.tolist(), [volatility(k) for k in strikes]))
    row = rows.with_columns(atm_iv=pl.lit(0.2), years=pl.lit(0.1)).with_columns(skew()).row(0, named=True)
    call, put = row["iv_25_call"], row["iv_25_put"]
    assert row["risk_reversal_25"] == pytest.approx(call - put)
    assert row["butterfly_25"] == pytest.approx((call + put) / 2 - 0.2)

    def moneyness(iv: float, delta: float) -> float:
        spread = iv * math.sqrt(0.1)
        return float(brentq(lambda k: norm.cdf(-k / spread + spread / 2) - delta, -1, 1))

    apart = moneyness(call, 0.25) - moneyness(put, 0.75)
    assert row["skew_slope"] == pytest.approx((call - put) / apart)


@given(st.lists(st.floats(0.05, 0.8), min_size=2, max_size=40), st.floats(0.005, 1.0))
def test_wings_equal_a_plain_loop(ivs: list[float], years: float) -> None:
    strikes = [F - 500.0 * (len(ivs) // 2) + 500.0 * n for n in range(len(ivs))]

    def delta(n: int, is_call: bool) -> float:
        spread = ivs[n] * math.sqrt(years)
        d1 = math.log(F / strikes[n]) / spread + spread / 2
        return float(norm.cdf(d1 if is_call else -d1))

    def wing(wanted: float, is_call: bool) -> float | None:
        outwards = range(len(ivs)) if is_call else range(len(ivs) - 1, -1, -1)
        inner = None
        for n in outwards:
            on_side = (strikes[n] >= F) == is_call
            if inner is not None and on_side and delta(n, is_call) <= wanted < delta(inner, is_call):
                share = (delta(inner, is_call) - wanted) / (delta(inner, is_call) - delta(n, is_call))
                return ivs[inner] + share * (ivs[n] - ivs[inner])
            inner = n
        return None

    found = wings(smile(strikes, ivs, years=years)).row(0, named=True)
    for hundredths in (25, 10):
        for side in ("call", "put"):
            expected = wing(hundredths / 100, side == "call")
            assert found[f"iv_{hundredths}_{side}"] == (expected and pytest.approx(expected)), side


def test_strikes_that_do_not_reach_a_delta_have_no_wing() -> None:
    near = wings(smile([20_900.0, 21_000.0, 21_100.0], [0.2, 0.2, 0.2]))
    assert near.select(pl.exclude("source", "snapshot_ts", "series")).row(0) == (None,) * 4


def term(days: list[float], ivs: list[float | None], forwards: list[float] | None = None) -> pl.DataFrame:
    """Rows of `series_metrics`; the wings are the ATM volatility less and plus a hundredth."""
    at = pl.DataFrame({"days": days, "atm_iv": ivs, "forward": forwards or [F] * len(days)})
    return at.with_columns(
        pl.col("atm_iv").cast(pl.Float64),
        source=pl.lit("barchart"),
        environment=pl.lit("sandbox"),
        snapshot_ts=pl.lit(NOON).cast(INSTANT),
        trade_date=pl.lit(date(2025, 6, 30)),
        underlying_class=pl.lit("future"),
        root=pl.lit("QN2"),
        series=pl.format("S{}", pl.int_range(pl.len())),
        expiration=pl.Series([NOON + timedelta(days=d) for d in days]).cast(INSTANT),
        years=pl.col("days") / 365,
        iv_25_call=pl.col("atm_iv") - 0.01,
        iv_25_put=pl.col("atm_iv") + 0.01,
    )


def test_maturities_are_quantlibs_variance_curve() -> None:
    ql = pytest.importorskip("QuantLib", reason="the reference library is not installed")
    days, ivs = [2, 10, 21, 45, 81], [0.25, 0.22, 0.23, 0.21, 0.205]
    today = ql.Date(30, 6, 2025)
    ql.Settings.instance().evaluationDate = today
    curve = ql.BlackVarianceCurve(today, [today + d for d in days], ivs, ql.Actual365Fixed())
    found = constant_maturity(term([float(d) for d in days], [*ivs]))
    assert found["product"].unique().to_list() == ["NQ"]
    for row in found.iter_rows(named=True):
        expected = curve.blackVol(row["days"] / 365, F) if row["days"] <= 81 else None
        assert row["atm_iv"] == (expected and pytest.approx(expected, abs=1e-12)), row["days"]


TERM = st.lists(
    st.tuples(st.integers(1, 4_000), st.floats(0.05, 0.9), st.floats(15_000, 25_000)),
    min_size=1,
    max_size=12,
    unique_by=lambda each: each[0],
)


@given(TERM)
def test_maturities_equal_a_plain_loop(given_terms: list[tuple[int, float, float]]) -> None:
    known = sorted((n / 40, iv, forward) for n, iv, forward in given_terms)
    found = constant_maturity(
        term([d for d, _, _ in known], [iv for _, iv, _ in known], [f for *_, f in known])
    )
    for row in found.iter_rows(named=True):
        at = row["days"]
        near = max((each for each in known if each[0] <= at), default=None)
        far = min((each for each in known if each[0] >= at), default=None)
        if near is None or far is None:
            assert row["atm_iv"] is row["forward"] is row["risk_reversal_25"] is None
            continue
        share = (at - near[0]) / (far[0] - near[0]) if far[0] > near[0] else 0.0

        atm, call, put = (
            math.sqrt(((1 - share) * low**2 * near[0] + share * high**2 * far[0]) / at)
            for low, high in ((near[1] + off, far[1] + off) for off in (0.0, -0.01, 0.01))
        )
        assert row["atm_iv"] == pytest.approx(atm)
        assert row["risk_reversal_25"] == pytest.approx(call - put)
        assert row["butterfly_25"] == pytest.approx((call + put) / 2 - atm, abs=1e-12)
        assert row["forward"] == pytest.approx(near[2] ** (1 - share) * far[2] ** share)


def test_a_series_without_volatility_does_not_bracket() -> None:
    found = constant_maturity(term([5.0, 8.0, 10.0], [0.2, None, 0.3]))
    low, high = 0.2**2 * 5, 0.3**2 * 10
    assert found.filter(days=7)["atm_iv"].item() == pytest.approx(math.sqrt((low + 0.4 * (high - low)) / 7))
    assert constant_maturity(term([5.0], [None]))["atm_iv"].to_list() == [None] * 5


@pytest.mark.parametrize("days", MATURITIES)
def test_an_expiration_at_a_maturity_is_enough(days: int) -> None:
    for years in (math.nextafter(days / 365, 0), days / 365, math.nextafter(days / 365, 1)):
        only = term([float(days)], [0.2]).with_columns(years=pl.lit(years))
        assert constant_maturity(only).filter(days=days)["atm_iv"].item() == pytest.approx(0.2)


def test_checks_of_wings_and_of_total_variance() -> None:
    series = term([2.0, 10.0, 40.0], [0.3, 0.2, 0.2]).with_columns(risk_reversal_25=pl.lit(-0.02))
    assert wings_known(series).passed  # type: ignore[union-attr]
    lacking = series.with_columns(risk_reversal_25=pl.when(pl.col("series") != "S0").then(-0.02))
    assert not wings_known(lacking).passed  # type: ignore[union-attr]
    assert wings_known(series.clear()) is None
    assert total_variance_rises(constant_maturity(series)).passed  # type: ignore[union-attr]
    falling = total_variance_rises(constant_maturity(term([7.0, 14.0, 30.0], [0.5, 0.2, 0.2])))
    assert falling is not None and falling.numbers == {"falls": 1, "steps": 2}
    assert total_variance_rises(constant_maturity(series.head(1))) is None
