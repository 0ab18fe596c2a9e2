"""Small tables of a made-up chain: two series of five strikes, in the columns that the lake has."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime

import polars as pl

SERIES = ("Q1B-2025-07-01", "Q1C-2025-07-02")
STRIKES = (22_000.0, 22_050.0, 22_100.0, 22_150.0, 22_200.0)
FORWARD, IV = 22_110.0, 0.2
YEARS = {SERIES[0]: 1 / 365, SERIES[1]: 2 / 365}


def metrics(environment: str = "sandbox") -> pl.DataFrame:
    """Of `series_metrics`."""
    rows = [
        {
            "environment": environment,
            "series": series,
            "expiration": datetime(2025, 7, day, 20, tzinfo=UTC),
            "years": YEARS[series],
            "forward": FORWARD,
            "atm_iv": IV,
            "expected_move_straddle": 90.0,
            "expected_move_iv": FORWARD * IV * math.sqrt(YEARS[series]),
            "put_call_open_interest": 1.5,
            "put_call_volume": 0.5,
            "max_pain": 22_050.0,
        }
        for day, series in enumerate(SERIES, start=1)
    ]
    return pl.DataFrame(rows)


def profile(environment: str = "sandbox") -> pl.DataFrame:
    """Of `strike_profile`: the i-th strike has i calls and 2i puts, and so on."""
    rows = [
        {
            "environment": environment,
            "series": series,
            "strike": strike,
            "call_open_interest": i,
            "put_open_interest": 2 * i,
            "call_volume": 10 * i,
            "put_volume": None,
            "call_gex_per_pct": i * 1e6,
            "put_gex_per_pct": -2e6,
            "gex_per_pct": (i - 2) * 1e6,
        }
        for series in SERIES
        for i, strike in enumerate(STRIKES, start=1)
    ]
    return pl.DataFrame(rows, schema_overrides={"put_volume": pl.Int64})


def smile(environment: str = "sandbox", series: tuple[str, ...] = SERIES) -> pl.DataFrame:
    """Of `iv_smile`."""
    rows = [
        {
            "environment": environment,
            "series": name,
            "years": (place + 1) / 365,
            "strike": strike,
            "deviations": math.log(strike / FORWARD) / (IV * math.sqrt((place + 1) / 365)),
            "implied_volatility": IV + i / 100,
            "iv_uncertainty": 0.001,
        }
        for place, name in enumerate(series)
        for i, strike in enumerate(STRIKES)
    ]
    return pl.DataFrame(rows)


def quotes(environment: str = "sandbox", moments: tuple[str, ...] = ("now",)) -> pl.DataFrame:
    """Priced contracts as the report has them: a call and a put of every strike, at several moments."""
    calls = pl.col("strike") >= FORWARD
    rows = smile(environment).with_columns(
        log_moneyness=(pl.col("strike") / FORWARD).log(), delta=pl.lit(0.5) - pl.col("deviations") / 8
    )
    sides = pl.concat(
        [
            rows.with_columns(option_type=pl.lit("C"), is_otm=calls),
            rows.with_columns(option_type=pl.lit("P"), is_otm=~calls, delta=pl.col("delta") - 1),
        ]
    )
    return pl.concat(sides.with_columns(moment=pl.lit(moment)) for moment in moments)


def levels(environment: str = "sandbox") -> pl.DataFrame:
    """Of `gamma_levels`."""
    return pl.DataFrame(
        {
            "environment": [environment],
            "forward": [FORWARD],
            "zero_gamma": [22_060.0],
            "call_wall": [22_200.0],
            "put_wall": [22_000.0],
        }
    )


def changes(environment: str = "sandbox") -> pl.DataFrame:
    """Of `open_interest_change`: the i-th strike of the first series gained i calls and lost 2i puts."""
    return pl.DataFrame(
        {
            "environment": environment,
            "source": "barchart",
            "trade_date": date(2025, 6, 27),
            "series": SERIES[0],
            "option_type": side,
            "strike": strike,
            "open_interest_change": i if side == "C" else -2 * i,
        }
        for i, strike in enumerate(STRIKES, start=1)
        for side in "CP"
    )


def history(environment: str = "sandbox", snapshots: int = 3) -> pl.DataFrame:
    """Of `market_history`: five minutes apart, from 10:00 in Chicago; no put wall is known."""
    return pl.DataFrame(
        {
            "environment": [environment] * snapshots,
            "snapshot_ts": [datetime(2025, 6, 30, 15, 5 * n, tzinfo=UTC) for n in range(snapshots)],
            "atm_iv": [IV + n / 100 for n in range(snapshots)],
            "atm_iv_30": [IV] * snapshots,
            "forward": [FORWARD + n for n in range(snapshots)],
            "zero_gamma": [FORWARD] * snapshots,
            "call_wall": [22_200.0] * snapshots,
            "put_wall": [None] * snapshots,
            "gex_per_pct": [1e6 - n * 1e6 for n in range(snapshots)],
        },
        schema_overrides={"put_wall": pl.Float64},
    )


def surface(environment: str = "sandbox") -> pl.DataFrame:
    """As the report has it: the lowest strike of the first series is outside its quotes."""
    rows = [
        {
            "environment": environment,
            "series": series,
            "expiration": datetime(2025, 7, 1 + place, 20, tzinfo=UTC),
            "strike": strike,
            "forward": FORWARD,
            "implied_volatility": None if place == i == 0 else IV + i / 100,
            "lower": IV,
            "upper": IV + 0.06,
        }
        for place, series in enumerate(SERIES)
        for i, strike in enumerate(STRIKES)
    ]
    return pl.DataFrame(rows)


def pressure(environment: str = "sandbox") -> pl.DataFrame:
    """Of `trade_pressure`."""
    return pl.DataFrame(
        {
            "environment": [environment] * 3,
            "window_start": [datetime(2025, 6, 30, 15, minute, tzinfo=UTC) for minute in (0, 5, 5)],
            "option_type": ["C", "C", "P"],
            "strike": [22_100.0, 22_100.0, 22_000.0],
            "buy_volume": [7, 1, 2],
            "sell_volume": [2, 4, 2],
            "trades": [3, 2, 1],
        }
    )


def agreement() -> pl.DataFrame:
    """Of the view `source_agreement`."""
    return pl.DataFrame(
        {
            "source": ["barchart"] * 3,
            "other_source": ["databento"] * 3,
            "mid_gap": [-1.0, 0.0, 2.0],
            "quotes_overlap": [True, True, False],
        }
    )


def days() -> pl.DataFrame:
    """Of a month's statement: two days gone by, one to come."""
    return pl.DataFrame(
        {
            "day": [date(2025, 6, day) for day in (1, 2, 3)],
            "metered_usd": [0.5, 1.0, 0.0],
            "cumulative_usd": [179.5, 180.5, 181.0],
            "projected": [False, False, True],
        }
    )
