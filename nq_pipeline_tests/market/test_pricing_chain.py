"""Whole chains: which price and forward a row is valued on, what it gives, and why it gives nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from nq_pipeline.market import black76
from nq_pipeline.market.pricing import PRICED, price_chain
from nq_pipeline.sandbox.synthetic.market import RATE, Market
from nq_pipeline_tests.testing.quoted_chains import NOON, SIGMA, F, quoted_series

MARKET = Market(7)


def contract(frame: pl.DataFrame, strike: float, option_type: str = "C") -> dict[str, Any]:
    return frame.filter(strike=strike, option_type=option_type).row(0, named=True)


def changed(frame: pl.DataFrame, strike: float, **values: Any) -> pl.DataFrame:
    """The chain with one call changed."""
    this = (pl.col("strike") == strike) & (pl.col("option_type") == "C")
    return frame.with_columns(
        pl.when(this).then(pl.lit(value, frame.schema[name])).otherwise(name).alias(name)
        for name, value in values.items()
    )


def price_one(strike: float = 21_500.0, **values: Any) -> dict[str, Any]:
    """How a call is priced whose row is changed, its series being whole."""
    frame = price_chain(changed(quoted_series(), strike, **values), rate=0.04)
    return frame.filter(contract_key=f"QN2-2025-07-10-C-{strike:.0f}").row(0, named=True)


# What a chain gives


def test_a_chain_of_one_volatility_gives_it_back_with_greeks() -> None:
    chain = quoted_series()
    priced = price_chain(chain, rate=0.04)
    assert priced.columns == list(PRICED)
    assert priced["contract_key"].equals(chain["contract_key"])
    assert priced["unpriced"].null_count() == priced.height
    assert set(priced["model"]) == {"black76"} and set(priced["price_used"]) == {"mid"}
    assert priced["implied_volatility"].to_numpy() == pytest.approx(SIGMA, abs=1e-8)
    years = 30 / 365
    expected = black76.value(
        F, chain["strike"].to_numpy(), years, SIGMA, (chain["option_type"] == "C").to_numpy(), 0.04
    )
    for name in ("delta", "gamma", "theta", "vega"):
        assert priced[name].to_numpy() == pytest.approx(getattr(expected, name), rel=1e-6, abs=1e-9)
    assert priced["iv_uncertainty"].to_numpy() == pytest.approx(0.5 / expected.vega)


@pytest.mark.parametrize(
    ("price", "root", "half_tick"),
    [(4.0, "QN2", 0.025), (5.0, "QN2", 0.025), (6.0, "QN2", 0.125), (4.0, "OG1", 0.05), (4.0, "XX", 0.0)],
)
def test_a_quote_without_width_is_known_to_half_a_tick(price: float, root: str, half_tick: float) -> None:
    locked = changed(quoted_series(), 22_800.0, bid=price, ask=price).with_columns(root=pl.lit(root))
    row = price_chain(locked, rate=0.04).filter(contract_key="QN2-2025-07-10-C-22800").row(0, named=True)
    assert row["iv_uncertainty"] == pytest.approx(half_tick / row["vega"])


def test_a_locked_quotes_wild_volatility_fails_the_filter() -> None:
    last_minutes = quoted_series(expiration=NOON + timedelta(minutes=10))
    priced = price_chain(changed(last_minutes, 21_500.0, bid=0.05, ask=0.05), rate=0.04)
    row = priced.filter(contract_key="QN2-2025-07-10-C-21500").row(0, named=True)
    assert row["implied_volatility"] > 1.0 and row["vega"] < 1.0
    assert row["iv_uncertainty"] > 0.02


def test_quarterlies_are_american_unless_the_rate_is_zero() -> None:
    expiration = NOON + timedelta(days=101)
    with_rate = price_chain(quoted_series(expiration=expiration, american_style=True), rate=0.04)
    assert set(with_rate["model"]) == {"kim"}
    assert with_rate["implied_volatility"].to_numpy() == pytest.approx(SIGMA, abs=2e-4)
    without = price_chain(quoted_series(expiration=expiration, american_style=True, rate=0.0), rate=0.0)
    assert set(without["model"]) == {"black76"}
    assert without["implied_volatility"].to_numpy() == pytest.approx(SIGMA, abs=1e-6)


def test_an_option_on_a_fund_is_valued_as_a_european_one() -> None:
    fund = quoted_series(underlying_class="etf", exercise_style="american", underlying_price=F - 60.0)
    priced = price_chain(fund, rate=0.04)
    assert set(priced["model"]) == {"black76"} and set(priced["forward_source"]) == {"parity"}
    assert priced["implied_volatility"].to_numpy() == pytest.approx(SIGMA, abs=1e-6)


def test_instants_in_microseconds_give_the_same_prices() -> None:
    fine, coarse = (
        quoted_series().with_columns(
            pl.col("snapshot_ts", "as_of", "expiration").cast(pl.Datetime(unit, "UTC"))
        )
        for unit in ("ns", "us")
    )
    assert price_chain(fine, rate=0.04).equals(price_chain(coarse, rate=0.04))


def test_no_rows_give_no_rows() -> None:
    assert price_chain(quoted_series().clear(), rate=0.04).columns == list(PRICED)


@pytest.mark.parametrize("seconds", [30, 600, 7_200])
def test_minutes_before_expiration_the_volatility_is_still_found(seconds: int) -> None:
    priced = price_chain(
        quoted_series(
            expiration=NOON + timedelta(seconds=seconds),
            strikes=np.arange(20_990.0, 21_011.0, 5.0),
            half_width=1e-4,
        ),
        rate=0.04,
    )
    assert priced["implied_volatility"].to_numpy() == pytest.approx(SIGMA, abs=1e-5)


# Which price


WEDNESDAY_CLOSE, FRIDAY_CLOSE = (datetime(2025, 6, day, 21, tzinfo=UTC) for day in (18, 13))
"""16:00 in Chicago."""


SUNDAY = datetime(2025, 6, 15, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("as_of", "quoted", "valued_at"),
    [
        (SUNDAY, None, FRIDAY_CLOSE),
        (SUNDAY, FRIDAY_CLOSE - timedelta(hours=1), FRIDAY_CLOSE),
        (SUNDAY, FRIDAY_CLOSE + timedelta(hours=1), FRIDAY_CLOSE + timedelta(hours=1)),
        (SUNDAY, SUNDAY + timedelta(hours=1), SUNDAY),
        (SUNDAY.replace(hour=23), None, SUNDAY.replace(hour=23)),  # open again
        (WEDNESDAY_CLOSE + timedelta(minutes=30), None, WEDNESDAY_CLOSE),  # the daily pause
        (datetime(2025, 6, 19, 18, tzinfo=UTC), None, datetime(2025, 6, 19, 17, tzinfo=UTC)),  # a halt
    ],
)
def test_quotes_of_a_closed_market_are_valued_at_its_close(
    as_of: datetime, quoted: datetime | None, valued_at: datetime
) -> None:
    expiration = NOON + timedelta(days=30)
    stamp = pl.lit(quoted, pl.Datetime("ns", "UTC"))
    chain = quoted_series(expiration=expiration, as_of=as_of)
    priced = price_chain(chain.with_columns(quote_ts=pl.when(strike=19_000.0).then(stamp)), rate=0.04)
    assert set(priced["valued_at"]) == {valued_at} and set(priced["forward_source"]) == {"parity"}
    assert priced["years"].to_numpy() == pytest.approx((expiration - valued_at) / timedelta(days=365))
    assert set(priced["price_age_s"]) == {(as_of - valued_at).total_seconds()}


def test_a_trade_before_the_close_is_recent_all_weekend() -> None:
    chain = changed(
        quoted_series(), 21_500.0, bid=None, last=180.0, last_ts=FRIDAY_CLOSE - timedelta(seconds=60)
    )
    row = price_chain(chain.with_columns(as_of=FRIDAY_CLOSE + timedelta(days=1)), rate=0.04).filter(
        contract_key="QN2-2025-07-10-C-21500"
    )
    assert row.select("price_used", "valued_at", "price_age_s").row(0) == ("last", FRIDAY_CLOSE, 86_460.0)


def test_options_on_an_index_have_other_hours() -> None:
    saturday = FRIDAY_CLOSE + timedelta(hours=5)
    proxy = quoted_series(as_of=saturday, underlying_class="index", root="NDXP")
    assert set(price_chain(proxy, rate=0.04)["valued_at"]) == {saturday}


def test_a_recent_last_trade_is_valued_with_its_age() -> None:
    row = price_one(bid=None, last=180.0, last_ts=NOON - timedelta(seconds=120))
    assert (row["price_used"], row["price"], row["price_age_s"]) == ("last", 180.0, 120.0)
    assert row["implied_volatility"] is not None and row["iv_uncertainty"] is None
    assert price_one()["price_age_s"] == 0.0


def test_a_quote_beats_a_last_trade_and_a_settlement() -> None:
    row = price_one(last=1.0, last_ts=NOON, settlement=2.0, is_settlement=True)
    assert row["price_used"] == "mid"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"bid": None, "ask": None}, "no_quote"),
        ({"bid": None}, "one_sided"),
        ({"ask": None}, "one_sided"),
        ({"bid": 0.0}, "one_sided"),
        ({"bid": float("nan")}, "one_sided"),
        ({"ask": float("inf")}, "one_sided"),
        ({"bid": -5.0, "ask": -4.0}, "no_quote"),
        ({"bid": 300.0, "ask": 299.0}, "crossed"),
        ({"bid": None, "ask": None, "last": 100.0}, "stale_last"),
        ({"bid": None, "ask": None, "last": 100.0, "last_ts": NOON - timedelta(hours=3)}, "stale_last"),
        ({"bid": 21_000.0, "ask": 21_100.0}, "above_bound"),
    ],
)
def test_a_row_that_cannot_be_priced_says_why_and_has_no_numbers(values: dict[str, Any], reason: str) -> None:
    row = price_one(**values)
    assert row["unpriced"] == reason
    assert all(
        row[name] is None for name in ("implied_volatility", "delta", "gamma", "theta", "vega", "model")
    )


@pytest.mark.parametrize("american_style", [False, True])
def test_a_price_below_what_exercise_brings_has_no_volatility(american_style: bool) -> None:
    frame = changed(quoted_series(american_style=american_style), 20_000.0, bid=970.0, ask=980.0)
    row = contract(frame.hstack(price_chain(frame, rate=0.04).select("unpriced")), 20_000.0)
    assert row["unpriced"] == "below_intrinsic"


def test_an_expired_series_has_no_volatility_whatever_is_quoted() -> None:
    priced = price_chain(quoted_series().with_columns(expiration=pl.lit(NOON)), rate=0.04)
    assert set(priced["unpriced"]) == {"expired"} and priced["implied_volatility"].null_count() == len(priced)


# Settlements


def test_settlements_are_valued_on_their_own_forward() -> None:
    then = datetime(2025, 6, 9, 20, 0, tzinfo=UTC)  # 15:00 in Chicago the trade date before
    settled = quoted_series(expiration=NOON + timedelta(days=30))
    k, call = settled["strike"].to_numpy(), (settled["option_type"] == "C").to_numpy()
    years = (NOON + timedelta(days=30) - then).total_seconds() / (365 * 86_400)
    fair = black76.value(F + 250, k, years, 0.25, call, 0.04).price
    settled = settled.with_columns(
        bid=pl.lit(None, pl.Float64),
        ask=pl.lit(None, pl.Float64),
        is_settlement=pl.lit(True),
        settlement=pl.Series(fair),
    )
    priced = price_chain(settled, rate=0.04)
    assert set(priced["price_used"]) == {"settlement"} and set(priced["valued_at"]) == {then}
    assert priced["forward"].to_numpy() == pytest.approx(F + 250)
    assert priced["implied_volatility"].to_numpy() == pytest.approx(0.25, abs=1e-8)
    assert set(priced["price_age_s"]) == {(NOON - then).total_seconds()}
    assert priced["parity_gap"].null_count() == priced.height


MONDAY, TUESDAY = date(2025, 6, 9), date(2025, 6, 10)
AFTER_CLOSE = datetime(2025, 6, 10, 20, 5, tzinfo=UTC)
"""15:05 in Chicago, before the settlements of the day are out."""


def settled(*days: date | None, as_of: datetime = AFTER_CLOSE, root: str = "Q2C") -> pl.DataFrame:
    """A board that expires on Wednesday, settled at each day's forward and 0.2; days take turns by strike."""
    expiration = datetime(2025, 6, 11, 20, tzinfo=UTC)
    frame = quoted_series(expiration=expiration, as_of=as_of, root=root).filter(
        pl.col("strike").is_between(20_000, 22_000)
    )
    k, call = frame["strike"].to_numpy(), (frame["option_type"] == "C").to_numpy()
    turn = (k / 100).astype(int) % len(days)
    made = np.array([(day or MONDAY) == TUESDAY for day in days])[turn]
    years = np.where(made, 1.0, 2.0) / 365
    fair = black76.value(F + 200 * made, k, years, SIGMA, call, 0.04).price
    return frame.with_columns(
        bid=pl.lit(None, pl.Float64),
        ask=pl.lit(None, pl.Float64),
        is_settlement=pl.lit(True),
        settlement=pl.Series(fair),
        settlement_date=pl.Series([days[i] for i in turn], dtype=pl.Date),
    )


