"""All vendors show one market: the same contract has the same price in every payload."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest
import requests

from nq_pipeline.clock import to_ns
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline_tests.testing.vendor_clients import (
    BARCHART_API,
    BARCHART_HEADERS,
    POLYGON_CHAIN,
    authorize,
    barchart_options,
    barchart_rows,
    get_polygon,
    receive_messages,
    send_request,
    tradovate_socket,
)

NOW, TEN_MINUTES_LATER = "2025-06-10T15:00:00Z", "2025-06-10T15:10:00Z"


def barchart_mids(base: str) -> dict[str, float]:
    """By strike and side; the site is ten minutes late, hence the later instant."""
    return {
        row["symbol"].partition("|")[2]: (row["raw"]["bidPrice"] + row["raw"]["askPrice"]) / 2
        for row in barchart_rows(barchart_options(base, "MC2M25"))
        if row["bidPrice"] != "N/A" and row["askPrice"] != "N/A"
    }


def tradovate_mids(base: str, names: list[str]) -> dict[str, float]:
    found = {}
    with tradovate_socket(base) as connection:
        authorize(connection, base)
        for number, name in enumerate(names, start=2):
            send_request(connection, "md/subscribeQuote", number, {"symbol": name})
            _, quote, _ = receive_messages(connection, 3)
            entries = quote["d"]["quotes"][0]["entries"]
            found[name] = (entries["Bid"]["price"] + entries["Offer"]["price"]) / 2
    return found


def test_barchart_and_tradovate_quote_the_same_mids(at: Callable[..., str]) -> None:
    barchart = barchart_mids(at("barchart", now=TEN_MINUTES_LATER))
    some = sorted(barchart)[::25]
    tradovate = tradovate_mids(at("tradovate", now=NOW), [f"Q2CM5 {key[-1]}{key[:-1]}" for key in some])
    assert len(some) > 20
    assert list(tradovate.values()) == pytest.approx([barchart[key] for key in some], abs=1e-9)


def test_the_market_itself_quotes_what_barchart_shows(at: Callable[..., str]) -> None:
    chain = market(7).chain(datetime(2025, 6, 10, 15, 0, tzinfo=UTC))
    options = chain.filter(series="Q2C-2025-06-11").drop_nulls(["bid", "ask"])
    mids = {
        f"{k:.0f}{t}": (b + a) / 2
        for k, t, b, a in options.select("strike", "option_type", "bid", "ask").rows()
    }
    assert barchart_mids(at("barchart", now=TEN_MINUTES_LATER)) == pytest.approx(mids, abs=1e-9)


def test_polygons_index_and_barcharts_future_differ_by_the_carry(at: Callable[..., str]) -> None:
    value = get_polygon(at("polygon") + POLYGON_CHAIN)["results"][0]["underlying_asset"]["value"]
    quotes = requests.get(
        at("barchart", now=TEN_MINUTES_LATER) + BARCHART_API,
        params={"symbols": "NQM25,NQU25", "fields": "symbol,lastPrice", "raw": "1"},
        headers=BARCHART_HEADERS,
        timeout=60,
    ).json()["data"]
    moment = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
    fair = [float(market(7).markets[0].future(name, to_ns(moment))[0]) for name in ("NQM5", "NQU5")]
    assert [row["raw"]["lastPrice"] for row in quotes] == pytest.approx(fair, abs=0.125)
    assert np.array(fair) / value == pytest.approx([1.001, 1.010], abs=0.002)


def test_proxies_and_options_on_futures_share_a_surface(at: Callable[..., str]) -> None:
    rows = get_polygon(
        at("polygon") + POLYGON_CHAIN, expiration_date="2025-06-13", contract_type="call", limit=250
    )["results"]
    by_moneyness = sorted(
        (abs(row["greeks"]["delta"] - 0.5), row["implied_volatility"]) for row in rows if "greeks" in row
    )
    options = (
        market(7)
        .chain(datetime(2025, 6, 10, 15, 0, tzinfo=UTC))
        .filter(series="QN2-2025-06-13", option_type="C")
    )
    nearest = options.sort((options["delta"] - 0.5).abs())["implied_volatility"][0]
    assert by_moneyness[0][1] == pytest.approx(nearest, rel=0.01)


def test_seeds_in_the_address_are_different_markets(at: Callable[..., str]) -> None:
    seven, eight = (barchart_mids(at("barchart", seed=seed)) for seed in (7, 8))
    assert seven != eight
