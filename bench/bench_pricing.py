"""Implied volatility and Greeks of a whole chain, beside py_vollib and QuantLib called per option.

    python -m bench.bench_pricing

Ten thousand options of the synthetic chain. First the kernel on the European ones, with the same
prices, forwards, strikes and times for all three. Then `price_chain` on all rows, from quotes to Greeks,
including parity forwards and American options, which neither library handles.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import QuantLib

from nq_pipeline.market import black76
from nq_pipeline.market.pricing import price_chain
from nq_pipeline.sandbox.synthetic.market import RATE, Market

warnings.simplefilter("ignore", DeprecationWarning)  # py_vollib is being renamed to vollib
from py_vollib.black.greeks import analytical  # noqa: E402
from py_vollib.black.implied_volatility import implied_volatility as vollib_volatility  # noqa: E402

NOW = datetime(2025, 6, 10, 15, tzinfo=UTC)
OPTIONS, ROUNDS = 10_000, 7


def vendor_chain() -> pl.DataFrame:
    """Every quoted row of the synthetic chain, as a vendor sends it."""
    market = Market(7)
    futures = market.futures(NOW).select(underlying="symbol", underlying_price="last")
    quoted = market.chain(NOW).drop_nulls(["bid", "ask"])
    return quoted.join(futures, on="underlying", maintain_order="left").with_columns(
        source=pl.lit("bench"),
        environment=pl.lit("sandbox"),
        snapshot_ts=pl.lit(NOW),
        as_of=pl.lit(NOW),
        trade_date=pl.lit(NOW.date()),
        underlying_class=pl.lit("future"),
        is_settlement=pl.lit(False),
    )


def best(work: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, Any]:
    """The shortest run in seconds, and its result."""
    shortest, given = float("inf"), None
    for _ in range(rounds):
        started = time.perf_counter()
        given = work()
        shortest = min(shortest, time.perf_counter() - started)
    return shortest, given


def main() -> None:
    chain = vendor_chain()
    priced = price_chain(chain, rate=RATE)
    rows = priced.with_columns(chain["strike"], chain["option_type"]).filter(model="black76").head(OPTIONS)
    count = rows.height
    price, forward, strike, years = (rows[c].to_numpy() for c in ("price", "forward", "strike", "years"))
    is_call = (rows["option_type"] == "C").to_numpy()

    def ours() -> Any:
        return black76.implied_volatility(price, forward, strike, years, is_call, RATE)

    def ours_with_greeks() -> Any:
        return black76.value(forward, strike, years, ours(), is_call, RATE)

    # Converted to Python numbers before timing, so that the loops pay for the calls alone.
    side = [QuantLib.Option.Call if call else QuantLib.Option.Put for call in is_call]
    flag = ["c" if call else "p" for call in is_call]
    discount = np.exp(-RATE * years).tolist()
    columns = [x.tolist() for x in (price, forward, strike, years)]

    def quantlib() -> Any:
        deviation = QuantLib.blackFormulaImpliedStdDev
        p, f, k, _ = columns
        return [deviation(*each) for each in zip(side, k, f, p, discount, strict=True)]

    def vollib() -> Any:
        p, f, k, t = columns
        return [vollib_volatility(*each) for each in zip(p, f, k, [RATE] * count, t, flag, strict=True)]

    def vollib_with_greeks() -> None:
        _, f, k, t = columns
        for each in zip(flag, f, k, t, [RATE] * count, vollib(), strict=True):
            for greek in (analytical.delta, analytical.gamma, analytical.theta, analytical.vega):
                greek(*each)

    alone, found = best(ours)
    both, valued = best(ours_with_greeks)
    by_quantlib, deviations = best(quantlib)
    by_vollib, theirs = best(vollib, 2)
    by_vollib_both, _ = best(vollib_with_greeks, 1)
    whole, _ = best(lambda: price_chain(chain, rate=RATE))

    informed = 10 * np.finfo(float).eps * price < 1e-8 * valued.vega
    apart = np.abs(found - np.array(theirs))[informed].max()
    if not apart < 1e-8:
        raise SystemExit(f"the volatilities differ by {apart:.1e}: the comparison means nothing")
    off = np.abs(found * np.sqrt(years) - np.array(deviations))[informed].max()
    print(f"{count:,} European options, {informed.mean():.1%} of whose prices determine the volatility")
    print(f"largest distance in σ from py_vollib {apart:.1e}, in σ√t from QuantLib (at its 1e-6) {off:.1e}")
    print(f"{'':<44}{'ms':>9}{'µs each':>9}{'ratio':>8}")
    for name, seconds, base in (
        ("σ: nq_pipeline", alone, alone),
        ("σ: QuantLib blackFormulaImpliedStdDev, a loop", by_quantlib, alone),
        ("σ: py_vollib, a call per option", by_vollib, alone),
        ("σ and Greeks: nq_pipeline", both, both),
        ("σ and Greeks: py_vollib, calls per option", by_vollib_both, both),
        ("σ by QuantLib beside our σ and Greeks", by_quantlib, both),
    ):
        print(f"{name:<46}{seconds * 1e3:>7.1f}{seconds / count * 1e6:>9.2f}{seconds / base:>7.1f}x")
    each, early = whole / chain.height, priced.filter(model="kim").height
    print(
        f"price_chain, {chain.height:,} rows of which {early:,} American: {whole * 1e3:.1f} ms, "
        f"{each * 1e6:.2f} µs a row; py_vollib's σ alone takes {by_vollib / count / each:.1f} times as long, "
        f"QuantLib's {by_quantlib / count / each:.2f} times"
    )


if __name__ == "__main__":
    main()
