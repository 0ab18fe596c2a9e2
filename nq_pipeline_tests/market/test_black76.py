"""Black-76 against parity, finite differences and limits; ticks against decimal arithmetic."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.market.black76 import DAYS_PER_YEAR, round_to_tick, value
from nq_pipeline.market.products import NDX, NQ, PRODUCTS, PROXIES, QQQ

forwards = st.floats(5_000, 40_000)
moneyness = st.floats(0.7, 1.4)
lives = st.floats(1 / 365, 2.0)
volatilities = st.floats(0.05, 1.5)
rates = st.floats(0.0, 0.1)


def test_a_textbook_value_is_met() -> None:
    # Hull, Options, Futures and Other Derivatives: a put on crude oil, F = K = 20, 4 months, 25 %, 9 %.
    put = value(20, 20, 4 / 12, 0.25, False, 0.09)
    assert put.price == pytest.approx(1.12, abs=0.005)


@given(forwards, moneyness, lives, volatilities, rates)
def test_call_less_put_is_the_discounted_distance(f: float, m: float, t: float, vol: float, r: float) -> None:
    k = f * m
    both = value(f, k, t, vol, [True, False], r)
    call, put = both.price
    assert call - put == pytest.approx(np.exp(-r * t) * (f - k), abs=1e-7 * f)
    assert both.gamma[0] == pytest.approx(both.gamma[1])
    assert both.vega[0] == pytest.approx(both.vega[1])
    assert (both.price >= -1e-9).all()


@given(forwards, moneyness, st.floats(0.02, 2.0), volatilities, rates, st.booleans())
def test_greeks_are_the_derivatives_of_the_price(
    f: float, m: float, t: float, vol: float, r: float, is_call: bool
) -> None:
    k, greeks = f * m, value(f, f * m, t, vol, is_call, r)
    h = f * 1e-4
    up, down = value(f + h, k, t, vol, is_call, r), value(f - h, k, t, vol, is_call, r)
    assert greeks.delta == pytest.approx((up.price - down.price) / (2 * h), abs=1e-5)
    assert greeks.gamma * f == pytest.approx((up.delta - down.delta) / (2 * h) * f, abs=1e-2, rel=1e-3)
    e = 1e-5
    vega = (value(f, k, t, vol + e, is_call, r).price - value(f, k, t, vol - e, is_call, r).price) / (2 * e)
    assert greeks.vega == pytest.approx(vega, abs=1e-4 * f)
    day = 1e-5
    decay = (value(f, k, t - day, vol, is_call, r).price - value(f, k, t + day, vol, is_call, r).price) / 2
    assert greeks.theta == pytest.approx(decay / day / DAYS_PER_YEAR, abs=1e-5 * f)


@pytest.mark.parametrize(("years", "volatility"), [(0.0, 0.2), (-1.0, 0.2), (0.0, 0.0)])
def test_an_expired_option_is_worth_what_exercise_brings(years: float, volatility: float) -> None:
    expired = value(100.0, [90.0, 100.0, 110.0], years, volatility, [[True], [False]])
    assert expired.price.tolist() == [[10, 0, 0], [0, 0, 10]]
    assert expired.delta.tolist() == [[1, 0.5, 0], [0, -0.5, -1]]
    for still in (expired.gamma, expired.vega, expired.theta):
        assert not still.any()


def test_the_arrays_broadcast_and_a_missing_input_stays_missing() -> None:
    grid = value([[100.0], [np.nan]], [90.0, 110.0], 0.5, 0.2, True)
    assert grid.price.shape == (2, 2)
    for column in grid:
        assert np.isfinite(column[0]).all()
        assert np.isnan(column[1]).all()
    assert value([], [], [], [], []).price.shape == (0,)


@given(st.decimals(0, 30_000, places=4))
def test_a_rounded_price_stands_on_its_tick_and_is_the_nearest(price: Decimal) -> None:
    rounded = Decimal(str(round_to_tick(NQ.ticks, float(price)).item()))
    tick = Decimal("0.05") if price <= 5 else Decimal("0.25")
    assert rounded % tick == 0
    assert abs(rounded - price) <= tick / 2
    assert round_to_tick(NQ.ticks, float(rounded)) == float(rounded)


@pytest.mark.parametrize(
    ("price", "expected"), [(0.14, 0.15), (4.99, 5.0), (5.0, 5.0), (5.02, 5.0), (5.2, 5.25), (0.02, 0.0)]
)
def test_the_ladder_changes_its_step_at_five(price: float, expected: float) -> None:
    assert round_to_tick(NQ.ticks, price) == expected


@given(st.decimals("0.01", 30_000, places=4))
def test_the_ticks_below_and_above_enclose_a_price(price: Decimal) -> None:
    below = round_to_tick(NQ.ticks, float(price), "below")
    above = round_to_tick(NQ.ticks, float(price), "above")
    assert below <= float(price) <= above
    assert above - below <= (0.05 if price <= 5 else 0.25) + 1e-9
    assert (above == below) == (round_to_tick(NQ.ticks, float(price)) == float(price))
    for bound in (below, above):
        assert round_to_tick(NQ.ticks, bound) == bound


def test_the_proxies_have_ladders_of_their_own() -> None:
    assert round_to_tick(NDX.ticks, [2.98, 3.04]).tolist() == [3.0, 3.0]
    assert round_to_tick(QQQ.ticks, [2.987]).tolist() == [2.99]
    assert np.isnan(round_to_tick(NQ.ticks, [np.nan])).all()
    assert round_to_tick(NQ.ticks, []).shape == (0,)


def test_every_tick_divides_a_point_exactly() -> None:
    for product in (*PRODUCTS.values(), *PROXIES.values()):
        assert all((1 / Decimal(str(tick))) % 1 == 0 for _, tick in product.ticks)
