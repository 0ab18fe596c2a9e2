"""Black-76: European options on a future, for whole arrays, and rounding to ticks.

Units are the lake's: volatility and delta are fractions, vega is per 1.00 of volatility, theta per
calendar day; `Valuation` has the rest. American options are in `american.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import erfcx, ndtr

from nq_pipeline.market.products import Ticks

Floats = npt.NDArray[np.float64]
Input = npt.ArrayLike
Rounding = Literal["nearest", "below", "above"]
DAYS_PER_YEAR = 365.0
MAX_TOTAL_VOLATILITY = 40.0
"""Largest σ√t; beyond it, a price in double precision equals its upper bound."""
MAX_STEPS = 200
"""Steps that bisection of the bracket takes in the worst case."""


class Valuation(NamedTuple):
    """Prices and Greeks, arrays of the inputs' common shape; each with everything else unchanged."""

    price: Floats  # points of premium
    delta: Floats  # first derivative with respect to the future's price
    gamma: Floats  # second derivative with respect to it, per point
    vega: Floats  # change of the price per 1.00 of volatility
    theta: Floats  # change of the price per calendar day that passes
    rho: Floats  # change of the price per 1.00 of interest rate
    vanna: Floats  # change of delta per 1.00 of volatility
    charm: Floats  # change of delta per calendar day that passes
    volga: Floats  # change of vega per 1.00 of volatility


def value(
    forward: Input, strike: Input, years: Input, volatility: Input, is_call: Input, rate: Input = 0.0
) -> Valuation:
    """Prices and Greeks of European options on a future; the inputs are broadcast.

    `forward` and `strike` are points above zero; years have 365 days; `volatility` is a fraction per square
    root of a year; `rate` is continuously compounded, per year. Without time left the option is worth its
    intrinsic value, and all Greeks but delta are 0; without volatility the discounted intrinsic value.
    """
    f, k, t, vol, call, r = broadcast(forward, strike, years, volatility, is_call, rate)
    sign = np.where(call > 0, 1.0, -1.0)
    t, vol = np.maximum(t, 0.0), np.maximum(vol, 0.0)
    total_vol = np.minimum(vol * np.sqrt(t), MAX_TOTAL_VOLATILITY)
    random = ~(total_vol <= 0)
    # Without time or volatility the outcome is certain: d1 is infinite on the side of the money.
    certain = np.where(f > k, np.inf, np.where(f < k, -np.inf, f - k))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        x = np.log(f / k)
        d1 = np.where(random, x / total_vol + total_vol / 2, certain)
        h, half = np.abs(x) / total_vol, total_vol / 2
        bell = np.exp(-(h * h + half * half) / 2)
        time_value = np.where(random, np.sqrt(f * k) * bell * _tails(h, half) / 2, 0.0)
    discount = np.exp(-r * t)
    price = discount * (np.maximum(sign * (f - k), 0.0) + time_value)
    delta = discount * sign * ndtr(sign * d1)
    density = np.exp(-d1 * d1 / 2) / np.sqrt(2 * np.pi)
    alive = random.astype(np.float64)
    safe_total_vol, safe_t = np.where(random, total_vol, 1.0), np.where(random, t, 1.0)
    vega = alive * discount * f * density * np.sqrt(t)
    gamma = alive * discount * density / (f * safe_total_vol)
    theta = np.where(t > 0, (r * price - vega * vol / (2 * safe_t)) / DAYS_PER_YEAR, 0.0)
    # Haug, "The Complete Guide to Option Pricing Formulas", 2nd ed. (2007), chapter 2. A density of 0 makes
    # the products 0 where d1 is infinite.
    d1 = np.where(density > 0, d1, 0.0)
    d2 = d1 - total_vol
    vanna = -vega * d2 / (f * safe_total_vol)
    charm = np.where(
        t > 0, (r * delta + vega * vol * d2 / (2 * f * safe_total_vol * safe_t)) / DAYS_PER_YEAR, 0.0
    )
    volga = vega * d1 * d2 * np.sqrt(t) / safe_total_vol
    return Valuation(price, delta, gamma, vega, theta, 0.0 - t * price, vanna, charm, volga)


