"""American options on a future, for whole arrays: Black-76 plus the early exercise premium.

The premium is Kim's integral ("The Analytic Valuation of American Options", Review of Financial Studies,
1990) over the boundary at which exercise is best, for a cost of carry of zero. The boundary solves the fixed
point system of Andersen, Lake and Offengenden ("High Performance American Option Pricing", Journal of
Computational Finance, 2016). `docs/pricing.md` states the error. With an interest rate of zero the premium
is zero.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev
from scipy.special import ndtr

from nq_pipeline.market import black76
from nq_pipeline.market.black76 import DAYS_PER_YEAR, Floats, Input, Valuation

MIN_INTEREST = 1e-7
"""Interest until expiration below which the early exercise premium is smaller than rounding."""
_TOLERANCE = 1e-9
"""Tolerance of an implied volatility."""
_MAX_SECANTS = 12
_BRACKET_MARGIN = 0.01
"""How much the bracket of an implied volatility is widened, for the error of the price."""
_LOG_ALPHA = np.log(1e-6), np.log(1e4)
"""Range of ln(2r/σ²) in the table of boundaries; beyond it the value at its end is used."""
_MAX_TOTAL_VOLATILITY, _MAX_INTEREST = 4.0, 3.0
"""Largest σ√t and rt in the table; the boundary hardly moves beyond."""
_NODES = 32, 20
"""Chebyshev nodes of the table, by ln(2r/σ²) and by time."""
_COLLOCATION, _ITERATIONS = 8, 8
"""Nodes of a boundary until expiration, and steps to it."""


def _quadrature(points: int) -> tuple[Floats, Floats]:
    """Nodes y, and weights for an integral over the share y² of a time, by Gauss and Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    y = (1 + nodes) / 2
    return y, weights * y


_OF_BOUNDARY, _OF_PREMIUM = _quadrature(11), _quadrature(15)


def value(
    forward: Input, strike: Input, years: Input, volatility: Input, is_call: Input, rate: Input = 0.0
) -> Valuation:
    """Prices and Greeks of American options on a future; inputs as for `black76.value`.

    The Greeks are central differences. Where immediate exercise is best the price is the
    intrinsic value, delta is 1 or -1, and all other Greeks are 0.
    """
    f, k, t, vol, call, r = black76.broadcast(forward, strike, years, volatility, is_call, rate)
    total_vol = np.clip(vol * np.sqrt(np.maximum(t, 0.0)), 1e-3, 1.0)
    df, dvol, dr = 1e-3 * total_vol * f, 1e-3 * np.maximum(vol, 1e-3), 1e-3 * np.maximum(np.abs(r), 1e-3)

    def prices(of_vol: float = 0, of_r: float = 0) -> tuple[Floats, Floats, Floats]:
        """Prices at the future's price, above and below it."""
        moved = vol + of_vol * dvol, r + of_r * dr
        boundary = _log_boundary(t, *moved)
        here, up, down = (_price(at, k, t, moved[0], call, moved[1], boundary) for at in (f, f + df, f - df))
        return here, up, down

    now, up, down = prices()
    more, less, dearer, cheaper = prices(of_vol=1), prices(of_vol=-1), prices(of_r=1), prices(of_r=-1)
    vega, rho = (more[0] - less[0]) / (2 * dvol), (dearer[0] - cheaper[0]) / (2 * dr)
    vanna, delta_by_rate = (
        (a[1] - a[2] - b[1] + b[2]) / (4 * df * step)
        for a, b, step in ((more, less, dvol), (dearer, cheaper, dr))
    )
    # The price depends on time by σ²t and rt alone, so a change of time is one of volatility and rate.
    days = DAYS_PER_YEAR * np.maximum(t, 1e-9)
    found = Valuation(
        price=now,
        delta=(up - down) / (2 * df),
        gamma=(up - 2 * now + down) / df**2,
        vega=vega,
        theta=-(vol / 2 * vega + r * rho) / days,
        rho=rho,
        vanna=vanna,
        charm=-(vol / 2 * vanna + r * delta_by_rate) / days,
        volga=(more[0] - 2 * now + less[0]) / dvol**2,
    )
    # After expiration a difference across the kink at the strike is not a Greek.
    others = (np.where(t <= 0, 0.0, greek) for greek in found[2:])
    return Valuation(found.price, found.delta, *others)


