"""The metrics of a chain against numbers worked out by hand, and against brute force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from nq_pipeline.analytics.exposure import zero_gamma_shift
from nq_pipeline.analytics.metrics import (
    gamma_levels,
    iv_smile,
    measure,
    priced_chain,
    series_metrics,
    strike_profile,
)
from nq_pipeline.analytics.snapshot import measure_snapshot, price_snapshot
from nq_pipeline.configuration import build_settings
from nq_pipeline.lake.tables import GAMMA_LEVELS, INSTANT, SERIES_METRICS, STRIKE_PROFILE, TABLES, conform
from nq_pipeline.market import black76
from nq_pipeline.market.pricing import price_chain
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.quoted_chains import lake_chain, quoted_series

NOON = datetime(2025, 6, 30, 17, tzinfo=UTC)
SCHEMA = {
    "strike": pl.Float64,
    "option_type": pl.String,
    "open_interest": pl.Int64,
    "volume": pl.Int64,
    "price": pl.Float64,
    "iv": pl.Float64,
}
Row = tuple[float, str, int | None, int | None, float | None, float | None]


def priced(rows: Sequence[Row], forward: float = 100.0, years: float = 0.25) -> pl.DataFrame:
    """A series as `priced_chain` gives it, of (strike, side, open interest, volume, price, iv)."""
    return pl.DataFrame(list(rows), schema=SCHEMA, orient="row").with_columns(
        source=pl.lit("barchart"),
        environment=pl.lit("sandbox"),
        snapshot_ts=pl.lit(NOON).cast(INSTANT),
        trade_date=pl.lit(date(2025, 6, 30)),
        underlying_class=pl.lit("future"),
        root=pl.lit("Q1B"),
        series=pl.lit("Q1B-2025-07-01"),
        expiration=pl.lit(datetime(2025, 7, 1, 20, tzinfo=UTC)).cast(INSTANT),
        multiplier=pl.lit(20.0),
        underlying_price=pl.lit(forward),
        price_used=pl.when(pl.col("price").is_not_null()).then(pl.lit("mid")),
        valued_at=pl.lit(NOON).cast(INSTANT),
        forward=pl.lit(forward),
        years=pl.lit(years),
        rate=pl.lit(0.0),
        iv_uncertainty=pl.lit(0.001),
    )


CHAIN = priced(
    [
        (90.0, "C", 10, 1, 11.0, 0.31),
        (90.0, "P", 40, 6, 1.0, 0.30),
        (99.0, "C", 30, 2, 4.0, 0.25),
        (99.0, "P", 20, 3, 3.0, 0.24),
        (103.0, "C", 50, 5, 2.0, 0.20),
        (103.0, "P", None, None, None, None),
    ]
)


def gamma(strike: float, iv: float, forward: float = 100.0, years: float = 0.25) -> float:
    return float(black76.value(forward, strike, years, iv, True).gamma)


def test_strike_profile_combines_call_and_put() -> None:
    row = strike_profile(CHAIN).filter(pl.col("strike") == 99).row(0, named=True)
    assert (row["call_open_interest"], row["put_open_interest"], row["call_volume"], row["put_volume"]) == (
        30,
        20,
        2,
        3,
    )
    # Gamma, open contracts, dollars per point, forward.
    calls, puts = gamma(99, 0.25) * 30 * 20 * 100, gamma(99, 0.24) * 20 * 20 * 100
    assert (row["call_gex_per_point"], row["put_gex_per_point"]) == pytest.approx((calls, -puts))
    assert row["gex_per_point"] == pytest.approx(calls - puts)
    assert row["gex_per_pct"] == pytest.approx(calls - puts)  # one percent of 100 is one point
    # At 99 the calls of 90 pay 9 each; the puts below and the calls above pay nothing.
    assert row["payout"] == pytest.approx(10 * 9 * 20)


def test_missing_numbers_stay_unknown() -> None:
    row = strike_profile(CHAIN).filter(pl.col("strike") == 103).row(0, named=True)
    assert row["put_open_interest"] is None and row["put_gex_per_point"] is None
    assert row["gex_per_point"] == row["call_gex_per_point"]
    silent = priced([(90.0, "C", None, None, 11.0, 0.3), (90.0, "P", None, None, 1.0, 0.3)])
    row = series_metrics(silent).row(0, named=True)
    unknown = ("call_volume", "put_call_open_interest", "put_call_volume", "max_pain", "gex_per_point")
    assert [row[name] for name in unknown] == [None] * 5


def test_smile_has_puts_below_and_calls_above_the_forward() -> None:
    smile = iv_smile(CHAIN).sort("strike")
    assert smile.select("strike", "option_type", "implied_volatility").rows() == [
        (90.0, "P", 0.30),
        (99.0, "P", 0.24),
        (103.0, "C", 0.20),
    ]
    assert smile["log_moneyness"].to_list() == pytest.approx([math.log(k / 100) for k in (90, 99, 103)])
    assert smile["deviations"][2] == pytest.approx(math.log(1.03) / (0.20 * 0.5))


def test_old_settlements_do_not_move_a_quoted_series() -> None:
    rows = [(strike, side, 5, 1, 9.0, 0.5) for strike in (80.0, 85.0, 110.0, 120.0) for side in "CP"]
    settled = priced(rows, forward=97.0, years=0.3).with_columns(price_used=pl.lit("settlement"))
    both = pl.concat([settled, CHAIN])
    assert iv_smile(both).equals(iv_smile(CHAIN))
    unmoved = ("forward", "years", "atm_iv", "atm_strike", "expected_move_straddle", "expected_move_iv")
    assert series_metrics(both).select(unmoved).equals(series_metrics(CHAIN).select(unmoved))
    assert gamma_levels(both)["forward"].to_list() == [100.0]
    assert series_metrics(settled)["forward"].to_list() == [97.0], "where there is nothing else"
    older = settled.with_columns(pl.col("valued_at").dt.offset_by("-1d"), forward=pl.lit(90.0))
    assert series_metrics(pl.concat([older, settled, older]))["forward"].to_list() == [97.0], "the newest"


def test_series_has_expected_move_ratios_and_max_pain() -> None:
    row = series_metrics(CHAIN).row(0, named=True)
    assert row["atm_iv"] == pytest.approx(0.24 - 0.04 / 4)  # a quarter of the way from 99 to 103
    assert (row["atm_strike"], row["expected_move_straddle"]) == (99.0, 7.0)
    assert row["expected_move_iv"] == pytest.approx(100 * 0.23 * 0.5)
    assert row["put_call_open_interest"] == pytest.approx(60 / 90)
    assert row["put_call_volume"] == pytest.approx(9 / 8)
    # Payouts: at 90 the puts of 99, 20 × 9; at 99 the calls of 90, 10 × 9; at 103 10 × 13 + 30 × 4.
    assert row["max_pain"] == 99.0


def test_a_stale_last_price_makes_no_straddle() -> None:
    stale = CHAIN.with_columns(price_used=pl.lit("last"))
    assert series_metrics(stale)["expected_move_straddle"].to_list() == [None]


def test_one_open_strike_is_max_pain() -> None:
    alone = priced([(95.0, "C", 5, 1, 5.0, 0.2)])
    assert series_metrics(alone)["max_pain"].to_list() == [95.0]


def test_exposure_vanishes_at_the_zero_gamma_level() -> None:
    row = gamma_levels(priced([(95.0, "P", 100, 1, 1.0, 0.2), (105.0, "C", 100, 1, 1.0, 0.2)]))
    level = row["zero_gamma"].item()
    # With one volatility and equal size both gammas are equal where -d1 of one is d1 of the other.
    variance = 0.2**2 * 0.25
    assert level == pytest.approx(math.sqrt(95 * 105) * math.exp(-variance / 2), abs=1e-3)
    gammas = [
        black76.value(level, strike, 0.25, 0.2, is_call).gamma
        for strike, is_call in ((95, False), (105, True))
    ]
    assert gammas[0] == pytest.approx(gammas[1], rel=1e-4)


def test_zero_gamma_is_found_where_the_exposure_is_exactly_zero_now() -> None:
    at = 100 * math.exp(0.2**2 * 0.25 / 2)  # d1 is 0, so that both gammas are equal to the last bit
    row = gamma_levels(priced([(at * (1 - 1e-10), "P", 100, 1, 1.0, 0.2), (at, "C", 100, 1, 1.0, 0.2)]))
    assert row["gex_per_point"].item() == pytest.approx(0.0, abs=1e-9)
    assert row["zero_gamma"].item() == pytest.approx(100.0, abs=1e-6)


def test_a_settlement_counts_at_the_forward_of_now() -> None:
    """Its own forward lies 3 % away: the total there had the other sign than at the level's forward."""
    calls = priced([(100.0, "C", 100, 1, 1.0, 0.2)])
    settled = priced([(97.0, "P", 110, 1, 1.0, 0.2)], forward=97.0, years=0.3)
    chain = pl.concat([calls, settled.with_columns(price_used=pl.lit("settlement"))])
    row = gamma_levels(chain).row(0, named=True)
    expected = 20 * 100 * (100 * gamma(100, 0.2) - 110 * gamma(97, 0.2))
    assert row["gex_per_point"] == pytest.approx(expected)
    for rows in (strike_profile(chain), series_metrics(chain)):
        assert rows["gex_per_point"].sum() == pytest.approx(expected)