def implied_volatility(
    price: Input, forward: Input, strike: Input, years: Input, is_call: Input, rate: Input = 0.0
) -> Floats:
    """The volatility at which `value` gives the price; the inputs are broadcast.

    NaN where there is no such volatility: at or below the discounted intrinsic value, at or above the
    discounted forward (call) or strike (put), after expiration, or with a missing input.

    Householder's method of the fourth order inverts the logarithm of the time value inside a bracket.
    It starts from the inverse of Bachelier's formula, which is tabulated, and usually takes two steps.
    The volatility is as exact as one unit in the last place of the price allows.
    """
    p, f, k, t, call, r = broadcast(price, forward, strike, years, is_call, rate)
    sign = np.where(call > 0, 1.0, -1.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        root = np.sqrt(f * k)
        excess = (p * np.exp(r * t) - np.maximum(sign * (f - k), 0.0)) / root
        x = np.abs(np.log(f / k))
        solvable = (excess > 0) & (excess < np.exp(-x / 2)) & (t > 0) & np.isfinite(x)
    found = np.full(p.shape, np.nan)
    found[solvable] = _total_volatility(excess[solvable], x[solvable]) / np.sqrt(t[solvable])
    return found


def broadcast(*inputs: Input) -> tuple[Floats, ...]:
    """Arrays of float64 of the inputs' common shape."""
    return np.broadcast_arrays(*(np.asarray(x, np.float64) for x in inputs))


def _total_volatility(excess: Floats, x: Floats) -> Floats:
    """σ√t of out-of-the-money options from price / √(FK) and |ln(F/K)|."""
    target = np.log(excess)
    with np.errstate(divide="ignore"):
        ratio = target - np.log(x)
    total_vol = np.where(
        ratio < _bachelier()[0][-1],
        x * np.exp(np.interp(ratio, *_bachelier())),
        excess * np.sqrt(2 * np.pi),
    )
    total_vol = np.clip(total_vol, 1e-300, MAX_TOTAL_VOLATILITY)
    low, high = np.zeros_like(total_vol), np.full_like(total_vol, MAX_TOTAL_VOLATILITY)
    left = np.arange(len(total_vol))
    for _ in range(MAX_STEPS):
        if not left.size:
            break
        s, moneyness = total_vol[left], x[left]
        h, half = moneyness / s, s / 2
        tails = _tails(h, half)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            miss = np.log(tails / 2) - (h * h + half * half) / 2 - target[left]
            slope = np.sqrt(2 / np.pi) / tails
            # Second and third derivative of the price, then of its logarithm, over the first.
            second = h * h / s - s / 4
            third = second * second - 3 * (h / s) ** 2 - 0.25
            bend, twist = second - slope, third - 3 * slope * second + 2 * slope * slope
            newton = -miss / slope
            step = newton * (1 + newton * bend / 2) / (1 + newton * (bend + newton * twist / 6))
            ahead = s + step
        low[left], high[left] = np.where(miss < 0, s, low[left]), np.where(miss < 0, high[left], s)
        inside = (ahead > low[left]) & (ahead < high[left])
        total_vol[left] = np.where(inside, ahead, (low[left] + high[left]) / 2)
        settled = (inside & (np.abs(step) < 1e-4 * s)) | (miss == 0) | (high[left] - low[left] < 1e-15 * s)
        total_vol[left] = np.where(miss == 0, s, total_vol[left])
        left = left[~settled]
    total_vol[left] = np.nan
    return np.asarray(total_vol, np.float64)


def _tails(h: Floats, half: Floats) -> Floats:
    """The difference of the two scaled normal tails in an out-of-the-money price, precise for tiny ones."""
    # h is |ln(F/K)| / σ√t and half is σ√t / 2; price / √(FK) is half of this times exp(-(h² + half²) / 2).
    return np.asarray(erfcx((h - half) / np.sqrt(2)) - erfcx((h + half) / np.sqrt(2)), np.float64)


@lru_cache(maxsize=1)
def _bachelier() -> tuple[Floats, Floats]:
    """Nodes of ln(σ√t / |x|) as a function of ln(price / |x|) in Bachelier's model, ascending."""
    h = np.exp(np.linspace(np.log(36.0), np.log(1e-9), 1024))
    density = np.exp(-h * h / 2) / np.sqrt(2 * np.pi)
    return np.log(density * (1 / h - np.sqrt(np.pi / 2) * erfcx(h / np.sqrt(2)))), -np.log(h)


def round_to_tick(ticks: Ticks, price: npt.ArrayLike, rounding: Rounding = "nearest") -> Floats:
    """Round prices to a product's ticks; a price equal to a bound has the tick below the bound.

    The result is the float nearest to the decimal price (0.15, not 3 × 0.05). A price within a billionth
    of a tick counts as equal to it.
    """
    prices = np.asarray(price, np.float64)
    rounded = np.empty_like(prices)
    below = -np.inf
    for bound, tick in ticks:
        per_point = round(1 / tick)
        in_band = (prices > below) & (prices <= bound)
        steps = prices * per_point
        if rounding == "nearest":
            steps = np.round(steps)
        else:
            steps = np.floor(steps + 1e-9) if rounding == "below" else np.ceil(steps - 1e-9)
        rounded = np.where(in_band, steps / per_point, rounded)
        below = bound
    return np.where(np.isnan(prices), np.nan, rounded)
