"""Polygon's stand-in: pages, keys, filters, and bodies like those of the vendor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from nq_pipeline_tests.testing.vendor_clients import (
    POLYGON_CHAIN,
    POLYGON_HEADERS,
    get_polygon,
    polygon_pages,
)

CONTRACTS = "/v3/reference/options/contracts"


def keys(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        return {p for key, item in value.items() for p in {f"{path}.{key}"} | keys(item, f"{path}.{key}")}
    if isinstance(value, list):
        return {p for item in value for p in keys(item, f"{path}[]")}
    return set()


def test_pages_of_250_hold_every_contract_once(at: Callable[..., str]) -> None:
    found = list(
        polygon_pages(at("polygon") + POLYGON_CHAIN, limit=250, **{"expiration_date.lte": "2025-06-13"})
    )
    tickers = [row["details"]["ticker"] for page in found for row in page]
    assert {len(page) for page in found[:-1]} == {250} and len(found) > 2
    assert len(set(tickers)) == len(tickers) and tickers == sorted(tickers)
    dates = {row["details"]["expiration_date"] for page in found for row in page}
    assert dates == {"2025-06-10", "2025-06-11", "2025-06-12", "2025-06-13"}


def test_without_a_limit_a_page_has_ten_rows(at: Callable[..., str]) -> None:
    assert len(get_polygon(at("polygon") + POLYGON_CHAIN)["results"]) == 10


def test_a_limit_beyond_250_is_refused(at: Callable[..., str]) -> None:
    url = at("polygon") + POLYGON_CHAIN
    assert requests.get(url, params={"limit": 251}, headers=POLYGON_HEADERS, timeout=60).status_code == 400


def test_the_next_url_has_a_cursor_and_no_key(at: Callable[..., str]) -> None:
    reply = requests.get(at("polygon") + POLYGON_CHAIN, params={"apiKey": "top-secret"}, timeout=60).json()
    following = reply["next_url"]
    assert "cursor=" in following and "top-secret" not in following
    assert requests.get(following, timeout=60).status_code == 401
    assert "top-secret" not in json.dumps(get_polygon(following))


def test_filters_narrow_the_chain(at: Callable[..., str]) -> None:
    filters = {"strike_price.gte": 22000, "strike_price.lt": 23000, "contract_type": "put", "limit": 250}
    rows = [
        row["details"] for page in polygon_pages(at("polygon") + POLYGON_CHAIN, **filters) for row in page
    ]
    assert {row["contract_type"] for row in rows} == {"put"}
    assert (
        min(row["strike_price"] for row in rows) >= 22000 and max(row["strike_price"] for row in rows) < 23000
    )


def test_no_key_and_unknown_tickers_get_the_vendors_bodies(at: Callable[..., str]) -> None:
    refused = requests.get(at("polygon") + POLYGON_CHAIN, timeout=60)
    assert refused.status_code == 401 and refused.json()["status"] == "ERROR"
    missing = requests.get(at("polygon") + "/v3/snapshot/options/NDX", headers=POLYGON_HEADERS, timeout=60)
    assert missing.status_code == 404 and missing.json()["message"] == "Ticker not found."


@pytest.mark.parametrize("underlying", ["I:NDX", "QQQ"])
def test_snapshot_items_have_the_recorded_keys(at: Callable[..., str], shared: Path, underlying: str) -> None:
    recorded = json.loads((shared / "polygon/sdkmock_snapshot_options_chain_AAPL.json").read_text())
    answer = get_polygon(f"{at('polygon')}/v3/snapshot/options/{underlying}", limit=250)
    assert keys(answer) - keys(recorded) <= {".next_url", ".results[].underlying_asset.value"}
    assert keys(recorded) - keys(answer) <= {".results[].fmv", ".results[].underlying_asset.price"}


def test_reference_contracts_have_the_keys_of_the_recorded_answer(
    at: Callable[..., str], shared: Path
) -> None:
    recorded = json.loads((shared / "polygon/reference_options_contracts_NDX_20250610.json").read_text())
    ours = get_polygon(at("polygon") + CONTRACTS, underlying_ticker="NDX")
    assert keys(ours) == keys(recorded)
    assert ours["results"][0].keys() == recorded["results"][0].keys()


def test_reference_contracts_and_snapshot_list_the_same(at: Callable[..., str]) -> None:
    one_day = {"expiration_date": "2025-06-12"}
    contracts = list(polygon_pages(at("polygon") + CONTRACTS, underlying_ticker="NDX", limit=1000, **one_day))
    snapshot = list(polygon_pages(at("polygon") + POLYGON_CHAIN, limit=250, **one_day))
    assert {row["ticker"] for page in contracts for row in page} == {
        row["details"]["ticker"] for page in snapshot for row in page
    }


def test_there_are_no_options_on_the_future(at: Callable[..., str]) -> None:
    assert get_polygon(at("polygon") + CONTRACTS, underlying_ticker="NQ")["results"] == []


def test_a_plan_without_the_snapshot_gets_the_observed_error(at: Callable[..., str], shared: Path) -> None:
    observed = json.loads((shared / "polygon/errors_observed_verbatim.json").read_text())[0]
    url = at("polygon", fault="not_entitled")
    reply = requests.get(url + POLYGON_CHAIN, headers=POLYGON_HEADERS, timeout=60)
    assert reply.status_code == observed["http_status"]
    assert {**reply.json(), "request_id": 0} == {**observed["body"], "request_id": 0}
    assert len(get_polygon(url + CONTRACTS, underlying_ticker="NDX")["results"]) == 10


def test_the_market_status_follows_the_clock(at: Callable[..., str]) -> None:
    status = "/v1/marketstatus/now"
    assert get_polygon(at("polygon") + status)["market"] == "open"
    assert get_polygon(at("polygon", now="2025-06-10T03:00:00Z") + status)["market"] == "closed"