def implied_volatility(
    price: Input, forward: Input, strike: Input, years: Input, is_call: Input, rate: Input = 0.0
) -> Floats:
    """The volatility at which `value` gives the price; inputs as for `black76.implied_volatility`.

    NaN at or below the undiscounted intrinsic value, where a holder exercises and the price says nothing
    about volatility. An American option is worth at least the European one and at most its undiscounted
    price, so the volatilities of Black-76 with and without the rate bracket the solution.
    """
    p, f, k, t, call, r = black76.broadcast(price, forward, strike, years, is_call, rate)
    least = black76.implied_volatility(p, f, k, t, call, 0.0)
    found = black76.implied_volatility(p, f, k, t, call, r)
    found[np.isnan(least)] = np.nan
    early = (r * t > MIN_INTEREST) & ~np.isnan(found)
    terms = tuple(x[early] for x in (p, f, k, t, call, r))
    low, high = least[early] * (1 - _BRACKET_MARGIN), found[early] * (1 + _BRACKET_MARGIN)
    solved = _solve_by_secants(found[early], low, high, *terms)
    # Near the exercise boundary the price is flat and secants fail, so search the bracket.
    left = np.isnan(solved)
    if left.any():
        from scipy.optimize.elementwise import find_root  # late: takes longer than all else here to import

        solution = find_root(
            lambda vol, p, f, k, t, call, r: _price(f, k, t, vol, call, r) - p,
            (low[left], high[left]),
            args=tuple(x[left] for x in terms),
            tolerances={"xatol": _TOLERANCE, "xrtol": _TOLERANCE},
        )
        solved[left] = np.where(solution.success, solution.x, np.nan)
    found[early] = solved
    return found


def _solve_by_secants(start: Floats, low: Floats, high: Floats, *terms: Floats) -> Floats:
    """Volatilities by the secant method, starting at the European ones; NaN where it leaves the bracket."""
    p, f, k, t, call, r = terms
    vol, found, left = start, np.full_like(start, np.nan), np.arange(len(start))
    miss, slope = _price(f, k, t, vol, call, r) - p, black76.value(f, k, t, start, call, r).vega
    for _ in range(_MAX_SECANTS):
        with np.errstate(divide="ignore", invalid="ignore"):
            ahead = vol - miss / slope
        usable = (ahead >= low[left]) & (ahead <= high[left])
        settled = usable & (np.abs(ahead - vol) <= _TOLERANCE)
        found[left[settled]] = ahead[settled]
        on = usable & ~settled
        left = left[on]
        if not left.size:
            break
        before, vol, missed = vol[on], ahead[on], miss[on]
        miss = _price(f[left], k[left], t[left], vol, call[left], r[left]) - p[left]
        slope = (miss - missed) / (vol - before)
    return found


def _price(
    f: Floats, k: Floats, t: Floats, vol: Floats, call: Floats, r: Floats, boundary: Floats | None = None
) -> Floats:
    """Prices; `boundary` is that of `_log_boundary`, if it is known."""
    prices = np.array(black76.value(f, k, t, vol, call, r).price)
    early = _pays_to_exercise(t, vol, r)
    log_boundary = _log_boundary(t, vol, r) if boundary is None else boundary
    m, sign, total_vol, interest = (
        x[early] for x in (f / k, np.where(call > 0, 1.0, -1.0), vol * np.sqrt(np.maximum(t, 0)), r * t)
    )
    y, weights = _OF_PREMIUM
    spread, side = total_vol[:, None] * y, sign[:, None]
    d = (np.log(m)[:, None] + side * log_boundary[:, 1:]) / spread
    paid = m[:, None] * ndtr(side * (d + spread / 2)) - ndtr(side * (d - spread / 2))
    interest_then = interest[:, None] * np.exp(-interest[:, None] * y * y)
    premium = sign * ((interest_then * paid) @ weights)
    # No-arbitrage bounds: the European price, discounted and undiscounted.
    european, intrinsic = prices[early] / k[early], np.maximum(sign * (m - 1), 0.0)
    continuation = np.clip(european + premium, european, european * np.exp(interest))
    is_held = sign * np.log(m) + log_boundary[:, 0] < 0
    prices[early] = k[early] * np.where(is_held, np.maximum(continuation, intrinsic), intrinsic)
    return prices


def _pays_to_exercise(t: Floats, vol: Floats, r: Floats) -> npt.NDArray[np.bool_]:
    """Whether early exercise has a value."""
    return np.asarray((r * t > MIN_INTEREST) & (vol > 0))