def test_net_exposure_is_zero_at_the_level() -> None:
    """The level is of the same exposure as the total, settlements of another forward among it."""
    calls = priced([(102.0, "C", 100, 1, 1.0, 0.2), (95.0, "P", 90, 1, 1.0, 0.25)])
    settled = priced([(94.0, "P", 60, 1, 1.0, 0.3)], forward=95.0, years=0.3)
    chain = pl.concat([calls, settled.with_columns(price_used=pl.lit("settlement"))])
    level = gamma_levels(chain).row(0, named=True)["zero_gamma"]
    moved = chain.with_columns(forward=pl.lit(level))
    assert gamma_levels(moved)["gex_per_point"].item() == pytest.approx(0.0, abs=0.5)
    assert gamma_levels(moved)["zero_gamma"].item() == pytest.approx(level, abs=1e-3)


def test_the_level_is_of_the_exposure_per_percent() -> None:
    """Where series have different forwards, the exposure per point changes sign elsewhere."""
    near = priced([(105.0, "C", 100, 1, 1.0, 0.2)])
    far = priced([(100.0, "P", 100, 1, 1.0, 0.2)], forward=110.0)
    far = far.with_columns(
        series=pl.lit("Q1B-2025-08-05"), expiration=pl.col("expiration").dt.offset_by("5w")
    )
    chain = pl.concat([near, far])
    shift = gamma_levels(chain)["zero_gamma"].item() / 100
    moved = gamma_levels(chain.with_columns(pl.col("forward") * shift)).row(0, named=True)
    assert moved["gex_per_pct"] == pytest.approx(0.0, abs=1e-6) and abs(moved["gex_per_point"]) > 1


