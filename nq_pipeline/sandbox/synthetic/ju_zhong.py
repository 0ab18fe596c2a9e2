"""The sandbox's American options: Black-76 plus Ju and Zhong's early exercise premium.

The market of a seed and an instant is the same in every version, so it keeps this approximation ("An
Approximate Formula for Pricing American Options", Journal of Derivatives, 1999), which is off by about a
point three months before expiration. `market/american.py` values options exactly.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from nq_pipeline.market import black76
from nq_pipeline.market.black76 import DAYS_PER_YEAR, Floats, Input, Valuation

MIN_INTEREST = 1e-7
"""Interest until expiration below which the early exercise premium is smaller than rounding."""


def value(
    forward: Input, strike: Input, years: Input, volatility: Input, is_call: Input, rate: Input = 0.0
) -> Valuation:
    """Prices and Greeks of American options on a future; inputs as for `black76.value`.

    The Greeks are central differences. Where immediate exercise is best the price is the
    intrinsic value, delta is 1 or -1, and all other Greeks are 0.
    """
    f, k, t, vol, call, r = black76.broadcast(forward, strike, years, volatility, is_call, rate)
    total_vol = np.clip(vol * np.sqrt(np.maximum(t, 0.0)), 1e-3, 1.0)
    df, dvol = 1e-3 * total_vol * f, 1e-3 * np.maximum(vol, 1e-3)
    dt, dr = 1e-4 * np.maximum(t, 1e-9), 1e-3 * np.maximum(np.abs(r), 1e-3)
    now, boundary = _price_and_boundary(f, k, t, vol, call, r)

    def moved(of_f: float = 0, of_vol: float = 0, of_t: float = 0, of_r: float = 0) -> Floats:
        inputs = (f + of_f * df, k, t + of_t * dt, vol + of_vol * dvol, call, r + of_r * dr)
        return _price_and_boundary(*inputs, boundary)[0]

    up, down, more, less = moved(of_f=1), moved(of_f=-1), moved(of_vol=1), moved(of_vol=-1)
    sooner, later = moved(of_t=1), moved(of_t=-1)
    # A mixed derivative from the two corners that need no more than two further prices.
    by_vol = moved(of_f=1, of_vol=1) + moved(of_f=-1, of_vol=-1) - up - down - more - less + 2 * now
    by_time = moved(of_f=1, of_t=1) + moved(of_f=-1, of_t=-1) - up - down - sooner - later + 2 * now
    found = Valuation(
        price=now,
        delta=(up - down) / (2 * df),
        gamma=(up - 2 * now + down) / df**2,
        vega=(more - less) / (2 * dvol),
        theta=(later - sooner) / (2 * dt) / DAYS_PER_YEAR,
        rho=(moved(of_r=1) - moved(of_r=-1)) / (2 * dr),
        vanna=by_vol / (2 * df * dvol),
        charm=-by_time / (2 * df * dt) / DAYS_PER_YEAR,
        volga=(more - 2 * now + less) / dvol**2,
    )
    # After expiration a difference across the kink at the strike is not a Greek.
    others = (np.where(t <= 0, 0.0, greek) for greek in found[2:])
    return Valuation(found.price, found.delta, *others)


def _price_and_boundary(
    f: Floats, k: Floats, t: Floats, vol: Floats, call: Floats, r: Floats, boundary: Floats | None = None
) -> tuple[Floats, Floats]:
    """Prices, and exercise boundaries over the strike; `boundary` is a first guess of the latter."""
    prices = np.array(black76.value(f, k, t, vol, call, r).price)
    early = (r * t > MIN_INTEREST) & (vol > 0)
    sign = np.where(call > 0, 1.0, -1.0)
    start = np.full(prices.shape, np.nan) if boundary is None else boundary.copy()
    terms = (x[early] for x in (f / k, t, vol, sign, r, prices / k, start))
    with_premium, start[early] = _premium_and_boundary(*terms)
    prices[early] = k[early] * with_premium
    return prices, start


def _premium_and_boundary(
    m: Floats, t: Floats, vol: Floats, sign: Floats, r: Floats, european: Floats, start: Floats
) -> tuple[Floats, Floats]:
    """American prices and exercise boundaries over the strike, as are `m` (the future) and `european`."""
    # Ju and Zhong's names: h is the interest until expiration, alpha twice the rate over the variance,
    # lam the exponent of the premium, chi its correction.
    total_vol, h, alpha = vol * np.sqrt(t), -np.expm1(-r * t), 2 * r / vol**2
    root = np.sqrt(1 + 4 * alpha / h)
    lam = (1 + sign * root) / 2
    boundary = _exercise_boundary(lam, total_vol, 1 - h, alpha, sign, start)
    d1 = np.log(boundary) / total_vol + total_vol / 2
    n1, n2 = ndtr(sign * d1), ndtr(sign * (d1 - total_vol))
    at_boundary = sign * (boundary - 1) - (1 - h) * sign * (boundary * n1 - n2)
    density = np.exp(-d1 * d1 / 2) / np.sqrt(2 * np.pi)
    decay = boundary * density * vol / (2 * r * np.sqrt(t)) - sign * (boundary * n1 - n2)
    lam_slope = -sign * alpha / (h * h * root)
    weight = (1 - h) * alpha / (sign * root)
    distance = np.log(m / boundary)
    quadratic = weight * lam_slope / 2
    linear = -weight * (decay / at_boundary + 1 / h + lam_slope / (sign * root))
    chi = quadratic * distance**2 + linear * distance
    premium = at_boundary * np.exp(lam * distance) / (1 - chi)
    # No-arbitrage bounds: the European price, discounted and undiscounted.
    continuation = np.clip(european + premium, european, european / (1 - h))
    intrinsic = np.maximum(sign * (m - 1), 0.0)
    return np.where(sign * (boundary - m) > 0, np.maximum(continuation, intrinsic), intrinsic), boundary


def _exercise_boundary(
    lam: Floats, total_vol: Floats, discount: Floats, alpha: Floats, sign: Floats, start: Floats
) -> Floats:
    """The exercise boundary over the strike, by Newton's method between 1 and that of a perpetual option."""
    perpetual = (1 + sign * np.sqrt(1 + 4 * alpha)) / 2
    limit = perpetual / (perpetual - 1)
    guess = 1 + (limit - 1) * -np.expm1(-2 * total_vol / np.abs(limit - 1))
    boundary = np.where(np.isnan(start), guess, start)
    for _ in range(30):
        d1 = np.log(boundary) / total_vol + total_vol / 2
        n1, n2 = ndtr(sign * d1), ndtr(sign * (d1 - total_vol))
        density = np.exp(-d1 * d1 / 2) / np.sqrt(2 * np.pi)
        slack = sign * (1 - discount * n1)
        miss = sign * (boundary - 1) - discount * sign * (boundary * n1 - n2) - boundary * slack / lam
        slope = slack * (1 - 1 / lam) + discount * density / (lam * total_vol)
        step = miss / slope
        boundary = np.clip(boundary - step, np.minimum(1.0, limit), np.maximum(1.0, limit))
        if (np.abs(step) < 1e-9).all():
            break
    return boundary
