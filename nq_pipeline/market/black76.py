"""Black-76: European options on a future, for whole arrays, and the ticks their prices stand on.

Units are the lake's: volatility and delta are fractions, vega is per 1.00 of volatility, theta
per calendar day. Serves quarterly (American) options as an approximation: the right to
exercise early is worth little on a future, and nothing at a rate of zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from nq_pipeline.market.products import Product

Floats = npt.NDArray[np.float64]
DAYS_PER_YEAR = 365.0


class Valuation(NamedTuple):
    """Prices and Greeks, arrays of the inputs' common shape.

    Attributes
    ----------
    price
        Points of premium.
    delta, gamma
        First and second derivative by the future's price.
    vega
        Per 1.00 of volatility.
    theta
        Per calendar day, the future's price and the volatility standing still.
    """

    price: Floats
    delta: Floats
    gamma: Floats
    vega: Floats
    theta: Floats


def value(
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    years: npt.ArrayLike,
    volatility: npt.ArrayLike,
    is_call: npt.ArrayLike,
    rate: npt.ArrayLike = 0.0,
) -> Valuation:
    """Price options on a future and differentiate the price; the inputs are broadcast.

    Parameters
    ----------
    forward, strike
        Points, above zero.
    years
        Time to expiration in years of 365 days; at or below zero the option is worth its
        intrinsic value and has no gamma, vega or theta.
    volatility
        Fraction per square root of a year; at or below zero as if expired, save discounting.
    is_call
        True for calls, False for puts.
    rate
        Continuously compounded, per year.
    """
    sign = np.where(np.asarray(is_call, bool), 1.0, -1.0)
    f, k, t, vol, r, sign = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (forward, strike, years, volatility, rate, sign))
    )
    t, vol = np.maximum(t, 0.0), np.maximum(vol, 0.0)
    spread = vol * np.sqrt(t)
    random = spread > 0
    # Without time or volatility the outcome is certain: d is infinite on the side of the money.
    certain = np.where(f > k, np.inf, np.where(f < k, -np.inf, f - k))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        d1 = np.where(random, np.log(f / k) / spread + spread / 2, certain)
    d2 = np.where(random, d1 - spread, d1)
    discount = np.exp(-r * t)
    price = discount * sign * (f * ndtr(sign * d1) - k * ndtr(sign * d2))
    delta = discount * sign * ndtr(sign * d1)
    density = np.exp(-d1 * d1 / 2) / np.sqrt(2 * np.pi)
    alive = random.astype(np.float64)
    safe_spread, safe_t = np.where(random, spread, 1.0), np.where(random, t, 1.0)
    vega = alive * discount * f * density * np.sqrt(t)
    gamma = alive * discount * density / (f * safe_spread)
    theta = np.where(t > 0, (r * price - vega * vol / (2 * safe_t)) / DAYS_PER_YEAR, 0.0)
    return Valuation(price, delta, gamma, vega, theta)


def round_to_tick(product: Product, price: npt.ArrayLike) -> Floats:
    """The nearest price on the product's ladder of ticks; a price on a bound belongs to the finer side.

    The result is the float nearest to the decimal price (0.15, not 3 × 0.05).
    """
    prices = np.asarray(price, np.float64)
    rounded = np.empty_like(prices)
    below = -np.inf
    for bound, tick in product.ticks:
        per_point = round(1 / tick)
        on_ladder = (prices > below) & (prices <= bound)
        rounded = np.where(on_ladder, np.round(prices * per_point) / per_point, rounded)
        below = bound
    return np.where(np.isnan(prices), np.nan, rounded)
