"""The fitted smile against scipy, QuantLib, the literature and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import least_squares

from nq_pipeline.market import black76, svi
from nq_pipeline.market.svi import Floats, Smile

SKEWED = (0.0021, -0.45, 0.021, 0.011, 0.052)
"""Raw SVI (a, ρ, b, m, σ) of a smile of two weeks."""
BENT = (-0.0013, -0.31, 0.0142, -0.081, 0.055, 0.0142, 0.041, 0.034)
"""Two hyperbolas, as those of a recorded board of NQ."""
AXEL_VOGT = (-0.0410, 0.3060, 0.1331, 0.3586, 0.4153)
"""The smile with a negative density of Gatheral and Jacquier (2014), example 3.1."""


def raw(*parameters: float) -> Floats:
    return np.array([*parameters, *[np.nan] * (8 - len(parameters))])


def quoted(parameters: Floats, k: Floats, *, share: float = 0.01) -> Smile:
    """Exact quotes whose half-width is a share of total variance."""
    w = svi.total_variance(parameters, k)
    return Smile(k, w, share * w)


K = np.linspace(-0.35, 0.12, 160)


@pytest.mark.parametrize("parameters", [SKEWED, BENT, (0.01, 0.3, 0.04, -0.05, 0.2)])
def test_curve_of_exact_quotes_is_found(parameters: tuple[float, ...]) -> None:
    curve = raw(*parameters)
    (found,) = svi.fit([quoted(curve, K)])
    expected, fitted = (np.sqrt(svi.total_variance(of, K)) for of in (curve, found))
    assert np.abs(fitted / expected - 1).max() < 5e-4
    assert np.isnan(found[5]) == (len(parameters) == 5), "a second hyperbola only where one is not enough"


def test_fits_of_many_smiles_are_those_of_each_alone() -> None:
    smiles = [quoted(raw(*p), K[:: step + 1]) for step, p in enumerate((SKEWED, BENT, SKEWED))]
    together = svi.fit([*smiles, Smile(K[:3], K[:3] ** 2 + 1, np.ones(3))])
    assert np.isnan(together[3]).all(), "three quotes are no smile"
    for smile, found in zip(smiles, together, strict=False):
        alone = svi.total_variance(svi.fit([smile])[0], smile.log_moneyness)
        assert svi.total_variance(found, smile.log_moneyness) == pytest.approx(alone, rel=1e-4)
    assert svi.fit([]).shape == (0, 8)


def test_fit_of_few_noisy_quotes_does_not_depend_on_longer_smiles() -> None:
    random, long = np.random.default_rng(3), quoted(raw(*SKEWED), K)
    for _ in range(20):
        z = np.sort(random.uniform(0.2, 4.0, 25))
        volatility = 0.22 * (1 - 0.12 * z + 0.05 * z * z / (1 + 0.1 * z * z))
        half_width = 0.002 * (1 + z)
        volatility = volatility + random.uniform(-0.8, 0.8, len(z)) * half_width
        smile = Smile(0.02 * z, volatility**2 / 120, volatility * half_width / 60)
        alone, together = (svi.total_variance(svi.fit(s)[0], 0.02 * z) for s in ([smile], [smile, long]))
        assert (np.abs(together - alone) < 1e-4 * smile.half_width).all()


def test_fit_of_noisy_quotes_is_as_good_as_scipys() -> None:
    random = np.random.default_rng(5)
    for parameters in (SKEWED, (0.01, 0.3, 0.04, -0.05, 0.2)):
        exact = quoted(raw(*parameters), K)
        noise = random.uniform(-0.9, 0.9, len(K)) * exact.half_width
        smile = exact._replace(variance=exact.variance + noise)

        def miss(x: Floats, smile: Smile = smile) -> Floats:
            return (svi.total_variance(raw(*x), smile.log_moneyness) - smile.variance) / smile.half_width

        bounds = [-1, -1, 0, -1, 1e-3], [1, 1, 1, 1, 1]
        theirs = least_squares(miss, parameters, bounds=bounds, x_scale=np.abs(parameters), xtol=1e-14)
        (found,) = svi.fit([smile])
        assert np.isnan(found[5])
        assert (miss(found[:5]) ** 2).sum() <= 2 * theirs.cost * 1.001


def test_quote_that_disagrees_does_not_move_the_curve() -> None:
    smile = quoted(raw(*SKEWED), K)
    wrong, at = smile.variance.copy(), len(K) // 2
    wrong[at] *= 1.15  # 15 half-widths
    (found,) = svi.fit([smile._replace(variance=wrong)])
    error = np.abs(svi.total_variance(found, K) - smile.variance) / smile.half_width
    assert error.max() < 0.25


@given(
    st.lists(
        st.tuples(st.floats(-0.5, 0.5), st.floats(1e-8, 4), st.floats(1e-12, 4)), min_size=6, max_size=40
    )
)
def test_any_quotes_have_a_convex_curve_or_none(quotes: list[tuple[float, float, float]]) -> None:
    (found,) = svi.fit([Smile(*np.array(quotes).T)])
    _, rho, b, _, sigma, b_2, _, sigma_2 = found
    assert np.isnan(found).all() or (abs(rho) <= 1 and b > 0 and sigma > 0)
    assert np.isnan(b_2) or (b_2 > 0 and sigma_2 > 0)


def test_derivatives_are_finite_differences() -> None:
    step = 1e-5
    for curve in (raw(*SKEWED), raw(*BENT)):
        for order in (1, 2):
            slopes = svi.total_variance(curve, np.stack([K + step, K - step]), order - 1)
            numeric = (slopes[0] - slopes[1]) / (2 * step)
            assert svi.total_variance(curve, K, order) == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def test_density_by_durrleman_is_that_of_the_prices() -> None:
    """The undiscounted call's second derivative by strike, from finite differences of Black's formula."""
    for curve, k in ((raw(*SKEWED), K), (raw(*AXEL_VOGT), np.linspace(-1.4, 1.4, 57))):
        strike, step = np.exp(k), 1e-4

        def call(strike: Floats, curve: Floats = curve) -> Floats:
            volatility = np.sqrt(svi.total_variance(curve, np.log(strike)))
            return black76.value(1.0, strike, 1.0, volatility, True).price

        numeric = (call(strike + step) - 2 * call(strike) + call(strike - step)) / step**2
        w = svi.total_variance(curve, k)
        d2 = -k / np.sqrt(w) - np.sqrt(w) / 2
        density = svi.durrleman(curve, k) * np.exp(-d2 * d2 / 2) / np.sqrt(2 * np.pi * w) / strike
        assert density == pytest.approx(numeric, abs=2e-4 * np.abs(numeric).max())


def test_the_known_smile_with_arbitrage_has_a_negative_g() -> None:
    g = svi.durrleman(raw(*AXEL_VOGT), np.linspace(-1.5, 1.5, 301))
    negative = np.linspace(-1.5, 1.5, 301)[g < 0]
    assert 0.5 < negative.min() < 1.0 < negative.max() < 1.5
    assert svi.durrleman(raw(*SKEWED), K).min() > 0


def test_volatility_is_that_of_quantlib() -> None:
    ql = pytest.importorskip("QuantLib", reason="the reference library is not installed")
    a, rho, b, m, sigma = SKEWED
    theirs = ql.SviSmileSection(0.04, 21_000.0, [a, b, sigma, rho, m])
    for k in K[::20]:
        strike = 21_000.0 * float(np.exp(k))
        ours = np.sqrt(svi.total_variance(raw(*SKEWED), k) / 0.04)
        assert theirs.volatility(strike) == pytest.approx(float(ours), rel=1e-12)
