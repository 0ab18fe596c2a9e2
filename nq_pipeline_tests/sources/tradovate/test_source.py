"""What Tradovate's bodies and frames mean, and what becomes of those that mean nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.errors import BadPayload, NotEntitled, RateLimited, SourceError, Unavailable
from nq_pipeline.market.contracts import Series
from nq_pipeline.sources.tradovate.parse import (
    error_of_reply,
    parse_contract_id,
    parse_contracts,
    parse_maturities,
    parse_product,
    read_token,
)
from nq_pipeline.sources.tradovate.source import select_nearest
from nq_pipeline.sources.tradovate.transcript import QUOTES, Transcript
from nq_pipeline.transport.vendor_session import Reply

SERIES = Series("Q1B", date(2025, 7, 1))


def frames(*messages: Any, ours: tuple[int, ...] = (7, 900)) -> bytes:
    """A transcript of subscriptions to these contracts and then these messages."""
    said = [f">subscribe {100 + n} {contract_id}".encode() for n, contract_id in enumerate(ours)]
    return b"\n".join([*said, *(b"a" + orjson.dumps([message]) for message in messages)])


def update(entries: Any, *, contract_id: Any = 7, at: Any = "2025-06-10T15:00:00.000Z") -> dict[str, Any]:
    return {"e": "md", "d": {"quotes": [{"timestamp": at, "contractId": contract_id, "entries": entries}]}}


def row_of(*messages: Any) -> dict[str, Any]:
    return Transcript.read(frames(*messages)).frame().row(0, named=True)


def reply(body: Any, status: int = 200) -> Reply:
    return Reply(
        "question", status, {}, body if isinstance(body, bytes) else orjson.dumps(body), 0, "", "", False, ""
    )


# Quotes


def test_partial_updates_are_merged_and_the_newest_wins() -> None:
    row = row_of(
        update({"Bid": {"price": 10.0, "size": 5}, "Offer": {"price": 11.0}}),
        update({"Bid": {"price": 10.25}, "Offer": {"size": 3}}, at="2025-06-10T15:00:01.500Z"),
        update({"OpenInterest": {"size": 99}, "Trade": {"price": 10.5, "size": 2}}, at="2025-06-10T14:00Z"),
    )
    assert (row["bid"], row["bid_size"], row["ask"], row["ask_size"]) == (10.25, 5, 11.0, 3)
    assert (row["last"], row["open_interest"], row["volume"]) == (10.5, 99, None)
    assert row["quote_ts"] == datetime(2025, 6, 10, 15, 0, 1, 500_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"Bid": {"price": 10.0, "size": 1.5}}, {"fractional_size": 1}),
        ({"Bid": {"price": 10.0, "size": 2.0}}, {}),
        ({"Bid": {"price": "10"}}, {"malformed_cell": 1}),
        ({"Bid": {"price": True}}, {"malformed_cell": 1}),
        ({"Bid": {"price": 10.0, "size": -1}}, {"malformed_cell": 1}),
        ({"OpenInterest": 7}, {"malformed_cell": 1}),
        ({"OpenInterest": {}}, {}),
        ({"SomethingNew": {"price": 1}}, {}),
    ],
)
def test_a_bad_cell_costs_that_cell_and_is_counted(entries: Any, expected: dict[str, int]) -> None:
    transcript = Transcript.read(frames(update({"Trade": {"price": 4.0}}), update(entries)))
    assert transcript.dropped == expected
    assert transcript.frame()["last"].to_list() == [4.0]


def test_a_time_needs_a_zone_but_no_seconds() -> None:
    assert row_of(update({}, at="2025-06-10T15:00Z"))["quote_ts"] == datetime(2025, 6, 10, 15, tzinfo=UTC)
    for bad in ("2025-06-10T15:00", "soon", 7, "0001-01-01T00:00Z", "9999-12-31T23:59:59-23:59"):
        transcript = Transcript.read(frames(update({}, at=bad)))
        assert transcript.frame()["quote_ts"].to_list() == [None]
        assert transcript.dropped == {"malformed_cell": 1}


def test_a_price_of_zero_is_no_price() -> None:
    row = row_of(update({"Bid": {"price": 0, "size": 0}, "Offer": {"price": 0.05, "size": 9}}))
    assert (row["bid"], row["bid_size"], row["ask"], row["ask_size"]) == (None, None, 0.05, 9)
    quoted = {"Trade": {"price": 0}, "Bid": {"price": 10}, "Offer": {"price": 11}}
    number = row_of(update({}))["contract_id"]
    assert Transcript.read(frames(update(quoted))).price(number) == 10.5
    assert Transcript.read(frames(update(quoted | {"Bid": {"price": 0}}))).price(number) is None


def test_refusals_limits_and_ends_are_told_apart() -> None:
    refused = Transcript.read(b'a[{"s":404,"i":3,"d":"\\"Not found: quote/subscribe\\""}]')
    assert str(refused.refused[3]) == 'Tradovate refuses (404) ("Not found: quote/subscribe")'
    denied = Transcript.read(frames({"s": 401, "i": 1, "d": '"Access is denied"'}))
    assert isinstance(denied.refused[1], NotEntitled)
    assert not denied.authorized
    business = Transcript.read(frames({"s": 200, "i": 2, "d": {"errorText": "Symbol is inaccessible"}}))
    assert "Symbol is inaccessible" in str(business.refused[2])
    assert isinstance(Transcript.read(frames({"s": 429, "i": 2})).error, RateLimited)
    assert isinstance(
        Transcript.read(frames({"e": "shutdown", "d": {"reasonCode": "IPQuotaReached"}})).error, RateLimited
    )
    assert isinstance(
        Transcript.read(frames({"e": "shutdown", "d": {"reasonCode": "Maintenance"}})).error, Unavailable
    )
    assert isinstance(Transcript.read(b'c[3000,"Go away!"]').error, Unavailable)
    assert Transcript.read(b"o\nh\nh").error is None


def test_our_own_lines_say_what_was_subscribed() -> None:
    transcript = Transcript.read(b'>subscribe 2 900\n>subscribe 3 7\na[{"s":200,"i":2}]')
    assert transcript.subscribed == {2: 900, 3: 7}
    assert transcript.waiting


def test_a_subscription_waits_until_quoted_or_refused() -> None:
    said = b'>subscribe 2 900\na[{"s":200,"i":2}]\n'
    assert Transcript.read(said).waiting
    assert not Transcript.read(
        said + b'a[{"e":"md","d":{"quotes":[{"contractId":900,"entries":{}}]}}]'
    ).waiting
    assert not Transcript.read(b'>subscribe 2 900\na[{"s":404,"i":2}]').waiting


def test_documented_and_observed_frames_are_understood(shared: Path) -> None:
    recorded = orjson.loads((shared / "tradovate/frames_and_bodies.json").read_bytes())
    observed = Transcript.read("\n".join(recorded["observed"][0]["frames"]).encode())
    assert (observed.answered, list(observed.refused), observed.dropped) == ({0, 1}, [1], {})
    quote = next(entry for entry in recorded["documented"] if "message" in entry)["message"]
    raw = quote["d"]["quotes"][0]
    transcript = Transcript.read(frames(quote, ours=(raw["contractId"],)))
    row = transcript.frame().row(0, named=True)
    assert row["contract_id"] == raw["contractId"]
    assert row["quote_ts"] == datetime(2021, 4, 13, 4, 59, 6, 588_000, tzinfo=UTC)
    entries = raw["entries"]
    prices = {"bid": "Bid", "ask": "Offer", "last": "Trade", "open": "OpeningPrice", "high": "HighPrice",
              "low": "LowPrice", "settlement": "SettlementPrice"}  # fmt: skip
    assert {name: row[name] for name in prices} == {
        name: entries[entry]["price"] for name, entry in prices.items()
    }
    # The documentation's sizes are all fractions, which no exchange has: null, and counted.
    assert [row[name] for name in ("bid_size", "ask_size", "volume", "open_interest")] == [None] * 4
    assert transcript.dropped == {"fractional_size": 4}
    limited = next(entry for entry in recorded["documented"] if "ws_429" in entry)["ws_429"]
    assert Transcript.read(b"a" + orjson.dumps([{**limited[0], "i": 5}])).error is not None


def test_documented_business_errors_are_refusals(shared: Path) -> None:
    recorded = orjson.loads((shared / "tradovate/frames_and_bodies.json").read_bytes())["documented"]
    errors = next(entry for entry in recorded if "business_errors_http_200" in entry)[
        "business_errors_http_200"
    ]
    assert [type(error_of_reply(reply(body))) for body in errors] == [Unavailable, BadPayload]
    dependents = next(entry for entry in recorded if "contract-dependents" in entry["source"])["body"]
    contracts, dropped = parse_contracts(orjson.dumps(dependents), SERIES)
    assert contracts.is_empty()
    assert dropped == {"unknown_symbol": 1}


# The library


@pytest.mark.parametrize(
    "name",
    ["Q1BN5 C21330", "q1bn5 c21330", " Q1BN5  C 21330 ", "Q1BN5C21330", "Q1BN25 C21330", "Q1BN5 C21330.0"],
)
def test_spacing_case_and_year_of_a_name_are_free(name: str) -> None:
    contracts, dropped = parse_contracts(orjson.dumps([{"id": 1, "name": name}]), SERIES)
    assert dropped == {}
    row = contracts.row(0, named=True)
    assert (row["contract_id"], row["name"], row["option_type"], row["strike"]) == (1, name, "C", 21330.0)
    assert row["series"] == SERIES.key


def test_contracts_of_other_series_are_counted_by_reason() -> None:
    listed = [
        {"id": 1, "name": "Q1BN5 C21330"},
        {"id": 2, "name": "Q1BQ5 C21330"},
        {"id": 3, "name": "Q2BN5 C21330"},
        {"id": 4, "name": "D1BN5 C21330"},
        {"id": 5, "name": "NQM5"},
        {"id": "?", "name": "Q1BN5 P21330"},
        {"id": 6, "name": None},
        7,
        {"id": 8, "name": "Q1BN5 C0"},
    ]
    contracts, dropped = parse_contracts(orjson.dumps(listed), SERIES)
    assert contracts["contract_id"].to_list() == [1]
    assert dropped == {"other_series": 3, "unknown_symbol": 2, "malformed_row": 3, "malformed_cell": 1}


def test_a_maturity_may_mean_the_day_in_utc_or_in_chicago() -> None:
    body = orjson.dumps(
        [
            {"id": 1, "expirationMonth": 202507, "expirationDate": "2025-07-02T00:30Z"},
            {"id": 2, "expirationMonth": 202508, "expirationDate": "later"},
            {"id": None, "expirationMonth": 202509},
        ]
    )
    maturities, _ = parse_maturities(body)
    assert maturities["maturity_id"].to_list() == [1, 2]
    assert maturities["days"].to_list() == [[date(2025, 7, 2), date(2025, 7, 1)], []]


def test_a_token_without_market_data_opens_the_socket() -> None:
    token = read_token({"accessToken": "abc-secret", "expirationTime": "2025-06-10T16:20Z"})
    assert (token.access, token.market_data) == ("abc-secret", "abc-secret")
    assert token.expires == datetime(2025, 6, 10, 16, 20, tzinfo=UTC)
    assert "abc-secret" not in repr(token)
    with pytest.raises(BadPayload):
        read_token({"userStatus": "Active"})


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, {"errorText": "Access is denied"}, NotEntitled),
        (200, {"errorText": "Too many requests"}, RateLimited),
        (200, {"errorText": "Something"}, Unavailable),
        (200, {"id": 1}, None),
        (200, [], None),
        (423, b"", RateLimited),
        (429, b"", RateLimited),
        (401, b"", NotEntitled),
        (502, b"", Unavailable),
        (400, b"", BadPayload),
    ],
)
def test_what_a_status_and_an_error_text_mean(status: int, body: Any, kind: type[SourceError] | None) -> None:
    assert type(error_of_reply(reply(body, status))) is (kind or type(None))


# Which contracts are asked for


def board(series: str, strikes: list[float], first: int) -> pl.DataFrame:
    sides = ["C", "P"] * len(strikes)
    each = [strike for strike in strikes for _ in "CP"]
    ids = range(first, first + len(each))
    return pl.DataFrame({"contract_id": ids, "series": series, "option_type": sides, "strike": each})


@given(
    st.lists(st.integers(1, 500).map(float), min_size=1, max_size=30, unique=True),
    st.lists(st.integers(1, 500).map(float), min_size=1, max_size=30, unique=True),
    st.none() | st.floats(1, 500),
    st.integers(0, 200),
)
def test_subscriptions_are_spread_evenly_and_nearest_the_money(
    here: list[float], there: list[float], price: float | None, limit: int
) -> None:
    contracts = pl.concat([board("a", here, 0), board("b", there, 1000)])
    chosen = select_nearest(contracts, {"a": price, "b": None}, limit)
    assert len(chosen) == len(set(chosen)) == min(limit, contracts.height)
    counts = {"a": sum(n < 1000 for n in chosen), "b": sum(n >= 1000 for n in chosen)}
    sizes = {"a": 2 * len(here), "b": 2 * len(there)}
    if all(counts[name] < sizes[name] for name in counts):
        assert abs(counts["a"] - counts["b"]) <= 1
    if price is not None:
        taken = contracts.filter(pl.col("contract_id").is_in(chosen), pl.col("series") == "a")["strike"]
        left = contracts.filter(~pl.col("contract_id").is_in(chosen), pl.col("series") == "a")["strike"]
        if len(taken) and len(left):
            assert max(abs(s - price) for s in taken) <= min(abs(s - price) for s in left)


# Whatever comes


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | st.sampled_from(["md", "shutdown", "2025-06-10T15:00Z", "Q1BN5 C21330"])
)
FRAME_NAMES = [
    "e",
    "d",
    "s",
    "i",
    "quotes",
    "contractId",
    "entries",
    "timestamp",
    "Bid",
    "Trade",
    "price",
    "size",
]
BODY_NAMES = ["id", "name", "productType", "expirationMonth", "expirationDate", "errorText"]
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*FRAME_NAMES, *BODY_NAMES]), inner, max_size=5)
    ),
    max_leaves=15,
)
ENTRIES = st.dictionaries(st.sampled_from(["Bid", "Offer", "Trade", "OpenInterest"]), JSON, max_size=4)
UPDATES = st.builds(
    lambda entries, number, at: [update(entries, contract_id=number, at=at)], ENTRIES, JSON, JSON
)
LINES = (
    (UPDATES | JSON).map(lambda value: "a" + orjson.dumps(value).decode())
    | st.text(max_size=30)
    | st.text(max_size=10).map(lambda text: f">subscribe {text}")
)


@given(st.lists(LINES, max_size=6))
def test_any_transcript_can_be_read(lines: list[str]) -> None:
    transcript = Transcript.read("\n".join(lines).encode(errors="replace"))
    frame = transcript.frame()
    assert frame.schema == QUOTES
    assert frame["contract_id"].is_unique().all()
    for name in ("bid", "ask", "last"):
        assert frame[name].is_finite().all()
    for name in ("bid_size", "open_interest"):
        assert (frame[name].drop_nulls() >= 0).all()


@given(st.binary(max_size=200))
def test_any_bytes_can_be_read_as_a_transcript(transcript: bytes) -> None:
    assert Transcript.read(transcript).frame().schema == QUOTES


@given(JSON.map(orjson.dumps) | st.binary(max_size=60))
@pytest.mark.parametrize(
    "parse", [parse_product, parse_maturities, parse_contract_id, lambda b: parse_contracts(b, SERIES)]
)
def test_any_body_of_the_library_is_read_or_a_typed_error(parse: Any, body: bytes) -> None:
    error = error_of_reply(reply(body))
    if error is None:
        try:
            parse(body)
        except SourceError as unread:
            error = unread
    assert error is None or str(error)
