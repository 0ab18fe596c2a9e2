"""What every product of the table keeps, and what is known of each beyond that.

A product that joins is in the contract suite by being in the table. Below it stand the facts that
somebody published: dates, futures, symbols.
"""

from __future__ import annotations

import csv
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.errors import SettingsError
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import MONTH_CODES, PROXY_ROOTS, ROOTS, Contract, Series
from nq_pipeline.market.listing import (
    expiration_date,
    expirations,
    front_future,
    future_expiration,
    underlying_future,
)
from nq_pipeline.market.products import PRODUCTS, PROXIES, FamilyKind, Product, select_products
from nq_pipeline.market.symbology import (
    Unparsed,
    barchart_code,
    globex_code,
    globex_symbol,
    parse_barchart_code,
    parse_globex,
    parse_globex_code,
)

GOLDEN = Path(__file__).with_name("expirations_golden.csv")
EVERY = pytest.mark.parametrize("product", PRODUCTS.values(), ids=list(PRODUCTS))
DAYS = st.dates(date(2021, 1, 1), date(2028, 12, 31))
MOURNING = date(2025, 1, 8)


def series_from(product: Product, start: date, days: int = 45) -> list[Series]:
    return expirations(product.code, start, start + timedelta(days))


# ── the contract suite ──────────────────────────────────────────────────────────────────────────


@EVERY
def test_a_product_is_whole(product: Product) -> None:
    assert product.underlying_class == "future"
    assert product.multiplier > 0
    bounds = [bound for bound, _ in product.ticks]
    assert bounds == sorted(bounds)
    assert bounds[-1] == float("inf")
    assert all(tick > 0 for _, tick in product.ticks)
    assert [family.is_standard for family in product.families].count(True) == 1
    assert product.families[0].is_standard
    assert product.families[-1].kind == "weekly"
    for family in product.families:
        assert family.kind in get_args(FamilyKind)
        assert len(family.barchart) in (0, len(family.roots))
        assert set(family.exercises_into) <= set(product.future_months)
        assert (family.weekday is None) or (0 <= family.weekday <= 4)
        assert family.kind == "weekly" or len(family.roots) == 1


def test_codes_of_roots_are_unique() -> None:
    families = [f for product in (*PRODUCTS.values(), *PROXIES.values()) for f in product.families]
    assert len(ROOTS) + len(PROXY_ROOTS) == sum(len(family.roots) for family in families)
    codes = [root.barchart for root in ROOTS.values() if root.barchart]
    assert len(codes) == len(set(codes))


def test_a_proxy_stands_for_a_product_of_the_table() -> None:
    assert {proxy.stands_for for proxy in PROXIES.values()} <= set(PRODUCTS)
    assert not any(product.stands_for for product in PRODUCTS.values())