def test_american_option_uses_black76_gamma() -> None:
    """Total and level are of one curve, and that is Black-76's."""
    expiration = datetime(2025, 9, 28, 17, tzinfo=UTC)
    chain = quoted_series(
        expiration=expiration, american_style=True, multiplier=20.0, open_interest=1, volume=0
    )
    pricing = price_chain(chain, rate=0.0401)
    profile = strike_profile(priced_chain(chain, pricing)).row(0, named=True)
    deep = pricing.filter(contract_key="QN2-2025-07-10-C-19000").row(0, named=True)
    of = black76.value(deep["forward"], 19_000, deep["years"], deep["implied_volatility"], True, 0.0401)
    assert deep["model"] == "kim" and deep["gamma"] != pytest.approx(of.gamma, rel=1e-3)
    assert profile["call_gex_per_point"] == pytest.approx(20 * deep["forward"] * of.gamma)


def test_two_zero_gamma_levels_around_one_strike_are_found_minutes_before_expiration() -> None:
    """Puts of one strike outweigh calls for a third of a step of the search, and only there."""
    calls = priced([(100.0, "C", 1_000, 1, 1.0, 0.2)], years=0.25)
    puts = priced([(100.125, "P", 100, 1, 1.0, 0.2)], years=2 / (365 * 24 * 60))
    chain = pl.concat([calls, puts.with_columns(series=pl.lit("Q5A-2025-06-30"))])
    level = gamma_levels(chain)["zero_gamma"].item()
    assert 100.0 < level < 100.125
    moved = chain.with_columns(forward=pl.lit(level))
    assert gamma_levels(moved)["gex_per_pct"].item() == pytest.approx(0.0, abs=1e-3)


