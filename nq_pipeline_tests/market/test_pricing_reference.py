"""The same numbers as QuantLib and py_vollib, wherever the price carries the information."""

from __future__ import annotations

import numpy as np
import pytest

from nq_pipeline.market import american, black76

ql = pytest.importorskip("QuantLib", reason="the reference library is not installed")

F, R = 21_000.0, 0.043
T, Z, CALL = (
    x.ravel()
    for x in np.meshgrid(
        [1 / 1440 / 365, 1 / 365, 7 / 365, 45 / 365, 0.5, 1.0], np.linspace(-6, 6, 49), [True, False]
    )
)
VOL = 0.2 * (1 - 0.03 * Z + 0.01 * Z * Z)
K = F * np.exp(Z * VOL * np.sqrt(T))
FAIR = black76.value(F, K, T, VOL, CALL, R)
INFORMED = 10 * np.finfo(float).eps * FAIR.price < 1e-8 * FAIR.vega


def test_prices_and_greeks_are_quantlibs() -> None:
    for i in range(len(K)):
        side = ql.Option.Call if CALL[i] else ql.Option.Put
        theirs = ql.BlackCalculator(
            ql.PlainVanillaPayoff(side, float(K[i])),
            F,
            float(VOL[i] * np.sqrt(T[i])),
            float(np.exp(-R * T[i])),
        )
        t = float(T[i])
        assert FAIR.price[i] == pytest.approx(theirs.value(), rel=1e-9, abs=1e-9)
        assert FAIR.vega[i] == pytest.approx(theirs.vega(t), rel=1e-8, abs=1e-9)
        assert FAIR.delta[i] == pytest.approx(theirs.deltaForward(), abs=1e-10)
        assert FAIR.gamma[i] == pytest.approx(theirs.gammaForward(), rel=1e-8, abs=1e-12)


def test_volatilities_agree_with_quantlib() -> None:
    found = black76.implied_volatility(FAIR.price, F, K, T, CALL, R)
    assert INFORMED.mean() > 0.7
    assert np.abs(found - VOL)[INFORMED].max() < 1e-8
    # Where QuantLib itself meets them: not in wings of hundredths of a point.
    for i in np.flatnonzero(INFORMED & (FAIR.price > 0.05)):
        side = ql.Option.Call if CALL[i] else ql.Option.Put
        spread = ql.blackFormulaImpliedStdDev(
            side, float(K[i]), F, float(FAIR.price[i]), float(np.exp(-R * T[i])), 0.0, 0.1, 1e-14, 1000
        )
        # QuantLib iterates on the deviation, whose error a minute before expiration is large in σ.
        assert found[i] * np.sqrt(T[i]) == pytest.approx(spread, abs=1e-8)
        if T[i] >= 1 / 365:
            assert found[i] == pytest.approx(spread / np.sqrt(T[i]), abs=1e-8)


def test_volatilities_are_those_of_py_vollib() -> None:
    theirs = pytest.importorskip("py_vollib.black.implied_volatility", reason="py_vollib is not installed")
    found = black76.implied_volatility(FAIR.price, F, K, T, CALL, R)
    for i in np.flatnonzero(INFORMED):
        expected = theirs.implied_volatility(FAIR.price[i], F, K[i], R, T[i], "c" if CALL[i] else "p")
        assert found[i] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("days", "points"), [(7, 0.1), (29, 0.15), (91, 0.65), (183, 1.8), (365, 4.3)])
def test_american_prices_agree_with_quantlib(days: int, points: float) -> None:
    today = ql.Date(2, 1, 2025)
    ql.Settings.instance().evaluationDate = today
    flat = ql.YieldTermStructureHandle(ql.FlatForward(today, R, ql.Actual365Fixed()))
    vol = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.TARGET(), 0.2, ql.Actual365Fixed()))
    process = ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(F)), flat, flat, vol)
    exact = ql.QdFpAmericanEngine(process, ql.QdFpAmericanEngine.highPrecisionScheme())
    for z in (-1.5, -0.5, 0.0, 0.5, 1.5):
        for is_call in (True, False):
            k = float(F * np.exp(z * 0.2 * np.sqrt(days / 365)))
            payoff = ql.PlainVanillaPayoff(ql.Option.Call if is_call else ql.Option.Put, k)
            option = ql.VanillaOption(payoff, ql.AmericanExercise(today, today + days))
            ours = float(american.price(F, k, days / 365, 0.2, is_call, R))
            option.setPricingEngine(ql.JuQuadraticApproximationEngine(process))
            assert ours == pytest.approx(option.NPV(), abs=0.003)
            option.setPricingEngine(exact)
            assert ours == pytest.approx(option.NPV(), abs=points)
