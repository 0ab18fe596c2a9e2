"""Fit of the volatility surface, beside scipy's `least_squares` and QuantLib, slice by slice.

    python -m bench.bench_surface

The chain has at least 7,000 contracts of the synthetic market. All fit its out-of-the-money quotes, weighted
by their width, and start from the same simple guess; QuantLib weights by vega. Where recorded boards are at
hand (`NQ_SHARED`), the share of quotes inside bid and ask is compared on them, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import QuantLib
from scipy.optimize import least_squares

from bench.bench_pricing import best
from nq_pipeline.market import svi
from nq_pipeline.market.svi import Floats, Smile
from nq_pipeline_tests.testing import surfaces
from nq_pipeline_tests.testing.recorded import SHARED

CONTRACTS, LEAST_RATIO = 7_000, 5.0
Fit = Callable[[Sequence[Smile]], Floats]


def main() -> None:
    chain = surfaces.market_chain()
    sizes = chain.group_by("series").agg(pl.len(), pl.col("expiration").first()).sort("expiration", "series")
    front = sizes.filter(pl.col("len").cum_sum().shift(1, fill_value=0) < CONTRACTS)["series"].to_list()
    chain = chain.filter(pl.col("series").is_in(front))
    smiles = smiles_of(chain)
    quotes = sum(len(smile.variance) for smile in smiles)
    print(f"{chain.height:,} contracts, {quotes:,} out-of-the-money quotes, {len(smiles)} expirations")
    boards = [name for name in surfaces.BOARDS if SHARED.is_dir()]
    recorded = [smile for name in boards for smile in smiles_of(surfaces.recorded_chain(SHARED, name))]
    print(f"{'':<52}{'ms':>8}{'ratio':>8}{'inside':>9}{f'inside {len(recorded)} recorded boards':>27}")
    base, ratios = 0.0, []
    for name, fit, rounds in (
        ("nq_pipeline: all expirations at once", svi.fit, 7),
        ("scipy least_squares, raw SVI, a loop", by_scipy, 2),
        ("scipy least_squares, two hyperbolas, a loop", by_scipy_twice, 1),
        ("QuantLib SviInterpolatedSmileSection, a loop", by_quantlib, 1),
    ):
        seconds, curves = best(lambda fit=fit: fit(smiles), rounds)
        base = base or seconds
        ratios.append(seconds / base)
        on_boards = ", ".join(f"{share:.0%}" for share in inside(recorded, fit(recorded)))
        mean = float(np.mean(inside(smiles, curves)))
        print(f"{name:<52}{seconds * 1e3:>8.1f}{seconds / base:>7.1f}x{mean:>9.1%}{on_boards:>27}")
    if min(ratios[1:]) < LEAST_RATIO:
        raise SystemExit(f"only {min(ratios[1:]):.1f} times as fast as a loop; {LEAST_RATIO:g} is the least")


def smiles_of(chain: pl.DataFrame) -> list[Smile]:
    """The quotes that `VolatilitySurface` fits."""
    return [
        Smile(k, (iv := rows["implied_volatility"].to_numpy()) ** 2 * t, 2 * iv * t * width)
        for rows in surfaces.fit(chain).quotes.partition_by("series", maintain_order=True)
        for k, width, t in [
            (rows["log_moneyness"].to_numpy(), rows["iv_uncertainty"].to_numpy(), rows["years"].to_numpy()[0])
        ]
    ]


def inside(smiles: Sequence[Smile], curves: Floats) -> list[float]:
    """The share of each smile's quotes between whose bid and ask its curve passes."""
    errors = (
        np.abs(svi.total_variance(curve, k) - w) / width
        for curve, (k, w, width) in zip(curves, smiles, strict=True)
    )
    return [float((error <= 1).mean()) for error in errors]


def guess(smile: Smile) -> Floats:
    """a, ρ, b, m, σ of raw SVI: the usual start, from the level and the range of the quotes."""
    k, w, _ = smile
    span = float(np.ptp(k))
    return np.array([w.min() / 2, -0.3, np.ptp(w) / span, k[np.argmin(w)], span / 6])


def by_scipy(smiles: Sequence[Smile]) -> Floats:
    return np.array([_least_squares(smile, guess(smile)) for smile in smiles])


def by_scipy_twice(smiles: Sequence[Smile]) -> Floats:
    starts = [(one := guess(smile), one[2:] * [0.5, 1.0, 0.5]) for smile in smiles]
    return np.array(
        [_least_squares(smile, np.append(*start)) for smile, start in zip(smiles, starts, strict=True)]
    )


def _least_squares(smile: Smile, start: Floats) -> Floats:
    k, w, width = smile
    low, high = [-np.inf, -1, 0, -np.inf, 1e-6, 0, -np.inf, 1e-6], [np.inf, 1, *[np.inf] * 6]

    def miss(x: Floats) -> Floats:
        return (svi.total_variance(_padded(x), k) - w) / width

    count = len(start)
    scale = np.maximum(np.abs(start), 1e-4)
    return _padded(least_squares(miss, start, bounds=(low[:count], high[:count]), x_scale=scale).x)


def by_quantlib(smiles: Sequence[Smile]) -> Floats:
    """QuantLib dates have whole days, so every smile gets a year: total variance is what it fits."""
    QuantLib.Settings.instance().evaluationDate = today = QuantLib.Date(10, 6, 2025)
    curves = []
    for smile in smiles:
        k, w, _ = smile
        a, rho, b, m, sigma = guess(smile).tolist()
        given: list[Any] = [today + 365, 1.0, np.exp(k).tolist(), False, 0.2, np.sqrt(w).tolist()]
        section = QuantLib.SviInterpolatedSmileSection(*given, a, b, sigma, rho, m, *[False] * 5, True)
        try:
            curves.append([section.a(), section.rho(), section.b(), section.m(), section.sigma()])
        except RuntimeError:  # its optimizer gave up
            curves.append([np.nan] * 5)
    return np.array([_padded(np.array(curve)) for curve in curves])


def _padded(curve: Floats) -> Floats:
    return np.append(curve, [np.nan] * (8 - len(curve)))


if __name__ == "__main__":
    main()
