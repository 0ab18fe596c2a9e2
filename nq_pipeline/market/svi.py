"""The volatility smile of one expiration as a curve: SVI, fitted to many smiles at once.

Total variance w = σ²t is a function of log-moneyness k = ln(strike / forward):

    w(k) = a + Σ bᵢ (ρ (k − mᵢ) + √((k − mᵢ)² + σᵢ²))

With one hyperbola this is raw SVI (Gatheral and Jacquier 2014, "Arbitrage-free SVI volatility surfaces").
Smiles of options that expire within two weeks bend more sharply than one hyperbola can. Where SVI leaves
quotes outside bid and ask, a second hyperbola with the same ρ is added. With all bᵢ ≥ 0 and |ρ| ≤ 1 the
curve is convex and rises at both ends.

The fit starts from the best hyperbolas of a grid of (m, σ), for which a, ρ and b are a linear problem (the
quasi-explicit calibration of Zeliade, 2009), and improves all parameters by Levenberg and Marquardt's
method, for all smiles at once. An error counts in half-widths of the quote: squared up to one, linear
beyond, so that a quote that disagrees with its neighbours does not pull the curve to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, compress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PARAMETERS = ("a", "rho", "b", "m", "sigma", "b_2", "m_2", "sigma_2")
"""Columns of a fit; the last three are NaN for raw SVI."""
MIN_QUOTES = 6
"""Quotes that a curve needs: more than raw SVI has parameters."""
MIN_QUOTES_OF_TWO = 12

_MAX_STEPS = 40
_STARTS = 40
"""Quotes of a smile that the grid looks at; a smile with fewer has some of them twice."""
_NODES = 9, (0.3, 1.0, 3.0)
"""The grid: how many m over the range of the quotes, and σ, in ATM standard deviations."""
_SIGMA = 0.02, 20.0
"""Bounds of σ, in ATM standard deviations."""


class Smile(NamedTuple):
    """The quotes of one expiration, in any order."""

    log_moneyness: Floats
    variance: Floats
    """Total variance, σ²t, of the mid."""
    half_width: Floats
    """Half the width of the quote, in total variance; above 0."""


def total_variance(parameters: npt.ArrayLike, log_moneyness: npt.ArrayLike, derivative: int = 0) -> Floats:
    """Total variance by log-moneyness, or its first or second derivative.

    The last axis of `parameters` has `PARAMETERS`; the other axes are broadcast with `log_moneyness`.
    """
    a, rho, *hyperbolas = np.moveaxis(np.asarray(parameters, np.float64), -1, 0)
    k = np.asarray(log_moneyness, np.float64)
    total = a + 0.0 * k if derivative == 0 else 0.0 * (a + k)
    for b, m, sigma in (hyperbolas[:3], hyperbolas[3:]):
        x = k - m
        root = np.hypot(x, sigma)
        if derivative == 0:
            shape = rho * x + root
        elif derivative == 1:
            shape = rho + x / root
        else:
            shape = sigma * sigma / root**3
        total = total + np.where(np.isnan(b), 0.0, b * shape)
    return np.asarray(total, np.float64)


def durrleman(parameters: npt.ArrayLike, log_moneyness: npt.ArrayLike) -> Floats:
    """Durrleman's function g; where it is below 0, the implied density is, too. −∞ where w is not above 0.

    g = (1 − k w′ / 2w)² − (w′² / 4) (1 / w + 1 / 4) + w″ / 2 (Gatheral and Jacquier 2014, eq. 2.1).
    """
    k = np.asarray(log_moneyness, np.float64)
    w, first, second = (total_variance(parameters, k, order) for order in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        g = (1 - k * first / (2 * w)) ** 2 - first**2 / 4 * (1 / w + 0.25) + second / 2
    return np.asarray(np.where(w > 0, g, -np.inf), np.float64)


def fit(smiles: Sequence[Smile]) -> Floats:
    """Fit a curve to each smile: an array of shape (smiles, 8) with the columns `PARAMETERS`.

    Units are log-moneyness and total variance. All are NaN for a smile with fewer than `MIN_QUOTES` quotes.
    """
    found = np.full((len(smiles), len(PARAMETERS)), np.nan)
    enough = [len(smile.variance) >= MIN_QUOTES for smile in smiles]
    if not any(enough):
        return found
    which, quotes = np.flatnonzero(enough), _Quotes.of(list(compress(smiles, enough)))
    curve = _improve(quotes, _start(quotes, 1))
    found[which, :5] = np.where(np.isfinite(curve.cost)[:, None], curve.parameters(quotes.scale), np.nan)
    error = np.abs(curve.value - quotes.y) * quotes.weight
    poor = (error > 1).any(axis=1) & (quotes.strikes >= MIN_QUOTES_OF_TWO)
    if poor.any():
        rest = quotes.take(poor)
        double = _improve(rest, _start(rest, 2))
        better = double.cost < curve.cost[poor]
        found[which[poor][better]] = double.parameters(rest.scale)[better]
    return found


class _Quotes(NamedTuple):
    """Smiles side by side, in units of the ATM standard deviation, padded with quotes of no weight."""

    z: Floats
    y: Floats
    weight: Floats
    """One over the half-width; 0 where there is no quote."""
    scale: Floats
    """The ATM total volatility by which log-moneyness was divided."""
    strikes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, smiles: Sequence[Smile]) -> _Quotes:
        count = np.array([len(smile.variance) for smile in smiles])
        z, y, weight = np.zeros((3, len(smiles), int(count.max())))
        scale = np.empty(len(smiles))
        for i, (k, w, half_width) in enumerate(smiles):
            at = w[np.argmin(np.abs(k))]
            scale[i], order = np.sqrt(at), np.argsort(k)
            z[i], y[i, : len(k)] = k[order[-1]] / scale[i], w[order] / at
            z[i, : len(k)] = k[order] / scale[i]
            weight[i, : len(k)] = at / np.maximum(half_width[order], 1e-9 * at)
        return cls(z, y, weight, scale, count)

    def take(self, which: npt.NDArray[Any]) -> _Quotes:
        z, y, weight = self.z[which], self.y[which], self.weight[which]
        return _Quotes(z, y, weight, self.scale[which], self.strikes[which])


class _Curves(NamedTuple):
    """A curve per smile: m and ln σ of its hyperbolas, and the best a, slope and b for them."""

    m: Floats
    log_sigma: Floats
    linear: Floats
    """a, the slope ρ Σ b, and every b."""
    value: Floats
    cost: Floats
    """Huber's loss of the errors in half-widths, summed over the quotes; infinite where a b is negative."""
    basis: Floats
    """What the linear parameters multiply, of shape (smiles, parameters, quotes)."""

    def parameters(self, scale: Floats) -> Floats:
        """The columns `PARAMETERS`, as many as there are hyperbolas for."""
        a, slope, b = self.linear[:, :1], self.linear[:, 1:2], self.linear[:, 2:]
        rho = slope / b.sum(axis=1, keepdims=True)
        a = (a + rho * (b * self.m).sum(axis=1, keepdims=True)) * scale[:, None] ** 2
        each = np.stack([b, self.m, np.exp(self.log_sigma)], axis=2).reshape(len(b), -1) * scale[:, None]
        return np.concatenate([a, rho, each], axis=1)