@EVERY
@given(start=DAYS)
def test_every_series_expires_on_its_own_weekday(product: Product, start: date) -> None:
    found = series_from(product, start)
    assert [s.expiration for s in found] == sorted(s.expiration for s in found)
    assert len({s.key for s in found}) == len(found)
    for s in found:
        session = sessions.session(s.expiration_date)
        assert session.open < s.expiration <= session.close
        family, day = s.root_info.family, s.expiration_date
        if s.root_info.week and day != MOURNING:
            assert (day.weekday(), (day.day - 1) // 7 + 1) == (family.weekday, s.root_info.week)


@EVERY
@given(start=DAYS)
def test_no_two_options_end_at_the_same_time(product: Product, start: date) -> None:
    """A day has one weekly; beside it at most the quarterly option, at another hour."""
    ends = [s.expiration for s in series_from(product, start) if s.expiration_date != MOURNING]
    assert len(set(ends)) == len(ends)


@EVERY
@given(start=DAYS)
def test_names_go_to_the_exchange_and_back(product: Product, start: date) -> None:
    for s in series_from(product, start, 30):
        contract = Contract(s, "C", 4210.5)
        on = s.expiration_date - timedelta(days=60)
        assert parse_globex_code(globex_code(s), on=on) == s
        assert parse_globex_code(globex_code(s), expiration=s.expiration_date) == s
        assert parse_globex(globex_symbol(contract), on=on) == contract
        assert expiration_date(s.root, *s.contract_month) == s.expiration_date


@EVERY
@given(start=DAYS)
def test_barchart_codes_come_back_or_are_known_to_be_unknown(product: Product, start: date) -> None:
    for s in series_from(product, start, 30):
        code = barchart_code(s)
        if s.root_info.barchart is None:
            assert isinstance(code, Unparsed)
        else:
            assert parse_barchart_code(str(code)) == s


@EVERY
@given(start=DAYS)
def test_the_future_is_listed_and_outlives_the_option(product: Product, start: date) -> None:
    for s in series_from(product, start):
        future = underlying_future(s, 2)
        month, year = MONTH_CODES.index(future[-3]) + 1, 2000 + int(future[-2:])
        assert future[:-3] == product.code
        assert month in (s.root_info.family.exercises_into or product.future_months)
        assert future_expiration(product, year, month) >= s.expiration
        assert (year, month) >= s.contract_month
    assert front_future(product, start).startswith(product.code)


@EVERY
def test_a_year_lists_every_root(product: Product) -> None:
    found = {s.root for s in expirations(product.code, date(2025, 1, 1), date(2026, 12, 31))}
    assert found == {root for family in product.families for root in family.roots}


# ── choosing ────────────────────────────────────────────────────────────────────────────────────


def test_products_are_chosen_by_their_codes_each_once() -> None:
    assert [product.code for product in select_products(("GC", "NQ", "GC"))] == ["GC", "NQ"]


@pytest.mark.parametrize("codes", [(), ("CL",), ("NQ", "nq")])
def test_an_unknown_product_is_refused_with_the_known_ones(codes: tuple[str, ...]) -> None:
    with pytest.raises(
        SettingsError, match=r"NQ_PRODUCTS: .* is not in the product table; products are NQ, ES, GC"
    ):
        select_products(codes)


# ── what was published ──────────────────────────────────────────────────────────────────────────


def test_published_expirations_and_futures_agree_with_the_rules() -> None:
    """Each line of the table says where it is from."""
    lines = list(csv.DictReader(GOLDEN.read_text().splitlines()))
    assert {line["product"] for line in lines} == set(PRODUCTS)
    for line in lines:
        series = parse_globex_code(line["code"], on=date.fromisoformat(line["on"]))
        assert isinstance(series, Series), line
        assert series.root_info.product.code == line["product"], line
        if line["expires"]:
            assert series.expiration == datetime.fromisoformat(line["expires"]), line
        if line["future"]:
            assert underlying_future(series) == line["future"], line


def test_gold_months_deliver_into_the_futures_of_the_fact_card() -> None:
    """CME's fact card on gold options: the future of each option month."""
    months = "FGHJKMNQUVXZ"
    into = "GGJJMMQQVVZZ"
    found = [parse_globex_code(f"OG{month}6", on=date(2025, 12, 1)) for month in months]
    assert [underlying_future(s)[2] for s in found if isinstance(s, Series)] == list(into)


def test_gold_never_expires_on_a_friday_or_before_a_holiday() -> None:
    ends = [
        s.expiration_date for s in expirations("GC", date(2021, 1, 1), date(2028, 12, 31)) if s.root == "OG"
    ]
    assert len(ends) == 8 * 12
    for day in ends:
        following = day + timedelta(days=1)
        assert day.weekday() < 4
        assert sessions.is_trade_date(following)
        assert sessions.session(following).rth is not None


def test_a_gold_weekly_may_expire_at_the_end_of_the_month() -> None:
    assert "G5M-2025-06-30" in [s.key for s in expirations("GC", date(2025, 6, 30), date(2025, 6, 30))]


def test_no_gold_weekly_ends_on_the_day_of_the_monthly_option() -> None:
    assert [s.key for s in expirations("GC", date(2025, 6, 25), date(2025, 6, 25))] == ["OG-2025-06-25"]


def test_es_has_no_weekly_on_the_quarterly_friday() -> None:
    assert [s.key for s in expirations("ES", date(2025, 6, 20), date(2025, 6, 20))] == ["ES-2025-06-20"]
