"""The continuous future, realized volatility and IV rank, against loops over the definitions."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import CONSTANT_MATURITY, FUTURE_BARS, conform
from nq_pipeline.market import sessions
from nq_pipeline_tests.testing.bars import Bar, future_bars

DAYS = [s.trade_date for s in sessions.sessions(date(2025, 5, 1), date(2025, 9, 30)) if s.rth]
EXPIRY = date(2025, 6, 20)


def random_bars(days: Sequence[date], seed: int, volume: float) -> dict[date, Bar]:
    """Bars of a random walk whose range includes open and close."""
    draw, close = random.Random(seed), 20_000.0 + 100 * seed
    bars: dict[date, Bar] = {}
    for day in days:
        open_ = close * math.exp(draw.gauss(0, 0.004))
        close = open_ * math.exp(draw.gauss(0, 0.01))
        high = max(open_, close) * math.exp(abs(draw.gauss(0, 0.003)))
        low = min(open_, close) * math.exp(-abs(draw.gauss(0, 0.003)))
        bars[day] = (open_, high, low, close, volume)
    return bars


@pytest.fixture(scope="module")
def market() -> dict[str, dict[date, Bar]]:
    """June trades most until the 13th; then September does, which has all days."""
    june = random_bars([day for day in DAYS if day < EXPIRY], 1, 50.0)
    september = random_bars([day for day in DAYS if day < date(2025, 9, 19)], 2, 20.0)
    for day in (day for day in september if date(2025, 6, 13) <= day):
        september[day] = (*september[day][:4], 90.0)
    return {"NQM5": june, "NQU5": september}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "sandbox" / "lake")


def query(lake: Lake, sql: str) -> pl.DataFrame:
    with catalog.connect(lake) as connection:
        rows: pl.DataFrame = connection.sql(sql).pl()
    return rows


@pytest.fixture
def stored(lake: Lake, market: dict[str, dict[date, Bar]]) -> Iterator[Lake]:
    for symbol, bars in market.items():
        lake.append(FUTURE_BARS, future_bars(symbol, bars), run_id="run")
    yield lake


def test_the_continuous_future_rolls_by_expiry_and_by_volume(
    stored: Lake, market: dict[str, dict[date, Bar]]
) -> None:
    rolls = query(stored, "FROM roll_dates ORDER BY roll_rule")
    # The 13th trades more of September, so it is held from the next trade date on. The quarterly future
    # ends at 08:30 on the 20th; the 19th is a holiday.
    assert rolls.select("roll_rule", "trade_date", "from_symbol", "to_symbol").rows() == [
        ("expiry", date(2025, 6, 20), "NQM5", "NQU5"),
        ("volume", date(2025, 6, 16), "NQM5", "NQU5"),
    ]
    before = {"expiry": date(2025, 6, 18), "volume": date(2025, 6, 13)}
    gaps = {rule: market["NQU5"][day][3] - market["NQM5"][day][3] for rule, day in before.items()}
    assert dict(rolls.select("roll_rule", "price_gap").iter_rows()) == pytest.approx(gaps)
    held = query(stored, "FROM continuous ORDER BY roll_rule, trade_date")
    for row in held.iter_rows(named=True):
        is_old = row["trade_date"] <= before[row["roll_rule"]]
        bar = market["NQM5" if is_old else "NQU5"][row["trade_date"]]
        assert (row["open"], row["high"], row["low"], row["close"], row["volume"]) == pytest.approx(bar)
        assert row["adjusted_close"] == pytest.approx(bar[3] + (gaps[row["roll_rule"]] if is_old else 0.0))


def test_no_roll_knows_the_volume_of_its_own_day(lake: Lake) -> None:
    for symbol, volumes in (("NQM5", (10.0, 10.0, 10.0)), ("NQU5", (90.0, 5.0, 90.0))):
        days = zip(DAYS, volumes, strict=False)
        lake.append(
            FUTURE_BARS, future_bars(symbol, {day: (*[100.0] * 4, v) for day, v in days}), run_id="run"
        )
    held = query(lake, "SELECT raw_symbol FROM continuous WHERE roll_rule = 'volume' ORDER BY trade_date")
    assert held["raw_symbol"].to_list() == ["NQM5", "NQU5", "NQU5"]


def test_minute_bars_are_preferred_to_trades(lake: Lake) -> None:
    for made_from, close in (("trades", 101.0), ("ohlcv-1m", 102.0)):
        bars = future_bars("NQM5", {DAYS[0]: (100.0, 103.0, 99.0, close, 5)}, made_from=made_from)
        lake.append(FUTURE_BARS, bars, run_id="run")
    assert query(lake, "SELECT close FROM continuous WHERE roll_rule = 'volume'").rows() == [(102.0,)]


def volatilities(bars: Sequence[Bar], closes_before: Sequence[float]) -> dict[str, float]:
    """The three estimators as R's package TTR defines them (`volatility`), in plain loops."""
    n = len(bars)
    daily = [math.log(bar[3] / before) for bar, before in zip(bars, closes_before, strict=True)]
    overnight = [math.log(bar[0] / before) for bar, before in zip(bars, closes_before, strict=True)]
    intraday = [math.log(bar[3] / bar[0]) for bar in bars]
    ranges = [math.log(high / low) ** 2 for _, high, low, _, _ in bars]
    rogers_satchell = [
        math.log(h / c) * math.log(h / o) + math.log(low / c) * math.log(low / o) for o, h, low, c, _ in bars
    ]
    k = 0.34 / (1.34 + (n + 1) / (n - 1))
    yang_zhang = (
        statistics.variance(overnight)
        + k * statistics.variance(intraday)
        + (1 - k) * sum(rogers_satchell) / n
    )
    return {
        "close_to_close": math.sqrt(252) * statistics.stdev(daily),
        "parkinson": math.sqrt(252 / (4 * n * math.log(2)) * sum(ranges)),
        "yang_zhang": math.sqrt(252 * yang_zhang),
    }


