"""What a page of Polygon's means, and what becomes of one that means nothing."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from nq_pipeline.errors import BadPayload, NotConfigured, NotEntitled, RateLimited, SourceError, Unavailable
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.products import NDX, QQQ, Product
from nq_pipeline.sources.base import ChainRequest
from nq_pipeline.sources.polygon.normalize import chain_rows, regular_session
from nq_pipeline.sources.polygon.parse import NoSuchAddress, error_of_reply, next_page, parse_page
from nq_pipeline.transport.vendor_session import Reply
from nq_pipeline_tests.testing.proxies import NOON, contract, item, page

DAY = date(2025, 6, 20)
REQUEST = ChainRequest(
    trade_date=date(2025, 6, 10),
    snapshot_ts=NOON,
    moment=NOON,
    series=(Series("QN3", DAY),),
    run_id="run-1",
    environment="live",
)


def rows_of(body: bytes, product: Product = NDX) -> pl.DataFrame:
    rows = parse_page(body, product, what="a page").rows
    named = rows.with_columns(request_id=pl.lit("q"), raw_sha256=pl.lit("s"))
    return chain_rows(named, product, 1_749_567_600_000_000_000, REQUEST.trade_date, REQUEST)


def row_of(**blocks: Any) -> dict[str, Any]:
    return rows_of(page([item("NDXP", DAY, "C", 21800, **blocks)])).row(0, named=True)


def drops_of(*results: Any) -> Counter[str]:
    return parse_page(page(results), NDX, what="a page").dropped


# What a row means


def test_a_whole_item_fills_the_row() -> None:
    row = row_of()
    assert row["contract_key"] == "NDXP-2025-06-20-C-21800"
    assert row["raw_symbol"] == row["vendor_symbol"] == "O:NDXP250620C21800000"
    assert (row["underlying_class"], row["underlying"], row["underlying_price"]) == ("index", "NDX", 21750.5)
    assert (row["bid"], row["bid_size"], row["ask"], row["ask_size"]) == (100.5, 4, 102.5, 7)
    assert (row["last"], row["last_ts"]) == (101.25, NOON - timedelta(minutes=1))
    assert row["quote_ts"] == row["as_of"] == NOON
    assert (row["open"], row["high"], row["low"], row["change"]) == (90.0, 110.0, 88.5, 3.25)
    assert (row["volume"], row["open_interest"], row["multiplier"]) == (42, 1234, 100.0)
    assert (row["settlement_style"], row["exercise_style"]) == ("PM", "european")
    assert row["expiration"] == datetime(2025, 6, 20, 20, 0, tzinfo=UTC)


def test_greeks_are_in_the_units_of_the_schema() -> None:
    row = row_of()
    assert (row["implied_volatility"], row["delta"], row["gamma"], row["theta"]) == (0.21, 0.5, 0.001, -12.5)
    assert row["vega"] == 825.0


def test_index_monthlies_are_am_settled_and_funds_american() -> None:
    monthly = rows_of(page([item("NDX", DAY, "P", 21800)])).row(0, named=True)
    fund = rows_of(page([item("QQQ", DAY, "P", 530.5)]), QQQ).row(0, named=True)
    assert (monthly["settlement_style"], monthly["expiration"]) == (
        "AM",
        datetime(2025, 6, 20, 13, 30, tzinfo=UTC),
    )
    assert (fund["underlying_class"], fund["exercise_style"], fund["strike"]) == ("etf", "american", 530.5)


@pytest.mark.parametrize(
    "block",
    ["last_quote", "last_trade", "day", "greeks", "underlying_asset", "implied_volatility", "open_interest"],
)
@pytest.mark.parametrize("value", [None, {}])
def test_any_block_may_be_missing_or_empty(block: str, value: Any) -> None:
    if block in ("implied_volatility", "open_interest") and value == {}:
        value = None
    assert row_of(**{block: value})["contract_key"] == "NDXP-2025-06-20-C-21800"


def test_zero_is_the_vendors_word_for_no_quote() -> None:
    row = row_of(last_quote={"bid": 0, "bid_size": 0, "ask": 0.05, "ask_size": 20})
    assert (row["bid"], row["bid_size"], row["ask"], row["ask_size"]) == (None, None, 0.05, 20)


def test_a_day_bar_of_another_day_has_no_volume_for_this_session() -> None:
    old = {
        "open": 1.0,
        "high": 2.0,
        "low": 0.5,
        "close": 1.5,
        "volume": 9,
        "last_updated": 1_749_182_400_000_000_000,
    }
    row = row_of(day=old, last_trade=None)
    assert [row[name] for name in ("volume", "open", "high", "low", "change")] == [None] * 5
    assert (row["last"], row["last_ts"]) == (1.5, datetime(2025, 6, 6, 4, 0, tzinfo=UTC))


def test_as_of_delayed_quotes_is_their_own_time() -> None:
    rows = rows_of(
        page([item("NDXP", DAY, "C", 21800), item("NDXP", DAY, "C", 21900, at=NOON - timedelta(hours=1))])
    )
    assert rows["as_of"].to_list() == [NOON, NOON]
    assert rows["quote_ts"].to_list() == [NOON, NOON - timedelta(hours=1)]


def test_contracts_without_prices_are_rows_of_nulls() -> None:
    row = rows_of(page([contract("NDX", DAY, "C", 21800)])).row(0, named=True)
    assert row["contract_key"] == "NDX-2025-06-20-C-21800"
    assert {
        row[name] for name in ("bid", "ask", "last", "volume", "open_interest", "delta", "underlying_price")
    } == {None}


def test_before_the_open_the_last_regular_session_counts() -> None:
    tuesday_evening = datetime(2025, 6, 11, 1, 0, tzinfo=UTC)
    assert regular_session(tuesday_evening).trade_date == date(2025, 6, 10)
    assert regular_session(datetime(2025, 6, 11, 14, 0, tzinfo=UTC)).trade_date == date(2025, 6, 11)


# What is dropped, and counted


def test_everything_dropped_has_a_number() -> None:
    good = item("NDXP", DAY, "C", 21800)
    assert drops_of(good) == {}
    assert drops_of(good, 7) == {"malformed_cell": 1, "malformed_row": 1}
    assert drops_of(good, {"open_interest": 3}) == {"malformed_row": 1}
    assert drops_of(good, item("QQQ1", DAY, "C", 500)) == {"unknown_symbol": 1}
    assert drops_of(good, {**good, "details": {**good["details"], "strike_price": 9}}) == {
        "contradictory_row": 1
    }
    assert drops_of(good, {**good, "details": {**good["details"], "contract_type": "put"}}) == {
        "contradictory_row": 1
    }
    assert drops_of(good, {**good, "details": {**good["details"], "expiration_date": "2025-06-21"}}) == {
        "contradictory_row": 1
    }
    assert drops_of(good, {"ticker": "x", "error": "NOT_FOUND", "message": "no"}) == {"vendor_error": 1}
    assert drops_of(good, {"ticker": "x", "error": "NOT_ENTITLED"}) == {"vendor_not_entitled": 1}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ({"bid": "cheap"}, {"malformed_cell": 1}),
        ({"bid": [1]}, {"malformed_cell": 1}),
        ({"bid": True}, {"malformed_cell": 1}),
        ({"bid_size": 1.5}, {"fractional_size": 1}),
        ({"bid_size": -1}, {"malformed_cell": 1}),
        ({"bid_size": 3.0}, {}),
        ({"last_updated": 12}, {"malformed_cell": 1}),
        ({"last_updated": "now"}, {"malformed_cell": 1}),
        ({"last_updated": 0}, {}),
        ({"bid_size": 2**64 - 1}, {"malformed_cell": 1}),
        ({"bid_size": 2**63 - 1}, {"malformed_cell": 1}),
    ],
)
def test_a_bad_cell_costs_that_cell_only(cell: dict[str, Any], expected: dict[str, int]) -> None:
    good = item("NDXP", DAY, "C", 21800)
    bad = {**good, "last_quote": {**good["last_quote"], **cell}}
    assert drops_of(bad) == expected
    row = rows_of(page([bad])).row(0, named=True)
    assert (row["ask"], row["open_interest"], row["last"]) == (102.5, 1234, 101.25)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 400, "NaN", '"\\ud800"'])
def test_a_number_that_nothing_holds_costs_its_cell_only(number: str) -> None:
    good = item("NDXP", DAY, "C", 21800)
    body = page([{**good, "last_quote": {**good["last_quote"], "bid": "@"}}, item("NDXP", DAY, "P", 21800)])
    body = body.replace(b'"@"', number.encode())
    assert parse_page(body, NDX, what="a page").dropped == {"malformed_cell": 1}
    first, second = rows_of(body).iter_rows(named=True)
    assert (first["bid"], first["ask"], first["open_interest"]) == (None, 102.5, 1234)
    assert (second["bid"], second["ask"]) == (100.5, 102.5)


def test_a_bad_row_does_not_change_the_good_ones() -> None:
    good = [item("NDXP", DAY, "C", 21800.0 + 100 * n) for n in range(5)]
    mixed = [good[0], 7, good[1], {"details": "?"}, good[2], None, *good[3:]]
    assert_frame_equal(rows_of(page(good)), rows_of(page(mixed)))


# What is no page


def test_no_results_is_not_an_empty_chain() -> None:
    assert parse_page(page([]), NDX, what="a page").rows.is_empty()
    for body in (
        b'{"status":"OK"}',
        b'{"status":"OK","results":null}',
        b"[]",
        b"null",
        b"",
        b"<html>",
        b'{"results":{}}',
    ):
        with pytest.raises(BadPayload):
            parse_page(body, NDX, what="a page")


def test_delayed_is_data() -> None:
    assert (
        parse_page(page([item("NDXP", DAY, "C", 1)], status="DELAYED"), NDX, what="a page").rows.height == 1
    )


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"status": "NOT_AUTHORIZED", "message": "You are not entitled to this data."}, NotEntitled),
        ({"status": "ERROR", "error": "You've exceeded the maximum requests per minute"}, RateLimited),
        ({"status": "ERROR", "error": "something else"}, Unavailable),
        ({"status": "NOT_FOUND", "message": "Ticker not found."}, NoSuchAddress),
        ({"results": [{"ticker": "x", "error": "NOT_ENTITLED", "message": "m"}]}, NotEntitled),
    ],
)
def test_an_error_with_status_200_is_an_error(body: dict[str, Any], kind: type[SourceError]) -> None:
    with pytest.raises(kind):
        parse_page(orjson.dumps(body), NDX, what="a page")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, {"status": "ERROR", "error": "Unknown API Key"}, NotConfigured),
        (403, {"status": "NOT_AUTHORIZED", "message": "You are not entitled to this data."}, NotEntitled),
        (403, {"status": "NOT_AUTHORIZED", "message": "Your plan doesn't include this data"}, NotEntitled),
        (403, {"status": "NOT_AUTHORIZED", "message": "Attempted to request today's data"}, NotEntitled),
        (404, {"status": "NOT_FOUND", "message": "Ticker not found."}, NoSuchAddress),
        (429, {"status": "ERROR", "error": "You've exceeded the maximum requests"}, RateLimited),
        (429, None, RateLimited),
    ],
)
def test_the_known_refusals_are_what_they_say(
    status: int, body: dict[str, str] | None, kind: type[SourceError]
) -> None:
    sent = orjson.dumps(body) if body else b""
    found = error_of_reply(Reply("snapshot", status, {}, sent, 0, "", "", False, ""))
    assert type(found) is kind
    assert all(words in str(found) for name, words in (body or {}).items() if name != "status")


def test_the_vendors_words_are_made_harmless() -> None:
    said = "\x1b[31mred\n" + "x" * 500
    reply = Reply(
        "snapshot", 403, {}, orjson.dumps({"status": "NOT_AUTHORIZED", "message": said}), 0, "", "", False, ""
    )
    assert "\x1b" not in str(error_of_reply(reply))
    assert len(str(error_of_reply(reply))) < 300


# Pages after the first


@pytest.mark.parametrize(
    "evil",
    [
        "https://evil.example/v3/x?cursor=abc&apiKey=stolen",
        "//evil.example/v3/x?cursor=abc",
        "@evil.example/v3/x?cursor=abc",
        ":443@evil.example/v3/x?cursor=abc",
    ],
)
def test_the_next_page_is_never_on_another_host(evil: str) -> None:
    path, params = next_page(evil, "https://api.massive.com")
    assert path.startswith("/")
    assert not path.startswith("//")
    assert params == {"cursor": "abc"}


# Whatever comes


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
)
NAMES = [
    "details",
    "ticker",
    "last_quote",
    "bid",
    "bid_size",
    "last_updated",
    "day",
    "volume",
    "greeks",
    "vega",
    "open_interest",
    "underlying_asset",
    "value",
    "error",
    "strike_price",
    "expiration_date",
]
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)


@st.composite
def spoilt_items(draw: st.DrawFn) -> Any:
    """A good item with one of its nodes replaced by anything."""
    whole = item("NDXP", DAY, draw(st.sampled_from("CP")), draw(st.integers(1, 99_999)))
    name = draw(st.sampled_from(sorted(whole)))
    inner = whole[name]
    if isinstance(inner, dict) and draw(st.booleans()):
        whole[name] = {**inner, draw(st.sampled_from(sorted(inner))): draw(JSON)}
    else:
        whole[name] = draw(JSON)
    return whole


@given(st.lists(spoilt_items() | JSON, max_size=4))
def test_any_results_give_rows_and_counts_or_a_typed_error(results: list[Any]) -> None:
    try:
        parsed = parse_page(page(results), NDX, what="a page")
    except NotEntitled:
        return
    dropped_rows = sum(
        n for name, n in parsed.dropped.items() if name not in ("malformed_cell", "fractional_size")
    )
    assert parsed.rows.height + dropped_rows == len(results)
    unique = parsed.rows.unique(["root", "expiration_date", "option_type", "strike"], maintain_order=True)
    if unique.height:
        frame = chain_rows(
            unique.with_columns(request_id=pl.lit("q"), raw_sha256=pl.lit("s")),
            NDX,
            0,
            REQUEST.trade_date,
            REQUEST,
        )
        assert dict(frame.schema) == dict(SOURCE_CHAIN.schema)
        for name in ("bid", "ask", "last", "delta", "vega"):
            assert frame[name].is_finite().all()


@given(st.binary(max_size=60) | JSON.map(orjson.dumps))
def test_any_body_gives_a_page_or_a_typed_error(body: bytes) -> None:
    try:
        parse_page(body, NDX, what="a page")
    except SourceError as error:
        assert str(error)


@given(st.text(max_size=40))
def test_any_next_url_stays_below_our_address(text: str) -> None:
    try:
        path, _ = next_page(text, "https://api.massive.com")
    except SourceError:
        return
    assert path.startswith("/")


# Recorded payloads


def test_recorded_ndx_contracts_are_accounted_for_cell_by_cell(shared: Path) -> None:
    body = (shared / "polygon/reference_options_contracts_NDX_20250610.json").read_bytes()
    payload = orjson.loads(body)
    parsed = parse_page(body, NDX, what="contracts")
    assert not parsed.dropped
    assert parsed.next_url == payload["next_url"]
    frame = rows_of(body)
    assert frame.height == len(payload["results"])
    for raw, row in zip(payload["results"], frame.iter_rows(named=True), strict=True):
        assert row["vendor_symbol"] == row["raw_symbol"] == raw["ticker"]
        assert row["strike"] == raw["strike_price"]
        assert row["multiplier"] == raw["shares_per_contract"]
        assert row["exercise_style"] == raw["exercise_style"]
        assert row["expiration_date"].isoformat() == raw["expiration_date"]
        assert row["option_type"] == {"put": "P", "call": "C"}[raw["contract_type"]]
        assert row["underlying"] == raw["underlying_ticker"]
        nulls = {name for name, value in row.items() if value is None}
        # A contract has no price of any kind; nothing else is null.
        assert nulls == {
            "underlying_price",
            "bid",
            "bid_size",
            "ask",
            "ask_size",
            "quote_ts",
            "last",
            "last_ts",
            "settlement",
            "settlement_date",
            "open",
            "high",
            "low",
            "change",
            "volume",
            "open_interest",
            "implied_volatility",
            "delta",
            "gamma",
            "theta",
            "vega",
            "instrument_id",
        }


def test_the_published_greeks_are_black_scholes(shared: Path) -> None:
    body = (shared / "polygon/sdkmock_snapshot_options_chain_AAPL.json").read_bytes()
    assert parse_page(body, NDX, what="a page").dropped == {"unknown_symbol": 1}
    raw = orjson.loads(body)["results"][0]
    row = rows_of(body.replace(b"O:AAPL", b"O:NDX")).row(0, named=True)
    assert [row[n] for n in ("bid", "bid_size", "ask", "ask_size")] == [28.9, 294, 29.25, 209]
    assert (row["last"], row["open_interest"], row["underlying_price"]) == (29.25, 8133, 159.9606)
    assert row["volume"] is None  # its day bar is of 2022
    spot, strike, sigma = row["underlying_price"], row["strike"], row["implied_volatility"]
    years = (datetime(2023, 6, 16, 20, tzinfo=UTC) - row["quote_ts"]).total_seconds() / (365 * 86_400)
    rate = 0.004  # the one that reproduces delta
    d1 = (math.log(spot / strike) + (rate + sigma**2 / 2) * years) / (sigma * math.sqrt(years))
    density = math.exp(-d1 * d1 / 2) / math.sqrt(2 * math.pi)

    def cdf(x: float) -> float:
        return (1 + math.erf(x / math.sqrt(2))) / 2

    carry = rate * strike * math.exp(-rate * years) * cdf(d1 - sigma * math.sqrt(years))
    assert row["delta"] == raw["greeks"]["delta"] == pytest.approx(cdf(d1), rel=0.005)
    assert row["gamma"] == pytest.approx(density / (spot * sigma * math.sqrt(years)), rel=0.01)
    assert row["vega"] == pytest.approx(spot * density * math.sqrt(years), rel=0.01)
    assert row["theta"] == pytest.approx(
        -(spot * density * sigma / (2 * math.sqrt(years)) + carry) / 365, rel=0.01
    )


def test_pages_of_the_vendors_own_tests_parse(shared: Path) -> None:
    for name in ("sdkmock_reference_contracts_page1.json", "sdkmock_reference_contracts_page2.json"):
        parsed = parse_page((shared / "polygon" / name).read_bytes(), NDX, what="contracts")
        assert parsed.rows.is_empty()
        assert parsed.dropped == {"unknown_symbol": 10}  # they are on another underlying
    indices = (shared / "polygon/sdkmock_snapshot_indices_entitlement_errors.json").read_bytes()
    assert parse_page(indices, NDX, what="indices").dropped == {
        "vendor_error": 1,
        "vendor_not_entitled": 1,
        "malformed_row": 1,
    }
    single = (shared / "polygon/sdkmock_snapshot_option_contract_AAPL.json").read_bytes()
    with pytest.raises(BadPayload):
        parse_page(single, NDX, what="one contract")  # an object where a list of results belongs


def test_observed_refusals_are_entitlements(shared: Path) -> None:
    for seen in orjson.loads((shared / "polygon/errors_observed_verbatim.json").read_bytes()):
        reply = Reply("snapshot", seen["http_status"], {}, orjson.dumps(seen["body"]), 0, "", "", False, "")
        assert isinstance(error_of_reply(reply), NotEntitled)
        assert seen["body"]["message"] in str(error_of_reply(reply))