def _curves(quotes: _Quotes, m: Floats, log_sigma: Floats, weight: Floats) -> _Curves:
    """The best linear parameters for given hyperbolas, by least squares with |ρ| at most 1."""
    y, basis = quotes.y, _basis(quotes.z, m, log_sigma)
    linear = _solve(basis * weight[:, None], y * weight)
    total = linear[:, 2:].sum(axis=1)
    over = np.abs(linear[:, 1]) > total
    if over.any():  # then the best ρ is 1 or -1
        side = np.sign(linear[over, 1])[:, None, None]
        edge = basis[over]
        edge[:, 2:] += side * edge[:, 1:2]
        edge[:, 1] = 0.0
        basis[over] = edge
        linear[over] = _solve(edge * weight[over, None], y[over] * weight[over])
    value = (linear[..., None] * basis).sum(axis=1)
    error = np.abs(value - y) * quotes.weight
    cost = np.where(error <= 1, error * error / 2, error - 0.5).sum(axis=1)
    cost = np.where((linear[:, 2:] > 0).all(axis=1), cost, np.inf)
    if over.any():
        linear[over, 1] = side[:, 0, 0] * linear[over, 2:].sum(axis=1)
    return _Curves(m, log_sigma, linear, value, cost, basis)


def _basis(z: Floats, m: Floats, log_sigma: Floats) -> Floats:
    """What a, the slope and every b multiply, of shape (smiles, parameters, quotes)."""
    roots = np.sqrt((z[:, None] - m[..., None]) ** 2 + np.exp(2 * log_sigma)[..., None])
    return np.concatenate([np.ones_like(z)[:, None], z[:, None], roots], axis=1)