@pytest.mark.parametrize("told", [MONDAY, None, date(2025, 6, 8)])
def test_a_settlement_is_valued_on_its_own_day(told: date | None) -> None:
    priced = price_chain(settled(told), rate=0.04)
    assert set(priced["valued_at"]) == {datetime(2025, 6, 9, 20, tzinfo=UTC)}
    assert set(priced["years"].round(5)) == {0.00548} and priced["implied_volatility"].count() > 20
    assert priced["implied_volatility"].drop_nulls().to_numpy() == pytest.approx(SIGMA, abs=1e-6)


def test_an_undated_settlement_is_the_newest_published() -> None:
    out = AFTER_CLOSE.replace(minute=30)
    priced = price_chain(settled(None, as_of=out), rate=0.04)
    assert set(priced["valued_at"]) == {datetime(2025, 6, 10, 20, tzinfo=UTC)}


def test_settlements_of_two_days_make_no_forward_together() -> None:
    mixed = settled(MONDAY, TUESDAY, as_of=AFTER_CLOSE.replace(minute=40))
    priced = mixed.select("settlement_date").hstack(price_chain(mixed, rate=0.04))
    for day, forward in ((MONDAY, F), (TUESDAY, F + 200)):
        rows = priced.filter(pl.col("settlement_date") == day)
        assert rows["forward"].to_numpy() == pytest.approx(forward)
        assert rows["implied_volatility"].count() > 10
        assert rows["implied_volatility"].drop_nulls().to_numpy() == pytest.approx(SIGMA, abs=1e-6)


