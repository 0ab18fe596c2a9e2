"""Whatever a Barchart answer holds: a typed error, or rows and counts that add up."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from nq_pipeline.errors import BadPayload
from nq_pipeline.market.contracts import Series
from nq_pipeline.sources.barchart.page import parse_page
from nq_pipeline.sources.barchart.parse import parse_chain, parse_futures
from nq_pipeline_tests.testing import barchart_boards
from nq_pipeline_tests.testing.barchart_boards import chain, quote, settled, traded

SERIES, CODE, TODAY = Series("Q2C", date(2025, 6, 11)), "MC2M5", date(2025, 6, 10)
COLUMNS = parse_chain(chain(barchart_boards.board(CODE)), SERIES, CODE, trade_date=TODAY).rows.schema

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["N/A", "unch", "-", "1,069", "7,534.38s", "539-4", "1e400", "NaN", "MC2M5|1C", "9" * 40]
    )
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A healthy answer in which a few nodes, anywhere, became something else or went missing."""
    document = json.loads(
        chain(barchart_boards.board(CODE), group=draw(st.sampled_from(["optionType", "strikePrice", None])))
    )
    for _ in range(draw(st.integers(1, 4))):
        if not (places := list(_places(document))):
            break  # nothing is left of it
        holder, key = draw(st.sampled_from(places))
        if isinstance(holder, dict) and draw(st.booleans()):
            holder.pop(key)
        else:
            holder[key] = draw(anything)
    return json.dumps(document).encode()


def _places(node: Any) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key
        yield from _places(value)


def check(body: bytes) -> None:
    try:
        board = parse_chain(body, SERIES, CODE, trade_date=TODAY)
    except BadPayload:
        return
    if not board.seen:
        return
    assert dict(board.rows.schema) == dict(COLUMNS)
    rows_lost = board.dropped.total() - board.dropped["malformed_cell"]
    assert board.rows.height + rows_lost == board.seen
    assert board.rows["contract_key"].is_duplicated().sum() == 0
    for name in ("contract_key", "vendor_symbol", "raw_symbol", "strike", "option_type", "is_settlement"):
        assert board.rows[name].null_count() == 0
    assert all(board.rows.select(pl.col(pl.Float64).is_finite().all()).row(0))
    assert board.rows.select(
        (pl.col("last").is_null() | pl.col("settlement").is_null()).all(),
        (pl.col("volume").is_null() | (pl.col("volume") >= 0)).all(),
    ).row(0) == (True, True)
    board.rows.select(pl.col("volume", "open_interest").cast(pl.Int64))


@given(spoilt())
def test_a_spoilt_answer_gives_an_error_or_full_counts(body: bytes) -> None:
    check(body)


@given(spoilt(), st.data())
def test_a_damaged_body_gives_an_error_or_full_counts(body: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(body)))
    insert = data.draw(st.binary(max_size=6))
    check(body[:at] + insert + body[at + data.draw(st.integers(0, 6)) :])


@given(st.binary(max_size=200) | anything.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_and_json_never_crash_a_parser(body: bytes) -> None:
    for parse in (lambda: check(body), lambda: parse_futures(body, ["NQM25"], trade_date=TODAY)):
        try:
            parse()
        except BadPayload:
            continue
    parse_page(body)


@pytest.mark.parametrize("shape", ["[{}]", '{{"data":{}}}', '{{"ignored":{},"data":[]}}'])
@pytest.mark.parametrize("depth", [1_000, 300_000])
def test_deeply_nested_json_never_crashes_a_parser(shape: str, depth: int) -> None:
    check(shape.format("[" * depth + "]" * depth).encode())


@pytest.mark.parametrize("body", ["null", "{}null", "{} \n null {}", '{"data":{}}}null{'])
def test_a_null_document_never_crashes_a_parser(body: str) -> None:
    with pytest.raises(BadPayload):
        parse_chain(body.encode(), SERIES, CODE, trade_date=TODAY)


prices = st.integers(1, 40_000_000).map(lambda hundredths: hundredths / 100)
counts = st.none() | st.integers(1, 10**9)


@st.composite
def regular(draw: st.DrawFn) -> list[barchart_boards.Row]:
    """A board of any values in the site's own shape."""
    contracts = draw(
        st.lists(
            st.tuples(st.integers(1, 99_999), st.sampled_from("CP")), min_size=1, max_size=8, unique=True
        )
    )
    rows = []
    for strike, side in contracts:
        values = {
            "bid": draw(st.none() | prices),
            "ask": draw(st.none() | prices),
            "change": draw(st.none() | prices | prices.map(lambda price: -price)),
            "open_interest": draw(counts),
        }
        last = draw(prices)
        if draw(st.booleans()):
            rows.append(traded(CODE, strike, side, last=last, volume=draw(st.integers(1, 10**6)), **values))
        else:
            rows.append(settled(CODE, strike, side, last=last, **values))
    return rows


@given(regular())
def test_every_value_of_a_regular_board_arrives(rows: list[barchart_boards.Row]) -> None:
    board = parse_chain(chain(rows), SERIES, CODE, trade_date=TODAY)
    assert not board.dropped
    got = {row["vendor_symbol"]: row for row in board.rows.iter_rows(named=True)}
    assert len(got) == len(rows)
    for row in rows:
        mine, raw = got[row["symbol"]], row["raw"]
        price = "settlement" if row["lastPrice"].endswith("s") else "last"
        assert mine[price] == raw["lastPrice"]
        assert mine["bid"] == (None if row["bidPrice"] == "N/A" else raw["bidPrice"])
        assert mine["ask"] == (None if row["askPrice"] == "N/A" else raw["askPrice"])
        assert mine["change"] == (None if row["priceChange"] == "N/A" else raw["priceChange"])
        assert (mine["volume"], mine["open_interest"]) == (raw["volume"], raw["openInterest"])


@given(regular())
def test_one_irregular_row_changes_nothing_for_the_others(rows: list[barchart_boards.Row]) -> None:
    odd = quote(CODE, 100_000, "C") | {"symbol": 7, "bidPrice": ["?"]}
    alone = parse_chain(chain(rows), SERIES, CODE, trade_date=TODAY).rows.sort("contract_key")
    beside = parse_chain(chain([*rows, odd]), SERIES, CODE, trade_date=TODAY)
    assert beside.dropped["unknown_symbol"] == 1
    assert_frame_equal(beside.rows.sort("contract_key"), alone)


@given(st.text(max_size=300), st.text(max_size=30))
def test_a_page_of_any_text_is_read_as_far_as_it_goes(text: str, inner: str) -> None:
    html = barchart_boards.page("MC2M25", "06/11/25", put=8, call=8).decode()
    for damaged in (
        text,
        html.replace("06/11/25", inner),
        html.replace("8<", f"{inner}<"),
        html[: len(text)],
    ):
        parse_page(damaged.encode("utf-8", "surrogatepass"))
