"""Interest rates by time to expiration: in words, from the Treasury's file, and as pricing uses them."""

from __future__ import annotations

import math
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import SettingsError
from nq_pipeline.market.pricing import price_chain
from nq_pipeline.market.rates import parse_curve, read_curve
from nq_pipeline_tests.testing.quoted_chains import NOON, SIGMA, F, quoted_series

TREASURY = """Date,"1 Mo","1.5 Month","2 Mo","3 Mo","1 Yr","10 Yr"
11/28/2025,4.05,4.02,N/A,3.88,3.61,4.02
11/26/2025,4.10,,4.05,3.90,3.65,4.00
"""


def test_a_curve_in_words_is_linear_and_level_beyond_its_ends() -> None:
    curve = parse_curve("30=0.043, 90=0.0425")
    years = [0.0, 30 / 365, 60 / 365, 90 / 365, 2.0]
    assert curve.at(years).tolist() == pytest.approx([0.043, 0.043, 0.04275, 0.0425, 0.0425])


@pytest.mark.parametrize(
    "text", ["", "30", "30=4.3", "90=0.04,30=0.04", "30=0.04,30=0.05", "0=0.04", "30=nan", "30=0.04,x=1"]
)
def test_a_curve_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"0\.043"):
        parse_curve(text)


def test_the_treasurys_file_is_converted_to_continuous_compounding(tmp_path: Path) -> None:
    file = tmp_path / "daily-treasury-rates.csv"
    file.write_text(TREASURY)
    curve = read_curve(file, date(2025, 12, 1))
    assert curve is not None
    assert curve.days == pytest.approx((365 / 12, 547.5 / 12, 91.25, 365, 3650))
    # A dollar at 4.05 % twice a year grows as at the continuous rate.
    assert math.exp(curve.rates[0]) == pytest.approx((1 + 0.0405 / 2) ** 2)


def test_the_treasurys_row_of_a_day_counts_from_the_next_session(tmp_path: Path) -> None:
    file = tmp_path / "daily-treasury-rates.csv"
    file.write_text(TREASURY)
    earlier = read_curve(file, date(2025, 11, 28))
    assert earlier is not None and math.exp(earlier.rates[0]) == pytest.approx((1 + 0.041 / 2) ** 2)
    assert read_curve(file, date(2025, 11, 26)) is None


def test_a_year_of_two_digits_is_no_date_and_the_last_row_of_a_day_counts(tmp_path: Path) -> None:
    file = tmp_path / "rates.csv"
    file.write_text('Date,"1 Mo"\n06/09/25,4.30\n')
    with pytest.raises(ValueError, match="has no rates"):
        read_curve(file, date(2024, 1, 2))
    file.write_text('Date,"1 Mo"\n06/09/2025,4.30\n06/09/2025,4.40\n')
    curve = read_curve(file, date(2025, 6, 10))
    assert curve is not None
    assert curve.rates == pytest.approx((2 * math.log1p(0.022),))


def test_a_file_that_has_no_curve_names_the_setting(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.csv", tmp_path / "other.csv"):
        (tmp_path / "other.csv").write_text("a,b\n1,2\n")
        with pytest.raises(SettingsError, match="NQ_RATE_CURVE"):
            build_settings(rate_curve=str(path)).pricing.rate_on(date(2025, 11, 28))
    with pytest.raises(SettingsError, match="NQ_RATE_CURVE"):
        build_settings(rate_curve="30=four")


def test_a_curve_may_be_written_in_the_setting() -> None:
    curve = build_settings(rate_curve="30=0.04").pricing.rate_on(date(2025, 11, 28))
    assert curve == parse_curve("30=0.04")


def test_without_a_curve_the_one_rate_is_used(tmp_path: Path) -> None:
    assert build_settings(risk_free_rate=0.02).pricing.rate_on(date(2025, 6, 10)) == 0.02
    file = tmp_path / "rates.csv"
    file.write_text(TREASURY)
    late = build_settings(risk_free_rate=0.02, rate_curve=str(file)).pricing
    assert late.rate_on(date(2025, 6, 10)) == 0.02


@pytest.mark.parametrize("american_style", [False, True])
def test_every_expiration_is_priced_at_its_own_rate(american_style: bool) -> None:
    """Quotes made at 5 % for 30 days and 3 % for 90 days give back one volatility and one forward."""
    rates = {30: 0.05, 90: 0.03}
    series = [
        quoted_series(
            expiration=NOON + timedelta(days),
            rate=rate,
            american_style=american_style,
            series=f"of {days} days",
        )
        for days, rate in rates.items()
    ]
    priced = price_chain(pl.concat(series), rate=parse_curve("30=0.05,90=0.03"))
    for days, rate in rates.items():
        rows = priced.filter(pl.col("series") == f"of {days} days", pl.col("unpriced").is_null())
        near = rows.filter((pl.col("implied_volatility") - SIGMA).abs() < 1e-3).height
        assert near > 0.9 * rows.height > 0
        assert rows["rate"].unique().to_list() == pytest.approx([rate])
        assert rows["forward"].to_list() == pytest.approx([F] * rows.height, rel=1e-4)
