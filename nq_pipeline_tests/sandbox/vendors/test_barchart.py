"""Barchart's stand-in against recorded answers and against its own control totals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import requests
from bs4 import BeautifulSoup

from nq_pipeline.sandbox.vendors.barchart.page import PAGE_FIELDS
from nq_pipeline_tests.testing.vendor_clients import (
    BARCHART_API,
    BARCHART_HEADERS,
    BARCHART_PARAMS,
    barchart_options,
    barchart_rows,
)


def leaf_types(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every path of a JSON value with its type; list items share one path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaf_types(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from leaf_types(item, f"{path}[]")
    else:
        yield path, "number" if isinstance(value, (int, float)) else type(value).__name__


def types(value: Any) -> dict[str, set[str]]:
    found = defaultdict(set)
    for path, kind in leaf_types(value):
        found[path].add(kind)
    return found


def test_an_answer_has_the_recorded_keys_and_types(at: Callable[..., str], shared: Path) -> None:
    recorded = types(json.loads((shared / "barchart/chain_MC2M25_20250610T1449Z.json").read_text()))
    ours = types(barchart_options(at("barchart"), "MC2M25"))
    assert set(ours) == set(recorded)
    assert {path: kinds for path, kinds in ours.items() if not kinds <= recorded[path]} == {}


def test_an_empty_answer_has_the_recorded_keys(at: Callable[..., str], shared: Path) -> None:
    recorded = json.loads((shared / "barchart/chain_empty_20250608.json").read_text())
    ours = barchart_options(at("barchart"), "MC2F01")
    assert {key: ours[key] for key in ("count", "total", "data")} == {"count": 0, "total": 0, "data": []}
    assert set(types(ours)) == set(types(recorded))


def test_the_futures_list_has_the_recorded_keys_and_types(at: Callable[..., str], shared: Path) -> None:
    recorded = json.loads((shared / "barchart/futures_list_ZW_20250602_fractional_unch.json").read_text())
    fields = ",".join(recorded["meta"]["field"]["shortName"])
    params = {"symbol": "NQ^F", "fields": fields, "raw": "1", "meta": BARCHART_PARAMS["meta"]}
    ours = requests.get(
        at("barchart") + BARCHART_API, params=params, headers=BARCHART_HEADERS, timeout=60
    ).json()
    assert set(types(ours)) == set(types(recorded))
    assert ours["count"] == ours["total"] == len(ours["data"])


def test_a_grouped_answer_counts_groups_and_totals_rows(at: Callable[..., str]) -> None:
    answer = barchart_options(at("barchart"), "MC2M25")
    assert answer["count"] == 2 and set(answer["data"]) == {"Call", "Put"}
    assert answer["total"] == len(barchart_rows(answer)) > 500


def test_rows_carry_one_year_digit(at: Callable[..., str]) -> None:
    two, one = barchart_options(at("barchart"), "MC2M25"), barchart_options(at("barchart"), "MC2M5")
    assert two == one
    assert {row["symbol"].split("|")[0] for row in barchart_rows(two)} == {"MC2M5"}


def test_quarterly_options_have_the_futures_symbol(at: Callable[..., str]) -> None:
    assert {
        row["symbol"].split("|")[0] for row in barchart_rows(barchart_options(at("barchart"), "NQM25"))
    } == {"NQM5"}


def test_the_premium_is_twenty_times_the_last_price(at: Callable[..., str]) -> None:
    for row in barchart_rows(barchart_options(at("barchart"), "MC2M25")):
        assert row["raw"]["premium"] == pytest.approx(20 * row["raw"]["lastPrice"], abs=1e-6)


def test_display_and_raw_values_agree(at: Callable[..., str]) -> None:
    prices = ("openPrice", "highPrice", "lowPrice", "lastPrice", "priceChange", "bidPrice", "askPrice")
    for row in barchart_rows(barchart_options(at("barchart"), "MC2M25")):
        for name in prices:
            text, number = row[name], row["raw"][name]
            if text in ("N/A", "unch"):
                assert number == 0
            else:
                assert float(text.rstrip("s").replace(",", "")) == number
        for name in ("volume", "openInterest"):
            text, number = row[name], row["raw"][name]
            assert (number is None) if text == "N/A" else (int(text.replace(",", "")) == number > 0)


def test_every_kind_of_row_that_was_recorded_occurs(at: Callable[..., str]) -> None:
    all_rows = barchart_rows(barchart_options(at("barchart"), "MC2M25"))
    settled = [row for row in all_rows if row["lastPrice"].endswith("s")]
    today = [row for row in all_rows if row["tradeTime"].endswith(" CT")]
    assert settled and today and len(settled) > len(today)
    assert all("/" in row["tradeTime"] for row in settled)
    assert any(row["volume"] != "N/A" for row in settled), "volume of a session before"
    assert any(row["bidPrice"] == "N/A" for row in all_rows)
    assert any("," in row["strike"] and row["raw"]["strike"] for row in all_rows)
    newest = max(row["raw"]["tradeTime"] for row in today)
    assert newest <= 1_749_567_600 - 600, "the site is ten minutes late"


def test_an_expired_series_has_no_quotes_and_exact_settlements(at: Callable[..., str]) -> None:
    expired = barchart_rows(barchart_options(at("barchart", now="2025-06-10T21:30:00Z"), "MM2M25"))
    assert {row["bidPrice"] for row in expired} == {row["askPrice"] for row in expired} == {"N/A"}
    assert any(round(row["raw"]["lastPrice"] * 100) % 25 for row in expired)
    assert [row["symbol"] for row in expired if not row["lastPrice"].endswith("s")] == [expired[0]["symbol"]]


def test_an_expired_series_shows_its_trades_until_the_close(
    at: Callable[..., str],
) -> None:
    expired = barchart_rows(barchart_options(at("barchart", now="2025-06-10T20:30:00Z"), "MM2M25"))
    assert {row["bidPrice"] for row in expired} == {"N/A"}
    traded = [row["raw"]["tradeTime"] for row in expired if row["tradeTime"].endswith(" CT")]
    assert 1_749_567_600 < max(traded) <= 1_749_585_600, "of today, and none after 15:00 in Chicago"


@pytest.mark.parametrize(("now", "day"), [("20:35", "06/09/25"), ("20:45", "06/10/25")])
def test_settlements_are_the_previous_ones_until_published(
    at: Callable[..., str], now: str, day: str
) -> None:
    shown = barchart_rows(barchart_options(at("barchart", now=f"2025-06-10T{now}:00Z"), "MC2M25"))
    assert {row["tradeTime"] for row in shown if row["lastPrice"].endswith("s")} == {day}
    assert any(row["tradeTime"].endswith(" CT") for row in shown), "the session goes on"


def test_a_past_series_is_an_empty_list(at: Callable[..., str]) -> None:
    assert barchart_options(at("barchart"), "MC1M25")["data"] == []


def test_rows_can_be_grouped_by_strike_or_not_at_all(at: Callable[..., str]) -> None:
    by_strike = barchart_options(at("barchart"), "MC2M25", groupBy="strikePrice")
    assert set(map(len, by_strike["data"].values())) == {2}
    flat = barchart_options(at("barchart"), "MC2M25", groupBy="")
    assert flat["count"] == flat["total"] == len(flat["data"])


def test_fields_and_raw_values_are_sent_on_request_only(at: Callable[..., str]) -> None:
    reply = requests.get(
        at("barchart") + BARCHART_API,
        params={"symbol": "MC2M25", "fields": "symbol,optImpliedVolatility,delta,unheardOf"},
        headers=BARCHART_HEADERS,
        timeout=60,
    ).json()
    row = reply["data"][200]
    assert set(row) == {"symbol", "optImpliedVolatility", "delta", "unheardOf", "symbolCode", "symbolType"}
    assert row["optImpliedVolatility"].endswith("%") and row["unheardOf"] == "N/A"


def test_the_api_requires_the_header_or_the_token(at: Callable[..., str]) -> None:
    reply = requests.get(at("barchart") + BARCHART_API, params={"symbol": "MC2M25"}, timeout=60)
    assert reply.status_code == 403 and "text/html" in reply.headers["content-type"]


def test_a_page_visit_gives_the_token_for_one_api_request(at: Callable[..., str]) -> None:
    with requests.Session() as session:
        page = session.get(at("barchart") + "/futures/quotes/NQM25/options", timeout=60)
        assert {"XSRF-TOKEN", "laravel_session"} <= set(page.cookies.keys())
        token = unquote(session.cookies["XSRF-TOKEN"])
        request: dict[str, Any] = {"params": {"symbol": "MC2M25"}, "headers": {"x-xsrf-token": token}}
        assert session.get(at("barchart") + BARCHART_API, **request).status_code == 200
        assert unquote(session.cookies["XSRF-TOKEN"]) != token, "the token changes with every answer"
        assert session.get(at("barchart") + BARCHART_API, **request).status_code == 403


def test_the_page_has_expiration_underlying_and_totals(at: Callable[..., str]) -> None:
    url = at("barchart") + "/futures/quotes/NQM25/options/MC2M25"
    page = BeautifulSoup(requests.get(url, timeout=60).text, "lxml")
    toolbar = page.select_one(".bc-options-toolbar__second-row")
    assert toolbar is not None
    assert " ".join(toolbar.get_text().split()).startswith("1 Days to expiration on 06/11/25")
    assert "$20" in toolbar.get_text()
    config = page.select_one("[data-api-config]")
    assert config is not None
    request = json.loads(str(config["data-api-config"]))["api"]
    assert request["symbol"] == "MC2M25" and request["fields"] == PAGE_FIELDS
    underlying = json.loads(str(config["data-options"]))["itm"]["lastPrice"]
    dynamic = page.select_one("script#bc-dynamic-config")
    header = page.select_one("[data-ng-controller=symbolHeaderCtrl]")
    assert dynamic is not None and header is not None
    current = json.loads(dynamic.text)["currentSymbol"]["raw"]
    assert (current["symbol"], current["lastPrice"], current["pointValue"]) == ("NQM25", underlying, 20)
    shown = json.loads(str(header["data-ng-init"]).removeprefix("init(").removesuffix(")"))
    assert float(shown["lastPrice"].replace(",", "")) == underlying

    api = barchart_rows(barchart_options(at("barchart"), "MC2M25"))
    totals = {}
    for row in page.select(".bc-futures-options-quotes-totals__data-row"):
        name, _, text = " ".join(row.get_text().split()).rpartition(" ")
        totals[name] = float(text.strip("$").replace(",", ""))
    for side in ("Put", "Call"):
        mine = [row["raw"] for row in api if row["optionType"] == side]
        assert totals[f"{side} Open Interest Total"] == sum(row["openInterest"] or 0 for row in mine)
        assert totals[f"{side} Premium Total"] == pytest.approx(sum(row["premium"] for row in mine), abs=0.01)


def test_the_dropdowns_lead_to_every_family_and_week(at: Callable[..., str]) -> None:
    url = at("barchart") + "/futures/quotes/NQM25/options/MC2M25"
    page = BeautifulSoup(requests.get(url, timeout=60).text, "lxml")
    families = page.select("select#bc-options-toolbar__dropdown-type option")
    assert len(families) == 7
    weeks = page.select("select#bc-options-toolbar__dropdown-month option")
    assert "Week 2: Jun 2025" in {week.text for week in weeks}
    assert [o.text for o in families if o.has_attr("selected")] == ["Wednesday Weekly Options"]
    for option in [*families, *weeks]:
        assert requests.get(at("barchart") + str(option["value"]), timeout=60).status_code == 200


@pytest.mark.parametrize("code", ["MC2F01", "XX", "MM1"])
def test_a_page_of_an_unknown_series_is_not_found(at: Callable[..., str], code: str) -> None:
    url = f"{at('barchart')}/futures/quotes/NQM25/options/{code}"
    assert requests.get(url, timeout=60).status_code == 404