def _log_boundary(t: Floats, vol: Floats, r: Floats) -> Floats:
    """Logarithm of a put's exercise boundary over its strike, now and at the nodes of the premium.

    One row for each option for which early exercise has a value. A call has the opposite sign.
    """
    early = _pays_to_exercise(t, vol, r)
    vol, alpha = vol[early], 2 * r[early] / vol[early] ** 2
    low, high = _LOG_ALPHA
    place = np.clip(2 * (np.log(alpha) - low) / (high - low) - 1, -1, 1)
    by_time = chebyshev.chebvander(place, _NODES[0] - 1) @ _table()
    longest = _longest(np.exp(low + (high - low) * (place + 1) / 2))
    root = np.sqrt(np.minimum(vol * np.sqrt(t[early]) / longest, 1.0))
    left = np.append(1.0, (1 - _OF_PREMIUM[0] ** 2) ** 0.25)
    return np.asarray(chebyshev.chebval(2 * root[:, None] * left - 1, by_time.T[:, :, None], tensor=False))


def _longest(alpha: Floats) -> Floats:
    """The largest σ√t in the table by α = 2r/σ²."""
    return np.asarray(1 / np.sqrt(_MAX_TOTAL_VOLATILITY**-2 + alpha / (2 * _MAX_INTEREST)))


@lru_cache(maxsize=1)
def _table() -> Floats:
    """Coefficients of the logarithm of a put's boundary over its strike, which depends on α and σ√t alone.

    Chebyshev polynomials in ln α and in the fourth root of time, in which the boundary is smooth.
    """
    rows, columns = _NODES
    places, (low, high) = chebyshev.chebpts1(rows), _LOG_ALPHA
    alpha = np.exp(low + (high - low) * (places + 1) / 2)[:, None]
    roots = chebyshev.chebpts1(columns)
    total_vol = _longest(alpha) * ((1 + roots) / 2) ** 2
    boundary = _solve_boundary((total_vol + 0 * alpha).ravel(), (alpha * total_vol**2 / 2).ravel())
    by_alpha = np.linalg.solve(chebyshev.chebvander(places, rows - 1), boundary.reshape(rows, columns))
    return np.asarray(np.linalg.solve(chebyshev.chebvander(roots, columns - 1), by_alpha.T).T)


def _solve_boundary(total_vol: Floats, interest: Floats) -> Floats:
    """Logarithm of a put's exercise boundary over its strike, by σ√t and rt.

    The boundary until expiration is a polynomial of the root of time through Chebyshev's points.
    """
    x = (1 + np.cos(np.pi * np.arange(_COLLOCATION) / _COLLOCATION)) / 2  # but 0, where the boundary is 0
    y, weights = _OF_BOUNDARY
    # Of the boundary's square, which is smoother, from its values at x to those at the earlier times.
    inverse = np.linalg.inv(chebyshev.chebvander(2 * np.append(x, 0.0) - 1, _COLLOCATION))[:, :-1]
    earlier = chebyshev.chebvander(2 * x[:, None] * np.sqrt(1 - y * y) - 1, _COLLOCATION) @ inverse
    spread, interest = total_vol[:, None] * x, interest[:, None] * x * x
    total = spread[..., None] * y
    paid = interest[..., None] * np.exp(interest[..., None] * (1 - y * y)) * weights
    # Start as just before expiration (Evans, Kuske and Keller 2002), no farther than a perpetual put's.
    perpetual = np.log1p(2 / (np.sqrt(1 + 8 * interest / spread**2) - 1))
    boundary = -np.minimum(spread * np.sqrt(2 * np.log1p(1 / (4 * np.sqrt(np.pi) * interest))), perpetual)
    for _ in range(_ITERATIONS):
        before = np.maximum(np.einsum("ijk,ak->aij", earlier, boundary**2), 0.0)
        d = (boundary[..., None] + np.sqrt(before)) / total
        above, below = boundary / spread + spread / 2, boundary / spread - spread / 2
        of_strike = ndtr(below) + (paid * ndtr(d - total / 2)).sum(axis=-1)
        of_future = ndtr(above) + (paid * ndtr(d + total / 2)).sum(axis=-1)
        # The boundary moves in parallel, so that only the densities at expiration count in the slope.
        slope = (_density(below) / of_strike - _density(above) / of_future) / spread
        step = (np.log(of_strike / of_future) - boundary) / (1 - slope)
        boundary = boundary * (1 + np.clip(step / boundary, -0.3, 0.3))
    return np.asarray(boundary[:, 0])


def _density(x: Floats) -> Floats:
    return np.asarray(np.exp(-x * x / 2) / np.sqrt(2 * np.pi))
