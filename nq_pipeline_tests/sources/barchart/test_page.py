"""What is read from an options page, from small pages made here."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest

from nq_pipeline.market.contracts import Series
from nq_pipeline.sources.barchart.page import OptionsPage, parse_page
from nq_pipeline.sources.barchart.parse import parse_chain, parse_futures
from nq_pipeline_tests.testing.barchart_boards import board, chain, page

TODAY = date(2025, 6, 10)
WEDNESDAY = Series("Q2C", date(2025, 6, 11))
PAGE = page("MC2M25", "06/11/25", put=8, call=8)


def controls(html: bytes, *, open_interest: bool = True) -> dict[str, bool]:
    rows = parse_chain(chain(board("MC2M5")), WEDNESDAY, "MC2M5", trade_date=TODAY).rows
    return parse_page(html).controls(WEDNESDAY, rows, open_interest=open_interest)


def test_a_page_states_code_expiration_point_value_and_totals() -> None:
    found = parse_page(PAGE)
    assert (found.code, found.expiration_date, found.point_value) == ("MC2M25", date(2025, 6, 11), 20.0)
    assert found.open_interest == {"P": 8.0, "C": 8.0}


def test_a_page_without_its_lower_half_is_read_as_far_as_it_goes() -> None:
    half = PAGE[: PAGE.index(b"<div class=")]
    assert parse_page(half).code == "MC2M25"
    assert parse_page(half).open_interest == {}
    assert parse_page(b"<html>") == OptionsPage()


@pytest.mark.parametrize(
    ("html", "broken"),
    [
        (PAGE, None),
        (PAGE.replace(b"06/11/25", b"06/12/25"), "expiration_equals_page"),
        (PAGE.replace(b"$20", b"$2"), "multiplier_equals_page"),
        (PAGE.replace(b"<b>8</b>", b"<b>1,008</b>"), "open_interest_equals_page"),
    ],
)
def test_a_page_that_contradicts_its_rows_breaks_one_control(html: bytes, broken: str | None) -> None:
    names = ("expiration_equals_page", "multiplier_equals_page", "open_interest_equals_page")
    assert controls(html) == {name: name != broken for name in names}


def test_open_interest_of_another_time_is_not_compared() -> None:
    assert "open_interest_equals_page" not in controls(PAGE, open_interest=False)


def test_prices_in_eighths_are_read() -> None:
    shown = {"ZWN25": ("539-4s", 539.5), "ZWU25": ("554-0", 554.0), "ZWZ25": ("577-2s", 577.25)}
    rows = [
        {
            "symbol": symbol,
            "lastPrice": text,
            "tradeTime": "06/10/25",
            "raw": {"tradeTime": 1749513600, **raw},
        }
        for symbol, (text, price) in shown.items()
        for raw in ({"lastPrice": price}, {})
    ]
    for half in (rows[::2], rows[1::2]):
        prices = parse_futures(chain(half, group=None), list(shown), trade_date=TODAY)
        assert {symbol: price for symbol, (price, _) in prices.items()} == {
            symbol: price for symbol, (_, price) in shown.items()
        }


def test_an_unchanged_price_has_a_change_of_zero() -> None:
    rows = board("MC2M5")
    unchanged = parse_chain(chain(rows), WEDNESDAY, "MC2M5", trade_date=TODAY).rows
    assert [row["priceChange"] for row in rows].count("unch") == 4
    assert unchanged.filter(pl.col("change") == 0.0).height == 4
