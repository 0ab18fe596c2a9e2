"""American options on a future, for whole arrays: what the right to exercise early adds to Black-76.

The premium is Ju and Zhong's ("An Approximate Formula for Pricing American Options", Journal of
Derivatives, 1999): Barone-Adesi and Whaley's quadratic approximation with a correction, here
for a cost of carry of zero. `docs/pricing.md` states its error against a binomial tree. Without
an interest rate there is no premium and everything here is Black-76.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize.elementwise import find_root
from scipy.special import ndtr

from nq_pipeline.market import black76
from nq_pipeline.market.black76 import DAYS_PER_YEAR, Floats, Valuation

LEAST_INTEREST = 1e-7
"""Interest until expiration below which waiting costs nothing that a price could show."""
_EXACT = 1e-9
"""How exact an implied volatility is: far more so than the premium."""
_MOST_SECANTS = 12
_SLACK = 0.05
"""By how much the bracket of an implied volatility is widened, since the premium is approximate."""


def value(
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    years: npt.ArrayLike,
    volatility: npt.ArrayLike,
    is_call: npt.ArrayLike,
    rate: npt.ArrayLike = 0.0,
) -> Valuation:
    """Price American options on a future and differentiate the price; inputs as `black76.value`.

    The Greeks are central differences. Where exercise is best at once the price is the
    intrinsic value, delta is 1 or -1, and gamma, vega and theta are 0.
    """
    f, k, t, vol, call, r = _together(forward, strike, years, volatility, is_call, rate)
    spread = np.clip(vol * np.sqrt(np.maximum(t, 0.0)), 1e-3, 1.0)
    df, dvol, dt = 1e-3 * spread * f, 1e-4 * np.maximum(vol, 1e-3), 1e-4 * np.maximum(t, 1e-9)
    here, edge = _priced(f, k, t, vol, call, r)
    up, down = (_priced(f + move, k, t, vol, call, r, edge)[0] for move in (df, -df))
    more, less = (_priced(f, k, t, vol + move, call, r, edge)[0] for move in (dvol, -dvol))
    later, sooner = (_priced(f, k, t - move, vol, call, r, edge)[0] for move in (dt, -dt))
    return Valuation(
        price=here,
        delta=(up - down) / (2 * df),
        gamma=(up - 2 * here + down) / df**2,
        vega=(more - less) / (2 * dvol),
        theta=(later - sooner) / (2 * dt) / DAYS_PER_YEAR,
    )


def price(
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    years: npt.ArrayLike,
    volatility: npt.ArrayLike,
    is_call: npt.ArrayLike,
    rate: npt.ArrayLike = 0.0,
) -> Floats:
    """The price alone, points of premium."""
    return _priced(*_together(forward, strike, years, volatility, is_call, rate))[0]


def implied_volatility(
    price: npt.ArrayLike,
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    years: npt.ArrayLike,
    is_call: npt.ArrayLike,
    rate: npt.ArrayLike = 0.0,
) -> Floats:
    """The volatility at which `value` gives the price; inputs as `black76.implied_volatility`.

    NaN at or below the intrinsic value, undiscounted: there an owner exercises, and the price
    says nothing about volatility. An American option is worth at least the European one and at
    most that one undiscounted, so Black-76 with and without the rate bracket the volatility.
    """
    p, f, k, t, call, r = _together(price, forward, strike, years, is_call, rate)
    least = black76.implied_volatility(p, f, k, t, call, 0.0)
    found = black76.implied_volatility(p, f, k, t, call, r)
    found[np.isnan(least)] = np.nan
    early = (r * t > LEAST_INTEREST) & ~np.isnan(found)
    terms = tuple(x[early] for x in (p, f, k, t, call, r))
    low, high = least[early] * (1 - _SLACK), found[early] * (1 + _SLACK)
    solved = _by_secants(found[early], low, high, *terms)
    # What a flat price leads astray, near exercise, is searched for within the bracket.
    left = np.isnan(solved)
    if left.any():
        solution = find_root(
            _miss,
            (low[left], high[left]),
            args=tuple(x[left] for x in terms),
            tolerances={"xatol": _EXACT, "xrtol": _EXACT},
        )
        solved[left] = np.where(solution.success, solution.x, np.nan)
    found[early] = solved
    return found


def _miss(vol: Floats, p: Floats, f: Floats, k: Floats, t: Floats, call: Floats, r: Floats) -> Floats:
    return price(f, k, t, vol, call, r) - p


def _by_secants(
    start: Floats,
    low: Floats,
    high: Floats,
    p: Floats,
    f: Floats,
    k: Floats,
    t: Floats,
    call: Floats,
    r: Floats,
) -> Floats:
    """Volatilities by secants from the European ones; NaN where they do not settle in the bracket."""
    vol, found, left = start, np.full_like(start, np.nan), np.arange(len(start))
    prices, edge = _priced(f, k, t, vol, call, r)
    miss, slope = prices - p, black76.value(f, k, t, start, call, r).vega
    for _ in range(_MOST_SECANTS):
        with np.errstate(divide="ignore", invalid="ignore"):
            ahead = vol - miss / slope
        usable = (ahead >= low[left]) & (ahead <= high[left])
        settled = usable & (np.abs(ahead - vol) <= _EXACT)
        found[left[settled]] = ahead[settled]
        on = usable & ~settled
        left = left[on]
        if not left.size:
            break
        before, vol, missed, edge = vol[on], ahead[on], miss[on], edge[on]
        prices, edge = _priced(f[left], k[left], t[left], vol, call[left], r[left], edge)
        miss = prices - p[left]
        slope = (miss - missed) / (vol - before)
    return found


def _priced(
    f: Floats, k: Floats, t: Floats, vol: Floats, call: Floats, r: Floats, edge: Floats | None = None
) -> tuple[Floats, Floats]:
    """Prices, and where exercise becomes best (over the strike); with `edge`, that of similar terms."""
    prices = np.array(black76.value(f, k, t, vol, call, r).price)
    early = (r * t > LEAST_INTEREST) & (vol > 0)
    sign = np.where(call > 0, 1.0, -1.0)
    near = np.full(prices.shape, np.nan) if edge is None else edge.copy()
    terms = (x[early] for x in (f / k, t, vol, sign, r, prices / k, near))
    with_premium, near[early] = _with_premium(*terms)
    prices[early] = k[early] * with_premium
    return prices, near


def _with_premium(
    m: Floats, t: Floats, vol: Floats, sign: Floats, r: Floats, european: Floats, near: Floats
) -> tuple[Floats, Floats]:
    """American prices over the strike, of the future's price over the strike and the European ones.

    Beside them the exercise prices over the strike; `near` is where those are looked for, or NaN.

    Ju and Zhong's letters: h is the interest until expiration, alpha twice the rate over the
    variance, lam the exponent of the premium, chi its correction.
    """
    spread, h, alpha = vol * np.sqrt(t), -np.expm1(-r * t), 2 * r / vol**2
    root = np.sqrt(1 + 4 * alpha / h)
    lam = (1 + sign * root) / 2
    edge = _exercise_price(lam, spread, 1 - h, alpha, sign, near)
    d1 = np.log(edge) / spread + spread / 2
    n1, n2 = ndtr(sign * d1), ndtr(sign * (d1 - spread))
    at_edge = sign * (edge - 1) - (1 - h) * sign * (edge * n1 - n2)
    density = np.exp(-d1 * d1 / 2) / np.sqrt(2 * np.pi)
    decay = edge * density * vol / (2 * r * np.sqrt(t)) - sign * (edge * n1 - n2)
    lam_slope = -sign * alpha / (h * h * root)
    weight = (1 - h) * alpha / (sign * root)
    distance = np.log(m / edge)
    bow = weight * lam_slope / 2
    tilt = -weight * (decay / at_edge + 1 / h + lam_slope / (sign * root))
    chi = bow * distance**2 + tilt * distance
    premium = at_edge * np.exp(lam * distance) / (1 - chi)
    # What no approximation may leave: the European price, discounted and not.
    held = np.clip(european + premium, european, european / (1 - h))
    exercised = np.maximum(sign * (m - 1), 0.0)
    return np.where(sign * (edge - m) > 0, np.maximum(held, exercised), exercised), edge


def _exercise_price(
    lam: Floats, spread: Floats, discount: Floats, alpha: Floats, sign: Floats, near: Floats
) -> Floats:
    """The future's price over the strike from which on exercise is best, by Newton's method.

    It lies between the strike and where an option without expiration is exercised.
    """
    endless = (1 + sign * np.sqrt(1 + 4 * alpha)) / 2
    limit = endless / (endless - 1)
    guess = 1 + (limit - 1) * -np.expm1(-2 * spread / np.abs(limit - 1))
    edge = np.where(np.isnan(near), guess, near)
    for _ in range(30):
        d1 = np.log(edge) / spread + spread / 2
        n1, n2 = ndtr(sign * d1), ndtr(sign * (d1 - spread))
        density = np.exp(-d1 * d1 / 2) / np.sqrt(2 * np.pi)
        slack = sign * (1 - discount * n1)
        miss = sign * (edge - 1) - discount * sign * (edge * n1 - n2) - edge * slack / lam
        slope = slack * (1 - 1 / lam) + discount * density / (lam * spread)
        step = miss / slope
        edge = np.clip(edge - step, np.minimum(1.0, limit), np.maximum(1.0, limit))
        if (np.abs(step) < 1e-9).all():
            break
    return edge


def _together(*inputs: npt.ArrayLike) -> tuple[Floats, ...]:
    return np.broadcast_arrays(*(np.asarray(x, np.float64) for x in inputs))
