"""ATM IV of live quotes whose moments differ, against the volatility with which they were made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from nq_pipeline.board.volatility import LiveQuotes, quote_rows
from nq_pipeline.lake.tables import MBP_1
from nq_pipeline.market import black76
from nq_pipeline.market.contracts import Series

SERIES = Series.parse("Q2B-2025-06-10")
NOW = datetime(2025, 6, 10, 14, 0, tzinfo=UTC)
RATE, VOLATILITY = 0.043, 0.2


def future_at(seconds_ago: np.ndarray) -> np.ndarray:
    """The price of the future, which fell by 3 points a minute."""
    return 21_000 + seconds_ago * 0.05


def points() -> pl.DataFrame:
    """The future's price of every second of an hour."""
    ago = np.arange(3_600)[::-1]
    times = [int((NOW - timedelta(seconds=int(one))).timestamp() * 1e3) for one in ago]
    return pl.DataFrame({"symbol": "NQM5", "time": times, "price": future_at(ago).astype(float)})


def books(series: Series = SERIES, *, seed: int = 1, spread: float = 0.5) -> pl.DataFrame:
    """Quotes of a series around the money, each at another moment of the last half hour."""
    rng = np.random.default_rng(seed)
    strikes = np.arange(20_500.0, 21_501.0, 10)
    ago = rng.integers(0, 1_800, len(strikes))
    is_call = strikes >= 21_000
    years = np.array([(series.expiration - NOW).total_seconds() + one for one in ago.tolist()]) / (
        365 * 86_400
    )
    price = black76.value(future_at(ago), strikes, years, VOLATILITY, is_call, RATE).price
    kinds = ["C" if call else "P" for call in is_call]
    rows = {
        "instrument_kind": "option",
        "root": series.root,
        "series": series.key,
        "contract_key": [
            f"{series}-{kind}-{strike:.0f}" for kind, strike in zip(kinds, strikes, strict=True)
        ],
        "option_type": kinds,
        "strike": strikes,
        "bid_px_00": price - spread / 2,
        "ask_px_00": price + spread / 2,
        "ts_recv": [NOW - timedelta(seconds=one) for one in ago.tolist()],
    }
    return pl.DataFrame(rows, schema_overrides={"ts_recv": MBP_1.schema["ts_recv"]}).sort("ts_recv")


def test_quotes_of_different_moments_give_the_volatility_they_were_made_with() -> None:
    quotes = LiveQuotes(RATE)
    quotes.add(quote_rows(books()))
    found = quotes.measure(NOW, points())["NQ"]
    assert found["series"] == SERIES.key and found["quotes"] > 40
    assert found["forward"] == 21_000.0
    assert found["atm_iv"] == pytest.approx(VOLATILITY, abs=1e-3)
    years = (SERIES.expiration - NOW).total_seconds() / (365 * 86_400)
    assert found["expected_move"] == pytest.approx(21_000 * found["atm_iv"] * years**0.5)


def test_the_newest_quote_of_a_contract_counts() -> None:
    quotes = LiveQuotes(RATE)
    wrong = books().with_columns(pl.col("bid_px_00", "ask_px_00") * 2)
    quotes.add(quote_rows(wrong))
    assert quotes.measure(NOW, points())["NQ"]["atm_iv"] > 0.3
    quotes.add(quote_rows(books()))
    assert quotes.measure(NOW, points())["NQ"]["atm_iv"] == pytest.approx(VOLATILITY, abs=1e-3)


def test_the_front_series_is_the_first_that_is_quoted_and_not_about_to_expire() -> None:
    later = Series.parse("Q2C-2025-06-11")
    quotes = LiveQuotes(RATE)
    quotes.add(quote_rows(books(later)))
    assert quotes.measure(NOW, points())["NQ"]["series"] == later.key
    quotes.add(quote_rows(books()))
    assert quotes.measure(NOW, points())["NQ"]["series"] == SERIES.key
    late = SERIES.expiration - timedelta(minutes=10)
    fresh = {"ts_recv": pl.lit(late).cast(MBP_1.schema["ts_recv"])}
    quotes.add(quote_rows(pl.concat([books().with_columns(**fresh), books(later).with_columns(**fresh)])))
    moved = points().with_columns(time=pl.lit(int(late.timestamp() * 1e3)))
    assert quotes.measure(late, moved)["NQ"]["series"] == later.key


@pytest.mark.parametrize("case", ["no quotes", "one-sided", "old", "no future", "all above the future"])
def test_without_usable_quotes_there_is_no_volatility(case: str) -> None:
    rows, line, now = books(), points(), NOW
    match case:
        case "no quotes":
            rows = rows.clear()
        case "one-sided":
            rows = rows.with_columns(bid_px_00=pl.lit(None, pl.Float64))
        case "old":
            now = NOW + timedelta(hours=2)
        case "no future":
            line = line.clear()
        case _:
            rows = rows.filter(pl.col("strike") > 21_200)
    quotes = LiveQuotes(RATE)
    quotes.add(quote_rows(rows))
    assert quotes.measure(now, line) == {}


def test_nothing_added_is_no_volatility() -> None:
    assert LiveQuotes(RATE).measure(NOW, points()) == {}