def test_zero_gamma_is_found_where_the_exposure_barely_turns_over() -> None:
    """Both changes lie within a step, and no level of the search is between them."""
    calls = priced([(100.0, "C", 1_000, 1, 1.0, 0.2)], years=0.25)
    puts = priced([(100.125, "P", 1, 1, 1.0, 0.2)], years=(0.003 / 0.2) ** 2)
    puts = puts.with_columns(series=pl.lit("Q5A-2025-06-30"))
    at = 100.125 * math.exp(-(0.003**2) / 2)
    levels = (pl.lit(at).alias("forward"), pl.lit(None, pl.Float64).alias("underlying_price"))
    by_side = [gamma_levels(rows.with_columns(levels))["gex_per_pct"].item() for rows in (calls, puts)]
    least = math.ceil(-by_side[0] / by_side[1])  # puts that just outweigh the calls at their strike
    for held, found in ((least, True), (least - 1, False)):
        chain = pl.concat([calls, puts.with_columns(open_interest=pl.lit(held, pl.Int64))])
        assert (gamma_levels(chain)["zero_gamma"].item() is not None) == found


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([10.0, 120.0, 3_600.0, 86_400.0]))
def test_zero_gamma_is_the_nearest_change_of_a_fine_scan(seed: int, seconds: float) -> None:
    random = np.random.default_rng(seed)
    strike = 100 + 0.05 * random.integers(-40, 40, 30)
    is_call, held = random.random(30) < 0.5, random.integers(1, 1_000, 30)
    years = np.where(random.random(30) < 0.7, seconds / (365 * 86_400), 0.05)
    rows = [
        (float(k), "C" if call else "P", int(n), 1, 1.0, 0.2)
        for k, call, n in zip(strike, is_call, held, strict=True)
    ]
    chain = priced(rows).with_columns(years=pl.Series(years))
    factors = 1 + np.linspace(-0.1, 0.1, 100_001)
    deviation = 0.2 * np.sqrt(years)
    d1 = np.log(100 * factors[:, None] / strike) / deviation + deviation / 2
    net = (np.where(is_call, held, -held) / deviation * np.exp(-d1 * d1 / 2)).sum(axis=1)
    changes = np.flatnonzero(net[:-1] * net[1:] < 0)
    found = zero_gamma_shift(chain)
    if changes.size:
        nearest = np.abs(factors[changes] - 1).min()
        assert found is not None and abs(found - 1) <= nearest + 4e-6


def test_calls_alone_have_no_zero_gamma_level() -> None:
    row = gamma_levels(priced([(100.0, "C", 100, 1, 1.0, 0.2)])).row(0, named=True)
    assert row["zero_gamma"] is None and row["gex_per_point"] > 0


def test_contracts_without_gamma_are_counted_as_left_out() -> None:
    rows = priced([(100.0, "C", 100, 1, 1.0, 0.2), (100.0, "P", 7, 1, None, None)])
    row = gamma_levels(rows).row(0, named=True)
    assert (row["contracts"], row["open_interest_left_out"]) == (1, 7)


def test_sources_are_never_added_together() -> None:
    both = pl.concat([CHAIN, CHAIN.with_columns(source=pl.lit("databento"))])
    assert gamma_levels(both)["call_open_interest"].to_list() == [90, 90]
    assert series_metrics(both).height == 2 and strike_profile(both).height == 6


CONTRACTS = st.dictionaries(
    st.tuples(st.integers(380, 420).map(lambda tick: tick / 4), st.sampled_from("CP")),
    st.tuples(st.integers(0, 10_000), st.floats(0.05, 1.0)),
    min_size=1,
    max_size=30,
)


@given(CONTRACTS)
def test_max_pain_equals_brute_force(held: dict[tuple[float, str], tuple[int, float]]) -> None:
    rows = [(k, side, size, 0, 1.0, iv) for (k, side), (size, iv) in held.items()]

    def payout(settled: float) -> float:
        pays = ((settled - k if side == "C" else k - settled, size) for (k, side), (size, _) in held.items())
        return sum(max(each, 0.0) * size for each, size in pays)

    measured = measure(priced(rows))
    profile, series = measured[STRIKE_PROFILE], measured[SERIES_METRICS]
    assert profile["payout"].to_list() == pytest.approx([20 * payout(k) for k in profile["strike"]])
    least = min(sorted({k for k, _ in held}), key=payout)
    assert series["max_pain"].item() == (least if any(size for size, _ in held.values()) else None)


