"""Implied volatility: Black-76 there and back, its limits, and American options beside a binomial tree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.market import american, black76
from nq_pipeline.market.black76 import Floats, implied_volatility, value

F = 21_000.0
EPS = np.finfo(float).eps

deviations = st.floats(-8, 8)
lives = st.floats(1 / (365 * 1440), 2.0)
volatilities = st.floats(0.03, 3.0)
rates = st.floats(-0.02, 0.1)
sides = st.booleans()


def informed(price: Floats, vega: Floats) -> npt.NDArray[np.bool_]:
    """Where the price carries the information: ten units in its last place move σ by less than 1e-8."""
    return (10 * EPS * price < 1e-8 * vega) & (price > 1e-200)


@given(deviations, lives, volatilities, rates, sides)
def test_the_volatility_of_a_price_is_that_it_was_made_with(
    z: float, t: float, vol: float, r: float, is_call: bool
) -> None:
    k = F * np.exp(z * vol * np.sqrt(t))
    made = value(F, k, t, vol, is_call, r)
    found = implied_volatility(made.price, F, k, t, is_call, r)
    if informed(made.price, made.vega):
        assert found == pytest.approx(vol, abs=1e-8)
    elif not np.isnan(found):
        again = value(F, k, t, found, is_call, r).price
        assert again == pytest.approx(made.price, rel=1e-12, abs=1e-11 * F)


def test_whole_arrays_are_inverted_to_the_eighth_digit() -> None:
    t, vol, z = np.meshgrid([1e-6, 1e-4, 0.01, 0.1, 1, 3], [0.02, 0.1, 0.3, 1, 2.5], np.linspace(-7, 7, 57))
    k = F * np.exp(z * vol * np.sqrt(t))
    for is_call in (True, False):
        made = value(F, k, t, vol, is_call, 0.04)
        found = implied_volatility(made.price, F, k, t, is_call, 0.04)
        known = informed(made.price, made.vega)
        assert known.mean() > 0.6
        assert np.abs(found - vol)[known].max() < 1e-8


def test_a_higher_price_is_a_higher_volatility() -> None:
    for k in (0.7 * F, 0.99 * F, F, 1.01 * F, 1.3 * F):
        for is_call in (True, False):
            floor = max(F - k, 0.0) if is_call else max(k - F, 0.0)
            prices = floor + np.geomspace(1e-6, 0.9 * min(F, k), 400)
            found = implied_volatility(prices, F, k, 0.25, is_call)
            assert np.isfinite(found).all()
            assert (np.diff(found) > 0).all()


@given(st.floats(0.8, 1.25), st.floats(1 / 365, 1.0), st.floats(0.08, 0.8), rates)
def test_call_and_put_that_keep_parity_have_one_volatility(m: float, t: float, vol: float, r: float) -> None:
    both = value(F, m * F, t, vol, [True, False], r)
    call, put = implied_volatility(both.price, F, m * F, t, [True, False], r)
    if informed(both.price, both.vega).all():
        assert call == pytest.approx(put, abs=2e-8)


def test_prices_that_no_volatility_gives_are_missing() -> None:
    discount = np.exp(-0.05 * 0.5)
    floor, cap = 1_000 * discount, F * discount
    impossible = [floor * (1 - 1e-12), cap, F, -1.0, 0.0, np.nan, np.inf]
    assert np.isnan(implied_volatility(impossible, F, F - 1_000, 0.5, True, 0.05)).all()
    assert np.isnan(implied_volatility([floor * (1 - 1e-12), cap], F - 1_000, F, 0.5, False, 0.05)).all()
    for forward, strike, years in ((F, F, 0.0), (F, F, -1.0), (-F, F, 1.0), (F, 0.0, 1.0), (np.nan, F, 1.0)):
        assert np.isnan(implied_volatility(100.0, forward, strike, years, True))
    assert implied_volatility([], [], [], [], []).shape == (0,)


def test_the_inputs_broadcast() -> None:
    grid = implied_volatility([[100.0], [200.0]], F, [F, F + 10], 0.1, [True, False])
    assert grid.shape == (2, 2) and np.isfinite(grid).all()


# American options


def tree(f: float, k: float, t: float, vol: float, is_call: bool, r: float, steps: int = 600) -> float:
    """An American option on a future by a binomial tree, its error taken out with the European one."""
    sign = 1 if is_call else -1
    up = np.exp(vol * np.sqrt(t / steps))
    p, discount = (1 - 1 / up) / (up - 1 / up), np.exp(-r * t / steps)
    futures = f * up ** (2.0 * np.arange(steps + 1) - steps)
    held = european = np.maximum(sign * (futures - k), 0.0)
    for _ in range(steps):
        futures = futures[:-1] * up
        held, european = (discount * (p * x[1:] + (1 - p) * x[:-1]) for x in (held, european))
        held = np.maximum(held, sign * (futures - k))
    return float(held[0] - european[0] + value(f, k, t, vol, is_call, r).price)


@pytest.mark.parametrize(
    ("days", "points", "volatility"),
    [(7, 0.005, 1e-6), (30, 0.02, 3e-6), (91, 0.1, 1e-5), (182, 0.2, 2e-5), (365, 0.5, 3e-5)],
)
def test_american_prices_are_a_trees_within_the_stated_error(
    days: int, points: float, volatility: float
) -> None:
    t, r = days / 365, 0.045
    errors, misses = [], []
    for vol in (0.15, 0.25):
        for z in (-1.5, -0.5, 0.0, 0.5, 1.5):
            for is_call in (True, False):
                k = F * np.exp(z * vol * np.sqrt(t))
                reference = tree(F, k, t, vol, is_call, r)
                errors.append(abs(american.value(F, k, t, vol, is_call, r).price - reference))
                if (z >= 0) == is_call or z == 0:  # at or out of the money
                    misses.append(abs(american.implied_volatility(reference, F, k, t, is_call, r) - vol))
    assert max(errors) < points
    assert max(misses) < volatility


@given(st.floats(-3, 3), st.floats(1 / (365 * 1440), 2.0), st.floats(0.02, 3.0), st.floats(0.0, 0.2), sides)
def test_prices_fall_and_bend_in_the_strike_as_options_do(
    z: float, t: float, vol: float, r: float, is_call: bool
) -> None:
    """Slope within the discount and curvature at or above zero; the other side is its mirror image."""
    step = 0.05 * min(vol * np.sqrt(t), 1.0)
    k = F * np.exp(z * vol * np.sqrt(t)) * (1 + step * np.linspace(-0.9, 0.9, 7))
    for model, tolerance in ((black76, 1e-9), (american, 1e-4)):
        price = model.value(F, k, t, vol, is_call, r).price
        slope = np.diff(price) / np.diff(k) * (1 if is_call else -1)
        steepest = np.exp(-r * t) if model is black76 else 1.0
        assert (slope <= tolerance).all() and (slope >= -steepest - tolerance).all()
        assert (np.diff(slope * (1 if is_call else -1)) >= -tolerance).all()
        assert price == pytest.approx(model.value(k, F, t, vol, not is_call, r).price, rel=1e-9, abs=1e-6)


def test_american_volatilities_are_found_minutes_before_expiration() -> None:
    z, minutes = np.meshgrid(np.linspace(-2, 5, 15), [1.0, 10.0, 90.0])
    t = minutes / (365 * 1440)
    for is_call in (True, False):
        k = F * np.exp(z * (1 if is_call else -1) * 0.3 * np.sqrt(t))
        made = american.value(F, k, t, 0.3, is_call, 0.05)
        known = informed(made.price, made.vega)
        found = american.implied_volatility(made.price, F, k, t, is_call, 0.05)
        assert known.mean() > 0.6 and np.abs(found - 0.3)[known].max() < 1e-7


def test_american_prices_are_within_their_european_bounds() -> None:
    k, t = np.meshgrid(F * np.linspace(0.6, 1.5, 61), [0.02, 0.1, 0.25, 0.5, 1.0])
    for is_call in (True, False):
        for r in (0.001, 0.02, 0.05, 0.1):
            early = american.value(F, k, t, 0.22, is_call, r).price
            assert (early >= value(F, k, t, 0.22, is_call, r).price - 1e-9).all()
            assert (early >= np.maximum((F - k) * (1 if is_call else -1), 0.0) - 1e-9).all()
            assert (early <= value(F, k, t, 0.22, is_call, 0.0).price + 1e-9).all()


@given(st.floats(-1.5, 1.5), st.floats(3 / 365, 1.0), st.floats(0.08, 0.8), st.floats(0.0, 0.08), sides)
def test_the_volatility_of_an_american_price_gives_that_price(
    z: float, t: float, vol: float, r: float, is_call: bool
) -> None:
    k = F * np.exp(z * vol * np.sqrt(t))
    made = american.value(F, k, t, vol, is_call, r)
    intrinsic = max((F - k) * (1 if is_call else -1), 0.0)
    found = american.implied_volatility(made.price, F, k, t, is_call, r)
    if made.price <= intrinsic:
        assert np.isnan(found)
    elif made.price > intrinsic + 0.05:
        assert american.value(F, k, t, found, is_call, r).price == pytest.approx(float(made.price), abs=1e-4)


@pytest.mark.parametrize("years", [0.0, -1.0])
def test_an_expired_american_option_has_no_greeks_but_delta(years: float) -> None:
    expired = american.value(100.0, [90.0, 100.0, 110.0], years, 0.2, [[True], [False]], 0.04)
    assert expired.price.tolist() == [[10, 0, 0], [0, 0, 10]]
    assert expired.delta == pytest.approx(np.array([[1, 0.5, 0], [0, -0.5, -1]]))
    assert not any(greek.any() for greek in expired[2:])


def test_without_interest_an_american_option_is_the_european_one() -> None:
    k = F * np.linspace(0.8, 1.2, 21)
    for is_call in (True, False):
        here, there = american.value(F, k, 0.25, 0.2, is_call, 0.0), value(F, k, 0.25, 0.2, is_call, 0.0)
        assert np.array_equal(here.price, there.price)
        assert here.delta == pytest.approx(there.delta, abs=1e-6)
        assert here.gamma == pytest.approx(there.gamma, rel=1e-3)
        assert here.vega == pytest.approx(there.vega, rel=1e-5)
        assert here.theta == pytest.approx(there.theta, rel=1e-5)
        same = american.implied_volatility(there.price, F, k, 0.25, is_call, 0.0)
        assert np.array_equal(same, black76.implied_volatility(there.price, F, k, 0.25, is_call, 0.0))


def test_american_greeks_near_and_deep_in_the_money() -> None:
    t, r = 60 / 365, 0.045
    k = F * np.array([0.97, 1.0, 1.03])
    for is_call in (True, False):
        early, european = american.value(F, k, t, 0.2, is_call, r), value(F, k, t, 0.2, is_call, r)
        assert early.delta == pytest.approx(european.delta, abs=0.01)
        assert early.gamma == pytest.approx(european.gamma, rel=0.05)
        assert early.vega == pytest.approx(european.vega, rel=0.03)
        assert early.theta == pytest.approx(european.theta, rel=0.06)
    deep = american.value(F, 0.5 * F, t, 0.2, True, r)
    assert deep.price == 0.5 * F
    assert deep.delta == pytest.approx(1.0)
    assert [float(x) for x in deep[2:]] == pytest.approx([0.0] * 7, abs=1e-6)