def test_golds_settlement_is_made_at_half_past_twelve() -> None:
    priced = price_chain(settled(MONDAY, root="G2W"), rate=0.04)
    assert set(priced["valued_at"]) == {datetime(2025, 6, 9, 17, 30, tzinfo=UTC)}


def test_a_settlement_of_after_the_quotes_has_no_age() -> None:
    priced = price_chain(settled(TUESDAY, as_of=AFTER_CLOSE.replace(hour=19)), rate=0.04)
    assert set(priced["price_age_s"]) == {0.0}


def test_a_lone_settlement_has_no_forward() -> None:
    row = price_one(bid=None, ask=None, is_settlement=True, settlement=150.0)
    assert (row["price_used"], row["unpriced"], row["forward"]) == ("settlement", "no_forward", None)


def test_an_expired_series_whose_settlements_give_no_forward_is_expired() -> None:
    chain = settled(MONDAY).with_columns(expiration=pl.lit(AFTER_CLOSE - timedelta(minutes=10)))
    lone = chain.filter(pl.col("option_type") == "C")
    assert set(price_chain(lone, rate=0.04)["unpriced"]) == {"expired"}
    assert price_chain(chain, rate=0.04)["implied_volatility"].count() > 20


# Which forward


def test_parity_overrules_a_future_of_another_month() -> None:
    priced = price_chain(quoted_series(underlying_price=F + 200.0), rate=0.04)
    assert priced["forward"].to_numpy() == pytest.approx(F)
    row = priced.row(0, named=True)
    assert (row["forward_source"], row["parity_pairs"]) == ("parity", 10)
    assert row["parity_gap"] == pytest.approx(-200.0) and row["parity_spread"] == pytest.approx(0.0, abs=1e-6)