def test_realized_volatility_agrees_with_loops(stored: Lake, market: dict[str, dict[date, Bar]]) -> None:
    rows = query(stored, "FROM realized_volatility")
    days = [day for day in DAYS if day < date(2025, 9, 19)]
    symbols = ["NQM5" if day <= date(2025, 6, 13) else "NQU5" for day in days]
    bars = [market[symbol][day] for symbol, day in zip(symbols, days, strict=True)]
    # Every return is of one future, on the day of the roll, too.
    before = [market[symbol][day][3] for symbol, day in zip(symbols[1:], days, strict=False)]
    expected = {
        (days[i], estimator, n): value
        for n in (5, 10, 20, 30, 60)
        for i in range(n, len(days))
        for estimator, value in volatilities(bars[i - n + 1 : i + 1], before[i - n : i]).items()
    }
    found = {(day, estimator, n): v for _, day, estimator, n, v, _ in rows.iter_rows()}
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(value, rel=1e-12) for key, value in expected.items())


def test_parkinson_agrees_with_quantlib(lake: Lake) -> None:
    ql = pytest.importorskip("QuantLib")
    bars = random_bars(DAYS[:6], 4, 1.0)
    lake.append(FUTURE_BARS, future_bars("NQM5", bars), run_id="run")
    days, prices = list(bars)[1:], ql.IntervalPriceVector()
    for open_, high, low, close, _ in (bars[day] for day in days):
        prices.push_back(ql.IntervalPrice(open_, close, high, low))
    dates = [ql.Date(day.day, day.month, day.year) for day in days]
    daily = ql.ParkinsonSigma(1 / 252).calculate(ql.IntervalPriceTimeSeries(dates, prices)).values()
    found = query(lake, "FROM realized_volatility WHERE estimator = 'parkinson'")
    assert found["volatility"].to_list() == pytest.approx([math.sqrt(statistics.mean(v**2 for v in daily))])


def test_a_missing_day_has_no_volatility_in_windows_over_it(lake: Lake) -> None:
    days = [*DAYS[:8], *DAYS[9:20]]
    lake.append(FUTURE_BARS, future_bars("NQM5", random_bars(days, 3, 1.0)), run_id="run")
    found = query(
        lake, "SELECT trade_date FROM realized_volatility WHERE estimator = 'parkinson' AND window_days = 5"
    )
    # Five returns need six bars without a break.
    assert sorted(found["trade_date"]) == [*days[5:8], *days[13:]]


def test_the_cone_has_the_quantiles_of_realized_volatility(stored: Lake) -> None:
    rows = query(stored, "FROM realized_volatility WHERE estimator = 'yang_zhang' AND window_days = 20")
    cone = query(stored, "FROM volatility_cone WHERE estimator = 'yang_zhang' AND window_days = 20")
    values = rows["volatility"]
    (row,) = cone.iter_rows(named=True)
    assert row["days"] == len(values) and row["trade_date"] == rows["trade_date"].max()
    assert row["current"] == rows.sort("trade_date")["volatility"][-1]
    for percent in (10, 25, 50, 75, 90):
        assert row[f"quantile_{percent}"] == pytest.approx(values.quantile(percent / 100, "linear"))
    assert (row["minimum"], row["maximum"]) == (values.min(), values.max())


def test_iv_rank_places_todays_volatility_in_its_history(lake: Lake) -> None:
    volatility = [0.20 + 0.01 * ((7 * i) % 25) for i in range(24)]
    rows = []
    for day, iv in zip(DAYS, volatility, strict=False):
        close = sessions.session(day).close
        for at, value in (
            (close - timedelta(hours=4), 0.9),
            (close, iv),
            (close + timedelta(minutes=1), None),
        ):
            rows.append({
                "source": "barchart", "environment": "sandbox", "snapshot_ts": at, "trade_date": day,
                "underlying_class": "future", "product": "NQ", "days": 30, "atm_iv": value, "run_id": "run",
            })  # fmt: skip
    frame = pl.DataFrame(rows, infer_schema_length=None)
    lake.append(CONSTANT_MATURITY, conform(CONSTANT_MATURITY, frame), run_id="run")
    found = query(lake, "FROM iv_rank ORDER BY trade_date")
    assert found["atm_iv_30"].to_list() == volatility
    assert found["days"].to_list() == list(range(1, 25))
    for i, row in enumerate(found.iter_rows(named=True)):
        past = volatility[: i + 1]
        if len(past) < 20:
            assert row["iv_rank"] is None and row["iv_percentile"] is None
            continue
        rank = (past[-1] - min(past)) / (max(past) - min(past))
        lower = sum(value < past[-1] for value in past[:-1]) / (len(past) - 1)
        assert (row["iv_rank"], row["iv_percentile"]) == pytest.approx((rank, lower))
