"""The same numbers as QuantLib and py_vollib, wherever the price carries the information."""

from __future__ import annotations

from typing import Any

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


def test_higher_greeks_are_differences_of_quantlibs() -> None:
    def theirs(i: int, vol: float = 0.0, time: float = 0.0, rate: float = 0.0) -> Any:
        """QuantLib's calculator with inputs moved: volatility and rate by amounts, time by a fraction."""
        t, r = float(T[i]) * (1 + time), R + rate
        payoff = ql.PlainVanillaPayoff(ql.Option.Call if CALL[i] else ql.Option.Put, float(K[i]))
        return ql.BlackCalculator(payoff, F, (float(VOL[i]) + vol) * t**0.5, float(np.exp(-r * t)))

    h = 1e-5
    for i in range(0, len(K), 3):
        t = float(T[i])
        rho = (theirs(i, rate=h).value() - theirs(i, rate=-h).value()) / (2 * h)
        vanna = (theirs(i, vol=h).deltaForward() - theirs(i, vol=-h).deltaForward()) / (2 * h)
        volga = (theirs(i, vol=h).vega(t) - theirs(i, vol=-h).vega(t)) / (2 * h)
        decay = (theirs(i, time=-h).deltaForward() - theirs(i, time=h).deltaForward()) / (2 * h)
        assert FAIR.rho[i] == pytest.approx(rho, rel=1e-6, abs=1e-6)
        assert FAIR.vanna[i] == pytest.approx(vanna, rel=1e-5, abs=1e-7)
        assert FAIR.volga[i] == pytest.approx(volga, rel=1e-5, abs=1e-4)
        assert FAIR.charm[i] * 365 * t == pytest.approx(decay, rel=1e-5, abs=1e-8)


def test_rho_is_py_vollibs() -> None:
    theirs = pytest.importorskip("py_vollib.black.greeks.analytical", reason="py_vollib is not installed")
    for i in range(0, len(K), 7):
        per_cent = theirs.rho("c" if CALL[i] else "p", F, K[i], T[i], R, VOL[i])
        assert FAIR.rho[i] / 100 == pytest.approx(per_cent, rel=1e-9, abs=1e-12)


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


def american_process(future: float = F, vol: float = 0.2, rate: float = R) -> Any:
    today = ql.Date(2, 1, 2025)
    ql.Settings.instance().evaluationDate = today
    flat = ql.YieldTermStructureHandle(ql.FlatForward(today, rate, ql.Actual365Fixed()))
    of_vol = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.TARGET(), vol, ql.Actual365Fixed()))
    return ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(future)), flat, flat, of_vol)


def american_option(k: float, is_call: bool, days: int) -> Any:
    payoff = ql.PlainVanillaPayoff(ql.Option.Call if is_call else ql.Option.Put, k)
    today = ql.Date(2, 1, 2025)
    return ql.VanillaOption(payoff, ql.AmericanExercise(today, today + days))


def exact(process: Any) -> Any:
    return ql.QdFpAmericanEngine(process, ql.QdFpAmericanEngine.highPrecisionScheme())


@pytest.mark.parametrize(("days", "points"), [(7, 1e-4), (29, 5e-4), (91, 0.002), (183, 0.005), (365, 0.01)])
def test_american_prices_agree_with_quantlib(days: int, points: float) -> None:
    process = american_process()
    for z in (-1.5, -0.5, 0.0, 0.5, 1.5):
        for is_call in (True, False):
            k = float(F * np.exp(z * 0.2 * np.sqrt(days / 365)))
            option = american_option(k, is_call, days)
            ours = float(american.value(F, k, days / 365, 0.2, is_call, R).price)
            option.setPricingEngine(exact(process))
            assert ours == pytest.approx(option.NPV(), abs=points)


@pytest.mark.parametrize("days", [29, 91, 183])
def test_american_higher_greeks_are_differences_of_quantlibs_prices(days: int) -> None:
    for z in (-1.5, 0.0, 1.5):
        for is_call in (True, False):
            k = float(F * np.exp(z * 0.2 * np.sqrt(days / 365)))

            def theirs(
                *moves: float, late: int = 0, dr: float = 0.0, k: float = k, is_call: bool = is_call
            ) -> float:
                """QuantLib's price after moves of the future and the volatility, some days later."""
                df, dvol = (*moves, 0.0, 0.0)[:2]
                option = american_option(k, is_call, days - late)
                option.setPricingEngine(exact(american_process(F + df, 0.2 + dvol, R + dr)))
                return float(option.NPV())

            ours = american.value(F, k, days / 365, 0.2, is_call, R)
            df, dvol, dr = F * 0.2 * (days / 365) ** 0.5 / 100, 0.002, 0.0005
            corners = theirs(df, dvol) - theirs(df, -dvol) - theirs(-df, dvol) + theirs(-df, -dvol)
            bend = theirs(0, dvol) - 2 * theirs() + theirs(0, -dvol)
            decay = sum(late * (theirs(df, late=late) - theirs(-df, late=late)) for late in (1, -1))
            assert ours.vanna == pytest.approx(corners / (4 * df * dvol), rel=0.002)
            assert ours.volga == pytest.approx(bend / dvol**2, rel=0.002)
            assert ours.charm == pytest.approx(decay / (4 * df), rel=0.02, abs=5e-6)
            assert ours.rho == pytest.approx((theirs(dr=dr) - theirs(dr=-dr)) / (2 * dr), rel=0.002)
