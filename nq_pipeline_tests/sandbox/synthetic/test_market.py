"""The synthetic market: deterministic, continuous, on ticks, free of arbitrage where it must be."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from nq_pipeline.clock import to_ns
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.market.listing import expirations
from nq_pipeline.sandbox.synthetic.market import RATE, Market

OPEN = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
MARKET = Market(7)
NQ_ROOTS = {code for code, root in ROOTS.items() if root.product.code == "NQ"}


def on_tick(prices: pl.Series) -> bool:
    """0.05 at or below 5.00, 0.25 above."""
    numbers = prices.drop_nulls().to_numpy()
    ticks = np.where(numbers <= 5, 0.05, 0.25)
    return bool((np.abs(numbers / ticks - np.round(numbers / ticks)) < 1e-6).all())


def test_a_seed_and_an_instant_determine_the_chain() -> None:
    assert MARKET.chain(OPEN).equals(Market(7).chain(OPEN))


def test_the_order_of_requests_does_not_matter() -> None:
    other = Market(7)
    other.chain(OPEN + timedelta(days=3))
    other.proxy_chain("NDX", OPEN)
    assert other.chain(OPEN).equals(MARKET.chain(OPEN))


def test_another_seed_is_another_market() -> None:
    assert Market(8).futures(OPEN)["last"][0] != MARKET.futures(OPEN)["last"][0]


@pytest.mark.parametrize(
    "instant",
    [
        OPEN,
        datetime(2024, 1, 16, 3, 0, tzinfo=UTC),
        datetime(2025, 7, 4, 15, 0, tzinfo=UTC),
        datetime(2026, 11, 22, 20, 0, tzinfo=UTC),
    ],
)
def test_at_least_10_000_contracts_are_listed_on_any_day(instant: datetime) -> None:
    chain = MARKET.chain(instant)
    assert chain.height >= 10_000
    assert chain["contract_key"].n_unique() == chain["raw_symbol"].n_unique() == chain.height
    assert set(chain["root"]) <= NQ_ROOTS


def test_45_days_of_series_and_the_next_quarterlies_are_listed() -> None:
    series = set(MARKET.chain(OPEN)["series"])
    day = date(2025, 6, 10)
    assert {s.key for s in expirations("NQ", day, day + timedelta(45))} <= series
    assert {"NQ-2025-06-20", "NQ-2025-09-19", "NQ-2025-12-19", "NQ-2026-03-20"} <= series


def test_all_26_roots_are_listed_in_the_course_of_a_year() -> None:
    days = [s.trade_date for s in sessions.sessions(date(2025, 1, 2), date(2025, 12, 1))][::20]
    assert set().union(*(MARKET.listed(day)["root"] for day in days)) == NQ_ROOTS


def test_prices_are_on_ticks_and_quotes_not_crossed() -> None:
    for instant in (OPEN, OPEN.replace(hour=8), OPEN + timedelta(days=4, hours=8)):
        chain = MARKET.chain(instant)
        for name in ("bid", "ask", "last", "open", "high", "low"):
            assert on_tick(chain[name]), name
        assert on_tick(chain.filter(~pl.col("expired"))["settlement"])
        quoted = chain.drop_nulls(["bid", "ask"])
        assert quoted.filter(pl.col("bid") >= pl.col("ask")).is_empty()
        assert chain["bid"].drop_nulls().min() > 0  # type: ignore[operator]
        assert chain.filter(pl.col("bid").is_not_null() & pl.col("ask").is_null()).is_empty()


def test_the_fair_price_lies_inside_the_quote() -> None:
    quoted = MARKET.chain(OPEN).drop_nulls(["bid", "ask"])
    assert quoted.filter(~pl.col("value").is_between(pl.col("bid") - 1e-6, pl.col("ask") + 1e-6)).is_empty()


def test_wings_lack_bids_and_quotes_widen_outside_regular_hours() -> None:
    day, night = MARKET.chain(OPEN), MARKET.chain(OPEN.replace(hour=8))
    assert day.filter(pl.col("bid").is_null() & pl.col("ask").is_not_null()).height > 300
    width = pl.col("ask") - pl.col("bid")
    assert night.select(width.mean()).item() > 1.3 * day.select(width.mean()).item()


def test_most_contracts_are_untraded_or_traded_hours_ago() -> None:
    chain = MARKET.chain(OPEN)
    assert 0.6 < (chain["volume"] == 0).mean() < 0.95  # type: ignore[operator]
    last = pl.coalesce("last_ts", "prior_last_ts")
    quoted = chain.drop_nulls(["bid", "ask"])
    recent = quoted.filter((pl.lit(OPEN) - last) < timedelta(hours=1)).height
    assert 0 < recent < 0.1 * quoted.height


def test_open_interest_grows_between_sessions_only() -> None:
    today, later = MARKET.chain(OPEN), MARKET.chain(OPEN + timedelta(hours=3))
    assert today["open_interest"].equals(later["open_interest"])
    tomorrow = MARKET.chain(OPEN + timedelta(days=1))
    both = today.join(tomorrow, on="contract_key", suffix="_next")
    assert both.filter(pl.col("open_interest_next") < pl.col("open_interest")).is_empty()
    assert 0.1 < (today["open_interest"] == 0).mean() < 0.9  # type: ignore[operator]


def test_puts_and_calls_imply_the_future_they_exercise_into() -> None:
    chain = MARKET.chain(OPEN).drop_nulls(["bid", "ask"])
    mid = ((pl.col("bid") + pl.col("ask")) / 2).alias("mid")
    keys = ["series", "strike", "underlying", "expiration"]
    calls = chain.filter(pl.col("option_type") == "C").select(*keys, "delta", mid)
    puts = chain.filter(pl.col("option_type") == "P").select("series", "strike", mid)
    pairs = calls.join(puts, on=["series", "strike"], suffix="_put").filter(
        pl.col("delta").is_between(0.3, 0.7)
    )
    years = (pl.col("expiration") - pl.lit(OPEN)).dt.total_seconds() / (365 * 86_400)
    forward = pl.col("strike") + (pl.col("mid") - pl.col("mid_put")) * (RATE * years).exp()
    implied = pairs.group_by("series", "underlying").agg(forward.median().alias("forward"))
    prices = {name: float(MARKET.future(name, to_ns(OPEN))[0]) for name in set(implied["underlying"])}
    assert implied.height >= 30
    for _, underlying, value in implied.iter_rows():
        assert value == pytest.approx(prices[underlying], rel=2e-4)


def test_prices_fall_with_the_strike_and_are_convex_in_it() -> None:
    for key, contracts in MARKET.chain(OPEN).filter(~pl.col("expired")).group_by("series"):
        calls = contracts.filter(pl.col("option_type") == "C").sort("strike")
        strike, value = calls["strike"].to_numpy(), calls["value"].to_numpy()
        slopes = np.diff(value) / np.diff(strike)
        assert (slopes <= 1e-9).all() and (slopes >= -1 - 1e-9).all(), key
        assert (np.diff(slopes) >= -1e-6).all(), key


def test_the_underlying_moves_only_while_the_market_is_open() -> None:
    friday_close = datetime(2025, 6, 13, 21, 0, tzinfo=UTC)
    sunday_open = datetime(2025, 6, 15, 22, 0, tzinfo=UTC)
    shut = MARKET.index(np.linspace(to_ns(friday_close), to_ns(sunday_open), 50).astype(np.int64))
    assert np.ptp(shut) == 0
    moving = MARKET.index(to_ns(sunday_open) + np.arange(60) * 60_000_000_000)
    assert len(np.unique(moving)) == 60


def test_the_price_path_has_no_jumps_across_sessions_and_years() -> None:
    for start in (datetime(2025, 6, 9, 20, 30, tzinfo=UTC), datetime(2024, 12, 31, 21, 30, tzinfo=UTC)):
        seconds = to_ns(start) + np.arange(3 * 3600) * 1_000_000_000
        steps = np.abs(np.diff(np.log(MARKET.index(seconds))))
        assert steps.max() < 0.001


def test_one_instant_alone_and_in_a_whole_array_is_the_same_price() -> None:
    minutes = to_ns(OPEN) + np.arange(-5_000, 5_000, 37) * 60_000_000_000
    together = MARKET.index(minutes)
    alone = [float(MARKET.index(int(ns))[0]) for ns in minutes[::40]]
    assert together[::40] == pytest.approx(alone, abs=1e-9)


def test_a_closed_market_shows_the_state_of_its_last_close() -> None:
    saturday = datetime(2025, 6, 14, 18, 0, tzinfo=UTC)
    assert MARKET.moment(saturday) == datetime(2025, 6, 13, 21, 0, tzinfo=UTC)
    assert MARKET.chain(saturday).equals(MARKET.chain(saturday + timedelta(hours=20)))
    assert MARKET.rth_moment(saturday) == datetime(2025, 6, 13, 20, 0, tzinfo=UTC)


def test_a_holiday_halt_shows_the_close_before_it() -> None:
    afternoon = datetime(2025, 7, 4, 20, 0, tzinfo=UTC)
    assert MARKET.moment(afternoon) == datetime(2025, 7, 4, 17, 0, tzinfo=UTC)


def test_expired_series_have_no_quotes_and_settle_at_intrinsic() -> None:
    evening = datetime(2025, 6, 10, 20, 30, tzinfo=UTC)
    expired = MARKET.chain(evening).filter(pl.col("expired"))
    assert set(expired["series"]) == {"Q2B-2025-06-10"}
    assert expired["bid"].null_count() == expired["ask"].null_count() == expired.height
    after = MARKET.chain(datetime(2025, 6, 10, 21, 30, tzinfo=UTC)).filter(pl.col("expired"))
    fixing = float(MARKET.future("NQM5", to_ns(datetime(2025, 6, 10, 20, 0, tzinfo=UTC)))[0])
    calls = after.filter((pl.col("option_type") == "C") & (pl.col("strike") < fixing - 1))
    assert calls["settlement"].to_list() == pytest.approx((fixing - calls["strike"]).to_list(), abs=0.006)


def test_settlements_are_the_newest_published() -> None:
    published = datetime(2025, 6, 10, 20, 30, tzinfo=UTC)
    for frame in (MARKET.chain, MARKET.futures):
        before, after = frame(published - timedelta(minutes=1)), frame(published)
        assert set(before["settlement_date"]) == {date(2025, 6, 9)}
        assert set(after["settlement_date"]) == {date(2025, 6, 10)}
        assert before.select("settlement").equals(after.select(settlement="previous_settlement"))
    chain = MARKET.chain(OPEN)
    assert set(chain["settlement_date"]) == {date(2025, 6, 9)}
    evening = MARKET.chain(datetime(2025, 6, 10, 21, 30, tzinfo=UTC))
    assert set(evening["settlement_date"]) == {date(2025, 6, 10)}
    both = chain.join(MARKET.chain(OPEN + timedelta(hours=2)), on="contract_key", suffix="_later")
    assert both["settlement"].equals(both["settlement_later"])


def test_a_short_days_settlement_follows_its_close() -> None:
    noon = datetime(2025, 7, 3, 17, tzinfo=UTC)
    closed, out = (MARKET.chain(noon + timedelta(minutes=minute)) for minute in (20, 30))
    assert set(closed["settlement_date"]) == {date(2025, 7, 2)}
    assert set(out["settlement_date"]) == {date(2025, 7, 3)} and out["bid"].equals(closed["bid"])
    forward = float(MARKET.future("NQU5", to_ns(noon))[0])
    futures = MARKET.futures(noon + timedelta(minutes=30)).filter(symbol="NQU5")
    assert futures["settlement"].item() == pytest.approx(forward, abs=0.125)


def test_strikes_once_listed_stay_listed() -> None:
    day = date(2025, 6, 16)
    while day > date(2025, 5, 27):
        before = sessions.previous_trade_date(day)
        gone = MARKET.listed(before).join(MARKET.listed(day), on="contract_key", how="anti")
        assert set(gone["expiration_date"]) <= {before}
        day = before


def test_strikes_are_dense_near_the_money_and_reach_far() -> None:
    price = MARKET.futures(OPEN)["last"][0]
    for key, contracts in MARKET.chain(OPEN).group_by("series"):
        strikes = contracts["strike"].unique().sort()
        assert strikes.min() < 0.72 * price and strikes.max() > 1.1 * price, key
        near = strikes.filter(strikes.is_between(price * 0.98, price * 1.02)).diff().drop_nulls()
        assert near.max() <= 50, key  # type: ignore[operator]
    steps = set(MARKET.listed(date(2025, 6, 10))["strike"].unique().sort().diff().drop_nulls())
    assert {5.0, 10.0} <= steps


def test_instrument_ids_are_unique_stable_and_fit_the_wire() -> None:
    today, next_week = MARKET.listed(date(2025, 6, 10)), MARKET.listed(date(2025, 6, 17))
    assert today["instrument_id"].n_unique() == today.height
    assert today["instrument_id"].min() > 0 and today["instrument_id"].max() < 2**32  # type: ignore[operator]
    both = today.join(next_week, on="contract_key", suffix="_next")
    assert both.height > 1_000 and both["instrument_id"].equals(both["instrument_id_next"])


def test_trades_are_in_session_on_ticks_and_sum_to_the_volume() -> None:
    day = sessions.session(date(2025, 6, 10))
    trades = MARKET.trades(day.trade_date)
    assert trades["ts_event"].is_sorted()
    assert to_ns(day.open) <= trades["ts_event"].min() and trades["ts_event"].max() < to_ns(day.close)  # type: ignore[operator]
    assert on_tick(trades["price"]) and trades["size"].min() >= 1  # type: ignore[operator]
    so_far = (
        trades.filter(pl.col("ts_event") <= to_ns(OPEN)).group_by("instrument_id").agg(pl.col("size").sum())
    )
    chain = (
        MARKET.chain(OPEN)
        .join(so_far, on="instrument_id", how="left")
        .with_columns(pl.col("size").fill_null(0))
    )
    assert chain["volume"].equals(chain["size"], check_names=False)


def test_nothing_trades_after_its_expiration() -> None:
    listed = MARKET.listed(date(2025, 6, 20))
    trades = MARKET.trades(date(2025, 6, 20)).join(listed, on="instrument_id")
    assert "NQ" in set(trades["root"])
    assert trades.filter(pl.col("ts_event") >= pl.col("expiration").cast(pl.Int64)).is_empty()


def test_later_futures_are_dearer_and_on_quarter_points() -> None:
    futures = MARKET.futures(OPEN)
    assert futures["symbol"].to_list() == ["NQM5", "NQU5", "NQZ5", "NQH6", "NQM6"]
    assert (futures["last"].diff().drop_nulls() > 0).all()
    for name in ("bid", "ask", "last", "open", "high", "low", "settlement"):
        assert ((futures[name] * 4) % 1 == 0).all(), name
    assert (futures["bid"] < futures["ask"]).all()
    assert (futures["low"] <= futures["last"]).all() and (futures["last"] <= futures["high"]).all()


def test_proxies_follow_the_index_in_regular_hours() -> None:
    index = float(MARKET.index(to_ns(OPEN))[0])
    assert MARKET.proxy_price("NDX", OPEN) == pytest.approx(index, abs=0.01)
    assert MARKET.proxy_price("QQQ", OPEN) == pytest.approx(index / 41, abs=0.01)
    ndx, qqq = MARKET.proxy_chain("NDX", OPEN), MARKET.proxy_chain("QQQ", OPEN)
    assert set(ndx["root"]) == {"NDX", "NDXP"} and set(qqq["root"]) == {"QQQ"}
    for chain in (ndx, qqq):
        quoted = chain.drop_nulls(["bid", "ask"])
        assert quoted.filter(pl.col("bid") >= pl.col("ask")).is_empty()
        assert chain["ticker"].n_unique() == chain.height > 2_000
    night = datetime(2025, 6, 11, 3, 0, tzinfo=UTC)
    assert set(MARKET.proxy_chain("NDX", night)["quote_ts"]) == {datetime(2025, 6, 10, 20, 0, tzinfo=UTC)}
