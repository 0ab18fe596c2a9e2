"""Exposures of open contracts in dollars, and the level at which the gamma exposure changes sign.

Dealers are assumed to be long every open call and short every open put. No data here confirms that.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.optimize import brentq

from nq_pipeline.analytics.priced import CALL, ONE_SERIES
from nq_pipeline.market import black76

GAMMA_RANGE = 0.10
"""The zero-gamma level is searched within this fraction of the forward, up and down."""
GAMMA_STEPS = 81
"""Levels at which the exposure is computed; more where a contract is about to expire."""
EXPOSURES = ("gex_per_point", "gex_per_pct", "delta_exposure", "vanna_exposure", "charm_exposure")

Floats = npt.NDArray[np.float64]


def with_exposures(priced: pl.DataFrame, forwards: pl.DataFrame) -> pl.DataFrame:
    """Add the columns `EXPOSURES`, dollars of futures that dealers hold or trade to stay hedged.

    Null without open interest or volatility. `forward` and `years` become those of the series
    (`series_forwards`), so that a row priced by an earlier settlement keeps its volatility but uses the
    current forward. The Greeks are Black-76's, also for American options, so that totals and the zero-gamma
    level come from one curve.
    """
    rows = priced.drop("forward", "years").join(
        forwards.select(*ONE_SERIES, "forward", "years"), on=ONE_SERIES, how="left", maintain_order="left"
    )
    forward, strike, years, iv, rate = _numbers(rows, "forward", "strike", "years", "iv", "rate")
    greeks = black76.value(forward, strike, years, iv, _is_call(rows), rate)
    dollars = _signed_contracts(rows) * forward
    computed = {
        "gex_per_point": dollars * greeks.gamma,
        "gex_per_pct": dollars * greeks.gamma * forward / 100,
        "delta_exposure": dollars * greeks.delta,
        "vanna_exposure": dollars * greeks.vanna / 100,
        "charm_exposure": dollars * greeks.charm,
    }
    return rows.with_columns(pl.Series(name, values).fill_nan(None) for name, values in computed.items())


def zero_gamma_shift(rows: pl.DataFrame) -> float | None:
    """The factor nearest 1 on all forwards at which net exposure per 1 % changes sign; None if there is none.

    `rows` have open interest and exposures. Contracts keep their volatility (sticky strike).
    """
    forward, strike, years, iv, rate = _numbers(rows, "forward", "strike", "years", "iv", "rate")
    total_vol = iv * np.sqrt(np.maximum(years, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = _signed_contracts(rows) * forward * np.exp(-rate * years) / total_vol
        d1 = np.log(forward / strike) / total_vol + total_vol / 2
    # Gamma times the forward is the density of d1 over σ√t: an expired contract has none. The exposure per
    # 1 % has the forward once more; the shift, which all forwards share, does not change the sign.
    alive = np.isfinite(weight) & (total_vol > 0)
    weight, d1, total_vol = weight[alive], d1[alive], total_vol[alive]

    def curve(shift: float) -> tuple[float, float]:
        """Net exposure and its slope, but for a factor above 0, by the logarithm of the factor."""
        moved = d1 + shift / total_vol
        part = weight * np.exp(-moved * moved / 2)
        return float(part.sum()), -float(np.dot(part, moved / total_vol))

    shifts = _search_levels(-d1 * total_vol, total_vol)
    exposure, slopes = np.array([curve(shift) for shift in shifts]).T
    known = exposure != 0
    shifts, sign, size, slopes = (
        shifts[known],
        np.sign(exposure[known]),
        np.abs(exposure[known]),
        slopes[known],
    )
    start, end, same = shifts[:-1], shifts[1:], sign[:-1] == sign[1:]
    spans = list(zip(start[~same], end[~same], strict=True))
    # Where the exposure turns around between two levels, the tangents at both meet beyond its extremum.
    toward, away = -(sign * slopes)[:-1], (sign * slopes)[1:]
    turns = same & (toward > 0) & (away > 0)
    beyond = size[:-1] * away + size[1:] * toward < toward * away * (end - start)
    for low, high, side in zip(
        start[turns & beyond], end[turns & beyond], sign[:-1][turns & beyond], strict=True
    ):
        turn = brentq(lambda shift: curve(shift)[1], low, high)
        if curve(turn)[0] * side < 0:
            spans += [(low, turn), (turn, high)]
    spans.sort(key=lambda span: min(map(abs, span)))
    # On either side of 1 one may be the nearest.
    found = [float(np.exp(brentq(lambda shift: curve(shift)[0], *span))) for span in spans[:2]]
    return min(found, key=lambda factor: abs(factor - 1), default=None)


def _search_levels(peak: Floats, total_vol: Floats) -> Floats:
    """Ascending logarithms of the factors at which to compute the exposure.

    Even steps, and where a contract's gamma is narrower than a step, levels around its peak.
    """
    even = np.log(np.linspace(1 - GAMMA_RANGE, 1 + GAMMA_RANGE, GAMMA_STEPS))
    narrow = total_vol < GAMMA_RANGE * 2 / (GAMMA_STEPS - 1)
    if not narrow.any():
        return even
    step = total_vol[narrow].min() / 2
    around = peak[narrow, None] + total_vol[narrow, None] * np.linspace(-4, 4, 17)
    around = np.unique(np.round(around / step)) * step
    return np.union1d(even, around[(around > even[0]) & (around < even[-1])])


def _numbers(rows: pl.DataFrame, *names: str) -> tuple[Floats, ...]:
    return tuple(rows[name].cast(pl.Float64).to_numpy() for name in names)


def _is_call(rows: pl.DataFrame) -> npt.NDArray[np.bool_]:
    return rows.select(CALL).to_series().to_numpy()


def _signed_contracts(rows: pl.DataFrame) -> Floats:
    """Open contracts times the multiplier; below 0 for puts, which dealers are short."""
    held, multiplier = _numbers(rows, "open_interest", "multiplier")
    return np.where(_is_call(rows), held, -held) * multiplier