@given(CONTRACTS)
def test_exposure_adds_up_from_strike_to_series_to_market(
    held: dict[tuple[float, str], tuple[int, float]],
) -> None:
    chain = priced([(k, side, size, 0, 1.0, iv) for (k, side), (size, iv) in held.items()])
    total = sum(
        (1 if side == "C" else -1) * gamma(k, iv) * size * 20 * 100 for (k, side), (size, iv) in held.items()
    )
    measured = measure(chain)
    for table in (STRIKE_PROFILE, SERIES_METRICS, GAMMA_LEVELS):
        assert measured[table]["gex_per_point"].sum() == pytest.approx(total, abs=1e-6)


@given(CONTRACTS)
def test_exposures_equal_differences_of_delta_in_a_plain_loop(
    held: dict[tuple[float, str], tuple[int, float]],
) -> None:
    """Delta exposure, and its change with volatility and time, contract by contract."""
    chain = priced([(k, side, size, 0, 1.0, iv) for (k, side), (size, iv) in held.items()])
    h = 1e-5

    def dollars(vol: float = 0.0, years: float = 0.25) -> float:
        total = 0.0
        for (k, side), (size, iv) in held.items():
            spread = (iv + vol) * math.sqrt(years)
            d1 = math.log(100 / k) / spread + spread / 2
            upper = math.erfc(-d1 / math.sqrt(2)) / 2
            total += (upper if side == "C" else 1 - upper) * size * 20 * 100  # short puts, as long calls
        return total

    row = gamma_levels(chain).row(0, named=True)
    scale = sum(size for size, _ in held.values()) * 2000
    assert row["delta_exposure"] == pytest.approx(dollars(), rel=1e-9, abs=1e-6)
    vanna = (dollars(vol=h) - dollars(vol=-h)) / (2 * h) / 100
    assert row["vanna_exposure"] == pytest.approx(vanna, abs=1e-6 * scale + 1e-9)
    charm = (dollars(years=0.25 - h) - dollars(years=0.25 + h)) / (2 * h) / 365
    assert row["charm_exposure"] == pytest.approx(charm, abs=1e-6 * scale + 1e-9)
    net = row["gex_per_pct"]
    assert row["gamma_regime"] == ("positive" if net > 0 else "negative" if net < 0 else None)


@given(CONTRACTS, CONTRACTS)
def test_walls_are_the_strikes_with_most_gamma_exposure(
    near: dict[tuple[float, str], tuple[int, float]], far: dict[tuple[float, str], tuple[int, float]]
) -> None:
    """Over both series together."""
    series = [[(k, side, size, 0, 1.0, iv) for (k, side), (size, iv) in held.items()] for held in (near, far)]
    later = priced(series[1], years=0.5).with_columns(
        series=pl.lit("Q1B-2025-10-01"), expiration=pl.col("expiration").dt.offset_by("92d")
    )
    row = gamma_levels(pl.concat([priced(series[0]), later])).row(0, named=True)
    for side, name in (("C", "call_wall"), ("P", "put_wall")):
        at: dict[float, float] = {}
        for held, years in ((near, 0.25), (far, 0.5)):
            for (k, kind), (size, iv) in held.items():
                if kind == side:
                    at[k] = at.get(k, 0.0) + gamma(k, iv, years=years) * size * 20 * 100
        most = max(at.values(), default=0.0)
        if most == 0:
            assert row[name] is None
        else:
            assert at[row[name]] == pytest.approx(most, rel=1e-12)


def test_share_left_out_and_prices_of_the_front() -> None:
    rows = priced([(100.0, "C", 30, 1, 1.0, 0.2), (100.0, "P", 10, 1, None, None)])
    later = rows.with_columns(
        series=pl.lit("Q1B-2025-10-01"),
        expiration=pl.col("expiration").dt.offset_by("92d"),
        underlying_price=pl.lit(103.0),
    )
    row = gamma_levels(pl.concat([later, rows])).row(0, named=True)
    assert row["open_interest_left_out_share"] == pytest.approx(20 / 80)
    assert (row["underlying_price"], row["gamma_regime"], row["call_wall"]) == (100.0, "positive", 100.0)
    assert row["put_wall"] is None
    unknown = gamma_levels(rows.with_columns(open_interest=pl.lit(None, pl.Int64))).row(0, named=True)
    assert (
        unknown["open_interest_left_out_share"]
        is unknown["gamma_regime"]
        is unknown["delta_exposure"]
        is None
    )