def test_one_wild_quote_near_the_money_does_not_move_the_forward() -> None:
    wild = changed(quoted_series(), 21_000.0, bid=30.0, ask=40.0)
    assert price_chain(wild, rate=0.04)["forward"].to_numpy() == pytest.approx(F)


def test_with_too_few_pairs_the_vendors_future_is_the_forward() -> None:
    calls = quoted_series().filter(pl.col("option_type") == "C")
    priced = price_chain(calls, rate=0.04)
    assert set(priced["forward_source"]) == {"underlying"} and set(priced["parity_pairs"]) == {0}
    assert priced["implied_volatility"].to_numpy() == pytest.approx(SIGMA, abs=1e-8)


def test_pairs_that_disagree_make_no_forward() -> None:
    noisy = quoted_series().with_columns(
        pl.when(pl.col("option_type") == "C")
        .then(pl.col(name) + 3 * (pl.col("strike") - F).abs() * (-1) ** ((pl.col("strike") / 100) % 2))
        .otherwise(name)
        .clip(lower_bound=1.0)
        .alias(name)
        for name in ("bid", "ask")
    )
    assert set(price_chain(noisy, rate=0.04)["forward_source"]) == {"underlying"}


@pytest.mark.parametrize("lacking", [{"underlying_price": None}, {"underlying_class": "index"}])
def test_calls_alone_have_no_forward_without_a_future(lacking: dict[str, Any]) -> None:
    calls = quoted_series(**lacking).filter(pl.col("option_type") == "C")
    calls = calls.with_columns(pl.col("underlying_price").cast(pl.Float64))
    priced = price_chain(calls, rate=0.04)
    assert set(priced["unpriced"]) == {"no_forward"}