def _regular(normal: Floats, share: float = 1e-11) -> Floats:
    """Normal equations with a share of their trace on the diagonal, so that they can be solved."""
    trace = np.trace(normal, axis1=-2, axis2=-1)[..., None, None]
    return np.asarray(normal + share * trace * np.eye(normal.shape[-1]), np.float64)


def _solve(terms: Floats, y: Floats) -> Floats:
    """Least squares for every smile; terms have the shape (smiles, parameters, quotes)."""
    normal = _regular(terms @ terms.swapaxes(-1, -2))
    return np.asarray(np.linalg.solve(normal, terms @ y[..., None])[..., 0], np.float64)


def _start(quotes: _Quotes, hyperbolas: int) -> _Curves:
    """The best curves with the hyperbolas of a grid."""
    pick = np.linspace(0, 1, _STARTS) * (quotes.strikes[:, None] - 1)
    z, y, weight = (np.take_along_axis(x, np.round(pick).astype(np.int64), axis=1) for x in quotes[:3])
    steps, widths = _NODES
    low, high = z.min(axis=1)[:, None], z.max(axis=1)[:, None]
    m = np.repeat(low + np.linspace(0, 1, steps) * (high - low), len(widths), axis=1)
    log_sigma = np.broadcast_to(np.tile(np.log(widths), steps), m.shape)
    terms = _basis(z, m, log_sigma) * weight[:, None]
    gram, right = terms @ terms.swapaxes(1, 2), terms @ (y * weight)[..., None]
    sets = np.array([(0, 1, *one) for one in combinations(range(2, 2 + m.shape[1]), hyperbolas)])
    normal = _regular(gram[:, sets[:, :, None], sets[:, None, :]], 1e-9)
    linear = np.linalg.solve(normal, right[:, sets])[..., 0]
    explained = (linear * right[:, sets, 0]).sum(axis=2)
    explained = np.where((linear[..., 2:] > 0).all(axis=2), explained, -np.inf)
    at = sets[np.argmax(explained, axis=1), 2:] - 2
    return _curves(quotes, np.take_along_axis(m, at, 1), np.take_along_axis(log_sigma, at, 1), quotes.weight)


def _improve(quotes: _Quotes, curves: _Curves) -> _Curves:
    """Improve m and σ by Levenberg and Marquardt's method until no step helps."""
    # The linear parameters follow exactly (variable projection), so that a step does not have to follow the
    # long valley along which they and σ balance each other.
    best = _Curves(*(x.copy() for x in curves))
    damping, left = np.full(len(best.cost), 1e-2), np.arange(len(best.cost))
    bounds = quotes.z.min(axis=1, keepdims=True) - 2, quotes.z.max(axis=1, keepdims=True) + 2
    for _ in range(_MAX_STEPS):
        if not left.size:
            break
        here, now = quotes.take(left), _Curves(*(x[left] for x in best))
        miss = now.value - here.y
        robust = here.weight / np.sqrt(np.maximum(np.abs(miss) * here.weight, 1.0))
        b, sigma = now.linear[:, 2:, None], np.exp(now.log_sigma)[..., None]
        x = here.z[:, None] - now.m[..., None]
        root = np.sqrt(x * x + sigma * sigma)
        slopes = np.concatenate([-b * x / root, b * sigma * sigma / root], axis=1) * robust[:, None]
        basis = now.basis * robust[:, None]
        normal = _regular(basis @ basis.swapaxes(1, 2))
        slopes = slopes - np.linalg.solve(normal, basis @ slopes.swapaxes(1, 2)).swapaxes(1, 2) @ basis
        square = slopes @ slopes.swapaxes(1, 2)
        diagonal = np.einsum("spp->sp", square)
        square = square + (damping[left, None] * diagonal + 1e-12)[..., None] * np.eye(square.shape[1])
        step = -np.linalg.solve(square, slopes @ (miss * robust)[..., None])[..., 0]
        by_m, by_sigma = np.split(step, 2, axis=1)
        trial = _curves(
            here,
            np.clip(now.m + by_m, bounds[0][left], bounds[1][left]),
            np.clip(now.log_sigma + np.clip(by_sigma, -1, 1), *np.log(_SIGMA)),
            robust,
        )
        better = trial.cost < now.cost
        gain = np.where(better, now.cost, 0.0) - np.where(better, trial.cost, 0.0)
        for kept, tried in zip(best, trial, strict=True):
            kept[left[better]] = tried[better]
        damping[left] *= np.where(better, 0.2, 5.0)
        left = left[~((better & (gain < 1e-4 * now.cost)) | (damping[left] > 1e5))]
    return best