def test_an_expired_series_is_not_the_front() -> None:
    rows = [(100.0, side, 5, 1, 1.0, 0.2) for side in "CP"]
    later = priced(rows).with_columns(expiration=pl.col("expiration").dt.offset_by("7d"))
    past = priced(rows, forward=98.0, years=-0.001).with_columns(series=pl.lit("Q5A-2025-06-30"))
    row = gamma_levels(pl.concat([past, later])).row(0, named=True)
    assert (row["forward"], row["underlying_price"]) == (100.0, 100.0)


def test_term_slope_is_the_month_less_the_week() -> None:
    def at(days: int, iv: float) -> pl.DataFrame:
        rows = [(strike, side, 5, 1, 1.0, iv) for strike in (99.0, 101.0) for side in "CP"]
        expires = pl.lit(NOON + timedelta(days=days)).cast(INSTANT)
        return priced(rows, years=days / 365).with_columns(series=pl.lit(f"S{days}"), expiration=expires)

    row = gamma_levels(pl.concat([at(7, 0.2), at(30, 0.25), at(90, 0.3)])).row(0, named=True)
    assert row["term_slope"] == pytest.approx(0.05)
    assert gamma_levels(at(7, 0.2))["term_slope"].to_list() == [None]


def test_snapshot_is_measured_once(tmp_path: Path) -> None:
    config = build_settings(data_dir=tmp_path)
    chain = lake_chain().with_columns(open_interest=pl.lit(10, pl.Int64), volume=pl.lit(1, pl.Int64))
    pricing = price_snapshot(config, chain, run_id="first")
    measured = measure_snapshot(config, chain, pricing, run_id="first")
    measure_snapshot(config, chain, pricing, run_id="again")
    for name, rows in measured.items():
        stored = Workspace.of(config).lake.scan(TABLES[name]).collect()
        assert stored.height == rows.height
        assert set(stored["run_id"]) == {"first"} or name == "surface_arbitrage"
    series = measured["series_metrics"].row(0, named=True)
    assert series["atm_iv"] == pytest.approx(0.2, abs=1e-5)
    assert series["expected_move_straddle"] == pytest.approx(
        series["expected_move_iv"] * math.sqrt(2 / math.pi), rel=0.01
    )


def test_chain_from_duckdb_joins_its_pricing() -> None:
    chain = lake_chain()
    pricing = price_chain(chain, rate=0.03)
    in_microseconds = chain.with_columns(pl.col("snapshot_ts").cast(pl.Datetime("us", "UTC")))
    assert_frame_equal(priced_chain(in_microseconds, pricing), priced_chain(chain, pricing))
    assert priced_chain(in_microseconds, pricing)["iv"].count() > 0


def test_an_expired_series_with_an_old_settlement_counts_in_no_metric() -> None:
    chain = lake_chain()
    old = chain.with_columns(
        series=pl.lit("QNE-2025-06-30"),
        root=pl.lit("QNE"),
        contract_key=pl.col("contract_key").str.replace("Q1B-2025-07-01", "QNE-2025-06-30"),
        expiration=pl.col("snapshot_ts").dt.offset_by("-5m"),
        settlement=(pl.col("bid") + pl.col("ask")) / 2,
        settlement_date=pl.lit(date(2025, 6, 27)),
        is_settlement=pl.lit(True),
        bid=pl.lit(None, pl.Float64),
        ask=pl.lit(None, pl.Float64),
    )
    both = pl.concat([old, chain])
    pricing = price_chain(both, rate=0.03)
    settled = pricing.filter(series="QNE-2025-06-30")
    assert settled["implied_volatility"].count() > 0, "the settlement was made when the option was alive"
    rows, alone = (measure(priced_chain(rows, pricing)) for rows in (both, chain))
    exposures = ("forward", "gex_per_pct", "delta_exposure", "charm_exposure", "zero_gamma", "contracts")
    assert_frame_equal(rows[GAMMA_LEVELS].select(exposures), alone[GAMMA_LEVELS].select(exposures))
    of = rows[SERIES_METRICS].filter(series="QNE-2025-06-30").row(0, named=True)
    assert of["forward"] is of["atm_iv"] is of["years"] is of["expected_move_straddle"] is None


def test_an_empty_chain_has_no_metrics() -> None:
    for table, rows in measure(CHAIN.clear()).items():
        assert conform(table, rows.with_columns(run_id=pl.lit("run"))).is_empty()