def test_snapshots_and_sources_do_not_mix() -> None:
    other = quoted_series(underlying_price=F + 500).with_columns(
        pl.lit("databento").alias("source"), (pl.col("bid", "ask") * 1.0)
    )
    raised = other.with_columns(
        pl.when(pl.col("option_type") == "C").then(pl.col(side) + 500.0).otherwise(side).alias(side)
        for side in ("bid", "ask")
    )
    both = price_chain(pl.concat([quoted_series(), raised], how="diagonal"), rate=0.04)
    forwards = both.group_by("source").agg(pl.col("forward").first()).sort("source")["forward"]
    growth = np.exp(0.04 * 30 / 365)
    assert forwards.to_list() == pytest.approx([F, F + 500 * growth], rel=1e-6)


# The synthetic market


def vendor_chain(now: datetime) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The synthetic chain as a vendor would give it, and its truth."""
    truth = MARKET.chain(now)
    futures = MARKET.futures(now).select(underlying="symbol", underlying_price="last")
    chain = truth.join(futures, on="underlying", how="left", maintain_order="left").with_columns(
        source=pl.lit("barchart"),
        environment=pl.lit("sandbox"),
        snapshot_ts=pl.lit(now),
        as_of=pl.lit(now),
        trade_date=pl.lit(now.date()),
        underlying_class=pl.lit("future"),
        is_settlement=pl.lit(False),
    )
    return chain, truth


@pytest.mark.parametrize("now", [datetime(2025, 6, 10, 15, tzinfo=UTC), datetime(2025, 9, 6, 12, tzinfo=UTC)])
def test_the_synthetic_surface_is_found_within_the_quotes(now: datetime) -> None:
    """On a Tuesday, and on a Saturday, when the quotes are those of Friday's close."""
    chain, truth = vendor_chain(now)
    priced = price_chain(chain, rate=RATE).with_columns(
        true=truth["implied_volatility"], true_delta=truth["delta"], true_gamma=truth["gamma"]
    )
    quoted = priced.filter(pl.col("price_used") == "mid")
    assert quoted.filter(pl.col("implied_volatility").is_not_null()).height > 0.95 * quoted.height
    otm = quoted.filter(pl.col("true_delta").abs().is_between(0.05, 0.5))
    assert otm.height > 2_000 and set(otm["model"]) == {"black76", "kim"}
    error = (otm["implied_volatility"] - otm["true"]).abs()
    assert (error < otm["iv_uncertainty"] * 0.75 + 2e-4).all()
    assert error.median() < 1e-4  # type: ignore[operator]
    assert otm["delta"].to_numpy() == pytest.approx(otm["true_delta"].to_numpy(), abs=5e-3)


def test_the_synthetic_forwards_are_found_within_a_point() -> None:
    now = datetime(2025, 6, 10, 15, tzinfo=UTC)
    chain, _ = vendor_chain(now)
    series = price_chain(chain, rate=RATE).unique("series")
    assert set(series["forward_source"]) == {"parity"}
    assert series["parity_gap"].abs().max() < 1.0  # type: ignore[operator]
